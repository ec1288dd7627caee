r"""Rules that tables share: those of PyTorch's layers and of the parts of mmdet's detectors.

A source is the name of a layer, a regex of literal text with groups (`mapping`); a target is its
path here without the collection, such as r"head/cls_conv\1".
"""

from collections.abc import Iterable, Sequence

from detlab.converters import mapping

COUNTERS = mapping.Dropped(
    r".*\.num_batches_tracked", "counter that a momentum-based BatchNorm does not use"
)


def whole(
    name: str,
    *groups: Iterable[mapping.Rule],
    class_leaves: Sequence[str],
    dropped: Sequence[mapping.Dropped] = (),
) -> mapping.Table:
    """The table of files that hold all parameters and statistics of a detector."""
    rules = tuple(rule for group in groups for rule in group)
    return mapping.Table(
        name, ("params", "batch_stats"), rules, (COUNTERS, *dropped), tuple(class_leaves)
    )


def conv(source: str, target: str, bias: bool = True, bgr: bool = False) -> list[mapping.Rule]:
    """A convolution; `bgr`: its input is an image, BGR there and RGB here."""
    first = ("flip_bgr_in",) if bgr else ()
    return _layer(source, target, (*first, "conv_oihw_to_hwio"))[: 1 + bias]


def linear(source: str, target: str, first: tuple[str, ...] = ()) -> list[mapping.Rule]:
    """A linear layer; the transforms `first` are applied to its weight before the transpose."""
    return _layer(source, target, (*first, "linear_t"))


def conv_transpose(source: str, target: str) -> list[mapping.Rule]:
    """A transposed convolution along one axis."""
    return _layer(source, target, ("conv_transpose_iok_to_kio",))


def batch_norm(source: str, target: str) -> list[mapping.Rule]:
    """A BatchNorm: scale, bias and running statistics."""
    return [
        *group_norm(source, target),
        mapping.Rule(rf"{source}\.running_mean", f"batch_stats/{target}/mean"),
        mapping.Rule(rf"{source}\.running_var", f"batch_stats/{target}/var"),
    ]


def group_norm(source: str, target: str) -> list[mapping.Rule]:
    """A GroupNorm: scale and bias."""
    return [
        mapping.Rule(rf"{source}\.weight", f"params/{target}/scale"),
        mapping.Rule(rf"{source}\.bias", f"params/{target}/bias"),
    ]


def conv_bn(source: str, target: str, bgr: bool = False) -> list[mapping.Rule]:
    """`conv` without bias and `bn`, as mmdet and YOLOv5 name them."""
    return [
        *conv(rf"{source}\.conv", f"{target}/conv", bias=False, bgr=bgr),
        *batch_norm(rf"{source}\.bn", f"{target}/norm"),
    ]


def conv_gn(source: str, target: str) -> list[mapping.Rule]:
    """Mmdet's `conv` and `gn`; a file may lack the bias or the norm."""
    return [
        *conv(rf"{source}\.conv", f"{target}/conv"),
        *group_norm(rf"{source}\.gn", f"{target}/norm"),
    ]


def fpn(
    laterals: Iterable[int], outputs: Iterable[int], source: str = "neck"
) -> list[mapping.Rule]:
    """Mmdet's FPN from levels `laterals` to levels `outputs`, with or without group norms."""
    names = (("lateral_convs", "lateral", laterals), ("fpn_convs", "output", outputs))
    return [
        rule
        for theirs, ours, levels in names
        for i, level in enumerate(levels)
        for rule in conv_gn(rf"{source}\.{theirs}\.{i}", f"neck/{ours}{level}")
    ]


def with_bfp(
    table: mapping.Table, name: str, laterals: Iterable[int], outputs: Iterable[int]
) -> mapping.Table:
    """The table of a detector whose neck is a list: the FPN, then mmdet's BFP -> `balance`."""
    names = {"g": "g", "theta": "theta", "phi": "phi", "conv_out": "output"}
    balance = (
        rule
        for theirs, ours in names.items()
        for rule in conv(rf"neck\.1\.refine\.{theirs}\.conv", f"balance/refine/{ours}")
    )
    others = (rule for rule in table.rules if not rule.target.startswith("params/neck/"))
    rules = (*others, *fpn(laterals, outputs, r"neck\.0"), *balance)
    return table._replace(name=name, rules=rules)


def towers(**names: str) -> list[mapping.Rule]:
    """Stacked convolutions of an mmdet head, with or without group norms.

    `reg="box"` sends the layers of `bbox_head.reg_convs` to `head/box_conv0`, `head/box_conv1`, ..
    """
    return [
        rule
        for theirs, ours in names.items()
        for rule in conv_gn(rf"bbox_head\.{theirs}_convs\.(\d+)", rf"head/{ours}_conv\1")
    ]


def scales(source: str, target: str) -> list[mapping.Rule]:
    """The factor of each level in a list of mmdet's `Scale`."""
    return [mapping.Rule(rf"{source}\.(\d+)\.scale", rf"params/{target}/scale\1")]


def feature_adaption(source: str, target: str) -> list[mapping.Rule]:
    """Mmdet's FeatureAdaption: the offsets and the deformable convolution, without biases."""
    return [
        *conv(rf"{source}\.conv_offset", f"{target}/offsets", bias=False),
        *conv(rf"{source}\.conv_adaption", f"{target}/deform", bias=False),
    ]


def _layer(source: str, target: str, transforms: tuple[str, ...]) -> list[mapping.Rule]:
    return [
        mapping.Rule(rf"{source}\.weight", f"params/{target}/kernel", transforms),
        mapping.Rule(rf"{source}\.bias", f"params/{target}/bias"),
    ]
