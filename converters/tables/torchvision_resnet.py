"""torchvision's `resnet18/34/50/101` state dicts -> `backbone`, without the classifier.

Names of torchvision/models/resnet.py.  Its bottlenecks have their stride on the 3x3 convolution,
which is ResNet's style "pytorch" here.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import parts


def rules(prefix: str = "", bgr: bool = False) -> list[mapping.Rule]:
    r"""Rules of a ResNet whose names start with `prefix` (a regex of literal text).

    Args:
      prefix: of the source names, such as r"backbone\.".
      bgr: the network was trained on BGR images (caffe), so its stem is flipped to RGB; the pixel
        mean and std of the detector stay in RGB order.
    """
    block, target = rf"{prefix}layer(\d)\.(\d+)", r"backbone/stage\1_block\2"
    return [
        *parts.conv(rf"{prefix}conv1", "backbone/stem/conv", bias=False, bgr=bgr),
        *parts.batch_norm(rf"{prefix}bn1", "backbone/stem/norm"),
        *parts.conv(rf"{block}\.conv(\d)", rf"{target}/conv\3/conv", bias=False),
        *parts.batch_norm(rf"{block}\.bn(\d)", rf"{target}/conv\3/norm"),
        *parts.conv(rf"{block}\.downsample\.0", rf"{target}/shortcut/conv", bias=False),
        *parts.batch_norm(rf"{block}\.downsample\.1", rf"{target}/shortcut/norm"),
    ]


def table(bgr: bool = False) -> mapping.Table:
    """The table; `bgr` as in `rules`."""
    return mapping.Table(
        "torchvision ResNet",
        ("params/backbone", "batch_stats/backbone"),
        tuple(rules(bgr=bgr)),
        (mapping.Dropped(r"fc\.(weight|bias)", "ImageNet classifier"), parts.COUNTERS),
    )


MARKS = ("conv1.weight", "layer1.0.conv1.weight")
SOURCES = (sources.Source("torchvision", "a torchvision ResNet", MARKS, table, None, is_part=True),)
