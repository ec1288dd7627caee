"""Faster R-CNN on a feature pyramid (arXiv:1506.01497, arXiv:1612.03144).

A region proposal network scores anchors and moves them; the best proposals are cut out of the
pyramid (RoIAlign), and a box head classifies each and moves it once more.  In training the box
head sees a random sample of the proposals and of the objects themselves.

Reference: mmdetection's `faster-rcnn_r50_fpn_1x_coco`.  As there, and unlike the papers: both box
losses are L1, RoIs are aligned to half pixels, and P6 is every second cell of P5.  Normalisers are
those of the global batch; the reference's are those of a GPU.  Anchors of cells that hold padding
alone are not sampled and propose nothing.

RoIAlign takes 2x2 samples of a bin.  The reference takes ceil(RoI side in cells / 7) squared, which
`sampling_ratio` 0 does here, at the price of a loop whose length depends on the data; with it
published weights give the reference's scores, and configs that load them predict so
(`predict_sampling_ratio`).  In the recorded case of the reference, whose RoIs have up to 42 px and
take one or two samples, 2x2 samples move the scores of the 200 detections by 0.0021 on average and
by 0.030 at most.

Suppression sees the best `num_candidates` pairs of proposal and class; the reference's sees all
above the threshold.  The two differ in images where more than `num_candidates` are above it, and
the report of an evaluation counts those.

Expected: COCO val2017 AP 37.4 with experiments/faster_rcnn_coco.py (the published figure of the
reference).
"""

from typing import NamedTuple, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from detlab import bounds
from detlab import fields
from detlab import layers
from detlab import sharding
from detlab import types
from detlab.assign import max_iou
from detlab.assign import sampling
from detlab.assign import values as values_lib
from detlab.backbones import resnet
from detlab.heads import box as box_lib
from detlab.heads import rpn as rpn_lib
from detlab.losses import cross_entropy
from detlab.losses import regression
from detlab.necks import fpn
from detlab.ops import anchors as anchors_lib
from detlab.ops import coders
from detlab.ops import nms as nms_lib
from detlab.ops import roi_align


class Outputs(NamedTuple):
    """Maps of the RPN, finest level first, and what the box head says of the P proposals."""

    features: tuple  # [B, Hl, Wl, D]
    rpn_logits: tuple  # [B, Hl, Wl, A]
    rpn_deltas: tuple  # [B, Hl, Wl, A * 4]
    proposals: rpn_lib.Proposals  # [B, P, ...]
    cls_logits: jax.Array  # [B, P, C + 1], background last
    box_deltas: jax.Array  # [B, P, C * 4]


