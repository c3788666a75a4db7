-- The index of a Maildir spool has the tables of the SQLite store. But contents are files: `body` and `chunk` are views.
DROP TABLE body;
DROP TABLE chunk;

-- Which messages have a content of up to 1 MB.
CREATE TABLE content (seq INTEGER PRIMARY KEY);
CREATE VIEW body AS SELECT c.seq AS seq, outmail_content(c.seq, (SELECT m.id FROM message m WHERE m.seq = c.seq)) AS content FROM content c;
CREATE TRIGGER body_insert INSTEAD OF INSERT ON body BEGIN INSERT INTO content (seq) VALUES (NEW.seq); SELECT outmail_body(NEW.seq, NEW.content); END;
CREATE TRIGGER body_update INSTEAD OF UPDATE ON body BEGIN UPDATE content SET seq = NEW.seq WHERE seq = OLD.seq; SELECT outmail_body(NEW.seq, NEW.content); END;
CREATE TRIGGER body_delete INSTEAD OF DELETE ON body BEGIN DELETE FROM content WHERE seq = OLD.seq; END;

-- The pieces of longer contents.
CREATE TABLE piece (upload TEXT NOT NULL, n INTEGER NOT NULL, added_at INTEGER NOT NULL, size INTEGER NOT NULL, PRIMARY KEY (upload, n)) WITHOUT ROWID;
CREATE VIEW chunk AS SELECT p.upload AS upload, p.n AS n, p.added_at AS added_at, outmail_piece(p.upload, p.n, p.size, (SELECT m.id FROM message m WHERE m.upload = p.upload)) AS content FROM piece p;
CREATE TRIGGER chunk_insert INSTEAD OF INSERT ON chunk BEGIN INSERT INTO piece (upload, n, added_at, size) VALUES (NEW.upload, NEW.n, NEW.added_at, length(NEW.content)); SELECT outmail_chunk(NEW.upload, NEW.n, NEW.content); END;
CREATE TRIGGER chunk_update INSTEAD OF UPDATE ON chunk BEGIN UPDATE piece SET size = length(NEW.content) WHERE upload = OLD.upload AND n = OLD.n; SELECT outmail_chunk(NEW.upload, NEW.n, NEW.content); END;
CREATE TRIGGER chunk_delete INSTEAD OF DELETE ON chunk BEGIN DELETE FROM piece WHERE upload = OLD.upload AND n = OLD.n; END;

CREATE INDEX message_upload ON message (upload) WHERE upload IS NOT NULL;
CREATE INDEX event_message ON event (message);

-- Which spool this is the index of, and up to where in which log.
CREATE TABLE spool (identity TEXT NOT NULL, number INTEGER NOT NULL, log TEXT NOT NULL, size INTEGER NOT NULL);
