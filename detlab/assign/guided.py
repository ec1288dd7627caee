"""Where guided anchors belong and from which objects they learn their shapes (arXiv:1901.03278).

Section 3.4 of the paper, for a detector with the fields of `fields.of_guided_anchors`.
"""

from typing import Any

from detlab import types
from detlab.assign import locations, rois, targets
from detlab.ops import anchors as anchors_lib

Array = Any


def of_image(
    module: Any, scale: float, grid: anchors_lib.Grid, key: Array, boxes, valid, image_size
) -> dict[str, types.Targets]:
    """The targets `location` and `shape` of one image, with one entry per cell.

    `location`: the middles of objects.  `shape`: a sample of the cells in which some usual anchor
    overlaps an object, -1 where not sampled, with the object's box where positive.

    Args:
      module: the detector, also with the field `aspect_ratios`.
      scale: side of the squares whose shapes are learned, and of the smallest usual anchors, in
        strides.
      grid: of one prior per cell.
      key: of this image, for the sample.
      boxes: [G, 4] xyxy px, the objects, padded.
      valid: [G] bool, the real ones.
      image_size: [2] height, width px; cells outside are -1 in both.
    """
    level, squares, inside = grid.level(), grid.squares(scale), grid.inside(image_size)
    # They stand for all shapes when objects are assigned to cells.
    usual = grid.octave_anchors(scale, module.scales_per_octave, module.aspect_ratios)
    ratios = module.center_ratio, module.ignore_ratio
    location = locations.assign(grid, boxes, valid, scale, *ratios, cell_valid=inside)
    shape = rois.sample_anchors(
        key,
        squares,
        inside,
        boxes,
        valid,
        ious=(
            module.shape_positive_iou,
            module.shape_negative_iou,
            module.shape_min_positive_iou,
        ),
        num=module.shape_samples,
        positive_fraction=module.shape_positive_fraction,
        approximations=usual.reshape(len(squares), -1, 4),  # [N, A, 4]
    )
    wanted = {"boxes": boxes[shape.matched]}
    return {
        "location": targets.of_entries(squares, level, location, {}),
        "shape": targets.of_entries(squares, level, shape, wanted),
    }
