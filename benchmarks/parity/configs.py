"""Maps the configuration of an mmdet model to fields of a detlab detector.

There is one function for each kind of part.  It takes the keys that it maps from a `Reader`, and
expects one value where detlab has no choice.  A key that no function reads is an error: it may
change the numbers.  Defaults are those of mmdet 3.3.0.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detlab import errors

_REQUIRED = object()


class Reader:
    """A configuration that remembers which of its keys were read."""

    def __init__(self, config: Mapping | None, path: str):
        if config is not None and not isinstance(config, Mapping):
            raise errors.UserError(f"{path} is {config!r}; detlab maps only a single part there.")
        self.path = path
        self._left = dict(config or {})
        self._children = []

    @property
    def empty(self) -> bool:
        """Whether all keys have been read."""
        return not self._left

    def take(self, key: str, default: Any = _REQUIRED) -> Any:
        """Reads a value; raises UserError if it is absent and has no default."""
        value = self._left.pop(key, default)
        if value is _REQUIRED:
            raise errors.UserError(f"{self.path}.{key} is missing.")
        return value

    def expect(self, key: str, only: Any, default: Any = _REQUIRED) -> None:
        """Reads a value that must be `only`.

        An absent value counts as `default`, or as `only` if no default is given.
        """
        value = self.take(key, only if default is _REQUIRED else default)
        if value != only:
            raise errors.UserError(f"{self.path}.{key} is {value!r}; detlab has only {only!r}.")

    def skip(self, *keys: str) -> None:
        """Ignores keys that change no recorded number."""
        for key in keys:
            self._left.pop(key, None)

    def child(self, key: str) -> "Reader":
        """The configuration at the key; empty if it is absent."""
        reader = Reader(self._left.pop(key, None), f"{self.path}.{key}")
        self._children.append(reader)
        return reader

    def children(self, key: str, count: int) -> list["Reader"]:
        """The configurations of the parts in the list at the key, which must have this length."""
        values = self._left.pop(key, None)
        if not isinstance(values, list) or len(values) != count:
            raise errors.UserError(f"{self.path}.{key} is {values!r}, not a list of {count} parts.")
        readers = [Reader(value, f"{self.path}.{key}.{i}") for i, value in enumerate(values)]
        self._children += readers
        return readers

    def finish(self) -> None:
        """Raises UserError for a key that was not read, here or below."""
        for key, value in self._left.items():
            raise errors.UserError(f"{self.path}.{key} is {value!r}, which detlab does not map.")
        for reader in self._children:
            reader.finish()


@contextlib.contextmanager
def readers(info: Mapping) -> Iterator[tuple[Reader, Reader, Reader]]:
    """Readers of the model, its training and its prediction; the context must read every key."""
    keys = ("model_cfg", "train_cfg", "test_cfg")
    found = tuple(Reader(info[key], f"case {info['name']}: {key}") for key in keys)
    yield found
    for reader in found:
        reader.finish()


def inputs(info: Mapping, model: Reader) -> dict:
    """Classes and pixels; images are already normalised, and their channel order is `Case.bgr`."""
    config = model.child("data_preprocessor")
    config.expect("type", "DetDataPreprocessor")
    config.skip("mean", "std", "bgr_to_rgb", "pad_size_divisor")
    return {
        "num_classes": info["num_classes"],
        "pixel_mean": (0.0, 0.0, 0.0),
        "pixel_std": (1.0, 1.0, 1.0),
    }


def resnet(config: Reader) -> dict:
    """Backbone ResNet: four stages with batch norms."""
    config.expect("type", "ResNet")
    config.expect("num_stages", 4)
    config.expect("out_indices", [0, 1, 2, 3])
    config.skip("init_cfg")
    frozen = config.take("frozen_stages", -1)
    if frozen == 0:
        raise errors.UserError(f"{config.path} freezes only its stem; detlab has no such ResNet.")
    norm = config.child("norm_cfg")
    norm.expect("type", "BN")
    trained, stored = norm.take("requires_grad", True), config.take("norm_eval", True)
    if not trained and not stored:
        raise errors.UserError(
            f"{config.path} has live norms that are not trained; detlab has none."
        )
    return {
        "depth": config.take("depth"),
        "backbone_width": config.take("base_channels", 64),
        "style": config.take("style", "pytorch"),
        "frozen_stages": max(frozen, 0),
        "backbone_norm": "frozen" if not trained else "stored" if stored else "batch",
    }


def group_norm(config: Reader) -> dict:
    """A trained GroupNorm; 32 groups are the default of mmdet's heads that have one."""
    config.expect("type", "GN")
    config.expect("requires_grad", True)
    return {"norm_groups": config.take("num_groups", 32)}


