"""Network descriptions of darknet (`.cfg`): text -> typed sections and their graph, and back.

A cfg is a list of sections: a line `[name]`, then lines `key=value`.  `[net]` comes first and
describes the input; every other section is a layer, numbered from 0.  A layer takes the output of
the previous layer (the first one takes the image) unless it names others by number; negative
numbers count back from the layer itself.  White space is ignored; `#` begins a comment, as does `;`
at the beginning of a line.  Where a section gives a key again, its first value counts.  Syntax,
defaults and arithmetic are those of AlexeyAB/darknet, src/parser.c and src/option_list.c.

Darknet reads `filters=3x` as 3, treats an unknown activation as ReLU, and adds shortcuts of unequal
height and width.  Here these are errors, and so are unimplemented sections and options that would
change what a network computes.  Unknown keys are kept for `format`.
"""

import difflib
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from detlab import errors
from detlab import text as text_lib


class CfgError(errors.UserError):
    """The text is not a valid network; the message names the file, and the line if there is one."""


class Source(NamedTuple):
    """The text that a section was read from: messages name its line, `format` writes it back."""

    line: int = 0  # of the header, from 1; 0 if the section was not read from text
    lines: tuple[str, ...] = ()  # the header and everything up to the next one, comments too


class Net(NamedTuple):
    """The input, and darknet's training settings."""

    width: int  # px
    height: int  # px
    channels: int
    batch: int = 1
    subdivisions: int = 1
    momentum: float = 0.9
    decay: float = 0.0001
    angle: float = 0.0  # degrees
    saturation: float = 1.0
    exposure: float = 1.0
    hue: float = 0.0
    mosaic: bool = False
    letter_box: bool = False
    learning_rate: float = 0.001
    burn_in: int = 0
    max_batches: int = 0
    policy: str = "constant"
    steps: tuple[int, ...] = ()
    scales: tuple[float, ...] = ()
    other: tuple[tuple[str, str], ...] = ()  # unknown keys and their values
    source: Source = Source()


class Convolutional(NamedTuple):
    """Convolution with zero padding, then batch normalisation or bias, then the activation."""

    filters: int = 1
    size: int = 1  # of the square kernel
    stride: int = 1
    pad: bool = False  # if True, `padding` is ignored
    padding: int = 0
    groups: int = 1
    dilation: int = 1  # cells between neighbouring taps; multiplies the border too
    batch_normalize: bool = False
    activation: str = "logistic"
    share_index: int | None = None  # absolute number of the layer whose parameters this one uses
    other: tuple[tuple[str, str], ...] = ()
    source: Source = Source()

    @property
    def border(self) -> int:
        """Rows and columns of zeros on each of the four sides."""
        return self.size // 2 if self.pad else self.padding


class Route(NamedTuple):
    """Concatenates part `group_id` of `groups` equal parts of the channels of each layer."""

    layers: tuple[int, ...]  # absolute numbers, in the order of the result
    groups: int = 1
    group_id: int = 0
    other: tuple[tuple[str, str], ...] = ()
    source: Source = Source()


class Shortcut(NamedTuple):
    """Sum of the previous layer and the named ones, then the activation.

    Of each named layer as many channels are added as both have.
    """

    layers: tuple[int, ...]  # absolute numbers; the key is `from`
    activation: str = "linear"
    weights_type: str = "none"  # per_feature: one learned factor per input; or one per_channel
    weights_normalization: str = "none"  # of the factors over the inputs
    other: tuple[tuple[str, str], ...] = ()
    source: Source = Source()


class Upsample(NamedTuple):
    """Each cell repeated `stride` times in both directions, times `scale`."""

    stride: int = 2
    scale: float = 1.0
    other: tuple[tuple[str, str], ...] = ()
    source: Source = Source()


class MaxPool(NamedTuple):
    """Maximum of a window; cells outside the map are ignored."""

    size: int  # defaults to `stride` in a cfg
    # Of both sides together: padding // 2 is left and above, the rest right and below.
    padding: int  # defaults to `size` - 1 in a cfg
    stride: int = 1
    other: tuple[tuple[str, str], ...] = ()
    source: Source = Source()


class LocalAvgPool(NamedTuple):
    """Mean of a window; cells outside the map are ignored.  Fields as in `MaxPool`."""

    size: int
    padding: int
    stride: int = 1
    other: tuple[tuple[str, str], ...] = ()
    source: Source = Source()


class AvgPool(NamedTuple):
    """Mean of each channel: a map of one cell."""

    other: tuple[tuple[str, str], ...] = ()
    source: Source = Source()


class ScaleChannels(NamedTuple):
    """The named layer times the previous one, which has one value per channel."""

    layers: tuple[int, ...]  # one absolute number; the key is `from`
    scale_wh: bool = False  # the previous layer has one value per cell instead
    activation: str = "linear"
    other: tuple[tuple[str, str], ...] = ()
    source: Source = Source()


