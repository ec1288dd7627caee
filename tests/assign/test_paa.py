"""Probabilistic anchor assignment: the split of each object's losses by a fitted mixture."""

import functools
import importlib
import pathlib

import jax
import numpy as np
import pytest
import tiny

from detlab.assign import paa, points
from detlab.ops import anchors as anchors_lib

SEED = 0
SLOTS = 8
split = tiny.jit(paa.split)


@functools.cache
def program(slices, slots=SLOTS, k=9):
    levels = [slice(*pair) for pair in slices]
    return tiny.jit(lambda assigned, losses: paa.assign(assigned, losses, levels, slots, k))


def slow_split(losses):
    """The split [num] bool of one object's losses, in float64; likelihoods compared to 2e-6."""
    order = np.argsort(losses, kind="stable")
    x, positive = np.float64(losses)[order], np.zeros(len(losses), bool)
    mean, var, weight = np.array([x[0], x[-1]]), np.ones(2), np.full(2, 0.5)

    def log_joint():
        square = (x[:, None] - mean) ** 2 / var
        return np.log(weight) - 0.5 * (np.log(2 * np.pi * var) + square)

    bound = -np.inf
    for _ in range(100):
        norm = np.logaddexp(*log_joint().T)
        share = np.exp(log_joint() - norm[:, None])
        total = share.sum(0) + 1e-15
        mean = (share * x[:, None]).sum(0) / total
        var = (share * (x[:, None] - mean) ** 2).sum(0) / total + 1e-6
        weight = total / len(x)
        if abs(norm.mean() - bound) < 1e-3:
            break
        bound = norm.mean()
    low = log_joint()[:, 0] >= log_joint()[:, 1]
    if len(x) < 2 or not low.any():
        return positive
    likelihood = np.where(low, np.logaddexp(*log_joint().T), -np.inf)
    last = np.flatnonzero(likelihood > likelihood.max() - 2e-6)[-1]
    positive[order] = low & (np.arange(len(x)) <= last)
    return positive


