"""Faster R-CNN on a feature pyramid (arXiv:1506.01497, arXiv:1612.03144).

A region proposal network (RPN) scores anchors and refines their boxes.  RoIAlign extracts the
features of the best proposals from the pyramid, and a box head classifies each proposal and refines
its box once more.  In training the box head sees a random sample of the proposals and of the
objects themselves.

Reference: mmdetection's `faster-rcnn_r50_fpn_1x_coco`.  As in the reference, and unlike the papers,
both box losses are L1 and RoIs are aligned to half pixels (RoIAlign for RoI pooling).
Normalisers are those of the global batch, in the reference those of a GPU.  Anchors of cells that
are entirely padding are not sampled and propose nothing.

RoIAlign takes 2x2 samples per bin.  The reference takes ceil(RoI side in cells / 7) squared.
`sampling_ratio` 0 does the same, at the price of a loop whose length depends on the data.  With it,
published weights give the reference's scores, so configs that load them use it for prediction
(`predict_sampling_ratio`).  In the recorded case of the reference, whose RoIs have up to 42 px and
take one or two samples, 2x2 samples change the scores of the 200 detections by 0.0021 on average
and by at most 0.030.

Suppression sees the best `num_candidates` pairs of proposal and class, in the reference all pairs
above the threshold.  The results differ only for images with more than `num_candidates` pairs above
it, which the report of an evaluation counts.

Expected: COCO val2017 AP 37.4 with experiments/faster_rcnn_coco.py (the published figure of the
reference).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from detlab import bounds, fields, layers, sharding, types
from detlab.assign import rois as rois_lib
from detlab.assign import targets as targets_lib
from detlab.backbones import resnet
from detlab.heads import box as box_lib
from detlab.heads import rpn as rpn_lib
from detlab.losses import cross_entropy, regression
from detlab.necks import fpn
from detlab.ops import anchors as anchors_lib
from detlab.ops import candidates as candidates_lib
from detlab.ops import coders, roi_align
from detlab.ops import nms as nms_lib
from detlab.ops import proposals as proposals_lib


class Maps(NamedTuple):
    """What depends on the images alone, finest level first."""

    features: tuple  # [B, Hl, Wl, D]
    rpn_logits: tuple  # [B, Hl, Wl, A]
    rpn_deltas: tuple  # [B, Hl, Wl, A * 4]


class Outputs(NamedTuple):
    """The maps, and in prediction the P proposals and the box head's outputs for them."""

    features: tuple
    rpn_logits: tuple
    rpn_deltas: tuple
    proposals: proposals_lib.Proposals  # [B, P, ...]
    cls_logits: jax.Array  # [B, P, C + 1], background last
    box_deltas: jax.Array  # [B, P, C * 4]


