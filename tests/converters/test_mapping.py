"""The engine is strict and reports all differences at once; tables run both ways."""

import json
import re

import numpy as np
import pytest

from detlab.converters import mapping
from detlab.converters.tables import mmdet_retinanet, torchvision_resnet

TABLE = mapping.Table(
    "toy",
    ("params/backbone",),
    (
        mapping.Rule(
            r"layer(\d)\.conv(\d)\.weight",
            r"params/backbone/stage\1_conv\2/kernel",
            ("conv_oihw_to_hwio",),
        ),
        mapping.Rule(r"fc\.weight", "params/backbone/fc/kernel", ("linear_t",)),
    ),
    (mapping.Dropped(r".*\.counter", "a counter"),),
)
SHAPES = {
    "params/backbone/stage1_conv2/kernel": (3, 5, 2, 4),
    "params/backbone/fc/kernel": (6, 7),
    "params/head/bias": (2,),
}
TENSORS = {
    "layer1.conv2.weight": np.arange(120.0).reshape(4, 2, 3, 5),
    "fc.weight": np.arange(42, dtype=np.float16).reshape(7, 6),
    "layer1.counter": np.array(3),
}


def differences(tensors, table=TABLE, shapes=SHAPES):
    with pytest.raises(mapping.ConversionError) as info:
        mapping.convert(tensors, table, shapes)
    return str(info.value)


def test_tensors_arrive_in_the_layout_of_the_target():
    tree, _ = mapping.convert(TENSORS, TABLE, SHAPES)
    assert mapping.flatten(tree).keys() == SHAPES.keys() - {"params/head/bias"}
    kernel = tree["params"]["backbone"]["stage1_conv2"]["kernel"]
    assert kernel.dtype == np.float32 and kernel.flags.c_contiguous
    # Row 2, column 3, input 1, output 0.
    assert kernel[2, 3, 1, 0] == TENSORS["layer1.conv2.weight"][0, 1, 2, 3]
    fc = tree["params"]["backbone"]["fc"]["kernel"]
    assert fc[5, 6] == TENSORS["fc.weight"][6, 5]


def test_report_has_a_row_for_every_tensor_and_every_leaf():
    _, report = mapping.convert(TENSORS, TABLE, SHAPES)
    assert [(row.source, row.target, row.status) for row in report] == [
        ("layer1.conv2.weight", "params/backbone/stage1_conv2/kernel", "matched"),
        ("fc.weight", "params/backbone/fc/kernel", "matched"),
        ("layer1.counter", "", "dropped: a counter"),
        ("", "params/head/bias", "left initialised"),
    ]
    assert report[1].shape == (6, 7) and report[1].mean == 20.5
    text = mapping.format_report(report)
    assert "3x5x2x4" in text and "    2 matched" in text and "    1 left initialised" in text


def test_all_differences_come_in_one_error_with_near_misses():
    tensors = {
        "layer1.conv2.wieght": np.zeros((4, 2, 3, 5)),
        "fc.weight": np.zeros((6, 7)),
        "layer2.conv9.weight": np.zeros((1, 1, 1, 1)),
    }
    text = differences(tensors)
    assert "(4 differences)" in text
    assert "layer1.conv2.wieght of the file fits no leaf" in text
    assert "near miss: layer1.conv2.weight" in text
    assert "layer1.conv2.weight of the detector's toy weights is not in the file" in text
    assert "layer2.conv9.weight of the file fits no leaf" in text
    shapes = "has shape (7, 6), but the detector needs (6, 7)"
    assert f"fc.weight -> params/backbone/fc/kernel {shapes}" in text


def test_wrong_rank_and_values_that_are_not_finite_are_differences():
    text = differences({**TENSORS, "layer1.conv2.weight": np.zeros(4)})
    assert "has shape (4,), but the detector needs (3, 5, 2, 4)" in text
    text = differences({**TENSORS, "fc.weight": np.full((7, 6), 1e300)})  # float64, not float32
    assert "not finite" in text


