"""The losses of detlab as functions of one number, for the tool `losses`.

A classification loss depends on the logit of the true class, a box loss on how far a box is from
its object, and a loss of embeddings on the distance of two of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from detlab.losses import (
    cross_entropy,
    darknet,
    distribution,
    embedding,
    focal,
    ghm,
    heatmap,
    locations,
    quality,
    regression,
)
from detlab.losses import iou as iou_losses
from detlab.ops import boxes as boxes_lib
from detlab.ops import coders

Array = Any


class Options(NamedTuple):
    """What the losses may depend on; None: the default of each function."""

    label: int = 1  # of an example of classification: 1 object, 0 background
    quality: float = 1.0  # target of an object where it is not just 1
    alpha: float | None = None  # weight of the objects, or of the background in varifocal
    gamma: float | None = None  # focusing exponent
    beta: float | None = None  # where the parabola of smooth L1 ends
    scale: float = 1.0  # sides of the box, of the object's


class Loss(NamedTuple):
    """One loss."""

    family: str
    functions: tuple[Callable, ...]  # of detlab/losses, that it shows
    value: Callable  # (x, Options) -> loss
    reads: tuple[str, ...] = ()  # the fields of Options that change it, besides label and scale


# ------------------------------------------------------------------------------------------------
# Classification: x is the logit of the true class.


def _given(**options) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _of_logit(value: Callable) -> Callable:
    """A loss (logit of the object, its target, Options) as one of the true class's logit."""

    def of_true_class(x, options: Options):
        logit = x if options.label else -x
        return value(logit, jnp.float32(options.label), options)

    return of_true_class


def _softmax(logit, target, options):
    return cross_entropy.softmax_cross_entropy(
        jnp.stack([jnp.zeros_like(logit), logit], -1), target.astype(jnp.int32)
    )


def _focal(logit, target, options):
    return focal.sigmoid_focal(logit, target, **_given(alpha=options.alpha, gamma=options.gamma))


def _location(logit, target, options):
    status = target.astype(jnp.int32)
    given = _given(alpha=options.alpha, gamma=options.gamma)
    return locations.location_focal(logit, status, **given)


def _gaussian(logit, target, options):
    # Its exponent of (1 - score) is called alpha; gamma is that of cells near a peak.
    return heatmap.gaussian_focal(jax.nn.sigmoid(logit), target, **_given(alpha=options.gamma))


def _quality(logit, target, options):
    return quality.quality_focal(logit, target * options.quality, **_given(beta=options.gamma))


def _varifocal(logit, target, options):
    given = _given(alpha=options.alpha, gamma=options.gamma)
    return quality.varifocal(logit, target * options.quality, **given)


def _distribution(logit, target, options):
    """The numbers 0 and 1, of which 1 has the logit."""
    logits = jnp.stack([jnp.zeros_like(logit), logit], -1)
    return distribution.distribution_focal(logits, target * options.quality)


def _place(logit, target, options):
    return darknet.place(logit, target * options.quality)


GHM_BINS = 10
# Examples whose density weights GHM's loss: (number, mean, deviation) of the true class's logit.
# As in figure 2 of the paper, most are easy, and more are very hard than a little less hard.
_EXAMPLES = ((9800, 4.0, 2.0), (200, -4.0, 1.0))


def _ghm(logit, target, options):
    """GHM-C for the density of `_EXAMPLES`; the weight is N / density (eq. 7)."""
    parts = []
    for count, mean, deviation in _EXAMPLES:
        quantiles = jax.scipy.special.ndtri((np.arange(count) + 0.5) / count)
        parts.append(mean + deviation * quantiles)
    norms = ghm.classification_norm(jnp.concatenate(parts), jnp.float32(1))
    _, counts = ghm.harmonize(norms[None], True, jnp.zeros(GHM_BINS), 0.0)
    norm = ghm.classification_norm(logit, target)
    weights, _ = ghm.harmonize(norm[None, None], True, counts, 1.0)
    factor = weights[0, 0] * len(norms) / GHM_BINS
    return factor * cross_entropy.sigmoid_cross_entropy(logit, target)


# ------------------------------------------------------------------------------------------------
# Boxes: x is the shift of a box to the right, in sides of the object.

_CENTER, _SIDE = 200.0, 100.0  # px, of a square object
_CANVAS = 400.0  # px, for losses of relative boxes


def boxes(x: Array, scale: float) -> tuple[Array, Array]:
    """The shifted box [4] and that of the object [4], xyxy px."""
    target = jnp.array([_CENTER, _CENTER, _SIDE, _SIDE])
    moved = target.at[0].add(x * _SIDE).at[2:].multiply(scale)
    return boxes_lib.cxcywh_to_xyxy(moved), boxes_lib.cxcywh_to_xyxy(target)


def overlap(x: Array, scale: float) -> Array:
    """The IoU of both boxes."""
    return boxes_lib.iou(*boxes(x, scale))


def _of_boxes(value: Callable) -> Callable:
    return lambda x, options: value(*boxes(x, options.scale)).sum()


def _of_deltas(value: Callable) -> Callable:
    """A loss of single numbers, summed over the four deltas of the box from the object's."""

    def of_shift(x, options: Options):
        box, target = boxes(x, options.scale)
        deltas = coders.encode_deltas(target[None], box[None])[0]
        return value(deltas, jnp.zeros(4), options).sum()

    return of_shift