def random_losses(count, seed=SEED, places=45):
    """Losses [count, places] of objects with 2 to `places` candidates, and which are there."""
    rng = np.random.default_rng(seed)
    losses, there = np.zeros((count, places), np.float32), np.zeros((count, places), bool)
    for row in range(count):
        num = rng.integers(2, places + 1)
        kinds = (
            rng.uniform(0.1, 4, num),
            np.append(rng.normal(0.5, 0.15, num // 3), rng.normal(2, 0.4, num - num // 3)),
            rng.gamma(2.0, 0.6, num),
        )
        where = rng.permutation(places)[:num]
        losses[row, where], there[row, where] = np.abs(kinds[row % 3]), True
    return losses, there


@pytest.mark.parametrize("name", ["paa_two", "paa_wide", "paa_single", "paa_none"])
def test_the_split_equals_the_reference(unit_cases, name):
    case, arrays = unit_cases("targets")[name]
    args = case["args"]
    ends = np.cumsum([0, *args["per_level"]]).tolist()
    status, matched = np.zeros(ends[-1], np.int32), np.zeros(ends[-1], np.int32)
    losses = np.zeros(ends[-1], np.float32)
    status[arrays["pos_inds"]], matched[arrays["pos_inds"]] = 1, arrays["pos_gt_inds"]
    losses[arrays["pos_inds"]] = arrays["losses"]
    slices = tuple(zip(ends[:-1], ends[1:], strict=True))
    found = program(slices, k=args["topk"])(points.Assigned(status, matched), losses)
    labels = np.where(found.status == 1, arrays["label"], args["num_classes"])
    np.testing.assert_array_equal(labels, arrays["new_label"])
    assert (found.status == 1).sum() == args["num_pos"]
    assert (np.asarray(found.status) >= 0).all() and (arrays["new_label_weight"] == 1).all()


def test_random_losses_are_split_as_by_one_mixture_after_another():
    losses, there = random_losses(300)
    positive = np.asarray(split(losses, there))
    assert not positive[~there].any()
    for row, here, kept in zip(losses, there, positive):
        np.testing.assert_array_equal(kept[here], slow_split(row[here]))
    assert 1 < positive.sum(1).mean() < 22


def test_a_thousand_random_sets_are_split_as_by_scikit_learn(monkeypatch):
    """All but a few, in which rounding chooses between equally likely candidates."""
    folder = pathlib.Path(__file__).parents[1] / "data" / "sklearn"
    monkeypatch.syspath_prepend(folder)
    sets = importlib.import_module("record_paa").losses()
    losses, there = np.zeros((2, len(sets), 45), np.float32)
    for row, values in enumerate(sets):
        losses[row, : len(values)], there[row, : len(values)] = values, 1
    positive = np.asarray(split(losses, there > 0))
    with np.load(folder / "paa_splits.npz") as file:
        theirs = {k: np.unpackbits(v, axis=1, count=45).astype(bool) for k, v in file.items()}
    others = {k: np.flatnonzero((positive != v).any(1)) for k, v in theirs.items()}
    assert (theirs["float32"] != theirs["float64"]).any(1).sum() == 10
    assert len(others["float32"]) <= 13 and len(others["float64"]) <= 7
    for row in {*others["float32"], *others["float64"]}:
        counts = [positive[row].sum(), *(v[row].sum() for v in theirs.values())]
        assert max(counts) - min(counts) == 1


def test_two_groups_of_losses_are_told_apart():
    losses = np.float32([[0.1, 5.0, 0.2, 5.2, 0.15, 9.0]])
    there = np.array([[True, True, True, True, True, False]])
    mixture = tiny.jit(paa.fit)(losses, there)
    np.testing.assert_allclose(mixture.mean, [[0.15, 5.1]], rtol=1e-4)
    np.testing.assert_allclose(mixture.weight, [[0.6, 0.4]], rtol=1e-4)
    np.testing.assert_allclose(mixture.variance, [[0.005 / 3 + 1e-6, 0.01 + 1e-6]], rtol=1e-3)
    # The likelihood is highest at the mean of the three; a higher loss is no positive.
    assert split(losses, there).tolist() == [[True, False, False, False, True, False]]


def test_of_two_equally_likely_candidates_both_are_positive():
    losses = np.float32([[1.1621836, 1.1776403, 2.1809595, 2.5719948, 3.1743271]])
    assert split(losses, np.ones((1, 5), bool)).sum() == 2


def test_objects_with_no_candidate_or_one_have_no_positive_and_equal_losses_are_finite():
    losses = np.float32([[1, 2, 3], [1, 2, 3], [2, 2, 2]])
    there = np.array([[False] * 3, [False, True, False], [True] * 3])
    assert split(losses, there).sum(1).tolist()[:2] == [0, 0]
    assert all(np.isfinite(x).all() for x in tiny.jit(paa.fit)(losses, there))


def pyramid(extent=64, seed=SEED):
    """A first assignment of a small pyramid at random, its losses and levels."""
    grid = anchors_lib.grid((extent, extent), (8, 16, 32))
    slices = tuple((int(level.start), int(level.stop)) for level in grid.slices())
    rng, total = np.random.default_rng(seed), slices[-1][1]
    status = rng.choice(np.int32([-1, 0, 1, 1]), total)
    matched = np.where(status == 1, rng.integers(0, 3, total), 0).astype(np.int32)
    return points.Assigned(status, matched), np.float32(rng.gamma(2, 1, total)), slices


def test_the_candidates_of_an_object_are_its_best_of_each_level():
    assigned, losses, slices = pyramid()
    found = program(slices, k=4)(assigned, losses)
    assert (
        np.asarray(found.status)[assigned.status < 1] == assigned.status[assigned.status < 1]
    ).all()
    for slot in range(3):
        own = np.flatnonzero((assigned.status == 1) & (assigned.matched == slot))
        best = []
        for start, stop in slices:
            level = own[(own >= start) & (own < stop)]
            best += list(level[np.argsort(losses[level])[:4]])
        expected = sorted(np.array(best)[slow_split(losses[best])])
        kept = (np.asarray(found.status) == 1) & (np.asarray(found.matched) == slot)
        assert np.flatnonzero(kept).tolist() == expected


def test_more_slots_change_nothing():
    assigned, losses, slices = pyramid()
    for a, b in zip(program(slices)(assigned, losses), program(slices, 19)(assigned, losses)):
        np.testing.assert_array_equal(a, b)


def test_memory_at_published_size_is_far_below_a_matrix_of_anchors_and_objects():
    """800 x 1344 px, 100 objects; a single [N, G] float32 matrix takes 9 MB."""
    slices = anchors_lib.grid((800, 1344), (8, 16, 32, 64, 128)).slices()
    ints, floats = (jax.ShapeDtypeStruct((slices[-1].stop,), x) for x in ("int32", "float32"))
    assign = tiny.jit(lambda assigned, losses: paa.assign(assigned, losses, slices, 100))
    compiled = assign.lower(points.Assigned(ints, ints), floats).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 5e6
