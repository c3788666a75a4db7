-- Schema 1 of the SQLite store. Times are milliseconds UTC. `lifecycle.STATES` and the CHECK are compared by a test.

-- The envelope and what people ask for; immutable but for `upload`, which retention clears.
CREATE TABLE message (
    seq         INTEGER PRIMARY KEY,
    id          TEXT    NOT NULL UNIQUE,
    sender      TEXT    NOT NULL,
    message_id  TEXT    NOT NULL,
    subject     TEXT    NOT NULL,
    size        INTEGER NOT NULL,
    sha256      BLOB    NOT NULL,
    needs       INTEGER NOT NULL,
    priority    INTEGER NOT NULL,
    accepted_at INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    key         TEXT,
    tag         TEXT,
    dsn         TEXT,
    upload      TEXT
);

-- Content up to 1 MB, apart from `message` so that scans of envelopes do not read it.
CREATE TABLE body (
    seq     INTEGER PRIMARY KEY,
    content BLOB NOT NULL
);

-- Longer content in pieces of 256 KB, written before the message that names them (`message.upload`).
CREATE TABLE chunk (
    upload   TEXT    NOT NULL,
    n        INTEGER NOT NULL,
    added_at INTEGER NOT NULL,
    content  BLOB    NOT NULL,
    PRIMARY KEY (upload, n)
);

-- One address of one message: the row that owns the state.
CREATE TABLE recipient (
    message     INTEGER NOT NULL,
    n           INTEGER NOT NULL,
    address     TEXT    NOT NULL,
    destination TEXT    NOT NULL,
    priority    INTEGER NOT NULL,
    state       TEXT    NOT NULL CHECK (state IN ('queued', 'sending', 'held', 'failed', 'cancelled', 'delivered')),
    due         INTEGER,
    expires_at  INTEGER NOT NULL,
    not_before  INTEGER NOT NULL DEFAULT 0,
    uncertain   INTEGER NOT NULL DEFAULT 0,
    losses      INTEGER NOT NULL DEFAULT 0,
    wish        TEXT,
    attempts    INTEGER NOT NULL DEFAULT 0,
    reason      TEXT    NOT NULL DEFAULT '',
    attempt     INTEGER,
    owner       INTEGER,
    lease       INTEGER,
    leased_at   INTEGER,
    finished_at INTEGER,
    PRIMARY KEY (message, n),
    CHECK ((state = 'sending') = (owner IS NOT NULL))
) WITHOUT ROWID;

-- Only live rows are indexed, so finished mail costs the road nothing.
CREATE INDEX recipient_ready   ON recipient (destination, priority, due, message, n) WHERE state = 'queued' AND losses = 0;
CREATE INDEX recipient_suspect ON recipient (due) WHERE state = 'queued' AND losses > 0;
CREATE INDEX recipient_leased  ON recipient (owner) WHERE state = 'sending';
CREATE INDEX recipient_expiry  ON recipient (expires_at) WHERE state IN ('queued', 'held');

-- One try of one or more recipients; `recipients` is a JSON list of n, `transcript` a JSON list of {ms, dir, line}.
CREATE TABLE attempt (
    id          INTEGER PRIMARY KEY,
    message     INTEGER NOT NULL,
    at          INTEGER NOT NULL,
    route       TEXT    NOT NULL,
    host        TEXT    NOT NULL,
    duration_ms INTEGER NOT NULL,
    outcome     TEXT    NOT NULL,
    code        INTEGER NOT NULL,
    enhanced    TEXT    NOT NULL,
    text        TEXT    NOT NULL,
    recipients  TEXT    NOT NULL,
    transcript  TEXT
);
CREATE INDEX attempt_message ON attempt (message);

-- What happened, in the order of commit. The newest row is never purged, so a cursor is never used twice.
CREATE TABLE event (
    cursor    INTEGER PRIMARY KEY,
    at        INTEGER NOT NULL,
    event     TEXT    NOT NULL,
    message   INTEGER NOT NULL,
    n         INTEGER,
    state     TEXT    NOT NULL,
    uncertain INTEGER NOT NULL,
    reason    TEXT    NOT NULL,
    attempts  INTEGER NOT NULL,
    attempt   INTEGER
);

-- Engines that hold or held leases. Alive = somebody holds the lock on the file <store>.engine.<uuid>.
CREATE TABLE owner (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid       TEXT    NOT NULL UNIQUE,
    pid        INTEGER NOT NULL,
    host       TEXT    NOT NULL,
    boot       TEXT    NOT NULL,
    started_at INTEGER NOT NULL
);

-- Small documents beside the mail: (kind, key) → JSON, with a version for compare-and-set.
CREATE TABLE note (
    kind    TEXT    NOT NULL,
    key     TEXT    NOT NULL,
    value   TEXT    NOT NULL,
    version INTEGER NOT NULL,
    PRIMARY KEY (kind, key)
) WITHOUT ROWID;
