"""Training and search of new codes."""
