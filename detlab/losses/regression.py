"""Regression losses of single numbers, unreduced."""

import math

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
      beta: where the parabola meets the line; static, or above 0 (traced in Dynamic R-CNN).
    Returns:
      [...]; 0.5 d^2 / beta where d = |pred - target| < beta, else d - 0.5 beta; `l1` if beta is 0.
    """
    distance = l1(pred, target)
    if isinstance(beta, (int, float)) and beta == 0:
        return distance
    return jnp.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta)


def balanced_l1(pred, target, alpha: float = 0.5, gamma: float = 1.5, beta: float = 1.0):
    """A larger gradient for small errors than smooth L1 (Libra, arXiv:1904.02701, section 3.3).

    As in the reference, `beta` moves the border of the two branches and scales the logarithm alone:
    only with 1, the value of the paper, does the gradient have no step at the border and at 0.

    Args:
      pred: [...].
      target: [...].
      alpha: > 0; smaller values raise the gradient of small errors more.
      gamma: > 0, the gradient of large errors.
      beta: > 0, where the logarithm meets the line.
    Returns:
      [...]; with b = exp(gamma / alpha) - 1, alpha / b (b d + 1) ln(b d / beta + 1) - alpha d where
      d = |pred - target| < beta, else gamma d + gamma / b - alpha beta.
    """
    b = math.expm1(gamma / alpha)
    distance = l1(pred, target)
    small = jnp.minimum(distance, beta)
    curve = alpha / b * (b * small + 1) * jnp.log1p(b * small / beta) - alpha * small
    line = gamma * distance + gamma / b - alpha * beta
    return jnp.where(distance < beta, curve, line)
