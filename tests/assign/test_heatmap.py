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