class Sam(NamedTuple):
    """The previous layer times the named one, which has the same shape."""

    layers: tuple[int, ...]  # one absolute number; the key is `from`
    activation: str = "linear"
    other: tuple[tuple[str, str], ...] = ()
    source: Source = Source()


class Reorg3d(NamedTuple):
    """The `stride` x `stride` cells of a block become channels."""

    stride: int = 1
    other: tuple[tuple[str, str], ...] = ()
    source: Source = Source()


class Reorg(NamedTuple):
    """As `Reorg3d`, on the values of the map read in another order, see `ops.reorg`."""

    stride: int = 1
    other: tuple[tuple[str, str], ...] = ()
    source: Source = Source()


class Dropout(NamedTuple):
    """Dropout in training; nothing at inference."""

    probability: float = 0.2
    other: tuple[tuple[str, str], ...] = ()
    source: Source = Source()


_FLT_MAX = float.fromhex("0x1.fffffep+127")


class Yolo(NamedTuple):
    """Decodes x, y, w, h, objectness and classes of each anchor of `mask`, and trains them."""

    anchors: tuple[tuple[float, float], ...]  # width, height in px of the input, for all scales
    mask: tuple[int, ...]  # indices of this scale's anchors; defaults to all in a cfg
    classes: int = 20
    num: int = 1  # of `anchors`
    max_boxes: int = 200  # objects per training image; the key is `max`
    scale_x_y: float = 1.0
    new_coords: bool = False  # the values come from a logistic and are used as they are
    nms_kind: str = "default"
    beta_nms: float = 0.6
    ignore_thresh: float = 0.5
    truth_thresh: float = 1.0
    iou_thresh: float = 1.0
    iou_thresh_kind: str = "iou"
    iou_loss: str = "mse"
    iou_normalizer: float = 0.75
    obj_normalizer: float = 1.0
    cls_normalizer: float = 1.0
    delta_normalizer: float = 1.0
    max_delta: float = _FLT_MAX
    label_smooth_eps: float = 0.0
    objectness_smooth: bool = False
    focal_loss: bool = False
    counters_per_class: tuple[int, ...] = ()
    jitter: float = 0.2
    resize: float = 1.0
    random: float = 0.0
    other: tuple[tuple[str, str], ...] = ()
    source: Source = Source()

    @property
    def kind(self) -> str:
        """How the values are decoded, see `heads.darknet`."""
        return "new_coords" if self.new_coords else "yolo"

    @property
    def entries(self) -> int:
        """Values of an anchor before those of its classes."""
        return 5


class GaussianYolo(NamedTuple):
    """As `Yolo`, with an uncertainty behind each of x, y, w and h."""

    anchors: tuple[tuple[float, float], ...]  # as in `Yolo`, as are the other fields
    mask: tuple[int, ...]
    classes: int = 20
    num: int = 1
    max_boxes: int = 200
    scale_x_y: float = 1.0
    nms_kind: str = "default"
    beta_nms: float = 0.6
    ignore_thresh: float = 0.5
    truth_thresh: float = 1.0
    iou_thresh: float = 1.0
    iou_thresh_kind: str = "iou"
    iou_loss: str = "mse"
    uc_normalizer: float = 1.0  # of the uncertainties
    iou_normalizer: float = 0.75
    obj_normalizer: float = 1.0
    cls_normalizer: float = 1.0
    delta_normalizer: float = 1.0
    max_delta: float = _FLT_MAX
    label_smooth_eps: float = 0.0
    jitter: float = 0.2
    resize: float = 1.0
    random: float = 0.0
    other: tuple[tuple[str, str], ...] = ()
    source: Source = Source()

    @property
    def kind(self) -> str:
        """How the values are decoded, see `heads.darknet`."""
        return "gaussian"

    @property
    def entries(self) -> int:
        """Values of an anchor before those of its classes."""
        return 9

    @property
    def new_coords(self) -> bool:
        """As in `Yolo`: not a key of this section."""
        return False

    @property
    def objectness_smooth(self) -> bool:
        """As in `Yolo`: not implemented for this section."""
        return False

    @property
    def focal_loss(self) -> bool:
        """As in `Yolo`: not a key of this section."""
        return False

    @property
    def counters_per_class(self) -> tuple[int, ...]:
        """As in `Yolo`: not implemented for this section."""
        return ()


