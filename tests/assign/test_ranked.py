"""Ranked samples: ranks and draws of the plain algorithm, exact quotas, no empty row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.assign import ranked as ranked_lib
from detlab.losses import pisa

IOU = 0.5


@functools.partial(tiny.jit, static_argnums=(5, 6))
def draw(keys, boxes, scores, status, counted, num, fraction):
    """(ranks, samples) of images."""

    def one(key, boxes, scores, status, counted):
        rank = ranked_lib.ranks_of(boxes, scores, counted, IOU)
        return rank, ranked_lib.sample(key, status, counted, rank, num, fraction)

    return jax.vmap(one)(keys, boxes, scores, status, counted)


def drawn_of(keys, arrays, num, fraction):
    return jax.device_get(draw(keys, *arrays, num, fraction))


def image(seed, count, positives, ranked, empty):
    """Boxes in clusters, scores, status, and which negatives have a rank; in random order."""
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 8, (count, 2)) * 40 + rng.integers(0, 8, (count, 2))
    boxes = np.concatenate([low, low + rng.integers(20, 30, (count, 2))], -1)
    negatives = count - positives - empty
    status = rng.permutation(np.repeat([1, 0, -1], [positives, negatives, empty])).astype(np.int32)
    counted = np.zeros(count, bool)
    counted[rng.permutation(np.flatnonzero(status == 0))[:ranked]] = True
    # All scores differ; those of the others must not matter.
    return np.float32(boxes), np.float32(rng.permutation(count) / count), status, counted


def slow_iou(box, boxes):
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    inter = np.maximum(high - low, 0).prod(-1)
    return inter / ((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(-1) - inter)


def slow_order(boxes, scores, counted):
    """The counted rows, the first in rank first: groups one by one, in float64."""
    boxes, left = boxes.astype(np.float64), list(np.flatnonzero(counted))
    left.sort(key=lambda i: -scores[i])
    place = {}
    while left:
        reached = slow_iou(boxes[left[0]], boxes[left]) >= IOU
        for k, i in enumerate(np.array(left)[reached]):
            place[i] = k
        left = [i for i, there in zip(left, reached) if not there]
    return sorted(place, key=lambda i: (place[i], -scores[i]))


IMAGES = [
    # count, positives, ranked negatives, empty rows
    (1100, 300, 600, 40),  # quotas of both kinds; all negatives are ranked ones
    (1100, 300, 200, 0),  # unranked negatives fill up
    (1100, 60, 900, 0),  # negatives take the unused share
    (1100, 700, 90, 300),  # all negatives, and still too few
    (1100, 40, 0, 100),  # no rank: all at random
    (1100, 0, 0, 10),
    (1100, 0, 1000, 0),
    (1100, 0, 0, 1100),  # nothing
]


def test_512_samples_are_those_of_the_plain_algorithm():
    """Quotas are active: of the ranked negatives, exactly the first are drawn, in their order."""
    found = [image(i, *kind) for i, kind in enumerate(IMAGES)]
    keys = jax.random.split(jax.random.key(0), len(IMAGES))
    ranks, drawn = drawn_of(keys, map(np.stack, zip(*found)), 512, 0.25)
    for i, (boxes, scores, status, counted) in enumerate(found):
        order = slow_order(boxes, scores, counted)
        np.testing.assert_array_equal(ranks[i][order], np.arange(len(order)))
        index, valid, positive = (values[i] for values in drawn)
        positives = min((status == 1).sum(), 128)
        negatives = min((status == 0).sum(), 512 - positives)
        assert positive.sum() == positives and valid.sum() == positives + negatives
        assert (status[index[:positives]] == 1).all()
        chosen = index[positives : positives + negatives]
        most = min(len(order), negatives)
        np.testing.assert_array_equal(chosen[:most], order[:most])
        assert (status[chosen] == 0).all() and not counted[chosen[most:]].any()
        assert len(set(index[valid])) == valid.sum() and not index[~valid].any()
        np.testing.assert_array_equal(valid, np.arange(512) < valid.sum())


def test_positives_and_negatives_without_a_rank_are_drawn_uniformly():
    arrays = image(5, 40, 10, 4, 6)  # 5 of 10 positives, 4 ranked and 11 of 20 other negatives
    repeats = 4000
    keys = jax.random.split(jax.random.key(1), repeats)
    _, drawn = drawn_of(keys, (jnp.broadcast_to(x, (repeats, *x.shape)) for x in arrays), 20, 0.25)
    counts = np.bincount(drawn.index.ravel(), minlength=40)
    _, _, status, counted = arrays
    assert drawn.valid.all() and (counts[counted] == repeats).all() and not counts[status < 0].any()
    for kind, share in ((status == 1, 5 / 10), ((status == 0) & ~counted, 11 / 20)):
        deviation = np.sqrt(repeats * share * (1 - share))
        assert np.abs(counts[kind] - repeats * share).max() < 4.8 * deviation


def test_equal_scores_are_ranked_in_the_order_of_the_rows():
    boxes = np.tile(np.float32([0, 0, 9, 9]), (5, 1))
    counted = np.array([True, False, True, True, True])
    rank = ranked_lib.ranks_of(boxes, np.full(5, 0.5, np.float32), counted, IOU)
    assert rank[counted].tolist() == [0, 1, 2, 3]


def test_more_candidates_at_the_end_that_are_empty_leave_ranks_and_draw_as_they_are():
    arrays = image(3, 60, 20, 30, 0)
    more = [np.pad(x, [(0, 5), (0, 0)][: x.ndim]) for x in arrays]
    more[2][-5:] = -1
    keys = jax.random.split(jax.random.key(2), 1)
    rank, drawn = drawn_of(keys, (x[None] for x in arrays), 20, 0.5)
    more_ranks, more_drawn = drawn_of(keys, (x[None] for x in more), 20, 0.5)
    _, _, _, counted = arrays
    np.testing.assert_array_equal(rank[0][counted], more_ranks[0][:60][counted])
    jax.tree.map(np.testing.assert_array_equal, drawn, more_drawn)


def slow_weights(order, losses, chosen, k, bias):
    """Those of the chosen negatives, step by step; `order` as of `slow_order`."""
    place = {i: rank for rank, i in enumerate(order)}
    most = max(len(chosen), len(order))
    weights = [(most - place[i]) / most for i in chosen if i in place]
    weights += [min(weights, default=1)] * (len(chosen) - len(weights))
    weights = np.array([(bias + (1 - bias) * w) ** k for w in weights])
    return weights * losses[chosen].sum() / (weights * losses[chosen]).sum()


@pytest.mark.parametrize("k, bias", [(0.5, 0.0), (2.0, 0.2)])
def test_weights_of_isr_n_are_those_of_the_plain_algorithm(k, bias):
    found = [image(i, *kind) for i, kind in enumerate(IMAGES)]
    losses = np.random.default_rng(9).exponential(size=(len(IMAGES), 1100)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), len(IMAGES))
    ranks, drawn = drawn_of(keys, map(np.stack, zip(*found)), 512, 0.25)

    @jax.vmap
    def weights(rank, counted, index, negative, losses):
        return pisa.isr_negative_weights(
            rank[index], counted[index], negative, counted.sum(), losses[index], k, bias
        )

    negative = drawn.valid & ~drawn.positive
    counted = np.stack([x[3] for x in found])
    mine = np.asarray(tiny.jit(weights)(ranks, counted, drawn.index, negative, losses))
    np.testing.assert_array_equal(mine[~negative], 1)
    for i, (boxes, scores, _, counted) in enumerate(found):
        chosen = drawn.index[i][negative[i]]
        expected = slow_weights(slow_order(boxes, scores, counted), losses[i], chosen, k, bias)
        np.testing.assert_allclose(mine[i][negative[i]], expected, rtol=1e-5)


PROGRAM = """
import sys

