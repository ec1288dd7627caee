"""CentripetalNet, built tiny: maps, losses against plain loops, pairs by centres; its table."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tables
import tiny

from detlab import contract
from detlab.converters.tables import mmdet_centripetalnet
from detlab.detectors import centripetalnet, cornernet

FIELDS = tiny.TINY["centripetalnet"].fields
KEY = jax.random.key(0)
CHANNELS = dict(heat=3, offset=2, guiding=2, centripetal=2)


@pytest.mark.parametrize("size, cells", [((64, 96), (16, 24)), ((511, 511), (128, 128))])
def test_every_stack_has_maps_of_a_quarter_of_the_canvas(size, cells):
    detector = contract.from_module(centripetalnet.CentripetalNet(**FIELDS))
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8)
    variables = jax.eval_shape(detector.init, KEY, images)
    maps = jax.eval_shape(tiny.maps_of(detector), *variables, images)
    for of_kind in (maps.top_left, maps.bottom_right):
        for name, channels in CHANNELS.items():
            found = [x.shape for x in getattr(of_kind, name)]
            assert found == [(2, *cells, channels)] * 2


def slow_shift_terms(maps, values, weights):
    """The two terms in float64, one cell with a corner after another."""
    totals = dict.fromkeys(weights, 0.0)
    for kind in cornernet.CORNERS:
        cells = np.argwhere((values[f"{kind}_heat"] == 1).any(-1))
        for name, weight in weights.items():
            for stack in getattr(getattr(maps, kind), name):
                misses = 0.0
                for cell in map(tuple, cells):
                    gap = np.abs(np.float64(stack[cell]) - values[f"{kind}_{name}"][cell])
                    misses += np.where(gap < 1, gap**2 / 2, gap - 0.5).sum()
                totals[name] += weight * misses / max(len(cells), 1) / 2
    return totals


@pytest.mark.parametrize("objects", [(3, 2), (2, 0), (0, 0)])
def test_shifts_learn_in_the_cells_of_corners_alone(objects):
    module = centripetalnet.CentripetalNet(**FIELDS)
    batch = tiny.make_batch(objects=objects)
    rng = np.random.default_rng(1)

    def of_kind():
        stacks = [
            tuple(np.float32(rng.normal(size=(2, 16, 24, channels))) for _ in range(2))
            for channels in CHANNELS.values()
        ]
        return centripetalnet.ShiftMaps(*stacks)

    maps = cornernet.Outputs((), of_kind(), of_kind())

    def total(maps, batch):
        return module.loss(batch, maps)

    run = tiny.jit(jax.value_and_grad(total, has_aux=True))
    (_, metrics), slopes = jax.device_get(run(maps, batch))
    values = jax.device_get(module.targets(batch, maps)["corner"].values)
    expected = slow_shift_terms(maps, values, {"guiding": 0.05, "centripetal": 1.0})
    for name, value in expected.items():
        assert metrics[f"loss/{name}"] == pytest.approx(value, rel=1e-5)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((metrics, slopes)))
    for kind in cornernet.CORNERS:
        corners = (values[f"{kind}_heat"] == 1).any(-1)
        for shift in ("guiding", "centripetal"):
            for slope in getattr(getattr(slopes, kind), shift):
                assert not slope[~corners].any() and slope[corners].all()


def of_maps(**corners):
    """Boxes and labels on 64 x 96 px from made-up maps: (row, column, class, shift in cells)."""
    maps = {}
    for name, points in corners.items():
        heat = np.full((1, 16, 24, 3), -10, np.float32)
        shifts = np.zeros((1, 16, 24, 2), np.float32)
        for row, column, label, shift in points:
            heat[0, row, column, label], shifts[0, row, column] = 3, np.log(shift)
        nothing = np.zeros_like(shifts)
        fields = heat, nothing, nothing, shifts
        maps[name] = centripetalnet.ShiftMaps(*((jnp.array(x),) for x in fields))
    module = centripetalnet.CentripetalNet(**FIELDS)
    find = tiny.jit(lambda maps, size: module.candidates(maps, size, (64, 96)))
    found = find(cornernet.Outputs((), **maps), jnp.array([(64, 96)]))
    high = np.asarray(found.scores[0]) > 0.5
    return np.asarray(found.boxes[0])[high], np.asarray(found.labels[0])[high]


def test_corners_that_point_to_one_centre_are_a_box():
    """Two objects of one class side by side: each corner finds its own partner."""
    boxes, labels = of_maps(
        top_left=[(2, 3, 1, (2.5, 4)), (2, 12, 1, (3, 4))],
        bottom_right=[(10, 8, 1, (2.5, 4)), (10, 18, 1, (3, 4))],
    )
    assert labels.tolist() == [1, 1]
    assert sorted(boxes.tolist()) == [[12, 8, 32, 40], [48, 8, 72, 40]]


@pytest.mark.parametrize(
    "first, second",
    [
        ((2, 3, 1, (2.5, 4)), (10, 8, 2, (2.5, 4))),  # of different classes
        ((2, 3, 1, (0.5, 4)), (10, 8, 1, (2.5, 4))),  # the first points outside of the middle
        ((2, 3, 1, (2.5, 4)), (10, 8, 1, (2.5, 7))),  # the second does
        ((2, 3, 1, (1.6, 2.5)), (10, 8, 1, (1.6, 2.5))),  # both inside, but far apart
        ((10, 8, 1, (2.5, 4)), (2, 3, 1, (2.5, 4))),  # on the wrong sides
    ],
)
def test_other_pairs_are_none(first, second):
    boxes, _ = of_maps(top_left=[first], bottom_right=[second])
    assert not len(boxes)


def test_the_table_knows_both_shifts():
    table = mmdet_centripetalnet.table(bgr=True)
    _, tensors = tables.there_and_back(table, "centripetalnet", FIELDS)
    assert tensors["bbox_head.br_dcn_offset.1.conv.weight"].shape == (18, 2, 1, 1)
    assert tensors["bbox_head.tl_feat_adaption.0.weight"].shape == (16, 16, 3, 3)
    assert tensors["bbox_head.tl_guiding_shift.1.0.conv.weight"].shape == (16, 16, 3, 3)
    assert not any("_emb" in name for name in tensors)


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(guiding_weight=-1.0), "guiding_weight is -1.0; it must be at least 0"),
        (dict(max_center_distance=-0.1), "max_center_distance is -0.1; it must be at least 0"),
        (dict(stacks=0), "stacks is 0; it must be at least 1"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    centripetalnet.CentripetalNet().check()
    with pytest.raises(ValueError, match=re.compile(f"^{sentence}")):
        centripetalnet.CentripetalNet(**fields).check()
