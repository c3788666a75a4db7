"""Ways in. Each one is given the door (`outmail.accept.Door`) and turns what it gets into drafts for it."""