class Region(NamedTuple):
    """The head of YOLOv2: anchors in cells of its map, and a softmax over the classes."""

    anchors: tuple[tuple[float, float], ...]  # width, height in cells
    classes: int = 20
    coords: int = 4
    num: int = 1  # of `anchors`
    max_boxes: int = 200  # objects per training image; the key is `max`
    softmax: bool = False  # if False, class values are used as they are
    thresh: float = 0.5  # boxes that overlap an object by more are no background
    bias_match: bool = False  # the anchor learns that fits best, not the predicted box
    rescore: bool = False  # the target of objectness is the overlap
    coord_scale: float = 1.0
    object_scale: float = 1.0
    noobject_scale: float = 1.0
    class_scale: float = 1.0
    jitter: float = 0.2
    resize: float = 1.0
    random: float = 0.0
    other: tuple[tuple[str, str], ...] = ()
    source: Source = Source()

    @property
    def kind(self) -> str:
        """How the values are decoded, see `heads.darknet`."""
        return "region"

    @property
    def entries(self) -> int:
        """Values of an anchor before those of its classes."""
        return 5

    @property
    def mask(self) -> tuple[int, ...]:
        """Indices of the head's anchors: all."""
        return tuple(range(len(self.anchors)))

    @property
    def nms_kind(self) -> str:
        """Of `Yolo`'s kinds, the one of this section."""
        return "default"

    @property
    def beta_nms(self) -> float:
        """As in `Yolo`; has no effect."""
        return 0.6

    @property
    def counters_per_class(self) -> tuple[int, ...]:
        """As in `Yolo`: none."""
        return ()


HEADS = (Yolo, Region, GaussianYolo)
Head = Yolo | Region | GaussianYolo
Layer = Convolutional | Route | Shortcut | Upsample | MaxPool | LocalAvgPool | AvgPool
Layer |= ScaleChannels | Sam | Reorg3d | Reorg | Dropout | Head


class Network(NamedTuple):
    """A whole cfg."""

    name: str  # of the file, for messages
    net: Net
    layers: tuple[Layer, ...]
    head: tuple[str, ...] = ()  # lines before `[net]`


class Shape(NamedTuple):
    """Size of a layer's output for one image."""

    channels: int
    height: int
    width: int


# ---- Values: (text, layer number) -> value; ValueError says what the text must be. ----


def _integer(low: int) -> Callable[[str, int], int]:
    def read(text: str, number: int) -> int:
        # At most nine digits: more may not fit into darknet's int.
        if not re.fullmatch(r"[+-]?[0-9]{1,9}", text) or int(text) < low:
            raise ValueError(f"an integer of at least {low}")
        return int(text)

    return read


def _number(text: str, number: int) -> float:
    digits = r"([0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})"
    if not re.fullmatch(rf"[+-]?{digits}([eE][+-]?[0-9]{{1,2}})?", text):
        raise ValueError("a number")
    return float(text)


def _flag(text: str, number: int) -> bool:
    if text not in ("0", "1"):
        raise ValueError("0 or 1")
    return text == "1"


def _one_of(*values: str) -> Callable[[str, int], str]:
    def read(text: str, number: int) -> str:
        if text not in values:
            raise ValueError(f"one of {', '.join(values)}")
        return text

    return read


def _list_of(read_one: Callable[[str, int], Any]) -> Callable[[str, int], tuple]:
    def read(text: str, number: int) -> tuple:
        try:
            return tuple(read_one(part, number) for part in text.split(","))
        except ValueError as error:
            raise ValueError(f"a comma-separated list, each item {error}") from None

    return read


def _pairs(text: str, number: int) -> tuple[tuple[float, float], ...]:
    values = _list_of(_number)(text.removesuffix(","), number)  # darknet allows a comma at the end
    if len(values) % 2 or min(values) <= 0:
        raise ValueError("pairs of numbers above 0 (width, height)")
    return tuple(zip(values[::2], values[1::2], strict=True))


def _earlier_layers(text: str, number: int) -> tuple[int, ...]:
    values = _list_of(_integer(-number))(text, number)
    if max(values) >= number:
        raise ValueError(f"numbers of layers before this one, layer {number}")
    return tuple(value + number if value < 0 else value for value in values)


def _earlier_layer(text: str, number: int) -> tuple[int, ...]:
    values = _earlier_layers(text, number)
    if len(values) > 1:
        raise ValueError("one number of a layer")
    return values


def _earlier_index(text: str, number: int) -> int:
    return _earlier_layer(text, number)[0]


_ACTIVATION = _one_of("linear", "leaky", "mish", "relu", "logistic", "swish")
_IOU_KINDS = ("iou", "giou", "diou", "ciou")
_NMS_KINDS = ("default", "greedynms", "diounms")
_SIZES = {"jitter": _number, "resize": _number, "random": _number}  # of training images

