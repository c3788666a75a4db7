-- Schema 3 of the PostgreSQL store: which route an event is about.

-- Of a recipient that was rerouted the new one; of a next hop that was paused or answers again its name. Those events belong to no
-- message: their `message` is -1, and they lie in a partition of their own, which goes by row.
ALTER TABLE outmail.event ADD COLUMN route text;
CREATE TABLE outmail.event_hops PARTITION OF outmail.event FOR VALUES FROM (MINVALUE) TO (0) WITH (fillfactor = 80);
CREATE UNIQUE INDEX ON outmail.event_hops (cursor) WHERE cursor IS NOT NULL;
