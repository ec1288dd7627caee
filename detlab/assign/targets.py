"""From an assignment to `types.Targets`: for one image, for a batch, and one-hot classes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from detlab import types
from detlab.ops import anchors as anchors_lib
from detlab.ops import coders


def of_entries(boxes, level, assigned: Any, values: Any) -> types.Targets:
    """The targets of one image.

    Args:
      boxes: [M, 4] px: anchors, cells or RoIs.
      level: [M] int32.
      assigned: has `status` and `matched`, [M] int32 each.
      values: tree of arrays [M, ...], see `of_positives`.
    """
    values = of_positives(assigned.status, values)
    return types.Targets(boxes, level, assigned.status, assigned.matched, values)


def of_deltas(
    batch: types.Batch,
    grid: anchors_lib.Grid,
    anchors,
    assign: Callable[..., Any],
    stds: Sequence[float],
) -> types.Targets:
    """The targets of anchors that learn the deltas of their object, for every image.

    Args:
      batch: the images and their objects.
      grid: of the canvas.
      anchors: [N, 4] px.
      assign: (anchors, boxes, valid, anchor_valid=...) -> `status` and `matched` of one image.
      stds: of the deltas, which are zero where an anchor is not positive.
    """

    def one_image(boxes, valid, image_size):
        assigned = assign(anchors, boxes, valid, anchor_valid=grid.inside(image_size))
        deltas = coders.encode_deltas(anchors, boxes[assigned.matched], stds=stds)
        return of_entries(anchors, grid.level(), assigned, {"deltas": deltas})

    return of_images(one_image, batch)


def of_positives(status, values: Any) -> Any:
    """Keeps the values of positive entries and sets all others to zero.

    Background, ignored and padded entries have no object, so the values computed for them, mostly
    from slot 0, are meaningless.

    Args:
      status: [..., M] int32 of `types.Targets`.
      values: tree of arrays [..., M, ...], finite where positive.
    Returns:
      A tree with the same shapes and dtypes.
    """
    positive = status == 1

    def of_array(array):
        here = positive.reshape(positive.shape + (1,) * (array.ndim - positive.ndim))
        return jnp.where(here, array, jnp.zeros((), array.dtype))

    return jax.tree.map(of_array, values)


def of_images(one_image: Callable[..., Any], batch: types.Batch, *predicted) -> Any:
    """`one_image(boxes, valid, image_size, *predicted)` for every image, without gradients.

    Args:
      one_image: returns a tree of targets of one image.
      batch: the images and their objects.
      predicted: [B, ...] network outputs that the assignment reads.
    """
    rows = batch.boxes, batch.valid, batch.image_size, *lax.stop_gradient(predicted)
    return lax.stop_gradient(jax.vmap(one_image)(*rows))


def one_hot(labels, targets: types.Targets, num_classes: int):
    """[B, M, C] float32: 1 at the class of the matched object where positive, else 0.

    Args:
      labels: [B, G] int labels of the objects.
      targets: those of the batch.
      num_classes: C.
    """
    labels = jnp.take_along_axis(labels, targets.matched, axis=1)
    return jax.nn.one_hot(jnp.where(targets.status == 1, labels, -1), num_classes)


def at_least_one_each(marked):
    """How many entries are marked, at least one of each image: a normaliser of RepPoints.

    As in the reference, images without objects count as well.

    Args:
      marked: [B, M] bool.
    Returns:
      [] float32.
    """
    return jnp.maximum(marked.sum(1), 1).sum().astype(jnp.float32)
