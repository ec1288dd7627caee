"""torchvision's `ssd300_vgg16` -> detector `ssd`.

Names of torchvision/models/detection/ssd.py.  Anchors have the same order there and here.  The
background is the first class there and the last here, and of COCO's 91 ids the 80 that are in use
become classes.
"""

from detlab.converters import mapping, sources
from detlab.converters.tables import parts

# Convolutions of `features`, up to conv4_3, and of `extra.0`, from there to fc7.
FEATURES = {0: "1/conv1", 2: "1/conv2", 5: "2/conv1", 7: "2/conv2"}
FEATURES |= {10: "3/conv1", 12: "3/conv2", 14: "3/conv3"}
FEATURES |= {17: "4/conv1", 19: "4/conv2", 21: "4/conv3"}
AFTER = {"1": "stage5/conv1", "3": "stage5/conv2", "5": "stage5/conv3"}
AFTER |= {r"7\.1": "fc6", r"7\.3": "fc7"}
ANCHORS = (4, 6, 6, 6, 4, 4)


def table(bgr: bool = False) -> mapping.Table:
    """The table; `bgr`: the network was trained on BGR images."""
    names = {rf"features\.{i}": f"backbone/stage{name}" for i, name in FEATURES.items()}
    names |= {rf"extra\.0\.{i}": f"backbone/{name}" for i, name in AFTER.items()}
    for i in range(1, 5):
        names |= {rf"extra\.{i}\.{2 * j}": f"neck/extra{i}/conv{j + 1}" for j in range(2)}
    convs = (
        rule
        for source, target in names.items()
        for rule in parts.conv(
            rf"backbone\.{source}", f"{target}/conv", bgr=bgr and target == "backbone/stage1/conv1"
        )
    )
    return parts.whole(
        "torchvision SSD",
        convs,
        [mapping.Rule(r"backbone\.scale_weight", "params/neck/l2_norm/scale")],
        (rule for level, anchors in enumerate(ANCHORS) for rule in _scores(level, anchors)),
        parts.conv(r"head\.regression_head\.module_list\.(\d)", r"head/box_deltas\1"),
        class_leaves=(r"params/head/cls_logits\d/.*",),
    )


def _scores(level: int, anchors: int) -> list[mapping.Rule]:
    """The convolution of the class scores of a level, for so many anchors of a cell."""
    source = rf"head\.classification_head\.module_list\.{level}"
    return [
        rule._replace(transforms=(f"torchvision_classes_{anchors}", *rule.transforms))
        for rule in parts.conv(source, f"head/cls_logits{level}")
    ]


MARKS = ("backbone.scale_weight", "head.classification_head.module_list.0.weight")
SOURCES = (sources.Source("torchvision", "a torchvision SSD300", MARKS, table, "ssd"),)
