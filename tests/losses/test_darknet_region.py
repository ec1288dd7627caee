"""Darknet's [region]: its deltas are minus the gradients of the losses."""

import darknet_deltas
import jax
import numpy as np
import pytest
import tiny

from detlab.assign import darknet as assign
from detlab.heads import darknet as heads
from detlab.losses import darknet_region
from detlab.ops import anchors as anchors_lib

ANCHORS = ((0.7, 0.9), (2.0, 1.5), (3.5, 4.0))  # width, height in cells
CANVAS, SHAPE = (96, 128), (6, 8)
UNIT = np.array([128, 96])
HEADS = {
    "yolov2": dict(bias_match=True, thresh=0.6, rescore=True, object_scale=5.0, class_scale=2.0),
    "by predicted shape": dict(coord_scale=0.5, noobject_scale=2.0, thresh=0.3),
    "no softmax": dict(bias_match=True, softmax=False),
}


def head_program(head):
    """(raw [Hl, Wl, A, 5 + C], boxes, labels, valid, drawn) -> (terms, gradient, assignment)."""
    sizes = heads.anchor_sizes(head, SHAPE, CANVAS)
    anchors = anchors_lib.grid_anchors(anchors_lib.sized_anchors(sizes, 16), 16, SHAPE)

    def terms(raw, boxes, labels, valid, drawn):
        decoded = heads.boxes(head, raw[None], CANVAS).reshape(-1, 4)
        learned = jax.lax.stop_gradient(
            assign.learn_region(head, sizes, decoded, 3, SHAPE, CANVAS, boxes, valid)
        )
        rows = raw.reshape(len(anchors), -1)
        found = darknet_region.head_terms(
            head, rows, anchors, SHAPE, CANVAS, learned, boxes, labels, drawn
        )
        sums = [term.sum() for term in found]
        return sum(sums), (sums, learned)

    @tiny.jit
    def compute(raw, *objects):
        (_, (sums, learned)), gradient = jax.value_and_grad(terms, has_aux=True)(raw, *objects)
        return sums, gradient, learned

    return compute


def outputs_and_objects(slots=9, objects=7):
    """Random outputs, some of them close to objects; two objects meet in a row."""
    rng = np.random.default_rng(6)
    centers = rng.uniform(0.05, 0.95, (slots, 2)) * UNIT
    extents = np.array(ANCHORS)[rng.integers(0, 3, slots)] * 16 * rng.uniform(0.8, 1.25, (slots, 2))
    centers[1], extents[1] = centers[0] + 0.01, extents[0] * 1.02
    labels, valid = rng.integers(0, 3, slots, np.int32), np.arange(slots) < objects
    labels[1] = (labels[0] + 1) % 3
    raw = rng.normal(0, 1, (*SHAPE, 3, 8))
    for center, extent in zip(centers[:objects], extents):
        place = center / UNIT * SHAPE[::-1]
        column, row = place.astype(int)
        sigmoids = np.clip(place - [column, row], 0.05, 0.95)
        near = [*np.log(sigmoids / (1 - sigmoids))]
        for a, anchor in enumerate(ANCHORS):
            raw[row, column, a, :4] = [*near, *np.log(extent / 16 / anchor)]
            raw[row, column, a, :4] += rng.normal(0, 0.1, 4)
    boxes = np.concatenate([centers - extents / 2, centers + extents / 2], axis=1)
    return np.float32(raw), np.float32(boxes * valid[:, None]), labels, valid


@pytest.mark.parametrize(
    "name, seen", [("yolov2", 12799), *((name, 12800) for name in HEADS), ("no softmax", 0)]
)
def test_the_descent_is_what_darknet_writes(name, seen):
    head = darknet_deltas.Region(ANCHORS, **HEADS[name])
    raw, boxes, labels, valid = outputs_and_objects()
    drawn = np.full(raw[..., 0].size, seen < 12800)
    sums, gradient, learned = head_program(head)(raw, boxes, labels, valid, drawn)
    corners = boxes[valid].reshape(-1, 2, 2).astype(np.float64)
    truths = np.concatenate([corners.mean(1) / UNIT, (corners[:, 1] - corners[:, 0]) / UNIT], 1)
    found = [*map(tuple, truths)], [*map(int, labels[valid])]
    expected = darknet_deltas.region_deltas(head, raw, *found, seen)
    np.testing.assert_allclose(-gradient, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert np.isfinite(sums).all() and min(sums) > 0
    assert np.sum(learned.entries.positive) == 6, "the last of two objects in a row is learned"
    assert (~np.asarray(learned.counts)).any(), "some background is near an object"


def test_without_objects_everything_is_background():
    head = darknet_deltas.Region(ANCHORS, bias_match=True, noobject_scale=0.5)
    raw, boxes, labels, valid = outputs_and_objects()
    nothing = boxes * 0, labels, valid & False
    sums, gradient, _ = head_program(head)(raw, *nothing, np.zeros(raw[..., 0].size, bool))
    objectness = darknet_deltas.sigmoid(raw[..., 4])
    assert sums[0] == sums[2] == 0
    assert sums[1] == pytest.approx(0.25 * np.square(objectness).sum(), rel=1e-5)
    expected = 0.5 * objectness**2 * (1 - objectness)
    np.testing.assert_allclose(gradient[..., 4], expected, rtol=1e-4)
