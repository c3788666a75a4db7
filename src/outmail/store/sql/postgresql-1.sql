-- Schema 1 of the PostgreSQL store, in the schema `outmail`. Times are milliseconds UTC. The columns are those of SQLite's;
-- a test compares the CHECK with `lifecycle.STATES`.

CREATE TABLE outmail.version (n integer NOT NULL);
INSERT INTO outmail.version VALUES (0);

CREATE TABLE outmail.message (
    seq         bigint   PRIMARY KEY,
    id          text     NOT NULL UNIQUE,
    sender      text     NOT NULL,
    message_id  text     NOT NULL,
    subject     text     NOT NULL,
    size        bigint   NOT NULL,
    sha256      bytea    NOT NULL,
    needs       integer  NOT NULL,
    priority    smallint NOT NULL,
    accepted_at bigint   NOT NULL,
    expires_at  bigint   NOT NULL,
    key         text,
    tag         text,
    dsn         text,
    upload      text
);
CREATE SEQUENCE outmail.message_seq OWNED BY outmail.message.seq;
CREATE INDEX message_upload ON outmail.message (upload) WHERE upload IS NOT NULL;

-- Mail hardly compresses well enough to be worth the time.
CREATE TABLE outmail.body (
    seq     bigint PRIMARY KEY,
    content bytea  NOT NULL
);
ALTER TABLE outmail.body ALTER COLUMN content SET STORAGE EXTERNAL;
ALTER TABLE outmail.body SET (toast_tuple_target = 8160);

CREATE TABLE outmail.chunk (
    upload   text    NOT NULL,
    n        integer NOT NULL,
    added_at bigint  NOT NULL,
    content  bytea   NOT NULL,
    PRIMARY KEY (upload, n)
);
ALTER TABLE outmail.chunk ALTER COLUMN content SET STORAGE EXTERNAL;

-- One address of one message: the row that owns the state. What is final moves to a partition of its own by the update that
-- makes it final, so the live one stays as small as the queue.
CREATE TABLE outmail.recipient (
    message     bigint   NOT NULL,
    n           integer  NOT NULL,
    address     text     NOT NULL,
    destination text     NOT NULL,
    priority    smallint NOT NULL,
    state       text     NOT NULL CHECK (state IN ('queued', 'sending', 'held', 'failed', 'cancelled', 'delivered')),
    due         bigint,
    expires_at  bigint   NOT NULL,
    not_before  bigint   NOT NULL DEFAULT 0,
    uncertain   smallint NOT NULL DEFAULT 0,
    losses      integer  NOT NULL DEFAULT 0,
    wish        text,
    attempts    integer  NOT NULL DEFAULT 0,
    reason      text     NOT NULL DEFAULT '',
    attempt     bigint,
    owner       bigint,
    lease       bigint,
    leased_at   bigint,
    finished_at bigint,
    CHECK ((state = 'sending') = (owner IS NOT NULL))
) PARTITION BY LIST (state);
CREATE TABLE outmail.recipient_live PARTITION OF outmail.recipient FOR VALUES IN ('queued', 'sending', 'held')
    WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0,
          autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000);
CREATE TABLE outmail.recipient_done PARTITION OF outmail.recipient FOR VALUES IN ('failed', 'cancelled', 'delivered') PARTITION BY RANGE (message);
CREATE UNIQUE INDEX recipient_live_key  ON outmail.recipient_live (message, n);
CREATE UNIQUE INDEX recipient_done_key  ON outmail.recipient_done (message, n);
CREATE INDEX recipient_ready   ON outmail.recipient_live (destination, priority, due, message, n) WHERE state = 'queued' AND losses = 0;
CREATE INDEX recipient_suspect ON outmail.recipient_live (due) WHERE state = 'queued' AND losses > 0;
CREATE INDEX recipient_leased  ON outmail.recipient_live (owner) WHERE state = 'sending';
CREATE INDEX recipient_expiry  ON outmail.recipient_live (expires_at) WHERE state IN ('queued', 'held');

-- Every destination there ever was: asking `recipient_ready` for them would walk over all that a long foreign transaction keeps from
-- being cleaned up.
CREATE TABLE outmail.destination (name text PRIMARY KEY);

CREATE TABLE outmail.attempt (
    id          bigint  NOT NULL,
    message     bigint  NOT NULL,
    at          bigint  NOT NULL,
    route       text    NOT NULL,
    host        text    NOT NULL,
    duration_ms bigint  NOT NULL,
    outcome     text    NOT NULL,
    code        integer NOT NULL,
    enhanced    text    NOT NULL,
    text        text    NOT NULL,
    recipients  text    NOT NULL,
    transcript  text,
    PRIMARY KEY (message, id)
) PARTITION BY RANGE (message);
CREATE SEQUENCE outmail.attempt_seq OWNED BY outmail.attempt.id;

-- What happened. `cursor` is given after the commit, in one place at a time (see postgres.verbs.number_events), so that whoever reads on from a
-- cursor never misses a transaction that committed late, and waits for nobody's.
CREATE SEQUENCE outmail.event_seq;
CREATE TABLE outmail.event (
    id        bigint   NOT NULL DEFAULT nextval('outmail.event_seq'),
    cursor    bigint,
    at        bigint   NOT NULL,
    event     text     NOT NULL,
    message   bigint   NOT NULL,
    n         integer,
    state     text     NOT NULL,
    uncertain smallint NOT NULL,
    reason    text     NOT NULL,
    attempts  integer  NOT NULL,
    attempt   bigint
) PARTITION BY RANGE (message);
ALTER SEQUENCE outmail.event_seq OWNED BY outmail.event.id;
CREATE INDEX event_unnumbered ON outmail.event (id) WHERE cursor IS NULL;
CREATE INDEX event_message ON outmail.event (message);

