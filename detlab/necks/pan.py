"""The neck of YOLOv5: a top-down and then a bottom-up pyramid (PANet, arXiv:1803.01534).

Maps are joined by concatenation and merged by blocks of the same kind as the backbone's.

Parameter paths: `reduce5/{conv,norm}`, `down_block4/...`, `reduce4`, `down_block3`, then `up3`,
`up_block4`, `up4`, `up_block5`: down the pyramid to the finest level, and up again.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

from detlab import layers


class PAN(nn.Module):
    """Top-down, then bottom-up; every level keeps its width."""

    conv: Callable  # (features, kernel size, stride, name=...) -> module of (x, train)
    block: Callable  # (features, name=...) -> module of (x, train)

    @nn.compact
    def __call__(self, features, train: bool):
        """[C3, C4, ...] -> (P3, P4, ...), each [B, Hl, Wl, Dl] like its input."""
        widths = dict(enumerate((x.shape[-1] for x in features), start=3))
        top = max(widths)
        x, reduced = features[-1], {}
        for level in range(top - 1, 2, -1):
            finer = features[level - 3]
            conv = self.conv(widths[level], 1, 1, name=f"reduce{level + 1}")
            reduced[level + 1] = conv(x, train)
            x = layers.upsample(reduced[level + 1], finer.shape[1:3])
            x = jnp.concatenate([x, finer], axis=-1)
            x = self.block(widths[level], name=f"down_block{level}")(x, train)
        outputs = [x]
        for level in range(4, top + 1):
            x = self.conv(widths[level - 1], 3, 2, name=f"up{level - 1}")(x, train)
            x = jnp.concatenate([x, reduced[level]], axis=-1)
            x = self.block(widths[level], name=f"up_block{level}")(x, train)
            outputs.append(x)
        return tuple(outputs)