# The keys that are read in each section.  A key is the name of its field, except for those in
# _FIELDS.  A key whose default depends on others comes after them.
_KEYS = {
    Net: {
        "width": _integer(1),
        "height": _integer(1),
        "channels": _integer(1),
        "batch": _integer(1),
        "subdivisions": _integer(1),
        "momentum": _number,
        "decay": _number,
        "angle": _number,
        "saturation": _number,
        "exposure": _number,
        "hue": _number,
        "mosaic": _flag,
        "letter_box": _flag,
        "learning_rate": _number,
        "burn_in": _integer(0),
        "max_batches": _integer(0),
        "policy": _one_of("constant", "steps", "step", "exp", "poly", "sigmoid", "random", "sgdr"),
        "steps": _list_of(_integer(0)),
        "scales": _list_of(_number),
    },
    Convolutional: {
        "batch_normalize": _flag,
        "filters": _integer(1),
        "groups": _integer(1),
        "dilation": _integer(1),
        "size": _integer(1),
        "stride": _integer(1),
        "pad": _flag,
        "padding": _integer(0),
        "activation": _ACTIVATION,
        "share_index": _earlier_index,
    },
    Route: {"layers": _earlier_layers, "groups": _integer(1), "group_id": _integer(0)},
    Shortcut: {
        "from": _earlier_layers,
        "activation": _ACTIVATION,
        "weights_type": _one_of("none", "per_feature", "per_layer", "per_channel"),
        "weights_normalization": _one_of("none", "relu", "avg_relu", "softmax"),
    },
    Upsample: {"stride": _integer(1), "scale": _number},
    MaxPool: {"stride": _integer(1), "size": _integer(1), "padding": _integer(0)},
    LocalAvgPool: {"stride": _integer(1), "size": _integer(1), "padding": _integer(0)},
    AvgPool: {},
    ScaleChannels: {"from": _earlier_layer, "scale_wh": _flag, "activation": _ACTIVATION},
    Sam: {"from": _earlier_layer, "activation": _ACTIVATION},
    Reorg3d: {"stride": _integer(1)},
    Reorg: {"stride": _integer(1)},
    Dropout: {"probability": _number},
    Yolo: {
        "anchors": _pairs,
        "mask": _list_of(_integer(0)),
        "classes": _integer(1),
        "num": _integer(1),
        "max": _integer(1),
        "scale_x_y": _number,
        "new_coords": _flag,
        "nms_kind": _one_of(*_NMS_KINDS),
        "beta_nms": _number,
        "ignore_thresh": _number,
        "truth_thresh": _number,
        "iou_thresh": _number,
        "iou_thresh_kind": _one_of(*_IOU_KINDS),
        "iou_loss": _one_of("mse", *_IOU_KINDS),
        "iou_normalizer": _number,
        "obj_normalizer": _number,
        "cls_normalizer": _number,
        "delta_normalizer": _number,
        "max_delta": _number,
        "label_smooth_eps": _number,
        "objectness_smooth": _flag,
        "focal_loss": _flag,
        "counters_per_class": _list_of(_integer(0)),
        **_SIZES,
    },
    GaussianYolo: {
        "anchors": _pairs,
        "mask": _list_of(_integer(0)),
        "classes": _integer(1),
        "num": _integer(1),
        "max": _integer(1),
        "scale_x_y": _number,
        "nms_kind": _one_of(*_NMS_KINDS),
        "beta_nms": _number,
        "ignore_thresh": _number,
        "truth_thresh": _number,
        "iou_thresh": _number,
        "iou_thresh_kind": _one_of(*_IOU_KINDS),
        "iou_loss": _one_of("mse", *_IOU_KINDS),
        "uc_normalizer": _number,
        "iou_normalizer": _number,
        "obj_normalizer": _number,
        "cls_normalizer": _number,
        "delta_normalizer": _number,
        "max_delta": _number,
        "label_smooth_eps": _number,
        **_SIZES,
    },
    Region: {
        "anchors": _pairs,
        "classes": _integer(1),
        "coords": _integer(1),
        "num": _integer(1),
        "max": _integer(1),
        "softmax": _flag,
        "thresh": _number,
        "bias_match": _flag,
        "rescore": _flag,
        "coord_scale": _number,
        "object_scale": _number,
        "noobject_scale": _number,
        "class_scale": _number,
        **_SIZES,
    },
}
_FIELDS = {"from": "layers", "max": "max_boxes"}

