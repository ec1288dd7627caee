"""Loops over object slots: every assignment is the same for any number of slots a step."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.assign import (
    atss,
    darknet,
    locations,
    max_iou,
    paa,
    points,
    slots,
    verification,
    yolov3,
)
from detlab.ops import anchors as anchors_lib

SEED = 0
SLOTS = 11
GRID = anchors_lib.grid((96, 96), (8, 16, 32))
ANCHORS = sum(height * width for height, width in GRID.shapes)
# One slot at a time; all in one step; four at a time, so that the last step has an empty slot.
DIVISIONS = {"cpu": ("cpu", 1), "one": ("default", 2**23), "parts": ("default", 4 * ANCHORS)}


def images():
    """Boxes [4, SLOTS, 4] and valid [4, SLOTS]: random; equal overlaps and centres; few; none.

    Empty slots hold the boxes of real ones.
    """
    rng = np.random.default_rng(SEED)
    low = rng.uniform(-10, 80, (SLOTS, 2))
    random = np.concatenate([low, low + rng.uniform(4, 70, low.shape)], -1)
    low = 8 * rng.integers(0, 8, (SLOTS, 2))
    lattice = np.concatenate([low, low + rng.choice([16, 32], (SLOTS, 1))], -1)
    lattice[5], lattice[9] = lattice[2], lattice[2]
    boxes = np.stack([random, lattice, lattice, random]).astype(np.float32)
    valid = np.stack(
        [np.ones(SLOTS), np.ones(SLOTS), rng.uniform(size=SLOTS) < 0.5, np.zeros(SLOTS)]
    )
    return boxes, valid.astype(bool)


def everything(boxes, valid):
    """The results of all assignments for one image."""
    inside, at = GRID.inside(jnp.array([96, 80])), GRID.points(0.5)
    squares, stride, level = GRID.squares(4), GRID.stride(), GRID.level()
    around = GRID.anchors([anchors_lib.cell_anchors(s, (2, 4), (1, 2)) for s in GRID.strides])
    of_iou = functools.partial(max_iou.assign, squares, boxes, valid, 0.5, 0.4)
    ignored = {"gt_ignore": jnp.roll(valid, 3), "ignore_iof": 0.5, "anchor_valid": inside}
    of_points = functools.partial(points.assign, at, 0 * stride, 8 * stride, boxes, valid)
    nearest = points.assign_nearest(at, level, GRID.strides, boxes, valid, num_positive=3)
    of_cells = functools.partial(yolov3.assign, squares, stride, boxes, valid, 0.3, 0.2)
    predicted = (squares + boxes[0]).at[3].set(jnp.nan)
    first = of_iou(0.0)
    return {
        "max_iou": first,
        "the first of ties": of_iou(0.0, all_ties=False),
        "only the first": of_iou(0.2, all_ties=False, require_overlap=False),
        "ignored": of_iou(0.1, **ignored),
        "ignored by box": of_iou(0.1, **ignored, ignore_wrt_anchors=False),
        "around": of_iou(0.1, approximations=around.reshape(ANCHORS, -1, 4)),
        "points": of_points(),
        "points at the centre": of_points(center_radius=1.5 * stride, point_valid=inside),
        "nearest": nearest,
        "cells": of_cells(anchor_valid=inside),
        "cells, only the first": of_cells(all_ties=False),
        "predicted": darknet.best_overlap(predicted, boxes, valid),
        "locations": locations.assign(GRID, boxes, valid, 4.0),
        "corners": verification.corners(GRID, boxes, valid, jnp.array([96, 80])),
        "atss": atss.assign(squares, GRID.slices(), boxes, valid, 5, anchor_valid=inside),
        "paa": paa.assign(first, -first.max_iou, GRID.slices(), SLOTS, 4),
    }


@pytest.fixture(scope="module")
def found():
    results = {}
    for name, (branch, pairs) in DIVISIONS.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                slots.lax,
                "platform_dependent",
                lambda *args, branch=branch, **programs: programs[branch](*args),
            )
            patch.setattr(slots, "_PAIRS", pairs)
            run = tiny.jit(jax.vmap(lambda boxes, valid: everything(boxes, valid)))
            results[name] = jax.device_get(run(*images()))
    return results


@pytest.mark.parametrize("division", ["one", "parts"])
def test_the_assignment_is_the_same_for_any_number_of_slots_a_step(found, division):
    """Decisions are equal; an overlap may be rounded differently by another program."""
    for name, expected in found["cpu"].items():
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found[division][name])):
            if a.dtype == np.float32:
                np.testing.assert_allclose(b, a, rtol=3e-7, atol=1e-7, err_msg=name)
            else:
                np.testing.assert_array_equal(b, a, err_msg=name)


def test_the_images_have_positives_and_ties(found):
    """So that the test before compares what it should."""
    for name, result in found["cpu"].items():
        if hasattr(result, "status"):
            assert (result.status[:2] == 1).any((0, 1)) and not (result.status[3] == 1).any(), name
    all_ties, first = found["cpu"]["max_iou"].status, found["cpu"]["the first of ties"].status
    assert ((all_ties == 1) & (first != 1))[1].any()


def test_the_first_of_equal_values_is_found():
    values = jnp.array([[1.0, 0, -jnp.inf], [3, 0, -jnp.inf], [3, -1, 2]])
    largest, slot = slots.first_largest(values, jnp.array([4, 5, 6]))
    assert largest.tolist() == [3, 0, 2] and slot.tolist() == [5, 4, 6]


def test_as_many_slots_as_fit_the_bound_and_steps_of_equal_size():
    for count, anchors, expected in (
        (100, 1000, 100),
        (100, 83886, 100),
        (100, 83887, 50),
        (100, 201600, 34),
        (3, 10**8, 1),
        (0, 10, 1),
    ):
        at_once = slots._at_once(count, anchors)
        assert at_once == expected
        assert at_once == 1 or at_once * anchors <= slots._PAIRS


def steps(function, *arguments, platform):
    """Numbers of steps of the loops of a program before compilation."""
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    loops = re.findall(r"stablehlo\.while.*?cond \{(.*?)\} do", text, re.DOTALL)
    bounds = [re.search(r"dense<(\d+)> : tensor<i32>", condition) for condition in loops]
    return [int(bound[1]) if bound else None for bound in bounds]


@pytest.mark.parametrize(
    "platform, of_retinanet, of_fcos", [("cpu", [100], [100]), ("cuda", [3], []), ("tpu", [3], [])]
)
def test_accelerators_have_no_loop_of_a_step_for_each_slot(platform, of_retinanet, of_fcos):
    """800 x 1344 px, 100 slots; the 201,600 anchors of RetinaNet take three steps."""
    grid = anchors_lib.grid((800, 1344), (8, 16, 32, 64, 128), 9)
    boxes, valid = jax.ShapeDtypeStruct((100, 4), "float32"), jax.ShapeDtypeStruct((100,), bool)

    def retinanet(boxes, valid):
        return max_iou.assign(grid.octave_anchors(4, 3, (0.5, 1, 2)), boxes, valid, 0.5, 0.4)

    def fcos(points_, reach, boxes, valid):
        return points.assign(points_, reach, reach, boxes, valid)

    cells = jax.ShapeDtypeStruct((22400, 2), "float32"), jax.ShapeDtypeStruct((22400,), "float32")
    assert steps(retinanet, boxes, valid, platform=platform) == of_retinanet
    assert steps(fcos, *cells, boxes, valid, platform=platform) == of_fcos
