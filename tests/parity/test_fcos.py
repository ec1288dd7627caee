"""FCOS-50 is the reference's, in its plain and its improved form."""

import types as python_types

import numpy as np
import parity_runs
import pytest

from converters import convert
from converters import mapping
from converters.tables import mmdet_fcos

CASES = {  # name -> (compared quantities, parameters that the reference trains)
    "fcos_r50_caffe_fpn_gn_head": (241, 93),
    "fcos_r50_caffe_fpn_gn_head_center_normbbox_centeronreg_giou": (257, 101),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_shared_case_passes_in_full(name, shared_dir, capsys):
    run = parity_runs.run(capsys, shared_dir / "parity", "--case", name)
    assert run.status == 0, run.text
    quantities, trained = CASES[name]
    assert not run.missed and len(run.passed) == quantities
    kinds = {line.split()[0] for line in run.passed}
    assert kinds == {"neck", "map", "targets", "loss", "gradient", "detections"}
    for measure in ("norm", "dot"):
        assert sum(line.startswith(f"gradient {measure}") for line in run.passed) == trained


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
