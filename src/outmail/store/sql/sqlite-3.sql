-- Schema 3 of the SQLite store: which route an event is about.

-- Of a recipient that was rerouted the new one; of a next hop that was paused or answers again its name. Those events belong to no
-- message: their `message` is -1.
ALTER TABLE event ADD COLUMN route TEXT;
