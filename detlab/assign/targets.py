"""From an assignment to `types.Targets`: of one image, of a batch, and the classes in them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from detlab import types


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


def of_positives(status, values: Any) -> Any:
    """The values of positive entries, and zeros in place of all others.

    An entry that is background, ignored or padding has no object, so what was computed for it,
    mostly from slot 0, means nothing.

    Args:
      status: [..., M] int32 of `types.Targets`.
      values: tree of arrays [..., M, ...], finite where positive.
    Returns:
      The tree with the same shapes and dtypes.
    """
    positive = status == 1

    def of_array(array):
        here = positive.reshape(positive.shape + (1,) * (array.ndim - positive.ndim))
        return jnp.where(here, array, jnp.zeros((), array.dtype))

    return jax.tree.map(of_array, values)


def of_images(one_image: Callable[..., Any], batch: types.Batch, *predicted) -> Any:
    """`one_image(boxes, valid, image_size, *predicted)` of every image, without a gradient.

    Args:
      one_image: gives a tree of targets of one image.
      batch: `types.Batch`.
      predicted: [B, ...] arrays of the network that the assignment looks at.
    """
    rows = batch.boxes, batch.valid, batch.image_size, *lax.stop_gradient(predicted)
    return lax.stop_gradient(jax.vmap(one_image)(*rows))


def one_hot(labels, targets: types.Targets, num_classes: int):
    """[B, M, C] float32: 1 in the column of the object's class where positive, zeros elsewhere.

    Args:
      labels: [B, G] int of the objects.
      targets: of the batch.
      num_classes: C.
    """
    labels = jnp.take_along_axis(labels, targets.matched, axis=1)
    return jax.nn.one_hot(jnp.where(targets.status == 1, labels, -1), num_classes)