def _darknet(kind: str) -> Loss:
    def of_shift(x, options: Options):
        box, target = (boxes_lib.xyxy_to_cxcywh(b) / _CANVAS for b in boxes(x, options.scale))
        weight = jnp.float32(1)
        return darknet.overlap(box, box, target, jnp.ones(2), kind, weight, jnp.inf)

    return Loss("box", (darknet.overlap, darknet.overlap_deltas), of_shift)


MU = 0.02  # of GHM-R, as in detectors/ghm.py


# ------------------------------------------------------------------------------------------------
# Embeddings: x is the distance of two.


def _pull(x, options):
    return embedding.pull(jnp.zeros_like(x), x)


def _push(x, options):
    both = jnp.stack([jnp.zeros_like(x), x])
    return embedding.push(both, both)[0, 1]


FAMILIES = ("classification", "box", "embedding")


def _class(value: Callable, *functions: Callable, reads: tuple[str, ...] = ()) -> Loss:
    return Loss("classification", functions, _of_logit(value), reads)


def _box(value: Callable, *functions: Callable) -> Loss:
    return Loss("box", functions, _of_boxes(value))


def _number(value: Callable, *functions: Callable, reads: tuple[str, ...] = ()) -> Loss:
    return Loss("box", functions, _of_deltas(value), reads)


LOSSES = {
    "bce": _class(
        lambda logit, target, options: cross_entropy.sigmoid_cross_entropy(logit, target),
        cross_entropy.sigmoid_cross_entropy,
    ),
    "ce": _class(_softmax, cross_entropy.softmax_cross_entropy),
    "focal": _class(_focal, focal.sigmoid_focal, reads=("alpha", "gamma")),
    "qfl": _class(_quality, quality.quality_focal, reads=("quality", "gamma")),
    "varifocal": _class(_varifocal, quality.varifocal, reads=("quality", "alpha", "gamma")),
    "ghm": _class(_ghm, ghm.harmonize, ghm.classification_norm),
    "gaussian_focal": _class(_gaussian, heatmap.gaussian_focal, reads=("gamma",)),
    "location": _class(_location, locations.location_focal, reads=("alpha", "gamma")),
    "distribution": _class(_distribution, distribution.distribution_focal, reads=("quality",)),
    "place": _class(_place, darknet.place, reads=("quality",)),
    "l1": _number(lambda a, b, options: regression.l1(a, b), regression.l1),
    "smooth_l1": _number(
        lambda a, b, options: regression.smooth_l1(a, b, **_given(beta=options.beta)),
        regression.smooth_l1,
        reads=("beta",),
    ),
    "balanced_l1": _number(
        lambda a, b, options: regression.balanced_l1(a, b), regression.balanced_l1
    ),
    "ghm_r": _number(
        lambda a, b, options: ghm.authentic_smooth_l1(a, b, MU),
        ghm.authentic_smooth_l1,
        ghm.regression_norm,
    ),
    "half_square": _number(lambda a, b, options: darknet.half_square(a, b), darknet.half_square),
    "iou_log": _box(lambda a, b: iou_losses.iou_loss(a, b, "log"), iou_losses.iou_loss),
    "iou_linear": _box(lambda a, b: iou_losses.iou_loss(a, b, "linear"), iou_losses.iou_loss),
    "iou_square": _box(lambda a, b: iou_losses.iou_loss(a, b, "square"), iou_losses.iou_loss),
    "giou": _box(iou_losses.giou_loss, iou_losses.giou_loss),
    "diou": _box(iou_losses.diou_loss, iou_losses.diou_loss),
    "ciou": _box(iou_losses.ciou_loss, iou_losses.ciou_loss),
    "bounded_iou": _box(iou_losses.bounded_iou_loss, iou_losses.bounded_iou_loss),
    **{f"darknet_{kind}": _darknet(kind) for kind in darknet.KINDS[1:]},
    "pull": Loss("embedding", (embedding.pull,), _pull),
    "push": Loss("embedding", (embedding.push,), _push),
}

# Public functions of detlab/losses that are no curve of their own, and why.
LEFT_OUT = {
    "buckets.bucket_losses": "the sum of bce over buckets and smooth_l1 of offsets",
    "darknet.box_loss": "chooses place and half_square, or one of the overlaps",
    "darknet.class_multipliers": "weights of classes",
    "darknet.class_targets": "targets and weights of classes",
    "darknet.gaussian_box_loss": "depends on four uncertainties beside the box",
    "darknet.head_terms": "the sum of all terms of a head",
    "darknet.size": "half_square of widths and heights",
    "darknet.with_slope": "sets a gradient",
    "darknet_region.head_terms": "the sum of all terms of a head, half_square and ce",
    "pisa.carl_weights": "weights of examples, which depend on all others",
    "pisa.isr_negative_weights": "weights of examples, which depend on all others",
    "pisa.isr_weights": "weights of examples, which depend on all others",
}


class Curve(NamedTuple):
    """A loss at some points."""

    value: np.ndarray  # [n]
    gradient: np.ndarray  # [n] by x: by the logit, the shift or the distance


def curves(wanted: list[tuple[str, Options]], x) -> list[Curve]:
    """The values and gradients of losses, all compiled as one program.

    Args:
      wanted: names in `LOSSES`, each with its options.
      x: [n] logits of the true class, shifts in sides, or distances.
    """

    def compute(x):
        return [
            jax.vmap(jax.value_and_grad(lambda at, f=LOSSES[name].value, o=o: f(at, o)))(x)
            for name, o in wanted
        ]

    found = jax.device_get(jax.jit(compute)(jnp.asarray(x, jnp.float32)))
    return [Curve(*both) for both in found]