def fpn(config: Reader, start_level: int, extra: str, num_levels: int) -> dict:
    """Neck FPN over C2..C5 without norms.

    Args:
      config: of the neck.
      start_level, extra, num_levels: values of the detector: the first used level of C2..C5,
        counted from 0; `add_extra_convs`; and the number of outputs.
    """
    config.expect("type", "FPN")
    config.expect("start_level", start_level, default=0)
    config.expect("add_extra_convs", extra, default=False)
    config.expect("num_outs", num_levels, default=None)
    config.skip("in_channels")  # follows from the backbone; a wrong one fails to convert
    return {"neck_width": config.take("out_channels")}


def bfp(config: Reader, num_levels: int) -> dict:
    """Neck BFP over all levels, refined by a non-local block."""
    config.expect("type", "BFP")
    config.expect("num_levels", num_levels)
    config.expect("refine_type", "non_local")
    config.skip("in_channels")  # follows from the neck before
    return {"refine_level": config.take("refine_level", 2)}


def head(model: Reader, kind: str, info: Mapping) -> Reader:
    """The `bbox_head` of a model or of its `roi_head`, which must be of this type."""
    config = model.child("bbox_head")
    head_type(config, kind, info)
    return config


def head_type(config: Reader, kind: str, info: Mapping) -> None:
    """A head of this type for the classes of the case."""
    config.expect("type", kind)
    config.expect("num_classes", info["num_classes"])
    config.skip("in_channels")  # follows from the part before; a wrong one fails to convert


def equal(fields: Sequence[dict], config: Reader) -> dict:
    """The fields of several parts of `config`, which must be equal."""
    if any(others != fields[0] for others in fields):
        raise errors.UserError(f"{config.path} has parts with {fields}; detlab has one for all.")
    return fields[0]


def tower(config: Reader) -> dict:
    """The convolutions of a dense head."""
    return {
        "head_convs": config.take("stacked_convs", 4),
        "head_width": config.take("feat_channels", 256),
    }


def octave_anchors(config: Reader) -> dict:
    """AnchorGenerator in RetinaNet's terms."""
    config.expect("type", "AnchorGenerator")
    return {
        "strides": tuple(config.take("strides")),
        "octave_base_scale": config.take("octave_base_scale"),
        "scales_per_octave": config.take("scales_per_octave"),
        "aspect_ratios": tuple(config.take("ratios")),
    }


def approximate_anchors(head: Reader) -> dict:
    """The usual anchors that stand for all shapes, and squares at their base scale."""
    anchors = octave_anchors(head.child("approx_anchor_generator"))
    squares = head.child("square_anchor_generator")
    squares.expect("type", "AnchorGenerator")
    squares.expect("strides", list(anchors["strides"]))
    squares.expect("scales", [anchors["octave_base_scale"]])
    squares.expect("ratios", [1.0])
    return anchors


def square_anchor(config: Reader) -> dict:
    """AnchorGenerator with one square per cell, its side relative to the stride."""
    config.expect("type", "AnchorGenerator")
    config.expect("ratios", [1.0])
    config.expect("scales_per_octave", 1)
    return {
        "strides": tuple(config.take("strides")),
        "anchor_scale": float(config.take("octave_base_scale")),
    }


def delta_coder(config: Reader) -> dict:
    """DeltaXYWHBBoxCoder around means of 0."""
    config.expect("type", "DeltaXYWHBBoxCoder")
    config.expect("target_means", [0.0, 0.0, 0.0, 0.0])
    return {"delta_stds": tuple(config.take("target_stds", (1.0, 1.0, 1.0, 1.0)))}


