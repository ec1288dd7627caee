"""A training run: its state, its steps, and its folder with the files it writes."""
