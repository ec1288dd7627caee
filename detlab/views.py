"""Views of an image, such as its mirror image (test-time augmentation).

Prediction joins the candidates of all views of an image and suppresses them together.
`config.eval.views` names the views.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from detlab import types
from detlab.ops import boxes as boxes_lib


class View(NamedTuple):
    """How to transform a batch of images, and how to map its detections back."""

    # (images [B, H, W, 3], image_size [B, 2]) -> those of the view, on any canvas
    transform: Callable
    # (Detections of the view, image_size [B, 2] of the images) -> Detections of the images
    undo: Callable


def _mirror(images, image_size):
    """Mirrors the content left to right; it stays at the left of its canvas."""

    def one_image(image, width):  # the padding right of the content is mirrored too
        return jnp.roll(image[:, ::-1], width - image.shape[1], axis=1)

    return jax.vmap(one_image)(images, image_size[:, 1]), image_size


def _mirror_back(found: types.Detections, image_size) -> types.Detections:
    boxes = jax.vmap(boxes_lib.flip_horizontal)(found.boxes, image_size[:, 1])
    return found._replace(boxes=jnp.where(found.valid[..., None], boxes, 0.0))


VIEWS = {
    "image": View(lambda images, image_size: (images, image_size), lambda found, _: found),
    "mirror": View(_mirror, _mirror_back),
}


def candidates(
    find: Callable, views: Sequence[View], images: jax.Array, image_size: jax.Array
) -> tuple[types.Detections, dict[str, Any]]:
    """The candidates of all views of each image, concatenated, on the canvas of the images.

    Views of the same size form one batch for `find`, so the network is compiled once for them.

    Args:
      find: (images [V, H, W, 3], image_size [V, 2]) -> (Detections, {bound: [V] bool}).
      images: [B, H, W, 3].
      image_size: [B, 2] int32 height, width px of the content.
    Returns:
      Detections, and for each bound [B] bool: the images on which any view exceeded it.
    """
    shown = [view.transform(images, image_size) for view in views]
    of_canvas = {}
    for number, (seen, _) in enumerate(shown):
        of_canvas.setdefault(seen.shape[1:3], []).append(number)
    found = {}
    for numbers in of_canvas.values():
        together = jax.tree.map(lambda *x: jnp.concatenate(x), *(shown[i] for i in numbers))
        rows = find(*together)
        for k, number in enumerate(numbers):
            part = slice(k * len(images), (k + 1) * len(images))
            found[number] = jax.tree.map(lambda x, part=part: x[part], rows)
    back = [view.undo(found[i][0], image_size) for i, view in enumerate(views)]
    exceeded = [found[i][1] for i in range(len(views))]
    return (
        jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *back),
        jax.tree.map(lambda *x: jnp.stack(x).any(0), *exceeded),
    )
