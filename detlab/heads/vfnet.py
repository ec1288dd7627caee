"""The head of VFNet: two rounds of boxes, and classes from features at a star around the first.

Distances are left, top, right, bottom.  Points are y, x pairs, like the offsets of a deformable
convolution.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from detlab import layers
from detlab.heads import dense, reppoints


class VFNetHead(nn.Module):
    """Two towers shared by all levels, two rounds of distances, and classes (section 4).

    Parameter paths: `cls_conv0/{conv,norm}`, ..., `box_conv0/...`, `init_conv0/...`,
    `init_distances`, `init_scales/scale0`, ..., `refine_deform`, `refine_distances`,
    `refine_scales/scale0`, ..., `cls_deform` and `cls_logits`.

    Attributes:
      strides: of the levels, px.
      units: px, one for each level; the first distances are exp(.) in this unit.
      offset_gradient: factor on the gradient that reaches the first distances through sampling
        positions.
    """

    num_classes: int
    strides: Sequence[int]
    units: Sequence[float]
    num_convs: int = 3
    width: int = 256
    norm_groups: int = 32
    offset_gradient: float = 0.1
    prior_probability: float = 0.01
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features, train: bool):
        """(P3, ...) -> {name: tuple of maps [B, Hl, Wl, channels], float32}.

        cls_logits has C channels; init_distances and refine_distances have 4, px, >= 0.
        """
        cls_features = self._tower("cls", self.num_convs, features, train)
        box_features = self._tower("box", self.num_convs, features, train)
        hidden = self._tower("init", 1, box_features, train)
        raw = layers.LevelScales(name="init_scales")(self._outputs("init_distances", hidden, 4))
        init = tuple(jnp.exp(x) * unit for x, unit in zip(raw, self.units, strict=True))

        stars = (star(x / stride) for x, stride in zip(init, self.strides, strict=True))
        offsets = tuple(reppoints.tap_offsets(x, self.offset_gradient) for x in stars)
        hidden = self._deform("refine_deform", box_features, offsets)
        raw = layers.LevelScales(name="refine_scales")(self._outputs("refine_distances", hidden, 4))
        refine = tuple(jnp.exp(x) * lax.stop_gradient(y) for x, y in zip(raw, init, strict=True))

        hidden = self._deform("cls_deform", cls_features, offsets)
        bias = layers.prior_bias(self.prior_probability)
        return {
            "cls_logits": self._outputs("cls_logits", hidden, self.num_classes, bias),
            "init_distances": init,
            "refine_distances": refine,
        }

    def _tower(self, name, num_convs, features, train):
        options = dict(norm="group", norm_groups=self.norm_groups, dtype=self.dtype)
        return dense.tower(name, num_convs, self.width, features, train, **options)

    def _deform(self, name, features, offsets):
        conv = layers.DeformConv(
            self.width, kernel_init=layers.normal_001, dtype=self.dtype, name=name
        )
        return tuple(map(nn.relu, conv(features, offsets)))

    def _outputs(self, name, hidden, channels, bias_init=nn.initializers.zeros):
        return dense.outputs_of(name, hidden, channels, bias_init=bias_init, dtype=self.dtype)


def star(distances):
    """The nine points of a box: corners, middles of the sides, its own point (section 4.3).

    Args:
      distances: [..., 4] left, top, right, bottom, in strides.
    Returns:
      [..., 18] y, x relative to the point of the cell, by rows.  The middles are those as seen from
      the point: straight above, left, right and below.
    """
    left, top, right, bottom = jnp.moveaxis(distances, -1, 0)
    zero = jnp.zeros_like(left)
    y = jnp.stack([-top, zero, bottom], axis=-1)[..., :, None]  # [..., 3, 1]
    x = jnp.stack([-left, zero, right], axis=-1)[..., None, :]  # [..., 1, 3]
    pairs = jnp.stack(jnp.broadcast_arrays(y, x), axis=-1)  # [..., 3, 3, 2]
    return pairs.reshape(*distances.shape[:-1], 18)
