"""Corner targets: a recorded case, cases by hand, padding, and corners that share a cell."""

import jax.numpy as jnp
import numpy as np
import tiny

from detlab.assign import heatmap


def test_recorded_targets(unit_cases):
    """Three images, one without objects, one with objects that share a corner's cell."""
    case, arrays = unit_cases("targets")["corner_targets"]
    shape, canvas = tuple(case["args"]["feat_shape"][2:]), tuple(case["args"]["img_shape"][:2])
    num_classes = case["args"]["feat_shape"][1]
    for i in range(3):
        count = len(arrays[f"gt_boxes_{i}"])
        boxes, labels = np.zeros((12, 4), np.float32), np.zeros(12, int)
        boxes[:count], labels[:count] = arrays[f"gt_boxes_{i}"], arrays[f"gt_labels_{i}"]
        both = run(boxes, labels, np.arange(12) < count, shape, canvas, num_classes)
        for name, found in zip(("topleft", "bottomright"), both):
            expected = np.moveaxis(arrays[f"{name}_offset"][i], 0, -1)
            np.testing.assert_allclose(found.offset, expected, **case["tolerance"])
            expected = np.moveaxis(arrays[f"{name}_heatmap"][i], 0, -1)
            np.testing.assert_allclose(found.heat, expected, **case["tolerance"])


def run(boxes, labels, valid, shape=(8, 16), canvas=(32, 64), num_classes=3):
    args = jnp.array(boxes, jnp.float32), jnp.array(labels), jnp.array(valid)
    return tiny.jit(lambda *a: heatmap.corners(*a, shape, canvas, num_classes))(*args)


def test_corners_by_hand():
    first, second = run([[5, 6, 30, 26]], [2], [True])
    # 4 px a cell: (1.25, 1.5) and (7.5, 6.5).
    assert first.cells[0] == 1 * 16 + 1 and second.cells[0] == 6 * 16 + 7
    assert first.heat[1, 1, 2] == 1 and second.heat[6, 7, 2] == 1
    assert (first.heat == 1).sum() == 1 and not first.heat[..., :2].any()
    np.testing.assert_allclose(first.offset[1, 1], [0.25, 0.5])
    np.testing.assert_allclose(second.offset[6, 7], [0.5, 0.5])
    assert np.count_nonzero(first.offset) == 2


def test_corners_on_the_far_edge_belong_to_the_last_cell():
    _, second = run([[0, 0, 64, 32]], [0], [True])
    assert second.cells[0] == 7 * 16 + 15
    np.testing.assert_allclose(second.offset[7, 15], [1.0, 1.0])


def test_padded_slots_draw_nothing():
    boxes = [[5, 6, 30, 26], [0, 0, 0, 0], [5, 6, 40, 30]]
    first, _ = run(boxes, [2, 0, 1], [True, False, False])
    alone, _ = run(boxes[:1], [2], [True])
    np.testing.assert_allclose(first.heat, alone.heat, rtol=1e-6)
    np.testing.assert_array_equal(first.offset, alone.offset)
    empty, _ = run(boxes, [2, 0, 1], [False] * 3)
    assert not empty.heat.any() and not empty.offset.any()


def test_of_corners_in_one_cell_the_later_object_gives_the_offset():
    boxes = [[5, 6, 30, 26], [6, 7, 50, 30], [7, 7, 60, 30]]
    first, _ = run(boxes, [0, 1, 1], [True, True, False])
    np.testing.assert_allclose(first.offset[1, 1], [0.5, 0.75])
    assert first.heat[1, 1, 0] == first.heat[1, 1, 1] == 1


def run_shifts(boxes, valid):
    args = jnp.array(boxes, jnp.float32), jnp.array(valid)
    return tiny.jit(lambda *a: heatmap.shifts(*a, (8, 16), (32, 64)))(*args)


def test_shifts_by_hand():
    first, second = run_shifts([[5, 6, 30, 26]], [True])
    # 4 px a cell: corners (1.25, 1.5) and (7.5, 6.5), centre (4.375, 4), cells (1, 1) and (7, 6).
    np.testing.assert_allclose(first.guiding[1, 1], [3.375, 3.0])
    np.testing.assert_allclose(second.guiding[6, 7], [2.625, 2.0])
    for found, cell in ((first, (1, 1)), (second, (6, 7))):
        np.testing.assert_allclose(np.exp(found.centripetal[cell]), [3.125, 2.5], rtol=1e-6)
        assert np.count_nonzero(found.guiding) == np.count_nonzero(found.centripetal) == 2


def test_shifts_of_padded_slots_and_of_boxes_without_area():
    boxes = [[5, 6, 30, 26], [5, 6, 40, 30], [8, 8, 8, 8], [20, 9, 20, 30]]
    first, _ = run_shifts(boxes, [True, False, True, True])
    np.testing.assert_allclose(first.guiding[1, 1], [3.375, 3.0])  # not of the padded slot
    assert np.isfinite(first.centripetal).all()
    empty = run_shifts(boxes, [False] * 4)
    assert not any(values.any() for found in empty for values in found)


def test_of_corners_in_one_cell_the_later_object_gives_the_shifts():
    first, _ = run_shifts([[5, 6, 30, 26], [6, 7, 50, 31], [7, 7, 60, 31]], [True, True, False])
    np.testing.assert_allclose(first.guiding[1, 1], [6.0, 3.75])
    np.testing.assert_allclose(np.exp(first.centripetal[1, 1]), [5.5, 3.0], rtol=1e-6)


def test_recorded_shifts(shared_dir):
    for name in ("centripetalnet_hourglass104", "small/centripetalnet_hourglass104_small"):
        arrays = np.load(shared_dir / "parity" / f"{name}.npz")
        canvas = arrays["image"].shape[2:]
        shape = tuple(side // 4 for side in canvas)
        for i in range(2):
            boxes = arrays[f"gt_boxes_{i}"]
            both = heatmap.shifts(jnp.array(boxes), jnp.ones(len(boxes), bool), shape, canvas)
            for kind, found in zip(("topleft", "bottomright"), both):
                for field, values in found._asdict().items():
                    key = f"train_targets.bbox_head.get_targets.0.{kind}_{field}_shift"
                    expected = np.moveaxis(arrays[key][i], 0, -1)
                    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
