"""Looking on: what is told while mail moves. Given the store or the engine's facts, never building them."""
