-- Schema 2 of the SQLite store: loopback copies.

-- One for each transaction that had a copy. What has come home before its sending is on record has no outcome yet.
CREATE TABLE loopback (
    message    INTEGER NOT NULL,
    owner      INTEGER NOT NULL, -- with lease and part the transaction, as its token says
    lease      INTEGER NOT NULL,
    part       INTEGER NOT NULL,
    at         INTEGER NOT NULL, -- when it was first heard of
    route      TEXT    NOT NULL DEFAULT '',
    host       TEXT    NOT NULL DEFAULT '',
    recipients TEXT    NOT NULL DEFAULT '[]', -- a JSON list of n: whom the transaction was for
    outcome    TEXT    NOT NULL DEFAULT '',   -- delivered, unknown, presumed (which transaction it was is not on record), or ''
    sent_at    INTEGER,
    home_at    INTEGER,
    hops       TEXT,                          -- a JSON list of [name, ms or null], in the order of travel
    genuine    INTEGER NOT NULL DEFAULT 0,    -- 1 when it came home with the Message-ID that it was sent with
    late       INTEGER NOT NULL DEFAULT 0,    -- 1 once it was missed
    told       INTEGER NOT NULL DEFAULT 0,    -- 1 once its events are written
    PRIMARY KEY (message, owner, lease, part)
) WITHOUT ROWID;
CREATE INDEX loopback_at   ON loopback (at);
CREATE INDEX loopback_away ON loopback (sent_at) WHERE home_at IS NULL;

-- What came to the loopback address, by what it was.
CREATE TABLE loopback_count (
    word TEXT    PRIMARY KEY,
    n    INTEGER NOT NULL
);
