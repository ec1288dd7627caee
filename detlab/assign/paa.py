"""Probabilistic anchor assignment (PAA, arXiv:2007.08103, section 3.1, algorithm 1).

The anchors that could learn an object get a score: the loss that they have for it now.  A mixture
of two Gaussians, fitted to these losses, separates the positives from the negatives, so that the
network itself decides.

The mixtures of all objects are fitted together, by a fixed number of EM steps on arrays [G, M].
The reference fits one after another with scikit-learn's GaussianMixture, in float32.  Of 1,000
random sets of losses, 13 are split otherwise here, by one candidate each.  In 11 of them two
candidates are alone in the lower Gaussian, equally likely but for rounding; in the other two,
scikit-learn itself splits as here in float64.  Its two precisions differ in ten sets.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from detlab.assign import atss, points, slots

Array = Any

EM_STEPS = 50  # enough: of 20,000 random sets of losses, all fits end before
# As in the reference: a smaller change of the mean log likelihood ends the fit.
_TOLERANCE = 1e-3
_ADDED_VARIANCE = 1e-6  # as in the reference
_EQUALLY_LIKELY = 2e-6  # log likelihoods closer than this
_SMALLEST_SHARE = 1e-15  # of all candidates in a Gaussian: no division is by zero


class Mixture(NamedTuple):
    """Two Gaussians in one dimension for each of G objects; 0 is that of the lower losses."""

    weight: Array  # [G, 2]
    mean: Array  # [G, 2]
    variance: Array  # [G, 2]


def assign(
    assigned: Any, losses, slices: Sequence[slice], num_slots: int, k: int = 9
) -> points.Assigned:
    """Keeps as positive what the mixture of each object separates; all others become negative.

    Args:
      assigned: a first assignment of the N anchors of an image, `status` and `matched` [N]: each
        positive anchor could learn its object.
      losses: [N] finite, what each anchor's prediction costs; read where positive.
      slices: of each level among the N, static (`Grid.slices`).
      num_slots: G, static.
      k: static; the candidates of an object on each level are the k of the lowest loss.
    Returns:
      Assigned; ignored anchors stay ignored.
    """
    of_object = jnp.where(assigned.status == 1, assigned.matched, -1)  # [N]

    def candidates(slot):
        own = jnp.where(of_object == slot, losses, jnp.inf)
        return atss.smallest_of_levels(own, slices, k)

    losses, index = slots.each(candidates, jnp.arange(num_slots), len(losses))  # [G, M] each
    positive = split(losses, jnp.isfinite(losses))
    # An anchor is a candidate of one object; the empty places may hold any anchor.
    kept = jnp.zeros(len(of_object), bool).at[index].max(positive)
    return points.Assigned(
        status=jnp.where(assigned.status == 1, kept.astype(jnp.int32), assigned.status),
        matched=jnp.where(kept, assigned.matched, 0),
    )


def split(losses, there):
    """The positives among the candidates of each object.

    They are the candidates that more likely belong to the Gaussian of the lower losses, up to the
    one of the highest likelihood (the paper's figure 3c).  As in the reference, an object with a
    single candidate has none.

    Args:
      losses: [G, M].
      there: [G, M] bool, the real candidates; the losses of others are not read.
    Returns:
      [G, M] bool.
    """
    # Relative to the lowest: small numbers have the smaller rounding errors.
    losses = losses - jnp.where(there, losses, jnp.inf).min(-1, keepdims=True)
    losses = jnp.where(there, losses, 0.0)
    joint = _log_joint(losses, fit(losses, there))  # [G, M, 2]
    likelihood = jax.nn.logsumexp(joint, axis=-1)
    low = there & (joint[..., 0] >= joint[..., 1])
    best = jnp.where(low, likelihood, -jnp.inf).max(-1, keepdims=True)
    # Two candidates alone in their Gaussian are equally likely: rounding must not choose.
    last = jnp.where(low & (likelihood > best - _EQUALLY_LIKELY), losses, 0.0)
    last = last.max(-1, keepdims=True)
    return low & (losses <= last) & (there.sum(-1, keepdims=True) > 1)


def fit(losses, there, steps: int = EM_STEPS) -> Mixture:
    """The mixture of each object's losses, by expectation maximisation.

    As in the reference, the means start at the lowest and the highest loss, the weights at 1/2 and
    the variances at 1.  A mixture stays as it is once a step changed its mean log likelihood by
    less than 1e-3.

    Args:
      losses: [G, M], finite.
      there: [G, M] bool, the real ones.
      steps: static.
    Returns:
      Mixture, finite also for objects without candidates.
    """
    count = jnp.maximum(there.sum(-1), 1)  # [G]
    ends = (
        jnp.where(there, losses, jnp.inf).min(-1),
        jnp.where(there, losses, -jnp.inf).max(-1),
    )
    mean = jnp.where(there.any(-1)[:, None], jnp.stack(ends, axis=-1), 0.0)  # [G, 2]
    start = Mixture(jnp.full_like(mean, 0.5), mean, jnp.ones_like(mean))

    def step(_, state):
        mixture, bound, active = state
        joint = _log_joint(losses, mixture)  # [G, M, 2]
        norm = jax.nn.logsumexp(joint, axis=-1, keepdims=True)
        share = jnp.where(there[..., None], jnp.exp(joint - norm), 0.0)
        new_bound = jnp.where(there, norm[..., 0], 0.0).sum(-1) / count
        new = _maximise(losses, share)
        mixture = jax.tree.map(lambda a, b: jnp.where(active[:, None], a, b), new, mixture)
        return mixture, new_bound, active & (jnp.abs(new_bound - bound) >= _TOLERANCE)

    nothing = jnp.full(len(losses), -jnp.inf)
    return lax.fori_loop(0, steps, step, (start, nothing, there.any(-1)))[0]


def _maximise(losses, share) -> Mixture:
    """The most likely mixture, given each candidate's shares [G, M, 2] of the two Gaussians."""
    total = jnp.maximum(share.sum(1), _SMALLEST_SHARE)  # [G, 2]
    mean = (share * losses[..., None]).sum(1) / total
    square = jnp.square(losses[..., None] - mean[:, None])
    variance = (share * square).sum(1) / total + _ADDED_VARIANCE
    return Mixture(total / total.sum(-1, keepdims=True), mean, variance)


def _log_joint(losses, mixture: Mixture):
    """Logarithms [G, M, 2] of the weights of the two Gaussians times their densities."""
    weight, mean, variance = (x[:, None] for x in mixture)  # [G, 1, 2]
    square = jnp.square(losses[..., None] - mean) / variance
    return jnp.log(weight) - 0.5 * (jnp.log(2 * jnp.pi * variance) + square)
