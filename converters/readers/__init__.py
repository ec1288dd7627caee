"""Readers of foreign weight files: one module per format, NumPy arrays out, nothing executed."""
