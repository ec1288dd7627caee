"""The four standard networks of darknet, and changes to a network's classes and width.

`yolov3`, `yolov3-tiny`, `yolov4` and `yolov4-tiny` are built from the blocks that their papers
describe, and equal the published cfgs section by section; docs/darknet.md describes them.
"""

from collections.abc import Sequence
from typing import Any

from detlab.darknet import cfg as darknet_cfg


class _Writer:
    """Collects the sections of a cfg; each method returns the number of the layer that it adds."""

    def __init__(self, **net):
        self._lines, self._next = [], -1
        self.section("net", **net)

    def section(self, name: str, **values: Any) -> int:
        self._lines += [f"[{name}]", *(f"{key}={value}" for key, value in values.items()), ""]
        self._next += 1
        return self._next - 1

    def conv(self, filters: int, size: int, stride: int = 1, activation: str = "leaky") -> int:
        values = dict(filters=filters, size=size, stride=stride, pad=1, activation=activation)
        return self.section("convolutional", batch_normalize=1, **values)

    def route(self, *layers: int, **values: Any) -> int:
        return self.section("route", layers=",".join(map(str, layers)), **values)

    def residual(self, inner: int, outer: int, activation: str) -> int:
        self.conv(inner, 1, activation=activation)
        self.conv(outer, 3, activation=activation)
        return self.section("shortcut", **{"from": -3, "activation": "linear"})

    def head(self, mask: Sequence[int], anchors: str, classes: int = 80, **values: Any) -> int:
        """The predicting convolution and its [yolo] section."""
        filters = len(mask) * (5 + classes)
        common = dict(size=1, stride=1, pad=1, activation="linear")
        self.section("convolutional", filters=filters, **common)
        masked = dict(mask=",".join(map(str, mask)), anchors=anchors, classes=classes)
        return self.section("yolo", **masked, num=len(anchors.split(",")) // 2, **values)

    def text(self) -> str:
        return "\n".join(self._lines)


_TRAINING = dict(
    channels=3,
    momentum=0.9,
    decay=0.0005,
    angle=0,
    saturation=1.5,
    exposure=1.5,
    hue=0.1,
    learning_rate=0.001,
    burn_in=1000,
    max_batches=500200,
    policy="steps",
    steps="400000,450000",
    scales=".1,.1",
)
_V3_ANCHORS = "10,13,16,30,33,23,30,61,62,45,59,119,116,90,156,198,373,326"
_V4_ANCHORS = "12,16,19,36,40,28,36,75,76,55,72,146,142,110,192,243,459,401"
_TINY_ANCHORS = "10,14,23,27,37,58,81,82,135,169,344,319"
_V3_HEAD = dict(jitter=0.3, ignore_thresh=0.7, truth_thresh=1, random=1)
_V4_HEAD = dict(
    jitter=0.3,
    ignore_thresh=0.7,
    truth_thresh=1,
    cls_normalizer=1.0,
    iou_normalizer=0.07,
    iou_loss="ciou",
    nms_kind="greedynms",
    beta_nms=0.6,
)


def yolov3() -> str:
    """Darknet-53 and three scales (arXiv:1804.02767)."""
    cfg = _Writer(batch=64, subdivisions=16, width=608, height=608, **_TRAINING)
    cfg.conv(32, 3)
    stages = []
    for width, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        cfg.conv(width, 3, stride=2)
        for _ in range(blocks):
            last = cfg.residual(width // 2, width, "leaky")
        stages.append(last)
    for scale, width in enumerate((512, 256, 128)):
        if scale:
            cfg.route(-4)
            cfg.conv(width, 1)
            cfg.section("upsample", stride=2)
            cfg.route(-1, stages[-1 - scale])
        for _ in range(3):
            cfg.conv(width, 1)
            cfg.conv(2 * width, 3)
        first = 6 - 3 * scale  # the coarsest scale comes first and has the largest anchors
        cfg.head((first, first + 1, first + 2), _V3_ANCHORS, **_V3_HEAD)
    return cfg.text()


def yolov3_tiny() -> str:
    """Seven convolutions with pools between them, and two scales."""
    cfg = _Writer(batch=64, subdivisions=2, width=416, height=416, **_TRAINING)
    convs = {}
    for width in (16, 32, 64, 128, 256, 512):
        convs[width] = cfg.conv(width, 3)
        cfg.section("maxpool", size=2, stride=1 if width == 512 else 2)
    cfg.conv(1024, 3)
    cfg.conv(256, 1)
    cfg.conv(512, 3)
    cfg.head((3, 4, 5), _TINY_ANCHORS, **_V3_HEAD)
    cfg.route(-4)
    cfg.conv(128, 1)
    cfg.section("upsample", stride=2)
    cfg.route(-1, convs[256])
    cfg.conv(256, 3)
    cfg.head((0, 1, 2), _TINY_ANCHORS, **_V3_HEAD)
    return cfg.text()


def yolov4() -> str:
    """CSPDarknet-53, SPP, PANet and three scales (arXiv:2004.10934)."""
    training = _TRAINING | dict(momentum=0.949, learning_rate=0.0013, max_batches=500500)
    cfg = _Writer(batch=64, subdivisions=8, width=608, height=608, **training, mosaic=1)
    cfg.conv(32, 3, activation="mish")
    stages = [
        _csp_stage(cfg, *stage) for stage in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))
    ]

    def five(width: int) -> int:
        """Five alternating 1x1 and 3x3 convolutions, as between the scales of YOLOv3."""
        for i in range(5):
            last = cfg.conv(width if i % 2 == 0 else 2 * width, 1 if i % 2 == 0 else 3)
        return last

    cfg.conv(512, 1)
    cfg.conv(1024, 3)
    spp = cfg.conv(512, 1)
    pools = []
    for size in (5, 9, 13):
        if pools:
            cfg.route(spp)
        pools.append(cfg.section("maxpool", size=size, stride=1))
    cfg.route(*reversed(pools), spp)
    cfg.conv(512, 1)
    cfg.conv(1024, 3)
    p5 = cfg.conv(512, 1)

    def up(width: int, stage: int) -> int:
        cfg.conv(width, 1)
        above = cfg.section("upsample", stride=2)
        cfg.route(stage)
        cfg.conv(width, 1)
        cfg.route(-1, above)
        return five(width)

    p4 = up(256, stages[3])
    up(128, stages[2])
    for scale, (width, factor) in enumerate(((128, 1.2), (256, 1.1), (512, 1.05))):
        if scale:
            cfg.route(-4)
            cfg.conv(width, 3, stride=2)
            cfg.route(-1, p4 if scale == 1 else p5)
            five(width)
        cfg.conv(2 * width, 3)
        first = 3 * scale
        random = {"random": 1} if scale == 2 else {}
        cfg.head(
            (first, first + 1, first + 2),
            _V4_ANCHORS,
            **_V4_HEAD,
            **dict(scale_x_y=factor, iou_thresh=0.213, max_delta=5),
            **random,
        )
    return cfg.text()


