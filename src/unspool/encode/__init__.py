"""How a matrix becomes codes."""