def test_two_tensors_for_one_leaf_and_two_rules_for_one_tensor_are_differences():
    again = mapping.Rule(r"copy\.weight", "params/backbone/fc/kernel", ("linear_t",))
    table = TABLE._replace(rules=(*TABLE.rules, again))
    text = differences({**TENSORS, "copy.weight": np.zeros((7, 6))}, table)
    assert "params/backbone/fc/kernel would be filled twice, the second time by copy.weight" in text
    rule = mapping.Rule(r"fc\.(\w+)", r"params/backbone/fc/\1")
    text = differences(TENSORS, TABLE._replace(rules=(*TABLE.rules, rule)))
    assert "fc.weight matches several rules of table toy" in text


def test_detector_without_the_subtree_is_a_difference():
    assert "has no params/backbone" in differences(TENSORS, shapes={"params/other/w": (1,)})


def test_reverse_refuses_a_leaf_that_no_rule_fills():
    with pytest.raises(mapping.ConversionError, match="params/backbone/x is the target of 0 rules"):
        mapping.reverse({"params": {"backbone": {"x": np.zeros(1)}}}, TABLE)


@pytest.mark.parametrize("name", list(mapping.TRANSFORMS))
def test_inverse_of_a_transform_undoes_it(name):
    shapes = {"linear_t": (4, 6), "chw_to_hwc_7x7": (2, 3 * 7 * 7)}
    shapes["conv_transpose_iok_to_kio"] = (4, 6, 2)
    shapes |= {f"torchvision_classes_{anchors}": (anchors * 5, 2, 3, 3) for anchors in (4, 6)}
    shape = shapes.get(name, (1, 2, 3, 4))
    x = np.arange(np.prod(shape)).reshape(shape)
    transform = mapping.TRANSFORMS[name]
    np.testing.assert_array_equal(transform.inverse(transform.forward(x)), x)


def test_the_background_of_torchvision_moves_behind_the_80_classes_that_coco_uses():
    ids = np.arange(91)
    kernel = np.stack([ids + 100 * anchor for anchor in range(4)]).reshape(-1, 1, 1, 1)
    transform = mapping.TRANSFORMS["torchvision_classes_4"]
    found = transform.forward(kernel).reshape(4, 81)
    assert found[1, :12].tolist() == [101, *range(102, 112), 113]  # no object has the id 12
    assert found[:, -2].tolist() == [90, 190, 290, 390]
    assert found[:, -1].tolist() == [0, 100, 200, 300]
    back = transform.inverse(found.reshape(-1, 1, 1, 1).astype(float)).reshape(4, 91)
    used = [i for i in ids if i in found[0]]
    np.testing.assert_array_equal(back[:, used], kernel.reshape(4, 91)[:, used])
    bias = transform.inverse(np.zeros(4 * 81)).reshape(4, 91)
    assert (bias[:, 12] == -1e4).all() and not bias[:, used].any()


# ---- The tables. ----


def resnet_shapes(depth, prefix=""):
    """Names and shapes of torchvision's ResNets, by the rule of the paper's table 1."""
    blocks = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth]
    expansion = 1 if depth < 50 else 4
    shapes = {}

    def conv(name, norm, outputs, inputs, size):
        shapes[f"{prefix}{name}.weight"] = (outputs, inputs, size, size)
        for key in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{prefix}{norm}.{key}"] = (outputs,)
        shapes[f"{prefix}{norm}.num_batches_tracked"] = ()

    conv("conv1", "bn1", 64, 3, 7)
    inputs = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        outputs = width * expansion
        for i in range(count):
            block = f"layer{stage + 1}.{i}"
            sides = ((width, inputs, 3), (width, width, 3))
            if depth >= 50:
                sides = ((width, inputs, 1), (width, width, 3), (outputs, width, 1))
            for j, side in enumerate(sides, start=1):
                conv(f"{block}.conv{j}", f"{block}.bn{j}", *side)
            if i == 0 and outputs != inputs:
                conv(f"{block}.downsample.0", f"{block}.downsample.1", outputs, inputs, 1)
            inputs = outputs
    if not prefix:
        shapes.update({"fc.weight": (1000, inputs), "fc.bias": (1000,)})
    return shapes


