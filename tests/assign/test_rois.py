"""Samples of RoIs from the proposals and the objects."""

import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest
import tiny

from detlab.assign import rois

KEY = jax.random.key(0)


class Proposals(NamedTuple):
    boxes: np.ndarray  # [P, 4]
    valid: np.ndarray  # [P]


def candidates(seed, count=30, objects=4):
    """Proposals near and far from objects, and the objects; some rows and slots are empty."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (objects, 2))
    boxes = np.float32(np.concatenate([corner, corner + rng.uniform(10, 40, corner.shape)], 1))
    near = boxes[rng.integers(0, objects, count)] + rng.normal(0, 4, (count, 4))
    boxes[-1] = 0
    valid = np.arange(count) < count - 5
    proposals = Proposals(np.float32(near * valid[:, None]), valid)
    return proposals, boxes, np.arange(objects) < objects - 1


def iou(a, b):
    size = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
    inner = size.prod()
    return inner / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner)


@functools.partial(tiny.jit, static_argnames="num")
def sample_rois(key, proposals, boxes, valid, num):
    settings = dict(iou=0.5, num=num, positive_fraction=0.5)
    return rois.sample_rois(key, proposals.boxes, proposals.valid, boxes, valid, **settings)


@pytest.mark.parametrize("seed", range(3))
def test_all_proposals_and_objects_can_be_sampled_and_no_empty_row(seed):
    proposals, boxes, valid = candidates(seed)
    found = jax.device_get(sample_rois(KEY, proposals, boxes, valid, 1000))
    count, objects = len(proposals.boxes), len(boxes)
    assert len(found.boxes) == count + objects, "there are no more slots than candidates"
    filled = found.status >= 0
    real = np.flatnonzero(np.concatenate([proposals.valid, valid]))
    np.testing.assert_array_equal(np.sort(found.index[filled]), real)
    assert not found.boxes[~filled].any() and (np.diff(found.status) <= 0).all()
    kinds = set()
    for box, status, matched, index in zip(*(values[filled] for values in found)):
        if index >= count:  # an object, matched to itself
            assert status == 1 and matched == index - count
            np.testing.assert_array_equal(box, boxes[matched])
            continue
        np.testing.assert_array_equal(box, proposals.boxes[index])
        ious = [iou(box.astype(np.float64), b) if v else -1 for b, v in zip(boxes, valid)]
        assert status == (max(ious) >= 0.5) and matched == np.argmax(ious)
        kinds.add(int(status))
    assert kinds == {0, 1}


def test_few_slots_hold_at_most_their_share_of_positives():
    proposals, boxes, valid = candidates(0)
    draws = [
        jax.device_get(sample_rois(jax.random.key(i), proposals, boxes, valid, 8)) for i in (0, 1)
    ]
    for found in draws:
        assert (found.status == 1).sum() == (found.status == 0).sum() == 4
        assert len(set(found.index)) == 8
    assert set(draws[0].index) != set(draws[1].index)


def test_more_slots_for_objects_leave_the_draw_as_it_is():
    proposals, boxes, valid = candidates(1)
    more = np.pad(boxes, ((0, 3), (0, 0))), np.pad(valid, (0, 3))
    one = sample_rois(KEY, proposals, boxes, valid, 8)
    two = sample_rois(KEY, proposals, *more, 8)
    for a, b in zip(one, two):
        np.testing.assert_array_equal(a, b)
