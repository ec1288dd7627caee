"""The table of FCOS; test_small.py runs its cases."""

import types as python_types

import numpy as np
import pytest

from converters import convert
from converters import mapping
from converters.tables import mmdet_fcos


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
