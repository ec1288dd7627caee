"""Converts weights of other frameworks to detlab checkpoints, without those frameworks."""
