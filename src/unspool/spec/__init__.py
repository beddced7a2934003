"""What a format is: frozen declarations from which everything else is derived."""
