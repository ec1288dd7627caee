"""Losses of darknet's [region], the head of YOLOv2 (AlexeyAB's `region_layer.c`), unreduced.

All deltas are minus the gradients of half a squared error, or of a cross entropy with the softmax.
In the first images of a training, every box that learns no object is drawn to its anchor.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from detlab.losses import darknet
from detlab.ops import boxes as boxes_lib

EARLY_IMAGES = 12800  # boxes are drawn to their anchors while fewer images were seen
_DRAWN = 0.01  # the weight of that


def head_terms(
    head: Any,
    raw,
    anchors,
    shape: tuple[int, int],
    canvas: tuple[int, int],
    learned: Any,
    gt_boxes,
    gt_labels,
    drawn,
) -> darknet.Terms:
    """All loss terms of one head for one image, weighted as in darknet.

    Args:
      head: has the fields of `detlab.darknet.cfg.Region`.
      raw: [N, 5 + C] x, y, w, h, objectness, classes of each row, float32.
      anchors: [N, 4] xyxy px, centred on their cells.
      shape: (Hl, Wl) cells of the head.
      canvas: (height, width) px.
      learned: result of `assign.darknet.learn_region`, without gradients.
      gt_boxes: [G, 4] xyxy px, padded.
      gt_labels: [G] int32.
      drawn: [N] bool, the rows whose boxes are drawn to their anchors if they learn no object.
    Returns:
      Terms; `box` has another [N] behind its [A * G], of the boxes that are drawn.
    """
    (row, positive), last = learned.entries, learned.rows.last
    truths = jnp.where(positive[..., None], gt_boxes, anchors[row])  # [A, G, 4]
    own, truths = (boxes_lib.xyxy_to_cxcywh(x) for x in (anchors[row], truths))
    stride = np.array([canvas[1] / shape[1], canvas[0] / shape[0]], np.float32)
    place = (truths[..., :2] - own[..., :2]) / stride + 0.5
    size = jnp.log(truths[..., 2:] / own[..., 2:])
    values = raw[row, :4]
    box = darknet.half_square(jax.nn.sigmoid(values[..., :2]), place).sum(-1)
    box += darknet.half_square(values[..., 2:], size).sum(-1)
    box = jnp.where(positive, head.coord_scale * box, 0.0).ravel()
    apart = darknet.half_square(jax.nn.sigmoid(raw[:, :2]), 0.5).sum(-1)
    apart += darknet.half_square(raw[:, 2:4], 0.0).sum(-1)
    apart = jnp.where(drawn & (last < 0), _DRAWN * apart, 0.0)

    weight = jnp.where(last >= 0, head.object_scale, head.noobject_scale)
    weight = jnp.where(learned.counts, weight, 0.0)
    objectness = darknet.half_square(jax.nn.sigmoid(raw[:, 4]), learned.objectness)

    wanted = jax.nn.one_hot(gt_labels[last], raw.shape[-1] - 5)  # [N, C]
    if head.softmax:
        classes = -wanted * jax.nn.log_softmax(raw[:, 5:])
    else:
        classes = darknet.half_square(raw[:, 5:], wanted)
    classes = jnp.where((last >= 0)[:, None], head.class_scale * classes, 0.0)
    return darknet.Terms(jnp.concatenate([box, apart]), weight * objectness, classes)
