"""The table of FCOS; test_small.py runs its cases."""

import json

import numpy as np
import pytest
import tables
import tiny

from benchmarks.parity import cases
from benchmarks.parity import lines as lines_lib
from benchmarks.parity.adapters import fcos as adapter
from detlab.converters.tables import mmdet_fcos


def test_a_wrong_distance_is_noticed_at_positive_points_alone(shared_dir):
    folder, name = shared_dir / "parity" / "small", "fcos_r50_caffe_fpn_gn_head_small"
    info = json.loads((folder / f"{name}.json").read_text())
    case = cases.read(folder, name, info)
    readable = adapter.readable(case)
    assert len(readable) == 5
    noticed = 0
    for array, mask in readable.items():
        of_array = case._replace(arrays={array: case.arrays[array]})
        for row, positive in enumerate(mask[:, 0]):
            mine = case.arrays[array].copy()
            mine[row, row % 4] += 1.0
            (line,), _ = lines_lib.of_arrays(of_array, {array: mine}, (), readable=readable)
            assert line.passed != positive
            noticed += positive
    labels = [case.arrays[array.replace(".0.1_", ".0.0_")] for array in readable]
    assert noticed == (np.concatenate(labels) < 7).sum() > 0


@pytest.mark.parametrize("conv_bias", [False, True])
def test_the_table_knows_both_forms_of_the_towers_and_the_scalars(conv_bias):
    fields = {**tiny.TINY["fcos"].fields, "conv_bias": conv_bias}
    _, tensors = tables.there_and_back(mmdet_fcos.table(bgr=True), "fcos", fields)
    assert tensors["bbox_head.scales.4.scale"].shape == ()
    assert ("bbox_head.cls_convs.0.conv.bias" in tensors) == conv_bias
