"""Focal losses of heatmaps with soft targets, unreduced."""

import jax.numpy as jnp

_TINY = 1e-12  # as in the reference; bounds the loss of a cell by 27.6


def gaussian_focal(scores, targets, alpha: float = 2.0, gamma: float = 4.0):
    """Focal loss with a smaller penalty near peaks (CornerNet, arXiv:1808.01244, eq. 1).

    Args:
      scores: [...] after the sigmoid.
      targets: [...] 0..1; exactly 1 is a peak; elsewhere the penalty is scaled by (1 - t)^gamma.
      alpha, gamma: exponents; the defaults are the paper's.
    Returns:
      [...] float32, not reduced; the paper divides the sum by the number of peaks.
    """
    scores, targets = scores.astype(jnp.float32), targets.astype(jnp.float32)
    peak = -jnp.log(scores + _TINY) * (1 - scores) ** alpha
    other = -jnp.log(1 - scores + _TINY) * scores**alpha * (1 - targets) ** gamma
    return jnp.where(targets == 1, peak, other)
