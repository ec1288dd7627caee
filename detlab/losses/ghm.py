"""Gradient harmonizing mechanism: GHM-C and GHM-R (arXiv:1811.05181).

An example with gradient norm g has the weight 1 / density(g), so that neither the many easy
examples nor a few outliers dominate.  The density is counted in bins of equal width ("Unit Region
Approximation") and averaged over steps ("EMA"); the caller keeps this state.

As in the authors' code, the loss is divided by the number of bins with examples, and a bin without
examples keeps its average.  The paper's number of examples N cancels: each weight is N / density,
and the sum is divided by N.
"""

import jax
import jax.numpy as jnp
import numpy as np


def classification_norm(logits, targets):
    """|p - p*|, the gradient norm of the cross entropy.

    Args:
      logits: [...] any float type; the norm is float32.
      targets: [...] 0..1.
    Returns:
      [...] in 0..1.
    """
    return jnp.abs(jax.nn.sigmoid(logits.astype(jnp.float32)) - targets)


def regression_norm(deltas, targets, mu: float):
    """The gradient norm of `authentic_smooth_l1`.

    Args:
      deltas: [...].
      targets: [...].
      mu: as in `authentic_smooth_l1`.
    Returns:
      [...] in 0..1.
    """
    distance = deltas - targets
    return jnp.abs(distance) / jnp.sqrt(distance**2 + mu**2)


def authentic_smooth_l1(deltas, targets, mu: float):
    """sqrt(d^2 + mu^2) - mu: unlike for smooth L1, the gradient norm differs between outliers.

    Args:
      deltas: [...].
      targets: [...].
      mu: > 0; the loss is close to a parabola below it and to a line above it.
    Returns:
      [...], not reduced.
    """
    return jnp.sqrt((deltas - targets) ** 2 + mu**2) - mu


def harmonize(norms, valid, counts, momentum: float):
    """Example weights from the density of gradient norms, and the updated density.

    Args:
      norms: [B, ...] gradient norms in 0..1.
      valid: bool, broadcasts to [B, ...]; invalid examples are not counted and have weight 0.
      counts: [bins] average number of examples in each bin, 0 before the first step.
      momentum: of the average; with 0, only the current examples count.
    Returns:
      weights: [B, ...] float32 without gradient; sum(weights * loss) is the loss.
      counts: [bins] after these examples.
    """
    bins = len(counts)
    inner_edges = np.arange(1, bins, dtype=np.float32) / np.float32(bins)
    norms = jax.lax.stop_gradient(norms)
    member = jnp.searchsorted(inner_edges, norms, side="right", method="compare_all")
    valid = jnp.broadcast_to(valid, norms.shape)

    def count(i):  # [B] of one bin; a sum over images would need communication here
        return (valid & (member == i)).sum(range(1, norms.ndim), dtype=jnp.int32)

    # One bin at a time: for all at once, XLA on CPU stores the whole [B, ..., bins] array.
    found = jax.lax.map(count, jnp.arange(bins)).sum(-1).astype(jnp.float32)  # [bins]
    occupied = found > 0
    counts = jnp.where(occupied, momentum * counts + (1 - momentum) * found, counts)
    divisor = jnp.where(occupied, counts, 1.0) * jnp.maximum(occupied.sum(), 1)
    return jnp.where(valid, (1 / divisor)[member], 0.0), counts
