"""From the configuration of an mmdet model to fields of a detlab detector.

One function for each kind of part.  Each takes from a `Reader` what it maps, and expects the
reference's one value where detlab has no choice.  A key that nothing took is an error: it may
change the numbers.  Defaults are those of mmdet 3.3.0.
"""

from typing import Any, Mapping

from detlab import errors

_REQUIRED = object()


class Reader:
    """A configuration that remembers which of its keys were read."""

    def __init__(self, config: Mapping | None, path: str):
        if config is not None and not isinstance(config, Mapping):
            raise errors.UserError(f"{path} is {config!r}; detlab maps a single part there.")
        self.path = path
        self._left = dict(config or {})
        self._children = []

    @property
    def empty(self) -> bool:
        """Whether there is no key that was not read."""
        return not self._left

    def take(self, key: str, default: Any = _REQUIRED) -> Any:
        """The value; raises UserError where it is absent and has no default."""
        value = self._left.pop(key, default)
        if value is _REQUIRED:
            raise errors.UserError(f"{self.path}.{key} is missing.")
        return value

    def expect(self, key: str, only: Any, default: Any = _REQUIRED) -> None:
        """The value must be `only`; absent it is `default`, or `only` where that is not given."""
        value = self.take(key, only if default is _REQUIRED else default)
        if value != only:
            raise errors.UserError(f"{self.path}.{key} is {value!r}; detlab has only {only!r}.")

    def skip(self, *keys: str) -> None:
        """What changes no recorded number."""
        for key in keys:
            self._left.pop(key, None)

    def child(self, key: str) -> "Reader":
        """The configuration at the key, an empty one where it is absent."""
        reader = Reader(self._left.pop(key, None), f"{self.path}.{key}")
        self._children.append(reader)
        return reader

    def finish(self) -> None:
        """Raises UserError for a key that nothing read, here or below."""
        for key, value in self._left.items():
            raise errors.UserError(f"{self.path}.{key} is {value!r}, which detlab does not map.")
        for reader in self._children:
            reader.finish()


def readers(info: Mapping) -> tuple[Reader, Reader, Reader]:
    """Of the model, its training and its prediction."""
    keys = ("model_cfg", "train_cfg", "test_cfg")
    return tuple(Reader(info[key], f"case {info['name']}: {key}") for key in keys)


def preprocessor(config: Reader) -> dict:
    """The recorded images are normalised already; their channel order is `Case.bgr`."""
    config.expect("type", "DetDataPreprocessor")
    config.skip("mean", "std", "bgr_to_rgb", "pad_size_divisor")
    return {"pixel_mean": (0.0, 0.0, 0.0), "pixel_std": (1.0, 1.0, 1.0)}


def resnet(config: Reader) -> dict:
    """Backbone ResNet: four stages with batch norms."""
    config.expect("type", "ResNet")
    config.expect("num_stages", 4)
    config.expect("out_indices", [0, 1, 2, 3])
    config.skip("init_cfg")
    frozen = config.take("frozen_stages", -1)
    if frozen == 0:
        raise errors.UserError(f"{config.path} freezes its stem alone; detlab has no such ResNet.")
    norm = config.child("norm_cfg")
    norm.expect("type", "BN")
    trained, stored = norm.take("requires_grad", True), config.take("norm_eval", True)
    if not trained and not stored:
        raise errors.UserError(f"{config.path} has live norms without training; detlab has none.")
    return {
        "depth": config.take("depth"),
        "backbone_width": config.take("base_channels", 64),
        "style": config.take("style", "pytorch"),
        "frozen_stages": max(frozen, 0),
        "backbone_norm": "frozen" if not trained else "stored" if stored else "batch",
    }


def group_norm(config: Reader) -> dict:
    """A trained GroupNorm; mmdet's heads that have one by default have 32 groups."""
    config.expect("type", "GN")
    config.expect("requires_grad", True)
    return {"norm_groups": config.take("num_groups", 32)}


def fpn(config: Reader, start_level: int, extra: str, num_levels: int) -> dict:
    """Neck FPN over C2..C5 without norms.

    Args:
      config: of the neck.
      start_level, extra, num_levels: what the detector has: the first used of C2..C5 counted
        from 0, `add_extra_convs`, and the number of outputs.
    """
    config.expect("type", "FPN")
    config.expect("start_level", start_level, default=0)
    config.expect("add_extra_convs", extra, default=False)
    config.expect("num_outs", num_levels, default=None)
    config.skip("in_channels")  # follow from the backbone; a wrong one does not convert
    return {"neck_width": config.take("out_channels")}


def octave_anchors(config: Reader) -> dict:
    """AnchorGenerator in RetinaNet's terms."""
    config.expect("type", "AnchorGenerator")
    return {
        "strides": tuple(config.take("strides")),
        "octave_base_scale": config.take("octave_base_scale"),
        "scales_per_octave": config.take("scales_per_octave"),
        "aspect_ratios": tuple(config.take("ratios")),
    }


def delta_coder(config: Reader) -> dict:
    """DeltaXYWHBBoxCoder around means of 0."""
    config.expect("type", "DeltaXYWHBBoxCoder")
    config.expect("target_means", [0.0, 0.0, 0.0, 0.0])
    return {"delta_stds": tuple(config.take("target_stds", (1.0, 1.0, 1.0, 1.0)))}


def focal_loss(config: Reader) -> dict:
    """FocalLoss on sigmoids, of weight 1."""
    config.expect("type", "FocalLoss")
    config.expect("use_sigmoid", True)
    config.expect("loss_weight", 1.0)
    return {"focal_gamma": config.take("gamma", 2.0), "focal_alpha": config.take("alpha", 0.25)}


def max_iou(config: Reader) -> dict:
    """MaxIoUAssigner in which the best anchor of an object is always positive."""
    config.expect("type", "MaxIoUAssigner")
    config.expect("min_pos_iou", 0)
    config.expect("match_low_quality", True)
    config.expect("ignore_iof_thr", -1)
    return {
        "positive_iou": config.take("pos_iou_thr"),
        "negative_iou": config.take("neg_iou_thr"),
    }


def dense_test(config: Reader) -> dict:
    """Prediction of a dense head: the best of each level, then suppression by class."""
    config.expect("min_bbox_size", 0, default=-1)
    nms = config.child("nms")
    nms.expect("type", "nms")
    return {
        "candidates_per_level": config.take("nms_pre"),
        "score_threshold": config.take("score_thr"),
        "nms_iou": nms.take("iou_threshold"),
        "max_detections": config.take("max_per_img"),
    }