class FasterRCNN(nn.Module):
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
    # Region proposals: anchors of side anchor_scale * stride.
    rpn_width: int = 256
    strides: Sequence[int] = (4, 8, 16, 32, 64)
    anchor_scale: float = 8.0
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0)  # height / width
    rpn_positive_iou: float = 0.7
    rpn_negative_iou: float = 0.3
    rpn_min_positive_iou: float = 0.3  # of an object's best anchor
    rpn_samples: int = 256  # of an image
    rpn_positive_fraction: float = 0.5
    proposal_nms_iou: float = 0.7
    train_proposals_per_level: int = 2000
    train_proposals: int = 1000
    proposals_per_level: int = 1000
    proposals: int = 1000
    # Box head.
    box_width: int = 1024
    roi_size: int = 7
    roi_scale: float = 56.0  # px; RoIs of twice this side leave P2
    sampling_ratio: int = 2  # samples of a bin along each axis; 0: adaptive, as the reference
    predict_sampling_ratio: int = 2
    positive_iou: float = 0.5
    box_samples: int = 512  # of an image
    box_positive_fraction: float = 0.25
    delta_stds: Sequence[float] = (0.1, 0.1, 0.2, 0.2)
    # Prediction.
    num_candidates: int = 2000  # pairs (proposal, class) of the best scores
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100
    # Input: RGB, 0..255.
    pixel_mean: Sequence[float] = (123.675, 116.28, 103.53)
    pixel_std: Sequence[float] = (58.395, 57.12, 57.375)
    dtype: str = "float32"  # of computation; parameters, losses and boxes are float32
    remat: bool = False  # the backbone is computed again for its gradient, to save memory

    def check(self) -> None:
        """Raises ValueError for a value that no Faster R-CNN can have."""
        strides = tuple(self.strides)
        doubling = len(strides) >= 4 and strides == tuple(4 * 2**i for i in range(len(strides)))
        counts = (
            *("neck_width", "rpn_width", "box_width", "roi_size", "rpn_samples", "box_samples"),
            *("train_proposals_per_level", "train_proposals", "proposals_per_level", "proposals"),
            "num_candidates",
        )
        parts = (
            *("rpn_min_positive_iou", "rpn_positive_fraction", "box_positive_fraction"),
            "proposal_nms_iou",
        )
        low, high = self.rpn_negative_iou, self.rpn_positive_iou
        rules = (
            ("num_classes", self.num_classes >= 1, "at least 1"),
            *fields.of_resnet(self, resnet.STAGES, layers.NORMS),
            *((name, getattr(self, name) >= 1, "at least 1") for name in counts),
            *((name, 0 <= getattr(self, name) <= 1, "0 to 1") for name in parts),
            ("strides", doubling, "4, 8, 16, 32 and so on, those of P2 upward"),
            ("anchor_scale", self.anchor_scale > 0, "above 0"),
            ("aspect_ratios", fields.positive(self.aspect_ratios), "one or more numbers above 0"),
            ("rpn_positive_iou", 0 < high <= 1, "above 0 and at most 1"),
            ("rpn_negative_iou", 0 <= low <= high, "0 to rpn_positive_iou"),
            ("roi_scale", self.roi_scale > 0, "above 0"),
            ("sampling_ratio", self.sampling_ratio >= 0, "at least 0"),
            ("predict_sampling_ratio", self.predict_sampling_ratio >= 0, "at least 0"),
            ("positive_iou", 0 < self.positive_iou <= 1, "above 0 and at most 1"),
            ("delta_stds", fields.positive(self.delta_stds, 4), "four numbers above 0"),
            *fields.of_suppression(self),
            *fields.of_input(self),
        )
        fields.check(self, rules)

    def setup(self):
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
        self.neck = fpn.FPN(self.neck_width, 2, len(self.strides), extra="pool", dtype=self.dtype)
        self.rpn = rpn_lib.RPNHead(len(self.aspect_ratios), self.rpn_width, dtype=self.dtype)
        self.box_head = box_lib.BoxHead(self.num_classes, self.box_width, dtype=self.dtype)

    def forward(self, images: jax.Array, train: bool) -> Outputs:
        """[B, H, W, 3] RGB, uint8 or float32 in 0..255 -> everything; the canvas is the image."""
        size = jnp.tile(jnp.array(images.shape[1:3]), (images.shape[0], 1))
        return self.detect(images, size)

    # --------------------------------------------------------------------------------------------
    # First stage

    def first_stage(self, images: jax.Array, train: bool):
        """Features, logits and deltas of the RPN, each a tuple of levels."""
        x = layers.normalise(images, self.pixel_mean, self.pixel_std, self.dtype)
        features = self.neck(self.backbone(x, train), train)
        return features, *self.rpn(features, train)

    def anchors(self, canvas: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
        """The N anchors of a canvas (height, width): boxes [N, 4] px and level [N]."""
        cells = [
            anchors_lib.cell_anchors(stride, (self.anchor_scale,), self.aspect_ratios)
            for stride in self.strides
        ]
        shapes = anchors_lib.feature_shapes(canvas, self.strides)
        return anchors_lib.pyramid_anchors(cells, self.strides, shapes)

    def inside(self, canvas: tuple[int, int], image_size: jax.Array) -> jax.Array:
        """[N] bool: anchors of cells that touch the content of one image."""
        shapes = anchors_lib.feature_shapes(canvas, self.strides)
        per_cell = len(self.aspect_ratios)
        return anchors_lib.inside_content(shapes, self.strides, per_cell, image_size)

    def propose(self, canvas, rpn_logits, rpn_deltas, image_size, train: bool):
        """Proposals [B, P, ...] of a batch, without a gradient."""
        anchors, _ = self.anchors(canvas)
        shapes = anchors_lib.feature_shapes(canvas, self.strides)
        levels = anchors_lib.level_slices(shapes, len(self.aspect_ratios))

        def one_image(logits, deltas, size):
            inside = self.inside(canvas, size)
            return rpn_lib.propose(
                [level.reshape(-1) for level in logits],
                [level.reshape(-1, 4) for level in deltas],
                [anchors[level] for level in levels],
                [inside[level] for level in levels],
                size,
                per_level=self.train_proposals_per_level if train else self.proposals_per_level,
                num_proposals=self.train_proposals if train else self.proposals,
                nms_iou=self.proposal_nms_iou,
            )

        maps = lax.stop_gradient((rpn_logits, rpn_deltas))
        return sharding.per_device(jax.vmap(one_image))(*maps, image_size)

    # --------------------------------------------------------------------------------------------
    # Second stage

    def second_stage(self, features, rois: jax.Array, valid: jax.Array, sampling_ratio: int):
        """Logits [B, R, C + 1] and deltas [B, R, C * 4] of RoIs [B, R, 4]; valid [B, R]."""
        pyramid, strides = tuple(features[:4]), self.strides[:4]  # P6 is for proposals alone

        def one_image(pyramid, rois, valid):
            return roi_align.multilevel(
                pyramid, rois, valid, strides, self.roi_size, sampling_ratio, self.roi_scale
            )

        cut = sharding.per_device(jax.vmap(one_image))(pyramid, lax.stop_gradient(rois), valid)
        return self.box_head(cut)

    def detect(self, images: jax.Array, image_size: jax.Array) -> Outputs:
        """Both stages, as in prediction."""
        features, logits, deltas = self.first_stage(images, train=False)
        found = self.propose(images.shape[1:3], logits, deltas, image_size, train=False)
        ratio = self.predict_sampling_ratio
        box_outputs = self.second_stage(features, found.boxes, found.valid, ratio)
        return Outputs(features, logits, deltas, found, *box_outputs)

    # --------------------------------------------------------------------------------------------
    # Training

    def targets(self, batch: types.Batch) -> dict[str, types.Targets]:
        """`rpn`: all anchors, -1 where not sampled; `box`: the sampled RoIs, -1 in empty slots.

        Both have the deltas of positive entries, and zeros in place of all others.  `box` also has
        the `index` of each RoI, background or not, among the proposals and, after them, the slots
        of objects; 0 in empty slots.
        """
        _, logits, deltas = self.first_stage(batch.images, train=True)
        return self.assign(batch, logits, deltas)

    def assign(self, batch: types.Batch, rpn_logits, rpn_deltas) -> dict[str, types.Targets]:
        """`targets` from the maps of the RPN."""
        canvas, num_images = batch.images.shape[1:3], batch.images.shape[0]
        anchors, level = self.anchors(canvas)
        proposals = self.propose(canvas, rpn_logits, rpn_deltas, batch.image_size, train=True)
        rng = self.make_rng("sample")
        # A key for each image of the global batch: devices then do not matter.
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(rng, i)))(
            jnp.arange(num_images)
        )

        def first(key, boxes, valid, size):
            status, matched = sample_anchors(
                key,
                anchors,
                self.inside(canvas, size),
                boxes,
                valid,
                ious=(self.rpn_positive_iou, self.rpn_negative_iou, self.rpn_min_positive_iou),
                num=self.rpn_samples,
                positive_fraction=self.rpn_positive_fraction,
            )
            deltas = coders.encode_deltas(anchors, boxes[matched])
            values = values_lib.of_positives(status, {"deltas": deltas})
            return types.Targets(anchors, level, status, matched, values)

        def second(key, boxes, valid, proposals):
            rois = sample_rois(
                key,
                proposals,
                boxes,
                valid,
                iou=self.positive_iou,
                num=self.box_samples,
                positive_fraction=self.box_positive_fraction,
            )
            deltas = coders.encode_deltas(rois.boxes, boxes[rois.matched], stds=self.delta_stds)
            return types.Targets(
                rois.boxes,
                roi_align.levels(rois.boxes, 4, self.roi_scale),
                rois.status,
                rois.matched,
                {**values_lib.of_positives(rois.status, {"deltas": deltas}), "index": rois.index},
            )

        def on_images(function):  # elsewhere a `top_k` brings all images to all devices
            return sharding.per_device(jax.vmap(function))

        objects = batch.boxes, batch.valid
        targets = {
            "rpn": on_images(first)(keys[:, 0], *objects, batch.image_size),
            "box": on_images(second)(keys[:, 1], *objects, proposals),
        }
        return lax.stop_gradient(targets)

    def loss(self, batch: types.Batch):
        """Cross entropy and L1 of both stages, each over the number of its samples."""
        features, rpn_logits, rpn_deltas = self.first_stage(batch.images, train=True)
        targets = self.assign(batch, rpn_logits, rpn_deltas)
        rpn, box = targets["rpn"], targets["box"]
        terms = self.rpn_loss(rpn_logits, rpn_deltas, rpn)

        counted, positive = box.status >= 0, box.status == 1  # [B, R]
        logits, deltas = self.second_stage(features, box.boxes, counted, self.sampling_ratio)
        labels = jnp.take_along_axis(batch.labels, box.matched, axis=1)
        labels = jnp.where(positive, labels, self.num_classes)
        normaliser = jnp.maximum(counted.sum(), 1).astype(jnp.float32)
        cls = cross_entropy.softmax_cross_entropy(logits, labels)
        deltas = of_label(deltas, jnp.where(positive, labels, 0))  # [B, R, 4]
        l1 = regression.l1(deltas, box.values["deltas"]).sum(-1)
        terms |= {
            "loss/cls": jnp.where(counted, cls, 0.0).sum() / normaliser,
            "loss/box": jnp.where(positive, l1, 0.0).sum() / normaliser,
        }
        right = counted & (logits.argmax(-1) == labels)
        metrics = {
            **terms,
            "accuracy_percent": 100 * right.sum() / normaliser,
            "positives": positive.sum() / batch.images.shape[0],
            "normaliser": normaliser,
        }
        return sum(terms.values()), metrics

    def rpn_loss(self, rpn_logits, rpn_deltas, targets: types.Targets) -> dict[str, jax.Array]:
        """Both terms of the first stage."""
        logits = anchors_lib.flatten_levels(rpn_logits, 1)[..., 0]  # [B, N]
        deltas = anchors_lib.flatten_levels(rpn_deltas, 4)
        sampled, positive = targets.status >= 0, targets.status == 1
        # As in the reference: of each image at least one positive and one negative are reckoned.
        counts = [jnp.maximum((targets.status == kind).sum(1), 1).sum() for kind in (0, 1)]
        normaliser = sum(counts).astype(jnp.float32)
        cls = cross_entropy.sigmoid_cross_entropy(logits, positive.astype(jnp.float32))
        box = regression.l1(deltas, targets.values["deltas"]).sum(-1)
        return {
            "loss/rpn_cls": jnp.where(sampled, cls, 0.0).sum() / normaliser,
            "loss/rpn_box": jnp.where(positive, box, 0.0).sum() / normaliser,
        }

    # --------------------------------------------------------------------------------------------
    # Prediction

    def candidates(self, images: jax.Array, image_size: jax.Array) -> types.Detections:
        """The (proposal, class) pairs of the best scores.

        Softmax scores of a proposal add up to 1, so less than 1 / `score_threshold` of its classes
        pass; `num_candidates` bounds the pairs of an image, of which the worst go first.
        """
        outputs = self.detect(images, image_size)
        scores = nn.softmax(outputs.cls_logits)[..., :-1]  # [B, P, C]
        scores = jnp.where(outputs.proposals.valid[..., None], scores, 0.0)
        bounds.note(self, "num_candidates", scores > self.score_threshold)

        def one_image(proposals, scores, deltas, size):
            count = min(self.num_candidates, scores.size)
            scores, pair = lax.top_k(scores.reshape(-1), count)
            roi, label = pair // self.num_classes, pair % self.num_classes
            boxes = coders.decode_deltas(
                proposals.boxes[roi],
                deltas.reshape(-1, 4)[pair],
                stds=self.delta_stds,
                max_size=(size[0], size[1]),
            )
            has_area = (boxes[:, 2:] > boxes[:, :2]).all(-1)  # clipping can take it
            valid = (scores > self.score_threshold) & has_area
            return boxes, scores, label.astype(jnp.int32), valid

        rows = outputs.proposals, scores, outputs.box_deltas, image_size
        return types.Detections(*jax.vmap(one_image)(*rows))

    def suppress(self, candidates: types.Detections) -> types.Detections:
        """Greedy suppression within each class; the best `max_detections` of an image stay."""
        return nms_lib.suppress_images(candidates, self.nms_iou, self.max_detections)

    def frozen_paths(self) -> tuple[str, ...]:
        """Regexes of the leaves that training never changes."""
        return resnet.frozen_paths("backbone", self.backbone_norm, self.frozen_stages)


