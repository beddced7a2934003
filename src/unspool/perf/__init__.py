"""What decoding costs: machine instructions read from machine code, with no GPU at hand."""
