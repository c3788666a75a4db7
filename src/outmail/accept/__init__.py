"""The door: whatever comes in is checked, completed and stored."""
