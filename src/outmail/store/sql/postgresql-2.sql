-- Schema 2 of the PostgreSQL store: loopback copies.

-- One for each transaction that had a copy. What has come home before its sending is on record has no outcome yet.
CREATE TABLE outmail.loopback (
    message    bigint  NOT NULL,
    owner      bigint  NOT NULL, -- with lease and part the transaction, as its token says
    lease      bigint  NOT NULL,
    part       bigint  NOT NULL,
    at         bigint  NOT NULL, -- when it was first heard of
    route      text    NOT NULL DEFAULT '',
    host       text    NOT NULL DEFAULT '',
    recipients text    NOT NULL DEFAULT '[]', -- a JSON list of n: whom the transaction was for
    outcome    text    NOT NULL DEFAULT '',   -- delivered, unknown, presumed (which transaction it was is not on record), or ''
    sent_at    bigint,
    home_at    bigint,
    hops       text,                          -- a JSON list of [name, ms or null], in the order of travel
    genuine    bigint  NOT NULL DEFAULT 0,    -- 1 when it came home with the Message-ID that it was sent with
    late       bigint  NOT NULL DEFAULT 0,    -- 1 once it was missed
    told       bigint  NOT NULL DEFAULT 0,    -- 1 once its events are written
    PRIMARY KEY (message, owner, lease, part)
);
CREATE INDEX loopback_at   ON outmail.loopback (at);
CREATE INDEX loopback_away ON outmail.loopback (sent_at) WHERE home_at IS NULL;

-- What came to the loopback address, by what it was.
CREATE TABLE outmail.loopback_count (
    word text    PRIMARY KEY,
    n    bigint  NOT NULL
);
