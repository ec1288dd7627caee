"""Weights for programs that are only measured or compiled."""

from typing import Any

import jax
import numpy as np


def weights(shapes: Any) -> Any:
    """Random leaves that keep activations of order one; the real `init` takes long to compile.

    Args:
      shapes: tree of shapes, as `jax.eval_shape(detector.init, ...)` returns it.
    Returns:
      The same tree of arrays, on the default device.
    """
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if len(leaf.shape) > 1:
            std = 1 / np.sqrt(np.prod(leaf.shape[:-1]))
            return rng.normal(0, std, leaf.shape).astype(leaf.dtype)
        is_factor = path[-1].key in ("scale", "var") or path[-1].key.startswith("scale")
        return np.full(leaf.shape, float(is_factor), leaf.dtype)

    return jax.device_put(jax.tree_util.tree_map_with_path(fill, shapes))
