"""Weights of other frameworks, read without those frameworks, as detlab checkpoints."""
