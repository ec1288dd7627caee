"""Writers of foreign weight files: names and NumPy arrays in, one format a module."""
