"""RetinaNet-50 with the losses of GHM is the reference's, with its bin counts after the step."""

import types as python_types

import numpy as np
import parity_runs
import pytest

from converters import convert
from converters import mapping
from converters.tables import mmdet_retinanet


@pytest.mark.slow
def test_the_shared_case_passes_in_full(shared_dir, capsys):
    run = parity_runs.run(capsys, shared_dir / "parity", "--case", "retinanet_ghm_r50_fpn")
    assert run.status == 0, run.text
    assert not run.missed and len(run.passed) == 385
    counts = {f"buffer bbox_head.loss_{name}.acc_sum" for name in ("cls", "bbox")}
    assert counts < set(run.passed)
    for measure in ("norm", "dot"):  # of the 162 tensors that the reference trains
        assert sum(line.startswith(f"gradient {measure}") for line in run.passed) == 162


def test_the_table_of_retinanet_carries_the_counts_too():
    model = dict(depth=18, backbone_width=8, neck_width=8, head_width=8, head_convs=1)
    shapes = convert.target_shapes(python_types.SimpleNamespace(detector="ghm", model=model))
    leaves = {path: np.full(shape, 2.0, np.float32) for path, shape in shapes.items()}
    table = mmdet_retinanet.table()
    tensors = mapping.reverse(mapping.nest(leaves), table)
    assert tensors["bbox_head.loss_cls.acc_sum"].shape == (30,)
    assert tensors["bbox_head.loss_bbox.acc_sum"].shape == (10,)
    edges = {f"bbox_head.loss_{name}.edges": np.zeros(31) for name in ("cls", "bbox")}
    tree, _ = mapping.convert({**tensors, **edges}, table, shapes)
    assert mapping.flatten(tree).keys() == leaves.keys()
    # RetinaNet itself has no place for them, and says so.
    shapes = {path: shape for path, shape in shapes.items() if not path.startswith("loss_state")}
    with pytest.raises(mapping.ConversionError, match="bbox_head.loss_cls.acc_sum of the file has"):
        mapping.convert(tensors, table, shapes)
