-- outmail: mail that goes out if and only if your transaction commits (using=). SQLite.
CREATE TABLE IF NOT EXISTS outmail_outbox (
    n        INTEGER PRIMARY KEY AUTOINCREMENT, -- a number is never given twice
    id       TEXT    NOT NULL,
    store    TEXT,
    added_at INTEGER NOT NULL,
    content  BLOB    NOT NULL,
    envelope TEXT    NOT NULL
);