# Unimplemented options that change what a layer computes or what its weights are -> the value that
# has no effect, None if there is none.
_NEUTRAL = {
    Net: {},
    Convolutional: {
        **dict.fromkeys(("stride_x", "stride_y"), None),
        **dict.fromkeys(("antialiasing", "flipped", "binary", "xnor", "bin_output", "cbn"), "0"),
        **dict.fromkeys(("sway", "rotate", "stretch", "stretch_sway", "coordconv"), "0"),
        **dict.fromkeys(("assisted_excitation", "dontload", "dontloadscales"), "0"),
    },
    Route: {},
    Shortcut: {},
    Upsample: {},
    MaxPool: {
        **dict.fromkeys(("maxpool_depth", "antialiasing", "maxpool_zero_nonmax"), "0"),
        **dict.fromkeys(("stride_x", "stride_y"), None),
    },
    LocalAvgPool: dict.fromkeys(("stride_x", "stride_y"), None),
    AvgPool: {},
    ScaleChannels: {},
    Sam: {},
    Reorg3d: {"reverse": "0"},
    Reorg: {"reverse": "0"},
    Dropout: {},
    Yolo: {"embedding_layer": None, "map": None},
    GaussianYolo: {
        **{"yolo_point": "center", "objectness_smooth": "0"},
        **dict.fromkeys(("map", "counters_per_class")),
    },
    Region: {"tree": None, "map": None, "focal_loss": "0", "classfix": "0"},
}

# Darknet's names of the sections; the last name of each kind is the one that is written.
_SECTIONS = {
    "network": Net,
    "net": Net,
    "conv": Convolutional,
    "convolutional": Convolutional,
    "route": Route,
    "shortcut": Shortcut,
    "upsample": Upsample,
    "max": MaxPool,
    "maxpool": MaxPool,
    "local_avg": LocalAvgPool,
    "local_avgpool": LocalAvgPool,
    "avg": AvgPool,
    "avgpool": AvgPool,
    "scale_channels": ScaleChannels,
    "sam": Sam,
    "reorg3d": Reorg3d,
    "reorg": Reorg,
    "dropout": Dropout,
    "yolo": Yolo,
    "Gaussian_yolo": GaussianYolo,
    "region": Region,
}
_NAMES = {kind: name for name, kind in _SECTIONS.items()}
# Sections of darknet that are not implemented.
_FOREIGN = "crnn contrastive rnn gru lstm conv_lstm history local connected softmax cost crop lrn"
_FOREIGN += " detection iseg deconvolutional batchnorm reorg_old"
_FOREIGN += " implicit implicit_add implicit_mul empty silence normalization activation"

_MAX_BYTES = 1 << 20  # of a cfg; published ones have about 10 kB
_MAX_SIZE = 1 << 20  # channels, or cells along a side


