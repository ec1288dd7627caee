"""Bounds on the candidates that suppression sees, and the images on which they were exceeded.

Arrays have a fixed length, so a detector keeps the best so many of the candidates that pass its
threshold.  The others are lost, on a level or on the image, and evaluation must say so:
`candidates` of a detector notes it here, and `Detector.predict_with_bounds` returns it.

Two kinds of bounds are not noted.  Those that come before any threshold are always reached and
belong to the method: the RPN's best anchors of a level and its proposals, CornerNet's best corners.
`max_detections` is what the user asks for.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

COLLECTION = "bounds"


def note(module: nn.Module, field: str, *passing: jax.Array) -> None:
    """Notes the images of which more candidates pass than the field of that name keeps.

    Args:
      module: the detector.  Nothing is noted where it is unbound, or where its `apply` does not
        have the collection `COLLECTION` as mutable.
      field: the name of the bound.
      passing: [B, ...] bool, of all candidates that the bound cuts; several where it cuts each by
        itself, such as the levels, of which any may exceed it.
    """
    if module.scope is None:
        return
    counts = [x.sum(axis=tuple(range(1, x.ndim))) for x in passing]  # [B] each
    exceeded = (jnp.stack(counts) > getattr(module, field)).any(0)
    module.sow(COLLECTION, field, exceeded, reduce_fn=jnp.logical_or, init_fn=lambda: False)
