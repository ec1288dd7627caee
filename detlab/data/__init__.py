"""From files on disk to batches: sources, transforms and the loader, in NumPy."""
