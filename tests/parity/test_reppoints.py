"""What parity notices in RepPoints, and its table; test_small.py runs its cases."""

import json
import shutil
import types as python_types

import numpy as np
import parity_runs
import pytest

from converters import convert
from converters import mapping
from converters.tables import mmdet_reppoints


@pytest.mark.slow
def test_another_box_of_the_points_is_noticed(shared_dir, capsys, tmp_path):
    """Without gradients, which take most of the time to compile."""
    name = "small/reppoints_minmax_r50_fpn_gn_small"
    info = json.loads((shared_dir / "parity" / f"{name}.json").read_text())
    info.update(grad_norms={}, grad_dots={})
    info["model_cfg"]["bbox_head"]["transform_method"] = "partial_minmax"
    (tmp_path / "small").mkdir()
    (tmp_path / f"{name}.json").write_text(json.dumps(info))
    shutil.copy(shared_dir / "parity" / f"{name}.npz", tmp_path / "small")
    run = parity_runs.run(capsys, tmp_path)
    assert run.status == 1
    touched = {"map bbox_out_refine_0", "loss loss_pts_init", "loss loss_pts_refine"}
    assert touched | {"detections boxes"} <= set(run.missed)
    same = ("neck", "map cls_out", "map train_", "assignment train_assign.bbox_head.init")
    assert not any(line.startswith(same) for line in run.missed if "get_targets" not in line)


@pytest.mark.parametrize("form", [dict(), dict(norm="none", transform="minmax")])
def test_the_table_fills_every_leaf_and_runs_backwards(form):
    model = dict(depth=18, backbone_width=8, neck_width=32, head_width=32, point_width=8, **form)
    shapes = convert.target_shapes(python_types.SimpleNamespace(detector="reppoints", model=model))
    rng = np.random.default_rng(0)
    leaves = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    table = mmdet_reppoints.table(bgr=True)
    tensors = mapping.reverse(mapping.nest(leaves), table)
    assert tensors["bbox_head.reppoints_cls_conv.weight"].shape == (8, 32, 3, 3)
    tree, _ = mapping.convert(tensors, table, shapes)
    back = mapping.flatten(tree)
    assert back.keys() == leaves.keys()
    for path, value in leaves.items():
        np.testing.assert_array_equal(back[path], value)
    tree, _ = mapping.convert(tensors, table, shapes, reset_classes=True)
    anew = leaves.keys() - mapping.flatten(tree).keys()
    assert anew == {"params/head/cls_logits/kernel", "params/head/cls_logits/bias"}
