"""Writers of foreign weight files: one module per format, names and NumPy arrays in."""
