"""Flax modules from neck features to raw predictions."""