# ------------------------------------------------------------------------------------------------
# Parts of two-stage detectors, for one image


class RoIs(NamedTuple):
    """What a box head learns from: positives first, then negatives, then empty slots."""

    boxes: jax.Array  # [R, 4] xyxy px, zeros in empty slots
    status: jax.Array  # [R] int32: -1 empty, 0 background, 1 an object
    matched: jax.Array  # [R] int32 slot of the object
    index: jax.Array  # [R] int32 row among the proposals and, after them, the slots of objects


def sample_anchors(key, anchors, inside, boxes, valid, *, ious, num, positive_fraction):
    """Status and matched object [N] of the anchors of one image; status -1 where not sampled.

    Args:
      key: of this image.
      anchors: [N, 4] xyxy px.
      inside: [N] bool; other anchors take no part.
      boxes: [G, 4] xyxy px, the objects; valid: [G] bool, the real ones.
      ious: an anchor is positive from the first on, negative below the second, and an object's
        best anchor is positive from the third on.
      num, positive_fraction: static, see `sampling.sample`.
    """
    pos_iou, neg_iou, min_pos_iou = ious
    assigned = max_iou.assign(
        anchors, boxes, valid, pos_iou, neg_iou, min_pos_iou, anchor_valid=inside
    )
    drawn = sampling.sample(key, assigned.status, num, positive_fraction)
    rows = jnp.where(drawn.valid, drawn.index, len(anchors))  # empty slots fall off
    taken = jnp.zeros(len(anchors), bool).at[rows].set(True, mode="drop")
    return jnp.where(taken, assigned.status, -1), assigned.matched


