"""The public face: send, ask, change."""
