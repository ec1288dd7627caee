"""CornerNet: Detecting Objects as Paired Keypoints (arXiv:1808.01244).

Two heatmaps show where the top left and the bottom right corners of each class are, and an offset
places each corner within its cell.  A number at each corner, its tag, is similar for the two
corners of one object and different for corners of different objects.

Reference: mmdetection's `cornernet_hourglass104`.  As in the reference, tags have one dimension,
the best 100 corners of each kind are paired, and the pairs go through soft suppression.  Peaks and
normalisers are counted over the global batch, in the reference per GPU.  The tag terms are summed
over the images, so their weights must change with the batch size.  The published test of the
reference joins the pairs of an image and of its mirror image (`eval.views` in the configs).

Two more things differ from the reference.  An image lies at the top left of its canvas, in the
reference in the middle.  Corners are clipped to the image on all sides, in the reference only at
the top and left.

Expected: COCO val2017 AP 41.2 with experiments/cornernet_coco.py (the published figure of the
reference; not trained here).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from detlab import bounds, fields, layers, types
from detlab.assign import heatmap as heatmap_targets
from detlab.backbones import hourglass
from detlab.heads import corner
from detlab.losses import embedding, regression
from detlab.losses import heatmap as heatmap_losses
from detlab.ops import corner_groups, soft_nms

CORNERS = {"top_left": corner.TOP_LEFT, "bottom_right": corner.BOTTOM_RIGHT}


class CornerMaps(NamedTuple):
    """Raw maps of one kind of corner, one per stack; H, W are a quarter of the canvas."""

    heat: tuple  # [B, H, W, C] logits
    offset: tuple  # [B, H, W, 2] x, y in cells
    tag: tuple  # [B, H, W, 1]


class Outputs(NamedTuple):
    """Features and raw maps of both kinds of corners."""

    features: tuple  # [B, H, W, D] of each stack
    top_left: Any  # CornerMaps, or another tuple of maps with `heat` and `offset`
    bottom_right: Any


class Corners(nn.Module):
    """What a detector of paired corners is, but for how corners are paired.

    A detector has, besides its fields:

    - `map_type`: the named tuple of the raw maps of a kind of corner,
    - `make_branch(directions, outputs)`: the head of a kind of corner on a stack,
    - `pair_targets(boxes, valid, shape, canvas)`: {kind of corner: {name: target}} of an image,
    - `pair_terms(batch, maps, values)`: the weighted loss terms of pairing, by name,
    - `clues(kind, maps, found, cell)`: what the corners found say about their partners,
    - `agree(top_left, bottom_right)`: which pairs [K, K] do, each a tuple (corners, clues).
    """

    num_classes: int = 80
    # Backbone: `channels` and `blocks` of each map size in an hourglass, largest first.
    stacks: int = 2
    channels: Sequence[int] = (256, 256, 384, 384, 384, 512)
    blocks: Sequence[int] = (2, 2, 2, 2, 2, 4)
    norm: str = "batch"  # of the whole network; stored: running statistics
    # Head.
    pool_width: int = 128
    head_width: int = 256  # of the convolution before each map
    prior_probability: float = 0.1
    # Targets and losses (section 3.2, 3.3).
    min_overlap: float = 0.3
    offset_weight: float = 1.0
    # Prediction (section 4.2).
    max_corners: int = 100  # of each kind
    peak_kernel: int = 3
    num_candidates: int = 1000  # pairs
    soft_nms_sigma: float = 0.5
    min_score: float = 1e-3  # pairs whose score suppression lowers below this are dropped
    max_detections: int = 100
    # Input: RGB, 0..255.
    pixel_mean: Sequence[float] = (123.675, 116.28, 103.53)
    pixel_std: Sequence[float] = (58.395, 57.12, 57.375)
    dtype: str = "float32"  # of the network; parameters, losses and boxes are float32
    remat: bool = False  # recompute the hourglasses in the backward pass, to save memory

    def check(self) -> None:
        """Raises ValueError for an invalid field, before anything is built."""
        channels, blocks = self.channels, self.blocks
        sizes = fields.positive(channels, None, int) and len(channels) >= 2 and channels[0] >= 2
        of_each = fields.positive(blocks, len(channels) if sizes else None, int)
        odd = self.peak_kernel >= 1 and self.peak_kernel % 2 == 1
        rules = (
            *fields.at_least(self, 1, "stacks", "pool_width", "max_corners"),
            *fields.at_least(self, 0, "offset_weight", "min_score"),
            ("channels", sizes, "two or more widths, the first at least 2"),
            ("blocks", of_each, "a block count above 0 for each of `channels`"),
            fields.one_of(self, "norm", ("batch", "stored")),
            *fields.between_0_and_1(self, "min_overlap"),
            ("peak_kernel", odd, "odd"),
            *fields.above(self, 0, "soft_nms_sigma"),
        )
        fields.check(self, rules)

    def setup(self) -> None:
        self.backbone = hourglass.HourglassNet(
            self.stacks, self.channels, self.blocks, self.norm, self.remat, dtype=self.dtype
        )
        outputs = {
            "heat": (self.num_classes, layers.prior_bias(self.prior_probability)),
            "offset": (2, nn.initializers.zeros),
        }
        self.branches = {  # Flax names them branches_top_left0, ...
            f"{name}{stack}": self.make_branch(directions, outputs)
            for name, directions in CORNERS.items()
            for stack in range(self.stacks)
        }

    def maps(self, images: jax.Array, train: bool) -> Outputs:
        """[B, H, W, 3] RGB, uint8 or float32 in 0..255 -> raw maps of every stack."""
        x = layers.normalise(self, images)
        features = self.backbone(x, train)
        found = {}
        for name in CORNERS:
            maps = [self.branches[f"{name}{i}"](x, train) for i, x in enumerate(features)]
            kinds = self.map_type._fields
            found[name] = self.map_type(
                *(tuple(of_stack[kind] for of_stack in maps) for kind in kinds)
            )
        return Outputs(features, **found)

    def map_shape(self, canvas: tuple[int, int]) -> tuple[int, int]:
        """Cells (H, W) of the maps of a canvas (height, width): a quarter, rounded up."""
        return tuple(-(-side // 4) for side in canvas)

    def targets(self, batch: types.Batch, maps: Outputs) -> dict[str, types.Targets]:
        """The corners of each object; `maps` is not used.

        `values` has the cells, heatmaps and offsets of both kinds of corners.  Cells are 0 in empty
        slots; heatmaps and offsets are 0 away from the corners of objects.  `pair_targets` adds its
        own.
        """
        canvas = batch.images.shape[1:3]
        shape = self.map_shape(canvas)

        def one_image(boxes, labels, valid):
            both = heatmap_targets.corners(
                boxes, labels, valid, shape, canvas, self.num_classes, self.min_overlap
            )
            others = self.pair_targets(boxes, valid, shape, canvas)
            return {
                f"{name}_{field}": values
                for name, found in zip(CORNERS, both, strict=True)
                for field, values in {**found._asdict(), **others.get(name, {})}.items()
            }

        values = jax.vmap(one_image)(batch.boxes, batch.labels, batch.valid)
        slots = jnp.broadcast_to(jnp.arange(batch.valid.shape[1]), batch.valid.shape)
        targets = types.Targets(
            boxes=jnp.asarray(batch.boxes),
            level=jnp.zeros(batch.valid.shape, jnp.int32),
            status=jnp.where(batch.valid, 1, -1),
            matched=slots,
            values=values,
        )
        return {"corner": lax.stop_gradient(targets)}

    def loss(self, batch: types.Batch, maps: Outputs) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Losses of heatmaps (eq. 1), offsets (eq. 3) and pairing, over all stacks."""
        values = self.targets(batch, maps)["corner"].values
        terms = dict.fromkeys(("heat", "offset"), 0.0)
        peaks = []
        for name in CORNERS:
            of_kind, heat = getattr(maps, name), values[f"{name}_heat"]
            count = jnp.maximum((heat == 1).sum(), 1).astype(jnp.float32)
            peaks.append(count)
            for stack in range(self.stacks):
                focal = heatmap_losses.gaussian_focal(nn.sigmoid(of_kind.heat[stack]), heat)
                terms["heat"] += focal.sum() / count / 2
                miss = at_corners(of_kind.offset[stack], values[f"{name}_offset"], heat)
                terms["offset"] += self.offset_weight * miss / 2
        terms |= self.pair_terms(batch, maps, values)
        terms = {f"loss/{name}": term for name, term in terms.items()}
        metrics = {
            **terms,
            "positives": batch.valid.sum() / batch.images.shape[0],
            "normaliser": sum(peaks) / len(peaks),
        }
        return sum(terms.values()), metrics

    def candidates(
        self, maps: Outputs, image_size: jax.Array, canvas: tuple[int, int]
    ) -> types.Detections:
        """Pairs of corners of one class that agree, the top left one above and to the left.

        The largest intermediate array is [max_corners, max_corners]: 0.4 MB per image at 300.
        """
        height, width = self.map_shape(canvas)
        cell = (canvas[1] / width, canvas[0] / height)  # px

        def one_image(top_left, bottom_right, size):
            inside = (jnp.arange(height) * cell[1] < size[0])[:, None] & (
                jnp.arange(width) * cell[0] < size[1]
            )

            def find(kind, maps):
                scores = jnp.where(inside[..., None], nn.sigmoid(maps.heat), 0.0)
                found = corner_groups.find_corners(
                    scores, maps.offset, self.max_corners, cell, self.peak_kernel
                )
                clues = self.clues(kind, maps, found, cell)
                return found._replace(points=jnp.clip(found.points, 0.0, size[::-1])), clues

            first, second = find("top_left", top_left), find("bottom_right", bottom_right)
            pairs = first[0], second[0], self.agree(first, second)
            found = corner_groups.pair_corners(*pairs, self.num_candidates)
            return types.Detections(*found), corner_groups.possible_pairs(*pairs)

        last = [self.map_type(*(kind[-1] for kind in getattr(maps, name))) for name in CORNERS]
        found, possible = jax.vmap(one_image)(*last, image_size)
        bounds.note(self, "num_candidates", possible)
        return found

    def suppress(self, candidates: types.Detections) -> types.Detections:
        """Soft suppression within each class (section 4.2); keeps the best `max_detections`."""

        def one_image(boxes, scores, labels, valid):
            return soft_nms.suppress(
                boxes,
                scores,
                labels,
                valid,
                self.max_detections,
                method="gaussian",
                sigma=self.soft_nms_sigma,
                min_score=self.min_score,
            )

        return types.Detections(*jax.vmap(one_image)(*candidates))

    def frozen_paths(self) -> tuple[str, ...]:
        """Regexes of the leaves that training never changes."""
        return ("batch_stats/.*",) if self.norm == "stored" else ()