def sample_rois(
    key, proposals: rpn_lib.Proposals, boxes, valid, *, iou, num, positive_fraction
) -> RoIs:
    """A random sample of the proposals of one image and of its objects.

    Args:
      key: of this image.
      proposals: P of them; empty rows are never sampled.
      boxes: [G, 4] xyxy px, the objects; valid: [G] bool, the real ones.
      iou: a proposal is positive from here on, else negative.
      num, positive_fraction: static, see `sampling.sample`.
    Returns:
      RoIs with R = min(num, P + G).
    """
    assigned = max_iou.assign(
        proposals.boxes,
        boxes,
        valid,
        iou,
        iou,
        iou,
        low_quality=False,
        anchor_valid=proposals.valid,
    )
    # The objects are proposals too, each its own.  They come last: so more slots for them leave
    # the random numbers of the others, and with them the draw, as they are.
    rois = jnp.concatenate([proposals.boxes, boxes])
    status = jnp.concatenate([assigned.status, jnp.where(valid, 1, -1)])
    matched = jnp.concatenate([assigned.matched, jnp.arange(len(boxes))])
    drawn = sampling.sample(key, status, num, positive_fraction)
    return RoIs(
        boxes=jnp.where(drawn.valid[:, None], rois[drawn.index], 0.0),
        status=jnp.where(drawn.valid, drawn.positive.astype(jnp.int32), -1),
        matched=matched[drawn.index],
        index=drawn.index,
    )


def of_label(deltas: jax.Array, labels: jax.Array) -> jax.Array:
    """The deltas [..., 4] that class-specific ones [..., C * 4] have for one class."""
    deltas = deltas.reshape(*labels.shape, -1, 4)
    return jnp.take_along_axis(deltas, labels[..., None, None], axis=-2)[..., 0, :]


MODULE = FasterRCNN
