"""CentripetalNet: Pursuing High-quality Keypoint Pairs (arXiv:2003.09119).

CornerNet pairs corners by tags, which say nothing about where an object is: two objects that look
alike may swap corners.  Here each corner points to the centre of its object.  Two corners are a
box if both point into the middle of the box and close to each other (section 3.1).  A coarse
guiding shift first tells a deformable convolution where to read ("cross-star deformable
convolution", section 3.2), and the centripetal shift is predicted from what it reads.

Reference: mmdetection's `centripetalnet_hourglass104`, whose values are the defaults.  The mask
branch of the paper (section 3.4) is not part of it.  As in the reference, the logarithm of the
centripetal shift is predicted, and the offsets of the deformable convolution are a 1x1 convolution
of the guiding shift, which gets no gradient from it.  What differs from the reference is as in
CornerNet: the global batch is counted, images lie at the top left of their canvas, and corners are
clipped on all sides.  Where fewer than `max_corners` cells are peaks, the reference fills up with
other cells of score 0, here the slots stay empty.  `eval.views` of the configs joins the pairs of
an image and of its mirror image, as the published test does.

Expected: COCO val2017 AP 44.8 with experiments/centripetalnet_coco.py (the published figure of the
reference; not trained here).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from detlab import fields, types
from detlab.assign import heatmap as heatmap_targets
from detlab.detectors import cornernet
from detlab.heads import corner
from detlab.ops import corner_groups, heatmaps


class ShiftMaps(NamedTuple):
    """Raw maps of one kind of corner, one per stack; H, W are a quarter of the canvas."""

    heat: tuple  # [B, H, W, C] logits
    offset: tuple  # [B, H, W, 2] x, y in cells
    guiding: tuple  # [B, H, W, 2] x, y in cells from the corner's cell to the centre
    centripetal: tuple  # [B, H, W, 2] x, y: logarithm of cells from the corner to the centre


class CentripetalNet(cornernet.Corners):
    """CornerNet without tags; corners are paired by the centres that they point to."""

    guiding_weight: float = 0.05
    centripetal_weight: float = 1.0
    # Between the centres of a pair: an area, relative to that of the middle of the box.
    max_center_distance: float = 0.5

    map_type = ShiftMaps

    def check(self) -> None:
        """Checks the fields of all corner detectors and those of shifts."""
        super().check()
        names = "guiding_weight", "centripetal_weight", "max_center_distance"
        fields.check(self, fields.at_least(self, 0, *names))

    def make_branch(self, directions: tuple[str, str], outputs: dict) -> nn.Module:
        """Adds both shifts and the feature adaption between them."""
        return corner.CentripetalBranch(
            directions, outputs, self.pool_width, self.head_width, self.norm, dtype=self.dtype
        )

    def pair_targets(self, boxes: jax.Array, valid: jax.Array, shape: tuple, canvas: tuple) -> dict:
        """Both shifts at the corners of each object (eq. 1 and 2)."""
        both = heatmap_targets.shifts(boxes, valid, shape, canvas)
        return {name: x._asdict() for name, x in zip(cornernet.CORNERS, both, strict=True)}

    def pair_terms(
        self, batch: types.Batch, maps: cornernet.Outputs, values: dict
    ) -> dict[str, jax.Array]:
        """Smooth L1 of both shifts in the cells of corners (eq. 3), over all stacks."""
        weights = {"guiding": self.guiding_weight, "centripetal": self.centripetal_weight}
        terms = dict.fromkeys(weights, 0.0)
        for name in cornernet.CORNERS:
            for shift, weight in weights.items():
                target, heat = values[f"{name}_{shift}"], values[f"{name}_heat"]
                for predicted in getattr(getattr(maps, name), shift):
                    miss = cornernet.at_corners(predicted, target, heat)
                    terms[shift] += weight * miss / 2
        return terms

    def clues(
        self, kind: str, maps: ShiftMaps, found: corner_groups.Corners, cell: tuple
    ) -> jax.Array:
        """The centres [K, 2] px that corners point to."""
        towards = 1 if kind == "top_left" else -1
        shift = jnp.exp(heatmaps.take_cells(maps.centripetal, found.cells))
        return found.points + towards * shift * jnp.asarray(cell)

    def agree(self, top_left: tuple, bottom_right: tuple) -> jax.Array:
        """Both centres in the middle of the box, and close to each other."""
        (low, low_centers), (high, high_centers) = top_left, bottom_right
        return corner_groups.centers_agree(
            (low.points, low_centers), (high.points, high_centers), self.max_center_distance
        )


MODULE = CentripetalNet
