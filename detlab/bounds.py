"""Bounds on the candidates that suppression sees, and the images that exceed them.

Arrays have a fixed length, so a detector keeps only the best of the candidates that pass its
threshold, up to a bound for each level or image.  The rest are lost, and evaluation must report
it: a detector's `candidates` notes it here, and `Detector.predict_with_bounds` returns it.

Two kinds of bounds are not noted.  Bounds that apply before any threshold are always reached and
belong to the method: the RPN's best anchors of a level and its proposals, CornerNet's best corners.
`max_detections` is a number that the user chooses.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

COLLECTION = "bounds"


def note(module: nn.Module, field: str, *passing: jax.Array) -> None:
    """Notes the images in which more candidates pass than the bound keeps.

    Args:
      module: the detector.  Nothing is noted if it is unbound, or if its `apply` does not make
        the collection `COLLECTION` mutable.
      field: the name of the field that holds the bound.
      passing: [B, ...] bool, True for candidates that pass; one array for each group, such as a
        level, that the bound applies to.  An image is noted if any group exceeds the bound.
    """
    if module.scope is None:
        return
    counts = [x.sum(axis=tuple(range(1, x.ndim))) for x in passing]  # [B] each
    exceeded = (jnp.stack(counts) > getattr(module, field)).any(0)
    module.sow(COLLECTION, field, exceeded, reduce_fn=jnp.logical_or, init_fn=lambda: False)
