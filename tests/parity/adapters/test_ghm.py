"""The table of RetinaNet with the losses of GHM; test_small.py runs its case."""

import numpy as np
import pytest
import tables
import tiny

from detlab.converters import mapping
from detlab.converters.tables import mmdet_ghm, mmdet_retinanet


def test_the_counts_go_with_the_weights_and_have_no_place_in_retinanet():
    table, fields = mmdet_ghm.table(), tiny.TINY["ghm"].fields
    leaves, tensors = tables.there_and_back(table, "ghm", fields)
    assert tensors["bbox_head.loss_cls.acc_sum"].shape == (30,)
    assert tensors["bbox_head.loss_bbox.acc_sum"].shape == (10,)
    edges = {f"bbox_head.loss_{name}.edges": np.zeros(31) for name in ("cls", "bbox")}
    shapes = tables.shapes("ghm", fields)
    tree, _ = mapping.convert({**tensors, **edges}, table, shapes)
    assert mapping.flatten(tree).keys() == leaves.keys()
    shapes = tables.shapes("retinanet", tiny.TINY["retinanet"].fields)
    with pytest.raises(
        mapping.ConversionError, match="bbox_head.loss_cls.acc_sum of the file fits no leaf"
    ):
        mapping.convert(tensors, mmdet_retinanet.table(), shapes)
