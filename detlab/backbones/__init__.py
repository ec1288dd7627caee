"""Flax modules from images to feature maps C1..C5."""
