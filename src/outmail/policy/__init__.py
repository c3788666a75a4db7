"""Decisions: pure functions of values; time, chance and settings are passed in. Nothing here does I/O."""