def bucketing_coder(config: Reader) -> dict:
    """BucketingBBoxCoder with an offset to the best bucket, and to the second if it is close."""
    config.expect("type", "BucketingBBoxCoder")
    config.expect("offset_topk", 2, default=2)
    config.expect("offset_upperbound", 1.0, default=1.0)
    config.expect("cls_ignore_neighbor", True, default=True)
    config.expect("clip_border", True, default=True)
    return {"num_buckets": config.take("num_buckets"), "bucket_scale": config.take("scale_factor")}


def loss(config: Reader, kind: str, weight: float | None = 1.0) -> float:
    """A loss of this type; returns its weight, which must be the given one unless that is None."""
    config.expect("type", kind)
    if weight is None:
        return config.take("loss_weight", 1.0)
    config.expect("loss_weight", weight, default=1.0)
    return weight


def cross_entropy(config: Reader, sigmoid: bool, weight: float | None = 1.0) -> float:
    """CrossEntropyLoss on sigmoids or on a softmax; returns its weight, as `loss` does."""
    config.expect("use_sigmoid", sigmoid, default=False)
    return loss(config, "CrossEntropyLoss", weight)


def focal_loss(config: Reader) -> dict:
    """FocalLoss on sigmoids, of weight 1."""
    loss(config, "FocalLoss")
    config.expect("use_sigmoid", True)
    return {"focal_gamma": config.take("gamma", 2.0), "focal_alpha": config.take("alpha", 0.25)}


def balanced_l1(config: Reader) -> dict:
    """The curve of BalancedL1Loss."""
    return {f"balanced_l1_{key}": config.take(key) for key in ("alpha", "gamma", "beta")}


def pisa(train: Reader) -> dict:
    """`isr_k`, `isr_bias`, `carl_k` and `carl_bias` from a PISA's training."""
    return {
        f"{part}_{key}": float(config.take(key))
        for part, config in (("isr", train.child("isr")), ("carl", train.child("carl")))
        for key in ("k", "bias")
    }


def training(config: Reader) -> Reader:
    """Training that drops no anchor at the border and weights all alike; returns `config`."""
    config.expect("allowed_border", -1)
    config.expect("pos_weight", -1)
    config.skip("debug")
    return config


def random_sampler(config: Reader, prefix: str, with_objects: bool) -> dict:
    """RandomSampler as fields `PREFIX_...`; `with_objects`: it also draws from the objects."""
    config.expect("type", "RandomSampler")
    config.expect("neg_pos_ub", -1, default=-1)
    config.expect("add_gt_as_proposals", with_objects, default=True)
    return {
        f"{prefix}_samples": config.take("num"),
        f"{prefix}_positive_fraction": config.take("pos_fraction"),
    }


def iou_thresholds(
    config: Reader, low_quality: bool = True, kind: str = "MaxIoUAssigner"
) -> tuple[float, float, float]:
    """The three IoUs of MaxIoUAssigner, or of ApproxMaxIoUAssigner.

    An anchor is positive at or above the first and negative below the second.  With `low_quality`,
    the best anchor of an object is positive at or above the third.
    """
    config.expect("type", kind)
    config.expect("match_low_quality", low_quality, default=True)
    config.expect("ignore_iof_thr", -1)
    lowest = config.take("min_pos_iou", 0.0)
    return config.take("pos_iou_thr"), config.take("neg_iou_thr"), lowest


def max_iou(config: Reader, kind: str = "MaxIoUAssigner") -> dict:
    """Assigner of this type in which the best anchor of an object is always positive."""
    config.expect("min_pos_iou", 0)
    positive, negative, _ = iou_thresholds(config, kind=kind)
    return {"positive_iou": positive, "negative_iou": negative}


def atss(config: Reader) -> dict:
    """ATSSAssigner without areas to ignore."""
    config.expect("type", "ATSSAssigner")
    config.expect("ignore_iof_thr", -1, default=-1)
    return {"topk": config.take("topk")}


def nms(config: Reader) -> float:
    """The IoU threshold of the suppression at `nms`."""
    config = config.child("nms")
    config.expect("type", "nms")
    return config.take("iou_threshold")


