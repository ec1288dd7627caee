"""Targets: zeros for entries that learn no object, classes, and no gradient."""

import functools

import jax
import numpy as np
import tiny

from detlab.assign import max_iou, targets
from detlab.ops import anchors as anchors_lib


def test_only_positive_entries_keep_their_values():
    status = np.int32([[1, 0, -1], [0, 1, 1]])
    tree = {
        "deltas": np.arange(1, 13, dtype=np.float32).reshape(2, 3, 2),
        "row": np.arange(1, 7, dtype=np.int32).reshape(2, 3),
    }
    tree["deltas"][0, 1:] = np.nan, np.inf  # values without an object need not be finite
    found = targets.of_positives(status, tree)
    assert found["deltas"].tolist() == [[[1, 2], [0, 0], [0, 0]], [[0, 0], [9, 10], [11, 12]]]
    assert found["row"].tolist() == [[1, 0, 0], [0, 5, 6]]
    assert found["deltas"].dtype == np.float32 and found["row"].dtype == np.int32


def test_status_of_one_image_alone_will_do():
    found = targets.of_positives(np.int32([0, 1]), np.ones((2, 4), np.float32))
    assert found.tolist() == [[0] * 4, [1] * 4]


def of_boxes(boxes, status, matched):
    """Targets of entries at `boxes`; their value is the corner of the matched box."""
    assigned = max_iou.MaxIoU(np.int32(status), np.int32(matched), None)
    values = {"corner": boxes[assigned.matched, :2]}
    return targets.of_entries(boxes, np.zeros(len(boxes), np.int32), assigned, values)


def test_entries_of_one_image_keep_values_where_positive():
    found = of_boxes(np.float32([[1, 2, 3, 4], [5, 6, 7, 8]]), status=[1, -1], matched=[1, 0])
    assert found.values["corner"].tolist() == [[5, 6], [0, 0]]
    assert found.status.tolist() == [1, -1] and found.matched.tolist() == [1, 0]


def test_classes_are_those_of_the_matched_objects_and_none_where_not_positive():
    of_image = of_boxes(np.ones((3, 4), np.float32), status=[1, 1, 0], matched=[2, 0, 1])
    batch = jax.tree.map(lambda x: x[None], of_image)
    found = targets.one_hot(np.int32([[0, 1, 2]]), batch, 3)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[[0, 0, 1], [1, 0, 0], [0, 0, 0]]])


def test_no_gradient_passes_through_the_targets_of_images():
    batch = tiny.make_batch(objects=(2, 1))

    def one_image(boxes, valid, image_size, predicted):
        return {"sum": boxes.sum() + predicted, "size": image_size * 1.0, "valid": valid}

    def total(boxes, predicted):
        found = targets.of_images(one_image, batch._replace(boxes=boxes), predicted)
        return found["sum"].sum(), found

    predicted = np.float32([1, 2])
    gradients, found = jax.grad(total, (0, 1), has_aux=True)(batch.boxes, predicted)
    assert not any(map(np.any, gradients))
    np.testing.assert_allclose(found["sum"], batch.boxes.sum((1, 2)) + predicted, rtol=1e-6)
    assert found["size"].shape == (2, 2) and found["valid"].shape == (2, 4)


def test_deltas_are_those_of_the_assigned_objects_and_padding_has_none():
    grid = anchors_lib.Grid((8,), ((2, 3),), (1,))
    anchors = grid.anchors([anchors_lib.sized_anchors([(8, 8)], 8)])
    batch = tiny.make_batch(objects=(1, 0), slots=2)
    boxes = batch.boxes * 0
    boxes[0, 0] = 9, 0, 17, 8  # the second anchor, moved by an eighth of its width
    batch = batch._replace(boxes=boxes, image_size=np.int32([[16, 16], [16, 24]]))
    assign = functools.partial(max_iou.assign, pos_iou=0.5, neg_iou=0.5, min_pos_iou=0.0)
    found = tiny.jit(lambda batch: targets.of_deltas(batch, grid, anchors, assign, (0.1,) * 4))(
        batch
    )
    assert found.status.tolist() == [[0, 1, -1, 0, 0, -1], [0] * 6]
    deltas = np.zeros((2, 6, 4))
    deltas[0, 1, 0] = 0.125 / 0.1
    np.testing.assert_allclose(found.values["deltas"], deltas, atol=1e-6)