class FasterRCNN(nn.Module):
    """The detector; a config's `model` may set any of its fields."""

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
    rpn_samples: int = 256  # per image
    rpn_positive_fraction: float = 0.5
    rpn_negatives_per_positive: float = 0.0  # at most; 0: as many as there is room for
    rpn_crossing: bool = True  # whether the RPN learns from anchors that cross the image's border
    rpn_box_beta: float = 0.0  # of the smooth L1 of its boxes; 0: L1
    proposal_nms_iou: float = 0.7
    train_proposals_per_level: int = 2000
    train_proposals: int = 1000
    proposals_per_level: int = 1000
    proposals: int = 1000
    # Box head.
    box_width: int = 1024
    roi_size: int = 7
    roi_scale: float = 56.0  # px; RoIs of twice this side or more use P3 to P5 instead of P2
    sampling_ratio: int = 2  # samples per bin and axis; 0: adaptive, as in the reference
    predict_sampling_ratio: int = 2
    positive_iou: float = 0.5
    box_samples: int = 512  # per image
    box_positive_fraction: float = 0.25
    delta_stds: Sequence[float] = (0.1, 0.1, 0.2, 0.2)
    # Prediction.
    num_candidates: int = 2000  # (proposal, class) pairs with the best scores
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100
    # Input: RGB, 0..255.
    pixel_mean: Sequence[float] = (123.675, 116.28, 103.53)
    pixel_std: Sequence[float] = (58.395, 57.12, 57.375)
    dtype: str = "float32"  # of the network; parameters, losses and boxes are float32
    remat: bool = False  # recompute the backbone in the backward pass, to save memory

    def check(self) -> None:
        """Raises ValueError for an invalid field, before anything is built."""
        low, high = self.rpn_negative_iou, self.rpn_positive_iou
        rules = (
            *fields.of_resnet(self, resnet.STAGES, layers.NORMS),
            *fields.at_least(self, 1, "rpn_width", "box_width", "roi_size"),
            *fields.at_least(self, 1, "rpn_samples", "box_samples"),
            *fields.at_least(self, 1, "train_proposals_per_level", "train_proposals"),
            *fields.at_least(self, 1, "proposals_per_level", "proposals"),
            *fields.fractions(self, "rpn_positive_fraction", "box_positive_fraction"),
            *fields.fractions(self, "rpn_min_positive_iou", "proposal_nms_iou"),
            fields.of_strides(self, first=4, least_levels=4),
            *fields.above(self, 0, "anchor_scale", "roi_scale"),
            ("rpn_positive_iou", 0 < high <= 1, "above 0 and at most 1"),
            ("rpn_negative_iou", 0 <= low <= high, "from 0 to rpn_positive_iou"),
            *fields.at_least(self, 0, "rpn_negatives_per_positive", "rpn_box_beta"),
            *fields.at_least(self, 0, "sampling_ratio", "predict_sampling_ratio"),
        )
        fields.check(self, rules)

    def setup(self) -> None:
        self.backbone = resnet.of(self)
        self.neck = fpn.FPN(self.neck_width, 2, len(self.strides), extra="pool", dtype=self.dtype)
        self.rpn, self.box_head = self.make_rpn(), self.make_box_head()

    def make_rpn(self) -> nn.Module:
        """The head of the region proposal network, which `setup` names `rpn`."""
        return rpn_lib.RPNHead(len(self.aspect_ratios), self.rpn_width, dtype=self.dtype)

    def make_box_head(self) -> nn.Module:
        """The box head, which `setup` names `box_head`."""
        return box_lib.BoxHead(self.num_classes, self.box_width, dtype=self.dtype)

    def maps(self, images: jax.Array, train: bool) -> Maps:
        """[B, H, W, 3] RGB, uint8 or float32 in 0..255 -> the pyramid and the RPN's outputs."""
        features = self.neck(self.backbone(layers.normalise(self, images), train), train)
        return Maps(features, *self.rpn(features, train))

    # --------------------------------------------------------------------------------------------
    # First stage

    def grid(self, canvas: tuple[int, int]) -> anchors_lib.Grid:
        """The grid of the N anchors on a canvas (height, width)."""
        return anchors_lib.grid(canvas, self.strides, len(self.aspect_ratios))

    def anchors(self, grid: anchors_lib.Grid) -> jax.Array:
        """The anchors [N, 4] of all levels, xyxy px."""
        scales, ratios = (self.anchor_scale,), self.aspect_ratios
        return grid.anchors([anchors_lib.cell_anchors(s, scales, ratios) for s in self.strides])

    def propose(
        self, maps: Maps, image_size: jax.Array, canvas: tuple[int, int], train: bool
    ) -> proposals_lib.Proposals:
        """Proposals [B, P, ...] of a batch, without a gradient."""
        grid = self.grid(canvas)
        anchors, levels = self.anchors(grid), grid.slices()

        def one_image(logits, deltas, size):
            inside = grid.inside(size)
            return proposals_lib.propose(
                [level.reshape(-1) for level in logits],
                [level.reshape(-1, 4) for level in deltas],
                [anchors[level] for level in levels],
                [inside[level] for level in levels],
                size,
                per_level=self.train_proposals_per_level if train else self.proposals_per_level,
                num_proposals=self.train_proposals if train else self.proposals,
                nms_iou=self.proposal_nms_iou,
            )

        raw = lax.stop_gradient((maps.rpn_logits, maps.rpn_deltas))
        return on_images(one_image)(*raw, image_size)

    def rpn_targets(
        self, keys: jax.Array, batch: types.Batch, maps: Maps
    ) -> dict[str, types.Targets]:
        """`rpn`: targets of all anchors, status -1 where not sampled; keys [B], one per image."""
        grid = self.grid(batch.images.shape[1:3])
        anchors = self.anchors(grid)

        def one_image(key, boxes, valid, size):
            inside = grid.inside(size)
            if not self.rpn_crossing:
                inside &= ((anchors[:, :2] >= 0) & (anchors[:, 2:] < size[::-1])).all(-1)
            assigned = rois_lib.sample_anchors(
                key,
                anchors,
                inside,
                boxes,
                valid,
                ious=(self.rpn_positive_iou, self.rpn_negative_iou, self.rpn_min_positive_iou),
                num=self.rpn_samples,
                positive_fraction=self.rpn_positive_fraction,
                negatives_per_positive=self.rpn_negatives_per_positive or None,
            )
            deltas = coders.encode_deltas(anchors, boxes[assigned.matched])
            return targets_lib.of_entries(anchors, grid.level(), assigned, {"deltas": deltas})

        found = on_images(one_image)(keys, batch.boxes, batch.valid, batch.image_size)
        return {"rpn": found}

    def rpn_loss(
        self, batch: types.Batch, maps: Maps, found: dict[str, types.Targets]
    ) -> dict[str, jax.Array]:
        """Both loss terms of the first stage; `found` holds what `rpn_targets` returns."""
        targets = found["rpn"]
        logits = anchors_lib.flatten_levels(maps.rpn_logits, 1)[..., 0]  # [B, N]
        deltas = anchors_lib.flatten_levels(maps.rpn_deltas, 4)
        sampled, positive = targets.status >= 0, targets.status == 1
        # As in the reference, every image counts at least one positive and one negative.
        counts = [jnp.maximum((targets.status == kind).sum(1), 1).sum() for kind in (0, 1)]
        normaliser = sum(counts).astype(jnp.float32)
        cls = cross_entropy.sigmoid_cross_entropy(logits, positive.astype(jnp.float32))
        box = regression.smooth_l1(deltas, targets.values["deltas"], self.rpn_box_beta).sum(-1)
        return {
            "loss/rpn_cls": jnp.where(sampled, cls, 0.0).sum() / normaliser,
            "loss/rpn_box": jnp.where(positive, box, 0.0).sum() / normaliser,
        }

    # --------------------------------------------------------------------------------------------
    # Second stage

    def roi_features(
        self,
        maps: Maps,
        rois: jax.Array,
        valid: jax.Array,
        sampling_ratio: int,
        known: jax.Array | None = None,
    ) -> jax.Array:
        """Features [B, R, S, S, D] of RoIs [B, R, 4]; valid [B, R]; `known`: see `roi_align`."""
        pyramid, strides = tuple(maps.features[:4]), self.strides[:4]  # P6 is only for proposals

        def one_image(pyramid, rois, valid, known):
            settings = strides, self.roi_size, sampling_ratio, self.roi_scale
            return roi_align.multilevel(pyramid, rois, valid, *settings, known=known)

        return on_images(one_image)(pyramid, lax.stop_gradient(rois), valid, known)

    def sample(
        self,
        keys: jax.Array,
        proposals: proposals_lib.Proposals,
        batch: types.Batch,
        iou: float | None = None,
    ) -> rois_lib.RoIs:
        """The RoIs [B, R, ...] that a box head is trained on; keys [B], one per image.

        `iou` replaces `positive_iou`.
        """
        iou = self.positive_iou if iou is None else iou

        def one_image(key, proposals, boxes, valid):
            return rois_lib.sample_rois(
                key,
                proposals.boxes,
                proposals.valid,
                boxes,
                valid,
                iou=iou,
                num=self.box_samples,
                positive_fraction=self.box_positive_fraction,
            )

        return on_images(one_image)(keys, proposals, batch.boxes, batch.valid)

    def box_targets(
        self, rois: rois_lib.RoIs, batch: types.Batch, stds: Sequence[float] | None = None
    ) -> types.Targets:
        """Targets of the sampled RoIs, status -1 in empty slots; `stds` replaces `delta_stds`."""
        stds = self.delta_stds if stds is None else stds

        def one_image(rois, boxes):
            deltas = coders.encode_deltas(rois.boxes, boxes[rois.matched], stds=stds)
            level = roi_align.levels(rois.boxes, 4, self.roi_scale)
            found = targets_lib.of_entries(rois.boxes, level, rois, {"deltas": deltas})
            return found._replace(values={**found.values, "index": rois.index})

        return on_images(one_image)(rois, batch.boxes)

    def box_loss(
        self, batch: types.Batch, targets: types.Targets, logits: jax.Array, deltas: jax.Array
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """(both loss terms of a box head's outputs for the sampled RoIs, the other metrics)."""
        terms, metrics = self.cls_loss(batch, targets, logits)
        positive = targets.status == 1  # [B, R]
        labels = jnp.take_along_axis(batch.labels, targets.matched, axis=1)
        deltas = box_lib.of_label(deltas, jnp.where(positive, labels, 0))  # [B, R, 4]
        box = self.delta_loss(deltas, targets.values["deltas"]).sum(-1)
        terms["loss/box"] = jnp.where(positive, box, 0.0).sum() / metrics["normaliser"]
        return terms, metrics

    def cls_loss(
        self, batch: types.Batch, targets: types.Targets, logits: jax.Array
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """(the term of a box head's classes, the other metrics)."""
        counted, positive = targets.status >= 0, targets.status == 1  # [B, R]
        labels = jnp.take_along_axis(batch.labels, targets.matched, axis=1)
        labels = jnp.where(positive, labels, self.num_classes)
        normaliser = jnp.maximum(counted.sum(), 1).astype(jnp.float32)
        cls = cross_entropy.softmax_cross_entropy(logits, labels)
        right = counted & (logits.argmax(-1) == labels)
        return {"loss/cls": jnp.where(counted, cls, 0.0).sum() / normaliser}, {
            "accuracy_percent": 100 * right.sum() / normaliser,
            "positives": positive.sum() / batch.images.shape[0],
            "normaliser": normaliser,
        }

    def delta_loss(self, deltas: jax.Array, targets: jax.Array) -> jax.Array:
        """The loss of each delta of a box head, [B, R, 4]: L1."""
        return regression.l1(deltas, targets)

    # --------------------------------------------------------------------------------------------
    # Both stages

    def targets(self, batch: types.Batch, maps: Maps) -> dict[str, types.Targets]:
        """`rpn`: all anchors, -1 where not sampled; `box`: the sampled RoIs, -1 in empty slots.

        Both have deltas, which are zero where an entry is not positive.  `box` also has the `index`
        of each RoI, background included, in the list of all proposals followed by all object slots;
        0 in empty slots.
        """
        keys = self.image_keys(len(batch.images), 2)
        canvas = batch.images.shape[1:3]
        proposals = self.propose(maps, batch.image_size, canvas, train=True)
        rois = self.sample(keys[:, 1], proposals, batch)
        targets = {
            **self.rpn_targets(keys[:, 0], batch, maps),
            "box": self.box_targets(rois, batch),
        }
        return lax.stop_gradient(targets)

    def image_keys(self, images: int, count: int) -> jax.Array:
        """Keys [B, count]: those of an image of the global batch do not depend on the devices."""
        rng = self.make_rng("sample")
        return jax.vmap(lambda i: jax.random.split(jax.random.fold_in(rng, i), count))(
            jnp.arange(images)
        )

    def loss(self, batch: types.Batch, maps: Maps) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cross entropy and L1 of both stages, each divided by the number of its samples."""
        targets = self.targets(batch, maps)
        box = targets["box"]
        features = self.roi_features(maps, box.boxes, box.status >= 0, self.sampling_ratio)
        box_terms, metrics = self.box_loss(batch, box, *self.box_head(features))
        terms = {**self.rpn_loss(batch, maps, targets), **box_terms}
        return sum(terms.values()), {**terms, **metrics}

    def outputs(self, maps: Maps, image_size: jax.Array, canvas: tuple[int, int]) -> Outputs:
        """What prediction computes from the maps: proposals and the box head's outputs for them."""
        found = self.propose(maps, image_size, canvas, train=False)
        ratio = self.predict_sampling_ratio
        features = self.roi_features(maps, found.boxes, found.valid, ratio)
        return Outputs(*maps, found, *self.box_head(features))

    def candidates(
        self, maps: Maps, image_size: jax.Array, canvas: tuple[int, int]
    ) -> types.Detections:
        """The (proposal, class) pairs with the best scores.

        Softmax scores of a proposal add up to 1, so fewer than 1 / `score_threshold` of its classes
        pass.  `num_candidates` bounds the pairs of an image; the worst are dropped.
        """
        outputs = self.outputs(maps, image_size, canvas)
        scores = nn.softmax(outputs.cls_logits)[..., :-1]  # [B, P, C]
        scores = jnp.where(outputs.proposals.valid[..., None], scores, 0.0)
        bounds.note(self, "num_candidates", scores > self.score_threshold)

        def one_image(proposals, scores, deltas, size):
            scores, roi, label = candidates_lib.best_pairs(scores, self.num_candidates)
            deltas = deltas.reshape(-1, self.num_classes, 4)[roi, label]
            boxes = coders.decode_deltas(
                proposals.boxes[roi], deltas, stds=self.delta_stds, max_size=size
            )
            return candidates_lib.above(self.score_threshold, boxes, scores, label)

        rows = outputs.proposals, scores, outputs.box_deltas, image_size
        return jax.vmap(one_image)(*rows)

    def suppress(self, candidates: types.Detections) -> types.Detections:
        """Greedy suppression within each class; keeps the best `max_detections` of each image."""
        return nms_lib.suppress_images(candidates, self.nms_iou, self.max_detections)

    def frozen_paths(self) -> tuple[str, ...]:
        """Regexes of the leaves that training never changes."""
        return resnet.frozen(self)


def on_images(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of one image, mapped over a batch; each device handles its own images.

    Without this, a `top_k` inside would gather all images on every device.
    """
    return sharding.per_device(jax.vmap(function))


MODULE = FasterRCNN