def detections(config: Reader) -> dict:
    """The end of a prediction: suppression by class, then the best of the rest."""
    return {
        "score_threshold": config.take("score_thr"),
        "nms_iou": nms(config),
        "max_detections": config.take("max_per_img"),
    }


def dense_test(config: Reader) -> dict:
    """Prediction of a dense head: the best of each level, then suppression by class."""
    config.expect("min_bbox_size", 0, default=-1)
    return {"candidates_per_level": config.take("nms_pre"), **detections(config)}


# Two stages


def rpn(config: Reader) -> dict:
    """RPNHead; its box loss is L1 or smooth L1."""
    config.expect("type", "RPNHead")
    config.skip("in_channels")  # follows from the neck
    anchors = config.child("anchor_generator")
    anchors.expect("type", "AnchorGenerator")
    (scale,) = anchors.take("scales")
    coder = delta_coder(config.child("bbox_coder"))
    if tuple(coder["delta_stds"]) != (1.0, 1.0, 1.0, 1.0):
        raise errors.UserError(
            f"{config.path}.bbox_coder has target_stds; detlab's proposals have none."
        )
    cross_entropy(config.child("loss_cls"), sigmoid=True)
    box = config.child("loss_bbox")
    beta = box.take("beta", 0.0)
    loss(box, "SmoothL1Loss" if beta else "L1Loss")
    return {
        "rpn_box_beta": beta,
        "rpn_width": config.take("feat_channels", 256),
        "strides": tuple(anchors.take("strides")),
        "anchor_scale": float(scale),
        "aspect_ratios": tuple(anchors.take("ratios")),
    }


def rpn_training(config: Reader) -> dict:
    """How an RPN assigns and samples anchors in training."""
    border = config.take("allowed_border", -1)
    if border not in (-1, 0):
        raise errors.UserError(f"{config.path}.allowed_border is {border}; detlab has -1 and 0.")
    positive, negative, lowest = iou_thresholds(training(config).child("assigner"))
    sampler = config.child("sampler")
    most = sampler.take("neg_pos_ub", -1)
    return {
        "rpn_crossing": border == -1,
        "rpn_negatives_per_positive": max(most, 0),
        "rpn_positive_iou": positive,
        "rpn_negative_iou": negative,
        "rpn_min_positive_iou": lowest,
        **random_sampler(sampler, "rpn", with_objects=False),
    }


def proposals(train: Reader, test: Reader) -> dict:
    """From an RPN's outputs to proposals, in training (`rpn_proposal`) and prediction (`rpn`)."""
    found, ious = {}, set()
    for config, name in (
        (train.child("rpn_proposal"), "train_proposals"),
        (test.child("rpn"), "proposals"),
    ):
        config.expect("min_bbox_size", 0)
        found[f"{name}_per_level"] = config.take("nms_pre")
        found[name] = config.take("max_per_img")
        if config.take("nms_post", found[name]) < found[name]:
            raise errors.UserError(
                f"{config.path}.nms_post is below max_per_img; detlab keeps all of a level."
            )
        ious.add(nms(config))
    if len(ious) > 1:
        raise errors.UserError(
            f"{test.path}.rpn.nms differs from training; detlab has one for both."
        )
    return {**found, "proposal_nms_iou": ious.pop()}


def roi_extractor(config: Reader) -> dict:
    """SingleRoIExtractor with RoIAlign on P2 to P5."""
    config.expect("type", "SingleRoIExtractor")
    config.expect("featmap_strides", [4, 8, 16, 32])
    config.skip("out_channels")  # follows from the neck
    layer = config.child("roi_layer")
    layer.expect("type", "RoIAlign")
    ratio = layer.take("sampling_ratio", 0)
    return {
        "roi_size": layer.take("output_size"),
        "roi_scale": float(config.take("finest_scale", 56)),
        "sampling_ratio": ratio,
        "predict_sampling_ratio": ratio,
    }


def roi_assigner(config: Reader) -> float:
    """MaxIoUAssigner of RoIs: the one IoU that separates objects from background."""
    thresholds = iou_thresholds(config, low_quality=False)
    if len(set(thresholds)) > 1:
        raise errors.UserError(
            f"{config.path} has thresholds {thresholds}; detlab has a single one."
        )
    return thresholds[0]