def _csp_stage(cfg: _Writer, width: int, blocks: int) -> int:
    """Half of the channels go through residual blocks, the others around them."""
    half = width if width == 64 else width // 2  # the first stage does not halve them
    cfg.conv(width, 3, stride=2, activation="mish")
    around = cfg.conv(half, 1, activation="mish")
    cfg.route(-2)
    cfg.conv(half, 1, activation="mish")
    for _ in range(blocks):
        cfg.residual(32 if width == 64 else half, half, "mish")
    cfg.conv(half, 1, activation="mish")
    cfg.route(-1, around)
    return cfg.conv(width, 1, activation="mish")


def yolov4_tiny() -> str:
    """Three stages in which half of the channels pass two convolutions, and two scales."""
    training = _TRAINING | dict(learning_rate=0.00261, max_batches=2000200, steps="1600000,1800000")
    cfg = _Writer(batch=64, subdivisions=1, width=416, height=416, **training)
    cfg.conv(32, 3, stride=2)
    cfg.conv(64, 3, stride=2)
    for width in (64, 128, 256):
        whole = cfg.conv(width, 3)
        cfg.route(-1, groups=2, group_id=1)
        first = cfg.conv(width // 2, 3)
        second = cfg.conv(width // 2, 3)
        cfg.route(second, first)
        fine = cfg.conv(width, 1)
        cfg.route(whole, fine)
        cfg.section("maxpool", size=2, stride=2)
    head = _V4_HEAD | dict(scale_x_y=1.05, resize=1.5, random=0)
    cfg.conv(512, 3)
    cfg.conv(256, 1)
    cfg.conv(512, 3)
    cfg.head((3, 4, 5), _TINY_ANCHORS, **head)
    cfg.route(-4)
    cfg.conv(128, 1)
    cfg.section("upsample", stride=2)
    cfg.route(-1, fine)
    cfg.conv(256, 3)
    cfg.head((1, 2, 3), _TINY_ANCHORS, **head)
    return cfg.text()


STANDARD = {
    "yolov3": yolov3,
    "yolov3-tiny": yolov3_tiny,
    "yolov4": yolov4,
    "yolov4-tiny": yolov4_tiny,
}


def resolve(cfg: str, name: str = "config.model.cfg") -> darknet_cfg.Network:
    """The network of a cfg text or of a standard name.

    Raises:
      CfgError: the text is not a valid cfg, or the name is unknown.
    """
    if cfg in STANDARD:
        return darknet_cfg.parse(STANDARD[cfg](), cfg)
    if "\n" not in cfg:
        raise darknet_cfg.CfgError(
            f"{name} is {cfg!r}; it must be the text of a cfg, or one of {', '.join(STANDARD)}."
        )
    return darknet_cfg.parse(cfg, name)


def with_classes(network: darknet_cfg.Network, num_classes: int) -> darknet_cfg.Network:
    """The network with `num_classes` in every head and in the convolution before it."""
    layers = list(network.layers)
    for number in heads(network):
        head = layers[number]
        layers[number] = head._replace(classes=num_classes)
        before = layers[number - 1]
        filters = len(head.mask) * (head.entries + num_classes)
        layers[number - 1] = before._replace(filters=filters)
    return network._replace(layers=tuple(layers))


def has_region(network: darknet_cfg.Network) -> bool:
    """Whether a head is a [region], whose loss depends on the number of images seen."""
    return any(isinstance(layer, darknet_cfg.Region) for layer in network.layers)


def scaled(network: darknet_cfg.Network, width: float) -> darknet_cfg.Network:
    """The network with `width` times the channels, rounded to a multiple of 8, at least 8.

    Raises:
      CfgError: a convolution has groups, so its channels cannot be scaled.
    """
    if width == 1:
        return network
    layers, predicting = list(network.layers), {number - 1 for number in heads(network)}
    for number, layer in enumerate(layers):
        if isinstance(layer, darknet_cfg.Convolutional) and number not in predicting:
            if layer.groups > 1:
                raise darknet_cfg.CfgError(
                    f"{network.name}: layer {number} has groups={layer.groups}, so its channels"
                    " cannot be scaled; set width_multiple to 1."
                )
            filters = max(8, 8 * round(layer.filters * width / 8))
            layers[number] = layer._replace(filters=filters)
    return network._replace(layers=tuple(layers))


def check_channels(network: darknet_cfg.Network) -> None:
    """Raises CfgError unless the network takes RGB or grey images."""
    channels = network.net.channels
    if channels not in (1, 3):
        raise darknet_cfg.CfgError(
            f"{network.name}: [net] has channels={channels}, but images have 3 channels (RGB), or 1"
            " for a network of grey images; choose a network with channels=3 or channels=1."
        )


def heads(network: darknet_cfg.Network) -> list[int]:
    """Numbers of the sections that detect, such as [yolo], in order.

    Raises:
      CfgError: there is none, or one does not follow a [convolutional].
    """
    found = [i for i, layer in enumerate(network.layers) if isinstance(layer, darknet_cfg.HEADS)]
    if not found:
        raise darknet_cfg.CfgError(
            f"{network.name} has no [yolo] section, which a detector needs, nor a"
            " [Gaussian_yolo] or [region]."
        )
    for number in found:
        before = network.layers[number - 1] if number else None
        if not isinstance(before, darknet_cfg.Convolutional):
            where = darknet_cfg.where(network, number)
            raise darknet_cfg.CfgError(f"{where} must follow a [convolutional].")
    return found