class CornerNet(Corners):
    """The detector; a config's `model` may set any of its fields.  Corners are paired by tags."""

    pull_weight: float = 0.1
    push_weight: float = 0.1
    max_tag_distance: float = 0.5

    map_type = CornerMaps

    def check(self) -> None:
        """Checks the fields of all corner detectors and those of tags."""
        super().check()
        names = "pull_weight", "push_weight", "max_tag_distance"
        fields.check(self, fields.at_least(self, 0, *names))

    def make_branch(self, directions: tuple[str, str], outputs: dict) -> nn.Module:
        """Adds the map of tags."""
        return corner.CornerBranch(
            directions,
            outputs | {"tag": (1, nn.initializers.zeros)},
            self.pool_width,
            self.head_width,
            self.norm,
            dtype=self.dtype,
        )

    def pair_targets(self, boxes: jax.Array, valid: jax.Array, shape: tuple, canvas: tuple) -> dict:
        """None: the network chooses the tags."""
        return {}

    def pair_terms(self, batch: types.Batch, maps: Outputs, values: dict) -> dict[str, jax.Array]:
        """Losses of tags (eq. 4, 5), over all stacks."""
        terms = {"pull": 0.0, "push": 0.0}
        for stack in range(self.stacks):
            tags = []
            for name in CORNERS:
                cells = values[f"{name}_cells"]
                flat = getattr(maps, name).tag[stack].reshape(len(cells), -1)  # [B, H * W]
                tags.append(jnp.take_along_axis(flat, cells, axis=1))  # [B, G]
            pull, push = jax.vmap(tag_losses)(*tags, batch.valid)
            terms["pull"] += self.pull_weight * pull.sum()
            terms["push"] += self.push_weight * push.sum()
        return terms

    def clues(
        self, kind: str, maps: CornerMaps, found: corner_groups.Corners, cell: tuple
    ) -> jax.Array:
        """The tags [K] of corners."""
        return maps.tag.reshape(-1)[found.cells]

    def agree(self, top_left: tuple, bottom_right: tuple) -> jax.Array:
        """Similar tags."""
        return corner_groups.tags_agree(top_left[1], bottom_right[1], self.max_tag_distance)


def at_corners(predicted: jax.Array, targets: jax.Array, heat: jax.Array) -> jax.Array:
    """Smooth L1 of maps [B, H, W, 2] in cells with a corner, per such cell; heat: [B, H, W, C]."""
    cells = (heat == 1).any(-1, keepdims=True)
    miss = jnp.where(cells, regression.smooth_l1(predicted, targets), 0.0)
    return miss.sum() / jnp.maximum(cells.sum(), 1)


def tag_losses(
    top_left: jax.Array, bottom_right: jax.Array, valid: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(pull, push) of one image, the means over its objects and pairs: [G], [G], [G] -> (), ()."""
    count = valid.sum()
    pull = jnp.where(valid, embedding.pull(top_left, bottom_right), 0.0).sum()
    pairs = valid[:, None] & valid
    push = jnp.where(pairs, embedding.push(top_left, bottom_right), 0.0).sum()
    return pull / jnp.maximum(count, 1), push / jnp.maximum(count * (count - 1), 1)


MODULE = CornerNet