def read(path: str | os.PathLike) -> Network:
    r"""Reads a cfg file; see `parse`.

    A byte order mark is dropped.  Comments may have any encoding: bytes in them that are not UTF-8
    are escaped, so an e with an acute accent in Latin-1 becomes `\xe9`.

    Raises:
      CfgError: the file cannot be read, is not text, or is rejected by `parse`.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CfgError(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(data) > _MAX_BYTES:
        raise CfgError(f"{path} has more than {_MAX_BYTES} bytes, too large for a darknet cfg.")
    try:
        text = text_lib.decode(_with_plain_comments(data))
    except ValueError as error:
        raise CfgError(f"{path} is not a darknet cfg: it {error}.") from error
    if "\n" not in text:  # as old Macs write lines
        text = text.replace("\r", "\n")
    return parse(text, str(path))


def parse(text: str, name: str = "cfg") -> Network:
    """The sections and their values; `shapes` checks that the layers fit together.

    Args:
      text: of a cfg file.
      name: of the file, for messages.
    Raises:
      CfgError: an unknown section, a malformed value, a missing key, an option that is not
        implemented, or a layer that refers to one that does not come before it.
    """
    lines = text.split("\n")
    contents = [_content(line) for line in lines]
    first = next((i for i, content in enumerate(contents) if content), None)
    if first is None:
        raise CfgError(f"{name} is empty; a darknet cfg begins with [net].")
    if not contents[first].startswith("["):
        raise CfgError(f"{name}, line {first + 1}: not a darknet cfg, which begins with [net].")
    starts = [i for i, content in enumerate(contents) if content.startswith("[")]
    sections = []
    for number, (start, stop) in enumerate(
        zip(starts, [*starts[1:], len(lines)], strict=True), start=-1
    ):
        section = _section(name, number, start + 1, lines[start:stop])
        if isinstance(section, Net) != (number == -1):
            raise CfgError(
                f"{name}, line {start + 1}: [net] must be the first section and appear only once."
            )
        sections.append(section)
    net, *layers = sections
    if not layers:
        raise CfgError(f"{name} has no layers after [net].")
    return Network(name, net, tuple(layers), tuple(lines[:first]))


def repeated(network: Network) -> str:
    """A sentence about keys that a section gives again with another value; "" if there are none."""
    found = []
    for section in (network.net, *network.layers):
        first = {}  # key -> its line and value
        contents = map(_content, section.source.lines)
        for at, content in enumerate(contents, start=section.source.line):
            key, equals, text = content.partition("=")
            line, value = first.setdefault(key, (at, text)) if equals else (at, text)
            if text != value:
                found.append(
                    f"{key[:40]}={value[:40]!r} of line {line}, not {text[:40]!r} of line {at}"
                )
    if not found:
        return ""
    values = "1 value" if len(found) == 1 else f"{len(found)} values"
    return (
        f"{network.name} gives {values} again; the first one counts, as in darknet: "
        + _first_of(found)
    )


def misspelled(network: Network) -> str:
    """A sentence about unknown keys that are close to known ones; "" if there are none."""
    found = []
    for section in (network.net, *network.layers):
        kind, lines = type(section), list(map(_content, section.source.lines))
        given = {line.partition("=")[0] for line in lines}
        absent = {key.replace("_", ""): key for key in _KEYS[kind] if key not in given}
        for key, value in section.other:
            plain_key = key[:40].lower().replace("_", "")
            close = difflib.get_close_matches(plain_key, absent, n=1, cutoff=0.92)
            if close and f"{key}={value}" in lines:
                at = section.source.line + lines.index(f"{key}={value}")
                found.append(f"{key[:40]} of line {at} ({absent[close[0]]}?)")
    if not found:
        return ""
    keys = _first_of(found)
    return f"{network.name} has keys that darknet does not know, without effect: {keys}"


def _first_of(found):
    return ", ".join(found[:4]) + (f", and {len(found) - 4} more" if len(found) > 4 else "")


def format(network: Network) -> str:
    """The cfg text of a network.

    Text that `parse` read is returned unchanged, character by character.  Lines of fields that have
    been replaced are rewritten, or added if the change requires them.
    """
    lines = list(network.head)
    for number, section in enumerate((network.net, *network.layers), start=-1):
        lines += _lines(section, number)
    return "\n".join(lines)


def owner(network: Network, number: int) -> int:
    """The layer whose parameters convolution `number` uses: its own number, or by `share_index`."""
    while (shared := network.layers[number].share_index) is not None:
        number = shared
    return number


def where(network: Network, number: int) -> str:
    """The name of the file, line and section of a layer, for messages."""
    layer = network.layers[number]
    return _where(network.name, number, type(layer), layer.source.line)


def plain(network: Network) -> Network:
    """The network without its text: equal for two cfgs that differ only in wording."""
    net, *layers = (
        section._replace(source=Source(), other=tuple(sorted(section.other)))
        for section in (network.net, *network.layers)
    )
    return Network("cfg", net, tuple(layers))


def shapes(
    network: Network, height: int | None = None, width: int | None = None
) -> tuple[Shape, ...]:
    """The output shape of every layer for one image.

    Args:
      network: from `parse`, or made by hand.
      height, width: of the image, px; None: those of [net].
    Returns:
      One shape per layer.
    Raises:
      CfgError: a layer does not fit those before it; the message names the first such layer.
    """
    net = network.net
    image = Shape(net.channels, height or net.height, width or net.width)
    found = []
    for number, layer in enumerate(network.layers):
        try:
            shape = _shape(layer, found[-1] if found else image, found)
            if isinstance(layer, Convolutional):
                _check_shared(network, number, [image, *found])
            if not all(1 <= size <= _MAX_SIZE for size in shape):
                raise ValueError(f"outputs {_words(shape)}, which is too small or too large")
        except ValueError as error:
            raise CfgError(f"{where(network, number)} {error}.") from None
        found.append(shape)
    return tuple(found)


# ---- One section from its lines, and back. ----


def _with_plain_comments(data: bytes) -> bytes:
    """The bytes of a file with those of comments escaped that are not UTF-8."""
    if b"\0" in data:  # UTF-16 or UTF-32
        return data
    lines = data.split(b"\n")
    for i, line in enumerate(lines):
        start = 0 if line.lstrip().startswith(b";") else line.find(b"#")
        if start >= 0 and not line.isascii():
            comment = line[start:].decode("utf-8", "backslashreplace")
            lines[i] = line[:start] + comment.encode()
    return b"\n".join(lines)


def _content(line: str) -> str:
    """The line without white space and comments."""
    content = "".join(line.split("#", 1)[0].split())
    return "" if content.startswith(";") else content


def _where(name: str, number: int, kind: type, line: int) -> str:
    at = f"{name}, line {line}" if line else name
    return f"{at}: layer {number} [{_NAMES[kind]}]" if number >= 0 else f"{at}: [{_NAMES[kind]}]"


def _section(name: str, number: int, line: int, lines: Sequence[str]) -> Net | Layer:
    """One section; `number` is -1 for the first, `line` that of `lines[0]`, the header."""
    header = _content(lines[0])
    kind = _SECTIONS.get(header[1:-1]) if header.endswith("]") else None
    if kind is None and header[1:-1] in _FOREIGN.split():
        raise CfgError(
            f"{name}, line {line}: layer {number} {header} is a section of darknet that is not"
            " implemented."
        )
    if kind is None:
        known = ", ".join(f"[{known}]" for known in _NAMES.values())
        raise CfgError(f"{name}, line {line}: unknown section {header[:40]!r}; use one of {known}.")

    values, other, seen = {}, [], set()
    for at, content in enumerate(map(_content, lines[1:]), start=line + 1):
        if not content:
            continue
        where = _where(name, number, kind, at)
        key, _, text = content.partition("=")
        if not key or not text:
            raise CfgError(f"{where} has {content[:40]!r}, which is not key=value.")
        if key in seen:
            continue  # darknet takes the first value (option_find)
        seen.add(key)
        if key in _KEYS[kind]:
            try:
                values[_FIELDS.get(key, key)] = _KEYS[kind][key](text, number)
            except ValueError as error:
                raise CfgError(f"{where} has {key}={text[:40]!r}; it must be {error}.") from None
        elif key in _NEUTRAL[kind] and text != _NEUTRAL[kind][key]:
            raise CfgError(f"{where} has {key}={text[:40]!r}, an option that is not implemented.")
        else:
            other.append((key, text))

    values = _with_defaults(kind, values)
    where = _where(name, number, kind, line)
    for key in _KEYS[kind]:
        if _FIELDS.get(key, key) not in values:
            raise CfgError(f"{where} has no {key}.")
    section = kind(**values | {"other": tuple(other), "source": Source(line, tuple(lines))})
    if kind in HEADS:
        if kind is Region and section.coords != 4:
            raise CfgError(f"{where} has coords={section.coords}; only 4 is implemented.")
        if len(section.anchors) != section.num:
            given = len(section.anchors)
            raise CfgError(f"{where} has num={section.num} but {given} pairs of anchors.")
        if max(section.mask) >= section.num:
            raise CfgError(
                f"{where} has mask={_text(section.mask)} but only {section.num} anchors."
            )
    return section


def _with_defaults(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Adds the defaults of the fields that a cfg may omit."""
    values = kind._field_defaults | values
    if kind in (MaxPool, LocalAvgPool):
        values.setdefault("size", values["stride"])
        values.setdefault("padding", values["size"] - 1)
    if kind in (Yolo, GaussianYolo) and "anchors" in values:
        values.setdefault("mask", tuple(range(len(values["anchors"]))))
    return values