def filled(shapes, seed=0):
    """Arrays of the given shapes: one random block, shifted differently for each array."""
    values = np.random.default_rng(seed).normal(size=1 << 16).astype(np.float32)
    return {
        name: np.resize(np.roll(values, 7 * i), shape)
        for i, (name, shape) in enumerate(shapes.items())
    }


def target_shapes(tensors, table):
    """The shapes that the detector would have, from the targets of the table's rules."""
    shapes = {}
    for name, tensor in tensors.items():
        for rule in table.rules:
            match = re.fullmatch(rule.source, name)
            if match:
                value = tensor
                for transform in rule.transforms:
                    value = mapping.TRANSFORMS[transform].forward(value)
                shapes[match.expand(rule.target)] = value.shape
    return shapes


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("depth", [18, 50])
def test_torchvision_table_forward_then_backward_is_the_identity(depth, bgr):
    shapes = resnet_shapes(depth)
    assert len(shapes) == {18: 122, 50: 320}[depth]  # what torchvision's state_dict() has
    tensors = filled(shapes)
    table = torchvision_resnet.table(bgr)
    tree, report = mapping.convert(tensors, table, target_shapes(tensors, table))
    dropped = {row.source for row in report if row.status.startswith("dropped")}
    assert dropped == {n for n in shapes if n.startswith("fc.") or n.endswith("_tracked")}
    back = mapping.reverse(tree, table)
    assert back.keys() == shapes.keys() - dropped
    for name, value in back.items():
        np.testing.assert_array_equal(value, tensors[name])


def test_torchvision_names_become_the_paths_of_the_backbone():
    tensors = filled(resnet_shapes(50))
    table = torchvision_resnet.table()
    tree, _ = mapping.convert(tensors, table, target_shapes(tensors, table))
    backbone, stats = tree["params"]["backbone"], tree["batch_stats"]["backbone"]
    assert backbone["stem"]["conv"]["kernel"].shape == (7, 7, 3, 64)
    block = backbone["stage3_block0"]
    shortcut = tensors["layer3.0.downsample.0.weight"]
    np.testing.assert_array_equal(
        block["shortcut"]["conv"]["kernel"], shortcut.transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(block["conv3"]["norm"]["scale"], tensors["layer3.0.bn3.weight"])
    np.testing.assert_array_equal(
        stats["stage4_block2"]["conv2"]["norm"]["var"], tensors["layer4.2.bn2.running_var"]
    )
    assert "shortcut" not in backbone["stage3_block1"]


def test_bgr_stem_sees_the_same_colours_in_rgb():
    tensors = filled(resnet_shapes(18))
    shapes = target_shapes(tensors, torchvision_resnet.table())
    rgb, bgr = (
        mapping.convert(tensors, torchvision_resnet.table(bgr), shapes)[0] for bgr in (False, True)
    )
    path = "params/backbone/stem/conv/kernel"
    rgb, bgr = mapping.flatten(rgb)[path], mapping.flatten(bgr)[path]
    np.testing.assert_array_equal(bgr, rgb[:, :, ::-1])


@pytest.mark.parametrize("bgr", [False, True])
def test_mmdet_retinanet_table_forward_then_backward_is_the_identity(shared_dir, bgr):
    case = json.loads((shared_dir / "parity" / "retinanet_r50_fpn.json").read_text())
    tensors = filled({name: shape for name, shape, _ in case["state_dict"]})
    table = mmdet_retinanet.table(bgr)
    tree, report = mapping.convert(tensors, table, target_shapes(tensors, table))
    dropped = {row.source for row in report if row.status.startswith("dropped")}
    assert dropped == set(case["kept"])  # the counters, nothing else
    back = mapping.reverse(tree, table)
    assert back.keys() == tensors.keys() - dropped
    for name, value in back.items():
        np.testing.assert_array_equal(value, tensors[name])
    params = tree["params"]
    assert set(params["neck"]) == {f"lateral{i}" for i in (3, 4, 5)} | {
        f"output{i}" for i in (3, 4, 5, 6, 7)
    }
    assert params["head"]["cls_logits"]["kernel"].shape == (3, 3, 256, 45)
    np.testing.assert_array_equal(
        params["head"]["box_conv2"]["conv"]["bias"], tensors["bbox_head.reg_convs.2.conv.bias"]
    )