-- What finished messages leave behind lies in partitions by periods (store/postgres/partitions.py): the number of a message says in which one it was
-- accepted, and all of a period is dropped together.
CREATE TABLE outmail.period (
    n        bigint  PRIMARY KEY,
    began_at bigint  NOT NULL,
    dropped  boolean NOT NULL DEFAULT false -- its partitions are gone, its messages go page by page
);
CREATE FUNCTION outmail.open_period(n bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    name text;
BEGIN
    -- made beside and attached, so that nobody who writes has to wait
    FOREACH name IN ARRAY ARRAY['recipient_done', 'attempt', 'event'] LOOP
        EXECUTE format('CREATE TABLE outmail.%1$s_%2$s (LIKE outmail.%1$s INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name, n);
        EXECUTE format('ALTER TABLE outmail.%1$s ATTACH PARTITION outmail.%1$s_%2$s FOR VALUES FROM (%3$s) TO (%4$s)', name, n, n << 32, (n + 1) << 32);
    END LOOP;
    EXECUTE format('ALTER TABLE outmail.event_%s SET (fillfactor = 80)', n);
    EXECUTE format('CREATE UNIQUE INDEX ON outmail.event_%s (cursor) WHERE cursor IS NOT NULL', n);
    INSERT INTO outmail.period VALUES (n, extract(epoch FROM clock_timestamp()) * 1000);
END
$$;
SELECT outmail.open_period(0);

CREATE TABLE outmail.numbering (one boolean);
INSERT INTO outmail.numbering VALUES (true);

-- Engines. Alive = renewed within the lease, by the server's clock; on the engine's own host also by a locked file.
CREATE TABLE outmail.owner (
    id         bigint      GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    uuid       text        NOT NULL UNIQUE,
    pid        integer     NOT NULL,
    host       text        NOT NULL,
    boot       text        NOT NULL,
    started_at bigint      NOT NULL,
    renewed_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

CREATE TABLE outmail.note (
    kind    text    NOT NULL,
    key     text    NOT NULL,
    value   text    NOT NULL,
    version integer NOT NULL,
    PRIMARY KEY (kind, key)
) WITH (fillfactor = 50);

-- JSON rows of numbers, as statements take a whole batch of keys. ROWS 1 and no SQL that could be merged into the caller's: whatever the planner knows of
-- the tables or not, it then looks each row up by its key. Otherwise a table that has not been analysed yet was read whole for each batch, or for each row.
CREATE FUNCTION outmail.batch(keys json) RETURNS TABLE (a bigint, b bigint, c bigint, d bigint, e bigint) LANGUAGE sql VOLATILE ROWS 1 AS $$
    SELECT (value ->> 0)::bigint, (value ->> 1)::bigint, (value ->> 2)::bigint, (value ->> 3)::bigint, (value ->> 4)::bigint FROM json_array_elements(keys)
$$;

-- Acceptance in one statement (`verbs.add`): one message with its body, its recipients and their events; returns its number.
-- people: JSON [[address, destination, reason why it is not sent or ""], …]; taken_by and taken_as: the engine that leases it at once, and under
-- what number.
CREATE FUNCTION outmail.accept(
    id text, sender text, message_id text, subject text, size bigint, sha256 bytea, needs integer, priority smallint, accepted_at bigint,
    expires_at bigint, key text, tag text, dsn text, upload text, content bytea, due bigint, not_before bigint, people text, taken_by bigint, taken_as bigint
) RETURNS bigint LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    seq bigint := nextval('outmail.message_seq');
    everybody jsonb := people::jsonb;
    person jsonb;
    route text;
    known text;
    why text;
BEGIN
    INSERT INTO outmail.message VALUES (
        seq, id, sender, message_id, subject, size, sha256, needs, priority, accepted_at, expires_at, key, tag, dsn, upload
    );
    IF upload IS NULL THEN
        INSERT INTO outmail.body VALUES (seq, content);
    END IF;
    INSERT INTO outmail.event (at, event, message, n, state, uncertain, reason, attempts, attempt) VALUES (accepted_at, 'accepted', seq, NULL, 'queued', 0, '', 0, NULL);
    FOR n IN 1 .. jsonb_array_length(everybody) LOOP -- expressions, not a query: those are dear in plpgsql
        person := everybody -> n - 1;
        route := person ->> 1;
        why := person ->> 2;
        IF why = '' THEN
            INSERT INTO outmail.recipient_live (message, n, address, destination, priority, state, due, expires_at, not_before, owner, lease, leased_at)
            VALUES (seq, n, person ->> 0, route, priority, CASE WHEN taken_by IS NULL THEN 'queued' ELSE 'sending' END, due, expires_at, not_before, taken_by, taken_as,
                    CASE WHEN taken_by IS NOT NULL THEN accepted_at END);
        ELSE
            INSERT INTO outmail.recipient_done (message, n, address, destination, priority, state, expires_at, reason, finished_at)
            VALUES (seq, n, person ->> 0, route, priority, 'failed', expires_at, why, accepted_at);
            INSERT INTO outmail.event (at, event, message, n, state, uncertain, reason, attempts, attempt) VALUES (accepted_at, 'suppress', seq, n, 'failed', 0, why, 0, NULL);
        END IF;
        IF route IS DISTINCT FROM known THEN
            known := route;
            IF NOT EXISTS (SELECT 1 FROM outmail.destination d WHERE d.name = route) THEN
                INSERT INTO outmail.destination VALUES (route) ON CONFLICT DO NOTHING;
            END IF;
        END IF;
    END LOOP;
    RETURN seq;
END
$$;