def _lines(section: Net | Layer, number: int) -> list[str]:
    """The lines of a section; a line of its source is kept if it still agrees with the field."""
    keys, texts = _KEYS[type(section)], dict(section.other)
    other = dict(texts)  # not written yet
    lines, end, written = [], 1, {}  # `end`: after the header and the last option
    kept = set()
    for line in section.source.lines or (f"[{_NAMES[type(section)]}]", ""):
        key, equals, text = _content(line).partition("=")
        if key in kept:
            pass  # given again, does not count
        elif key in keys:
            field = _FIELDS.get(key, key)
            written[field] = value = getattr(section, field)
            if not _says(keys[key], text, number, value):
                line = f"{key}={_text(value)}"
        elif equals and key not in other:
            continue
        elif equals and other.pop(key) != text:
            line = f"{key}={texts[key]}"
        lines.append(line)
        if equals:
            kept.add(key)
            end = len(lines)

    added = []
    for key in keys:
        field = _FIELDS.get(key, key)
        value = getattr(section, field)
        if _with_defaults(type(section), written).get(field) != value:
            written[field] = value
            added.append(f"{key}={_text(value)}")
    added += [f"{key}={text}" for key, text in other.items()]
    return lines[:end] + added + lines[end:]


def _says(read_value: Callable[[str, int], Any], text: str, number: int, value: Any) -> bool:
    try:
        return read_value(text, number) == value
    except ValueError:  # such as "-4" after earlier layers have been removed
        return False


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    if isinstance(value, bool):
        return str(int(value))
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


# ---- The graph. ----


