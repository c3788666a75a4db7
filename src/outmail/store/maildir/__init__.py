"""The Maildir spool store: plain files are the queue, an index beside them is only a cache."""
