"""torchvision's `resnet18/34/50/101` state dicts -> `backbone`, without the classifier.

Names of torchvision/models/resnet.py.  Its bottlenecks have their stride on the 3x3 convolution,
which is ResNet's style "pytorch" here.
"""

from converters import mapping

_NORM = (
    ("weight", "params", "scale"),
    ("bias", "params", "bias"),
    ("running_mean", "batch_stats", "mean"),
    ("running_var", "batch_stats", "var"),
)


def rules(prefix: str = "", bgr: bool = False) -> tuple[mapping.Rule, ...]:
    """Rules of a ResNet whose names start with `prefix` (a regex of literal text).

    Args:
      prefix: of the source names, such as r"backbone\\.".
      bgr: the network was trained on BGR images (caffe), so its stem is flipped to RGB.
    """
    kernel = ("conv_oihw_to_hwio",)
    stem = ("flip_bgr_in", *kernel) if bgr else kernel
    block = r"layer(\d)\.(\d+)"
    target = r"backbone/stage\1_block\2"
    return (
        mapping.Rule(rf"{prefix}conv1\.weight", "params/backbone/stem/conv/kernel", stem),
        mapping.Rule(
            rf"{prefix}{block}\.conv(\d)\.weight", rf"params/{target}/conv\3/conv/kernel", kernel
        ),
        mapping.Rule(
            rf"{prefix}{block}\.downsample\.0\.weight",
            rf"params/{target}/shortcut/conv/kernel",
            kernel,
        ),
        *norm_rules(rf"{prefix}bn1", "backbone/stem/norm"),
        *norm_rules(rf"{prefix}{block}\.bn(\d)", rf"{target}/conv\3/norm"),
        *norm_rules(rf"{prefix}{block}\.downsample\.1", rf"{target}/shortcut/norm"),
    )


def norm_rules(source: str, target: str) -> list[mapping.Rule]:
    """Rules of a batch norm, from the name of its layer to its path."""
    return [
        mapping.Rule(rf"{source}\.{theirs}", f"{collection}/{target}/{ours}")
        for theirs, collection, ours in _NORM
    ]


COUNTERS = mapping.Dropped(
    r".*\.num_batches_tracked", "counter that a momentum-based BatchNorm does not use"
)


def table(bgr: bool = False) -> mapping.Table:
    """The table; `bgr` as in `rules`."""
    return mapping.Table(
        "torchvision ResNet",
        ("params/backbone", "batch_stats/backbone"),
        rules(bgr=bgr),
        (mapping.Dropped(r"fc\.(weight|bias)", "ImageNet classifier"), COUNTERS),
    )
