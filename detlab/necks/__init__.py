"""Flax modules from backbone features to the maps that the heads read."""
