"""RetinaNet: Focal Loss for Dense Object Detection (arXiv:1708.02002).

Every cell of a feature pyramid has nine anchors; each is classified on its own, and the focal
loss keeps the thousands of easy background anchors from drowning the few objects.

Reference: mmdetection's `retinanet_r50_fpn`.  As there, and unlike the paper: the box loss is L1
on the deltas (paper: smooth L1), P6 comes from C5, and an object's best anchor is positive
whatever its IoU.  The normaliser is the number of positives in the global batch; the reference
counts per GPU.

Expected: COCO val2017 AP 36.5 with experiments/retinanet_coco.py (the published figure of the
reference); 0.60 on the shapes with experiments/retinanet_shapes.py, seed 0; 0.56 on BCCD with
experiments/retinanet_bccd.py, seed 0.
"""

from typing import NamedTuple, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from detlab import bounds
from detlab import fields
from detlab import layers
from detlab import types
from detlab.assign import max_iou
from detlab.assign import values as values_lib
from detlab.backbones import resnet
from detlab.heads import dense
from detlab.losses import focal
from detlab.losses import regression
from detlab.necks import fpn
from detlab.ops import anchors as anchors_lib
from detlab.ops import coders
from detlab.ops import nms as nms_lib


class Outputs(NamedTuple):
    """One map a pyramid level, finest first."""

    features: tuple  # [B, Hl, Wl, D]
    cls_logits: tuple  # [B, Hl, Wl, A * C]
    box_deltas: tuple  # [B, Hl, Wl, A * 4]


class Examples(NamedTuple):
    """What the loss terms compare, anchor by anchor."""

    cls_logits: jax.Array  # [B, N, C]
    box_deltas: jax.Array  # [B, N, 4]
    one_hot: jax.Array  # [B, N, C] zeros where not positive
    delta_targets: jax.Array  # [B, N, 4] zeros where not positive
    counted: jax.Array  # [B, N] bool: positive or negative, not ignored
    positive: jax.Array  # [B, N] bool


