"""The service: its life, what a configuration asks of it, and how a new configuration is taken."""
