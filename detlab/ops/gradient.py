"""Gradients that differ from those of the values."""

from jax import lax


def scale(x, factor: float):
    """The exact values [...] of x [...], with `factor` times its gradient.

    Example:
      >>> import jax
      >>> value, slope = jax.value_and_grad(scale)(3.0, 0.25)
      >>> float(value), float(slope)
      (3.0, 0.25)
    """
    still = lax.stop_gradient(x)
    return still + factor * (x - still)
