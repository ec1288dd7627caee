"""Regression losses of single numbers, unreduced."""

import jax
import jax.numpy as jnp


def l1(pred, target):
    """|pred - target|, [...], of pred [...] and target [...]; 0 gradient where they are equal."""
    difference = pred - target
    # The gradient of jnp.abs at 0 is 1; a maximum splits its gradient between equal arguments.
    return jnp.maximum(difference, -difference)


def smooth_l1(pred, target, beta: float | jax.Array = 1.0):
    """A parabola up to `beta`, a line beyond (Fast R-CNN, arXiv:1504.08083, eq. 3).

    Args:
      pred: [...].
      target: [...].
      beta: > 0, where the parabola meets the line; may be traced (Dynamic R-CNN).
    Returns:
      [...]; 0.5 d^2 / beta where d = |pred - target| < beta, else d - 0.5 beta.
    """
    distance = l1(pred, target)
    return jnp.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta)
