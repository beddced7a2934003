"""Windows, rings, tiles and stored words."""
