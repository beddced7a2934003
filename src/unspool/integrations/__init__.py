"""Other projects, each an optional dependency of its own."""
