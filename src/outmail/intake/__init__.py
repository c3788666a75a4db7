"""Ways in. Each is given the door (`outmail.accept.Door`) and turns what people have into drafts for it."""
