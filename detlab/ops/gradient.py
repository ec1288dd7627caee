"""Gradients that differ from those of the values."""

from jax import lax


def scale(x, factor: float):
    """The exact values [...] of x [...], with `factor` times its gradient."""
    still = lax.stop_gradient(x)
    return still + factor * (x - still)
