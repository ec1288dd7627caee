"""The table of RetinaNet with the losses of GHM; test_small.py runs its case."""

import types as python_types

import numpy as np
import pytest

from converters import convert
from converters import mapping
from converters.tables import mmdet_retinanet


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