class RetinaNet(nn.Module):
    """The detector; its fields are what a config's `model` may set."""

    num_classes: int = 80
    # Backbone and neck.
    depth: int = 50
    style: str = "pytorch"
    backbone_norm: str = "stored"
    frozen_stages: int = 1
    backbone_width: int = 64
    backbone_stages: Sequence[int] | None = None
    neck_width: int = 256
    # Head.
    head_convs: int = 4
    head_width: int = 256
    prior_probability: float = 0.01  # pi of section 4.1
    # Anchors: side octave_base_scale * stride, times 2^(0, 1/3, 2/3) (section 4).
    strides: Sequence[int] = (8, 16, 32, 64, 128)
    octave_base_scale: float = 4.0
    scales_per_octave: int = 3
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)  # height / width
    delta_stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)
    # Targets and losses.
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    box_weight: float = 1.0
    # Prediction.
    candidates_per_level: int = 1000
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100
    # Input: RGB, 0..255.
    pixel_mean: Sequence[float] = (123.675, 116.28, 103.53)
    pixel_std: Sequence[float] = (58.395, 57.12, 57.375)
    dtype: str = "float32"  # of computation; parameters, losses and boxes are float32
    remat: bool = False  # the backbone is computed again for its gradient, to save memory

    def check(self) -> None:
        """Raises ValueError for a value that no RetinaNet can have, before anything is built."""
        strides = tuple(self.strides)
        doubling = strides and strides == tuple(8 * 2**i for i in range(len(strides)))
        rules = (
            ("num_classes", self.num_classes >= 1, "at least 1"),
            *fields.of_resnet(self, resnet.STAGES, layers.NORMS),
            ("neck_width", self.neck_width >= 1, "at least 1"),
            ("head_convs", self.head_convs >= 0, "at least 0"),
            ("head_width", self.head_width >= 1, "at least 1"),
            ("prior_probability", 0 < self.prior_probability < 1, "between 0 and 1"),
            ("strides", doubling, "8, 16, 32 and so on, those of P3 upward"),
            ("octave_base_scale", self.octave_base_scale > 0, "above 0"),
            ("scales_per_octave", self.scales_per_octave >= 1, "at least 1"),
            ("aspect_ratios", fields.positive(self.aspect_ratios), "one or more numbers above 0"),
            ("delta_stds", fields.positive(self.delta_stds, 4), "four numbers above 0"),
            ("positive_iou", 0 < self.positive_iou <= 1, "above 0 and at most 1"),
            ("negative_iou", 0 <= self.negative_iou <= self.positive_iou, "0 to positive_iou"),
            ("focal_alpha", 0 <= self.focal_alpha <= 1, "0 to 1"),
            ("focal_gamma", self.focal_gamma >= 0, "at least 0"),
            ("box_weight", self.box_weight >= 0, "at least 0"),
            ("candidates_per_level", self.candidates_per_level >= 1, "at least 1"),
            *fields.of_suppression(self),
            *fields.of_input(self),
        )
        fields.check(self, rules)

    def setup(self):
        anchors_per_cell = self.scales_per_octave * len(self.aspect_ratios)
        self.backbone = resnet.ResNet(
            self.depth,
            self.style,
            self.backbone_norm,
            self.frozen_stages,
            self.backbone_width,
            self.backbone_stages,
            remat=self.remat,
            dtype=self.dtype,
        )
        self.neck = fpn.FPN(self.neck_width, num_levels=len(self.strides), dtype=self.dtype)
        self.head = dense.TwoTowerHead(
            cls_outputs={
                "cls_logits": (
                    anchors_per_cell * self.num_classes,
                    layers.prior_bias(self.prior_probability),
                )
            },
            box_outputs={"box_deltas": (anchors_per_cell * 4, nn.initializers.zeros)},
            num_convs=self.head_convs,
            width=self.head_width,
            dtype=self.dtype,
        )

    def forward(self, images: jax.Array, train: bool) -> Outputs:
        """[B, H, W, 3] RGB, uint8 or float32 in 0..255 -> raw maps of every level."""
        x = layers.normalise(images, self.pixel_mean, self.pixel_std, self.dtype)
        features = self.neck(self.backbone(x, train), train)
        maps = self.head(features, train)
        return Outputs(features, maps["cls_logits"], maps["box_deltas"])

    def anchors(self, canvas: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
        """The N anchors of a canvas (height, width): boxes [N, 4] px and level [N]."""
        scales = anchors_lib.octave_scales(self.octave_base_scale, self.scales_per_octave)
        cells = [anchors_lib.cell_anchors(s, scales, self.aspect_ratios) for s in self.strides]
        shapes = anchors_lib.feature_shapes(canvas, self.strides)
        return anchors_lib.pyramid_anchors(cells, self.strides, shapes)

    def level_slices(self, canvas: tuple[int, int]) -> list[slice]:
        """Where the anchors of each level lie among the N of a canvas."""
        shapes = anchors_lib.feature_shapes(canvas, self.strides)
        per_cell = self.scales_per_octave * len(self.aspect_ratios)
        return anchors_lib.level_slices(shapes, per_cell)

    def inside(self, canvas: tuple[int, int], image_size: jax.Array) -> jax.Array:
        """[N] bool: anchors of cells that touch the content of one image."""
        shapes = anchors_lib.feature_shapes(canvas, self.strides)
        per_cell = self.scales_per_octave * len(self.aspect_ratios)
        return anchors_lib.inside_content(shapes, self.strides, per_cell, image_size)

    def targets(self, batch: types.Batch) -> dict[str, types.Targets]:
        """Which anchor learns which object (section 4, "Anchors").

        `values` holds the deltas of positive anchors, and zeros in place of all others.
        """
        canvas = batch.images.shape[1:3]
        anchors, level = self.anchors(canvas)

        def one_image(boxes, valid, image_size):
            assigned = max_iou.assign(
                anchors,
                boxes,
                valid,
                pos_iou=self.positive_iou,
                neg_iou=self.negative_iou,
                min_pos_iou=0.0,
                anchor_valid=self.inside(canvas, image_size),
            )
            deltas = coders.encode_deltas(anchors, boxes[assigned.matched], stds=self.delta_stds)
            return assigned.status, assigned.matched, deltas

        status, matched, deltas = lax.stop_gradient(
            jax.vmap(one_image)(batch.boxes, batch.valid, batch.image_size)
        )
        num_images = batch.images.shape[0]
        return {
            "main": types.Targets(
                boxes=jnp.broadcast_to(anchors, (num_images, *anchors.shape)),
                level=jnp.broadcast_to(level, (num_images, *level.shape)),
                status=status,
                matched=matched,
                values=values_lib.of_positives(status, {"deltas": deltas}),
            )
        }

    def examples(self, batch: types.Batch) -> Examples:
        """Every anchor with what it predicts and what it should have predicted."""
        outputs = self.forward(batch.images, train=True)
        targets = self.targets(batch)["main"]
        positive = targets.status == 1  # [B, N]
        labels = jnp.take_along_axis(batch.labels, targets.matched, axis=1)  # [B, N]
        return Examples(
            cls_logits=anchors_lib.flatten_levels(outputs.cls_logits, self.num_classes),
            box_deltas=anchors_lib.flatten_levels(outputs.box_deltas, 4),
            one_hot=focal.one_hot(labels, positive, self.num_classes),
            delta_targets=targets.values["deltas"],
            counted=targets.status >= 0,
            positive=positive,
        )

    def loss(self, batch: types.Batch):
        """Focal loss on classes plus L1 on deltas, both over the number of positives (eq. 5)."""
        found = self.examples(batch)
        # At least one an image, as in the reference, so that empty images do not divide by zero.
        normaliser = jnp.maximum(found.positive.sum(1), 1).sum().astype(jnp.float32)
        cls = focal.sigmoid_focal(
            found.cls_logits, found.one_hot, self.focal_alpha, self.focal_gamma
        )
        cls = jnp.where(found.counted[..., None], cls, 0.0).sum() / normaliser
        box = regression.l1(found.box_deltas, found.delta_targets)
        box = self.box_weight * jnp.where(found.positive[..., None], box, 0.0).sum() / normaliser
        metrics = {
            "loss/cls": cls,
            "loss/box": box,
            "positives": found.positive.sum() / batch.images.shape[0],
            "normaliser": normaliser,
        }
        return cls + box, metrics

    def candidates(self, images: jax.Array, image_size: jax.Array) -> types.Detections:
        """The best (anchor, class) pairs of each level (section 4, "Inference")."""
        outputs = self.forward(images, train=False)
        canvas = images.shape[1:3]
        anchors, _ = self.anchors(canvas)
        inside = jax.vmap(lambda size: self.inside(canvas, size))(image_size)  # [B, N]

        def one_level(scores, deltas, anchors, size):
            """One image: [Nl, C] and [Nl, 4] -> boxes, scores, labels, valid of K pairs."""
            count = min(self.candidates_per_level, scores.size)
            scores, pair = lax.top_k(scores.reshape(-1), count)
            anchor, label = pair // self.num_classes, pair % self.num_classes
            boxes = coders.decode_deltas(
                anchors[anchor], deltas[anchor], stds=self.delta_stds, max_size=(size[0], size[1])
            )
            has_area = (boxes[:, 2:] > boxes[:, :2]).all(-1)  # clipping can take it
            valid = (scores > self.score_threshold) & has_area
            return boxes, scores, label.astype(jnp.int32), valid

        rows, levels = [], self.level_slices(canvas)
        for logits, deltas, level in zip(outputs.cls_logits, outputs.box_deltas, levels):
            logits = anchors_lib.flatten_levels((logits,), self.num_classes)  # [B, Nl, C]
            deltas = anchors_lib.flatten_levels((deltas,), 4)
            scores = jnp.where(inside[:, level, None], nn.sigmoid(logits), 0.0)
            bounds.note(self, "candidates_per_level", scores > self.score_threshold)
            rows.append(
                jax.vmap(one_level, in_axes=(0, 0, None, 0))(
                    scores, deltas, anchors[level], image_size
                )
            )
        boxes, scores, labels, valid = (jnp.concatenate(parts, axis=1) for parts in zip(*rows))
        return types.Detections(boxes, scores, labels, valid)

    def suppress(self, candidates: types.Detections) -> types.Detections:
        """Greedy suppression within each class; the best `max_detections` of an image stay."""
        return nms_lib.suppress_images(candidates, self.nms_iou, self.max_detections)

    def frozen_paths(self) -> tuple[str, ...]:
        """Regexes of the leaves that training never changes."""
        return resnet.frozen_paths("backbone", self.backbone_norm, self.frozen_stages)


MODULE = RetinaNet
