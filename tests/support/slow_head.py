"""Plain loops over the cells of small maps, for heads that sample at points.

y, x are in cells; the taps of a kernel go by rows.
"""

import functools

import jax
import numpy as np

TAPS = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]


def pyramid(seed=0):
    """Features [2, Hl, Wl, 5] of two levels."""
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((2, *s, 5)).astype(np.float32) for s in ((3, 4), (1, 2)))


def random_params(module):
    """Random leaves of a head, large enough that points leave their cells."""
    init = functools.partial(module.init, train=False)
    tree = jax.eval_shape(init, jax.random.key(0), pyramid())["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), tree)


def sample(x, i, j):
    """Bilinear sample of x [H, W, D], 0 outside."""
    total = np.zeros(x.shape[-1])
    for row in (int(np.floor(i)), int(np.floor(i)) + 1):
        for column in (int(np.floor(j)), int(np.floor(j)) + 1):
            if 0 <= row < x.shape[0] and 0 <= column < x.shape[1]:
                total += (1 - abs(i - row)) * (1 - abs(j - column)) * x[row, column]
    return total


def convolve(x, params, places=None):
    """3x3 convolution of x [H, W, D] at `places` [H, W, 9, 2] y, x from each cell, or 1x1."""
    kernel = params["kernel"].astype(np.float64)
    out = np.zeros((*x.shape[:2], kernel.shape[-1])) + params.get("bias", 0)
    for i, j in np.ndindex(*x.shape[:2]):
        if kernel.shape[0] == 1:
            out[i, j] += x[i, j] @ kernel[0, 0]
            continue
        for tap, (y, z) in enumerate(TAPS if places is None else places[i, j]):
            out[i, j] += sample(x, i + y, j + z) @ kernel[tap // 3, tap % 3]
    return out
