"""What the operating system offers: threads, locks on files, crash points, who may have written a file."""