import jax
import numpy as np

from detlab import sharding
from detlab.assign import ranked

mesh = sharding.make_mesh()
rng = np.random.default_rng(0)
low = rng.uniform(0, 200, (8, 1100, 2))
boxes = np.concatenate([low, low + rng.uniform(20, 60, low.shape)], -1).astype(np.float32)
scores, status = rng.uniform(size=(8, 1100)).astype(np.float32), rng.integers(-1, 2, (8, 1100))
arrays = np.arange(8), boxes, scores, status.astype(np.int32), (status == 0) & (scores > 0.6)


@jax.jit
def draw(key, *arrays):
    def one(number, boxes, scores, status, counted):
        rank = ranked.ranks_of(boxes, scores, counted, 0.5)
        return ranked.sample(jax.random.fold_in(key, number), status, counted, rank, 512, 0.25)

    return sharding.per_device(jax.vmap(one))(*arrays)


with jax.set_mesh(mesh):
    drawn = draw(jax.random.key(5), *sharding.put_batch(arrays, mesh))
np.savez(sys.argv[1], **drawn._asdict())
"""


@pytest.mark.slow
def test_four_devices_draw_what_one_draws(run_on_devices, tmp_path):
    found = []
    for devices in (1, 4):
        run_on_devices(devices, PROGRAM, tmp_path / f"{devices}.npz")
        found.append(np.load(tmp_path / f"{devices}.npz"))
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name])
