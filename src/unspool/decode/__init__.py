"""A program becomes running code: interpreted (the definition), tabulated, compiled."""
