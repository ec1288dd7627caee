"""The head of RepPoints V2: the two rounds of points of RepPoints, and two tasks that verify them.

Points are y, x pairs relative to the cell's point, in strides of the level, as in
`heads/reppoints.py`; the offsets of corners are x, y in the same unit.
"""

import functools
import math

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from detlab import layers
from detlab.heads import corner, dense, reppoints

CORNERS = {"top_left": corner.TOP_LEFT, "bottom_right": corner.BOTTOM_RIGHT}


class RepPointsV2Head(nn.Module):
    """Towers, corners, foreground, points and classes, shared by all levels.

    Parameter paths: `cls_conv0/{conv,norm}`, ..., `point_conv0/...`, `shared_conv0/...`,
    `semantic_logits`, `semantic_embedding/{conv,norm}`; `top_left_pool/...`, whose layers are those
    of `corner.CornerPooling`, `top_left_heat`, `top_left_offset`, and the same for `bottom_right`;
    and those of `reppoints.RepPointsHead` from `init_conv` on.

    Attributes:
      shared_convs: convolutions of the tower that the verification tasks share, on top of the
        tower of the points.
      pool_width: channels that are pooled towards the corners.
      offset_gradient: factor on the gradient that reaches the points through sampling positions.
    """

    num_classes: int
    num_points: int = 9
    num_convs: int = 3
    shared_convs: int = 1
    width: int = 256  # of the towers
    pool_width: int = 64
    point_width: int = 256  # of the layers before points and classes
    norm_groups: int = 32
    offset_gradient: float = 0.1
    prior_probability: float = 0.01
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features, train: bool):
        """(P3, ...) -> {name: tuple of maps [B, Hl, Wl, channels], float32}.

        cls_logits and semantic_logits have C channels, init_points and refine_points 2 T;
        corner_logits has 2, top left and bottom right, and corner_offsets 4, x, y of each.
        """
        options = dict(norm="group", norm_groups=self.norm_groups, dtype=self.dtype)
        outputs = functools.partial(dense.outputs_of, dtype=self.dtype)
        prior = layers.prior_bias(self.prior_probability)

        def tower(name, count, x):
            return dense.tower(name, count, self.width, x, train, **options)

        cls, point = (tower(name, self.num_convs, features) for name in ("cls", "point"))
        shared = tower("shared", self.shared_convs, point)

        # What is foreground of which class; an embedding of its features helps all others.
        semantic = outputs("semantic_logits", shared, self.num_classes, 1, prior)
        embed = layers.ConvNorm(
            self.width, 1, activation=nn.relu, name="semantic_embedding", **options
        )
        embedding = tuple(embed(x, train) for x in shared)
        cls, point, shared = (
            tuple(x + y for x, y in zip(levels, embedding, strict=True))
            for levels in (cls, point, shared)
        )

        # Which cells hold corners of objects of any class, and where in the cell.
        logits, offsets = [], []
        for name, directions in CORNERS.items():
            pool = corner.CornerPooling(
                directions, self.pool_width, out_kernel=1, name=f"{name}_pool", **options
            )
            pooled = tuple(pool(x, train) for x in shared)
            logits.append(outputs(f"{name}_heat", pooled, 1, 3, prior))
            offsets.append(outputs(f"{name}_offset", pooled, 2, 3))
        corner_logits, corner_offsets = _side_by_side(*logits), _side_by_side(*offsets)

        conv = layers.Conv(
            self.point_width, kernel_init=layers.normal_001, dtype=self.dtype, name="init_conv"
        )
        hidden = tuple(map(conv, point))
        init = outputs("init_points", map(nn.relu, hidden), 2 * self.num_points, 1)
        # The corner maps are features of the last two predictions.
        cls, point = (
            tuple(
                jnp.concatenate([x, *(y.astype(x.dtype) for y in more)], axis=-1)
                for x, *more in zip(levels, corner_logits, corner_offsets, strict=True)
            )
            for levels in (cls, point)
        )
        taps = tuple(reppoints.tap_offsets(x, self.offset_gradient) for x in init)
        hidden = self._deform_conv("refine_deform", point, taps)
        steps = outputs("refine_points", hidden, 2 * self.num_points, 1)
        hidden = self._deform_conv("cls_deform", cls, taps)
        return {
            "cls_logits": outputs("cls_logits", hidden, self.num_classes, 1, prior),
            "init_points": init,
            "refine_points": tuple(
                lax.stop_gradient(x) + step for x, step in zip(init, steps, strict=True)
            ),
            "corner_logits": corner_logits,
            "corner_offsets": corner_offsets,
            "semantic_logits": semantic,
        }

    def _deform_conv(self, name, levels, offsets):
        """The convolution that samples at the points, and its ReLU."""
        conv = layers.DeformConv(
            self.point_width,
            math.isqrt(self.num_points),
            kernel_init=layers.normal_001,
            dtype=self.dtype,
            name=name,
        )
        return tuple(map(nn.relu, conv(levels, offsets)))


def _side_by_side(*maps):
    """Joins the channels of several maps, level by level."""
    return tuple(jnp.concatenate(of_level, axis=-1) for of_level in zip(*maps, strict=True))
