"""The head of RepPoints: two rounds of points, and classes from features at the points.

Letters: T points of a cell, which are the taps of a sqrt(T) x sqrt(T) kernel.

Points are y, x pairs, like the offsets of a deformable convolution, relative to the cell's point in
strides of the level; boxes are xyxy in the same unit.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from detlab import layers
from detlab.heads import dense
from detlab.ops import coders, gradient


class RepPointsHead(nn.Module):
    """Two towers shared by all levels, two rounds of points, and classes (section 3.3, figure 2).

    Parameter paths: `cls_conv0/{conv,norm}`, ..., `point_conv0/...`, `init_conv`, `init_points`,
    `refine_deform`, `refine_points`, `cls_deform`, `cls_logits`, and `moment_transfer` [2], the
    logarithms of the factors that multiply the deviations along x and y.

    Attributes:
      transform: of `coders.points_to_boxes`.
      use_grid_points: each round predicts the four deltas of a box instead of points, and its
        points are a grid in that box; with transform minmax.
      base_scale: side, in strides, of the box that the first round moves, with use_grid_points.
      offset_gradient: factor on the gradient that reaches the points through sampling positions.
    """

    num_classes: int
    num_points: int = 9
    num_convs: int = 3
    width: int = 256  # of the towers
    point_width: int = 256  # of the layers after them
    norm: str = "group"
    norm_groups: int = 32
    transform: str = "moment"
    use_grid_points: bool = False
    base_scale: float = 4.0
    offset_gradient: float = 0.1
    prior_probability: float = 0.01
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features, train: bool):
        """(P3, ...) -> {name: tuple of maps [B, Hl, Wl, channels], float32}.

        cls_logits has C channels, init_points and refine_points 2 T, and init_boxes and
        refine_boxes 4.
        """
        side = math.isqrt(self.num_points)
        channels = 4 if self.use_grid_points else 2 * self.num_points
        if self.transform == "moment":
            transfer = self.param("moment_transfer", nn.initializers.zeros, (2,))
        else:
            transfer = None

        def deform_conv(name):
            return layers.DeformConv(
                self.point_width,
                side,
                kernel_init=layers.normal_001,
                dtype=self.dtype,
                name=name,
            )

        cls_features, point_features = (
            dense.tower(
                name,
                self.num_convs,
                self.width,
                features,
                train,
                norm=self.norm,
                norm_groups=self.norm_groups,
                dtype=self.dtype,
            )
            for name in ("cls", "point")
        )
        init_conv = layers.Conv(
            self.point_width, kernel_init=layers.normal_001, dtype=self.dtype, name="init_conv"
        )
        hidden = tuple(map(init_conv, point_features))
        predicted = self._outputs("init_points", hidden, channels)
        if self.use_grid_points:
            half = self.base_scale / 2
            start = jnp.array([-half, -half, half, half])
            init_boxes = tuple(coders.decode_deltas(start, x) for x in predicted)
            init_points = tuple(grid(boxes, side) for boxes in init_boxes)
        else:
            init_points = predicted
            init_boxes = tuple(boxes_around(x, self.transform, transfer) for x in init_points)

        offsets = tuple(tap_offsets(x, self.offset_gradient) for x in init_points)
        hidden = deform_conv("refine_deform")(point_features, offsets)
        predicted = self._outputs("refine_points", hidden, channels)
        if self.use_grid_points:
            refine_boxes = tuple(
                coders.decode_deltas(lax.stop_gradient(boxes), x)
                for boxes, x in zip(init_boxes, predicted, strict=True)
            )
            refine_points = tuple(grid(boxes, side) for boxes in refine_boxes)
        else:
            refine_points = tuple(
                lax.stop_gradient(points) + x
                for points, x in zip(init_points, predicted, strict=True)
            )
            refine_boxes = tuple(boxes_around(x, self.transform, transfer) for x in refine_points)

        hidden = deform_conv("cls_deform")(cls_features, offsets)
        bias = layers.prior_bias(self.prior_probability)
        return {
            "cls_logits": self._outputs("cls_logits", hidden, self.num_classes, bias),
            "init_points": init_points,
            "refine_points": refine_points,
            "init_boxes": init_boxes,
            "refine_boxes": refine_boxes,
        }

    def _outputs(self, name, hidden, channels, bias_init=nn.initializers.zeros):
        return dense.outputs_of(name, map(nn.relu, hidden), channels, 1, bias_init, self.dtype)


def kernel_grid(side: int) -> np.ndarray:
    """[2 side^2] float32: y, x of a kernel's taps relative to its centre, in cells, by rows."""
    steps = np.arange(side, dtype=np.float32) - side // 2
    return np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).ravel()


def tap_offsets(points, offset_gradient: float):
    """Offsets [..., 2 T] that move the taps of a deformable convolution to points [..., 2 T]."""
    taps = kernel_grid(math.isqrt(points.shape[-1] // 2))
    return gradient.scale(points, offset_gradient) - taps


def boxes_around(points, transform: str, transfer):
    """Boxes [..., 4] of points [..., 2 T] y, x; `transfer` [2]: see `coders.points_to_boxes`."""
    pairs = points.reshape(*points.shape[:-1], -1, 2)
    return coders.points_to_boxes(pairs[..., ::-1], transform, transfer)


def grid(boxes, side: int):
    """Points [..., 2 side^2], y, x by rows, evenly spaced in boxes [..., 4] xyxy."""
    return coders.boxes_to_grid(boxes, side)[..., ::-1].reshape(*boxes.shape[:-1], -1)
