"""The table of FCOS; test_small.py runs its cases."""

import json
import types as python_types

import numpy as np
import pytest

from benchmarks import parity
from benchmarks import parity_cases
from benchmarks.parity_adapters import fcos as adapter
from converters import convert
from converters import mapping
from converters.tables import mmdet_fcos


def test_a_wrong_distance_is_noticed_at_positive_points_alone(shared_dir):
    folder, name = shared_dir / "parity" / "small", "fcos_r50_caffe_fpn_gn_head_small"
    info = json.loads((folder / f"{name}.json").read_text())
    case = parity_cases.read(folder, name, info, None)
    readable = adapter.readable(case)
    assert len(readable) == 5
    noticed = 0
    for array, mask in readable.items():
        of_array = case._replace(arrays={array: case.arrays[array]})
        for row, positive in enumerate(mask[:, 0]):
            mine = case.arrays[array].copy()
            mine[row, row % 4] += 1.0
            (line,), _ = parity._array_lines(of_array, {array: mine}, (), readable=readable)
            assert line.passed != positive
            noticed += positive
    labels = [case.arrays[array.replace(".0.1_", ".0.0_")] for array in readable]
    assert noticed == (np.concatenate(labels) < 7).sum() > 0


@pytest.mark.parametrize("conv_bias", [False, True])
def test_the_table_fills_every_leaf_and_runs_backwards(conv_bias):
    model = dict(depth=18, backbone_width=8, neck_width=32, head_width=32, conv_bias=conv_bias)
    shapes = convert.target_shapes(python_types.SimpleNamespace(detector="fcos", model=model))
    rng = np.random.default_rng(0)
    leaves = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    table = mmdet_fcos.table(bgr=True)
    tensors = mapping.reverse(mapping.nest(leaves), table)
    assert tensors["bbox_head.scales.4.scale"].shape == ()
    tree, _ = mapping.convert(tensors, table, shapes)
    back = mapping.flatten(tree)
    assert back.keys() == leaves.keys()
    for path, value in leaves.items():
        np.testing.assert_array_equal(back[path], value)
    tree, _ = mapping.convert(tensors, table, shapes, reset_classes=True)
    anew = leaves.keys() - mapping.flatten(tree).keys()
    assert anew == {"params/head/cls_logits/kernel", "params/head/cls_logits/bias"}