def _shape(layer: Layer, before: Shape, earlier: Sequence[Shape]) -> Shape:
    """The layer's output; ValueError says why it cannot work."""
    channels, height, width = before
    match layer:
        case Convolutional():
            if channels % layer.groups or layer.filters % layer.groups:
                raise ValueError(
                    f"has groups={layer.groups}, which must divide its {channels} input channels"
                    f" and {layer.filters} filters"
                )
            if layer.dilation > 1 and 2 * layer.border != layer.size - 1:
                # Darknet computes the size of the map as if the kernel had no holes.
                raise ValueError(
                    f"has dilation={layer.dilation}, for which darknet needs an odd size and pad=1"
                )
            sides = (_windows(side, 2 * layer.border, layer) for side in (height, width))
            return Shape(layer.filters, *sides)
        case MaxPool() | LocalAvgPool():
            return Shape(channels, *(_windows(s, layer.padding, layer) for s in (height, width)))
        case Upsample():
            return Shape(channels, height * layer.stride, width * layer.stride)
        case Shortcut():
            for source in _sources(layer, earlier):
                if earlier[source][1:] != before[1:]:
                    raise ValueError(
                        f"adds layer {source}, which outputs {_words(earlier[source])}, to"
                        f" {_words(before)}"
                    )
            return before
        case AvgPool():
            return Shape(channels, 1, 1)
        case ScaleChannels():
            (source,) = _sources(layer, earlier)
            scaled = earlier[source]
            needed = Shape(1, *scaled[1:]) if layer.scale_wh else Shape(scaled.channels, 1, 1)
            if before != needed:
                raise ValueError(
                    f"scales layer {source}, which outputs {_words(scaled)}, and needs"
                    f" {_words(needed)}, but the layer before it outputs {_words(before)}"
                )
            return scaled
        case Sam():
            (source,) = _sources(layer, earlier)
            if earlier[source] != before:
                raise ValueError(
                    f"multiplies layer {source}, which outputs {_words(earlier[source])}, with"
                    f" {_words(before)}"
                )
            return before
        case Reorg3d():
            stride = layer.stride
            if height % stride or width % stride:
                raise ValueError(f"has stride={stride}, which must divide {_words(before)}")
            return Shape(channels * stride**2, height // stride, width // stride)
        case Reorg():
            stride = layer.stride
            if height % stride or width % stride or channels % stride**2:
                raise ValueError(
                    f"has stride={stride}, which must divide the sides of {_words(before)}, and its"
                    " square the channels"
                )
            return Shape(channels * stride**2, height // stride, width // stride)
        case Route():
            return _routed(layer, earlier)
        case Yolo() | GaussianYolo() | Region():
            needed = len(layer.mask) * (layer.classes + layer.entries)
            if channels != needed:
                raise ValueError(
                    f"needs {needed} channels ({len(layer.mask)} anchors of {layer.entries} +"
                    f" {layer.classes} values), but the layer before it outputs {channels}"
                )
            return before
        case Dropout():
            return before


def _check_shared(network: Network, number: int, inputs: Sequence[Shape]) -> None:
    """Raises ValueError unless the layer named by `share_index` has weights that fit this layer."""
    layer, shared = network.layers[number], network.layers[number].share_index
    if shared is None:
        return
    other = network.layers[shared] if 0 <= shared < number else None
    if not isinstance(other, Convolutional):
        raise ValueError(f"has share_index={shared}, which is not an earlier [convolutional]")
    for key in ("filters", "size", "groups", "batch_normalize"):
        mine, theirs = (_text(getattr(conv, key)) for conv in (layer, other))
        if mine != theirs:
            raise ValueError(
                f"has {key}={mine}, but shares the weights of layer {shared}, which has"
                f" {key}={theirs}"
            )
    if inputs[number].channels != inputs[shared].channels:
        raise ValueError(
            f"has {inputs[number].channels} input channels, but shares the weights of layer"
            f" {shared}, which has {inputs[shared].channels}"
        )


def _windows(side: int, padding: int, layer: Convolutional | MaxPool | LocalAvgPool) -> int:
    """Windows along a side; `padding` is the sum of both ends, in cells."""
    return (side + padding - layer.size) // layer.stride + 1


def _sources(
    layer: Route | Shortcut | ScaleChannels | Sam, earlier: Sequence[Shape]
) -> tuple[int, ...]:
    # `parse` has checked this, but a network made by hand may be wrong.
    if not all(0 <= source < len(earlier) for source in layer.layers):
        raise ValueError(f"takes layers {_text(layer.layers)}, not all of which come before it")
    return layer.layers


def _routed(layer: Route, earlier: Sequence[Shape]) -> Shape:
    parts = [earlier[source] for source in _sources(layer, earlier)]
    for source, part in zip(layer.layers, parts, strict=True):
        if part[1:] != parts[0][1:]:
            raise ValueError(
                f"joins layer {layer.layers[0]}, which outputs {_words(parts[0])}, with layer"
                f" {source}, which outputs {_words(part)}"
            )
        if part.channels % layer.groups:
            raise ValueError(
                f"has groups={layer.groups}, which must divide the {part.channels} channels of"
                f" layer {source}"
            )
    if layer.group_id >= layer.groups:
        raise ValueError(f"has group_id={layer.group_id}; it must be below groups={layer.groups}")
    return Shape(sum(part.channels // layer.groups for part in parts), *parts[0][1:])


def _words(shape: Shape) -> str:
    return f"{shape.channels} channels of {shape.height}x{shape.width}"
