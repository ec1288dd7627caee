"""Balanced samples: exact quotas, the distribution of the plain algorithm, no empty row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.assign import balanced

DRAWS = 10_000


@functools.partial(tiny.jit, static_argnums=(4, 5, 6))
def draw(keys, status, matched, max_iou, num, fraction, bins):
    def one(key, *arrays):
        return balanced.sample(key, *arrays, num, fraction, bins)

    return jax.vmap(one)(keys, status, matched, max_iou)


def image(seed, count, positives, objects, empty):
    """Status, object and IoU of an image's candidates in random order; the objects have IoU 1."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(objects, 0.5)) if objects else None
    others = positives - objects
    matched = [np.arange(objects), rng.choice(objects, others, p=share) if objects else []]
    kinds = np.repeat([1, 0, -1], [positives, count - positives - empty, empty])
    iou = np.where(kinds == 1, rng.uniform(0.5, 0.95, count), rng.beta(0.3, 1, count) / 2)
    iou[kinds == 0] *= rng.random((kinds == 0).sum()) < 0.8  # some overlap nothing
    iou = iou * (objects > 0)
    iou[:objects] = 1
    iou[kinds == -1] = -1
    matched = np.concatenate([*matched, np.zeros(count - positives)]).astype(np.int32)
    order = rng.permutation(count)
    return kinds[order].astype(np.int32), matched[order], np.float32(iou[order])


def plan(status, matched, max_iou, num, fraction, bins):
    """(candidates, groups, number drawn, share of a group) of positives and of negatives."""
    positive, negative = np.flatnonzero(status == 1), np.flatnonzero(status == 0)
    most = int(num * fraction)
    objects = len(set(matched[positive]))
    of_object = int(round(most / max(objects, 1)) + 1)
    drawn = min(len(positive), most)
    most_negatives = num - drawn
    largest = max_iou.max()
    bin_of = np.full(len(status), -1)
    for i in range(bins):
        start, end = i * largest / bins, (i + 1) * largest / bins
        bin_of[(max_iou >= start) & (max_iou < end)] = i
    return (
        (positive, matched[positive], drawn, of_object),
        (negative, bin_of[negative], min(len(negative), most_negatives), most_negatives // bins),
    )


def plain(rng, candidates, group, drawn, share):
    """One draw of a kind by the rule, step by step."""
    if len(candidates) <= drawn:
        return candidates
    kept = [rng.permutation(candidates[group == g])[:share] for g in np.unique(group) if g >= 0]
    kept = np.concatenate([*kept, np.zeros(0, int)])
    if len(kept) >= drawn:
        return rng.permutation(kept)[:drawn]
    others = np.setdiff1d(candidates, kept)
    return np.concatenate([kept, rng.permutation(others)[: drawn - len(kept)]])


IMAGES = [
    # count, positives, objects, empty rows
    (1100, 300, 5, 40),
    (1100, 300, 60, 0),
    (1100, 60, 3, 0),
    (1100, 700, 2, 300),
    (1100, 0, 0, 10),
    (1100, 0, 0, 1100),
]


def test_quotas_are_exact_and_shares_are_kept_with_512_samples():
    found = [image(i, *kind) for i, kind in enumerate(IMAGES)]
    arrays = [np.stack(x) for x in zip(*found)]
    keys = jax.random.split(jax.random.key(0), len(IMAGES))
    drawn = jax.device_get(draw(keys, *arrays, 512, 0.25, 3))
    whole = set()
    for i, (status, matched, max_iou) in enumerate(found):
        index, valid, positive = (values[i] for values in drawn)
        assert len(index) == 512 and not index[~valid].any()
        assert len(set(index[valid])) == valid.sum(), "nothing is drawn twice"
        np.testing.assert_array_equal(status[index[valid]], positive[valid])
        np.testing.assert_array_equal(positive, np.arange(512) < positive.sum())
        np.testing.assert_array_equal(valid, np.arange(512) < valid.sum())
        kinds = plan(status, matched, max_iou, 512, 0.25, 3)
        for chosen, (candidates, group, number, share) in zip((positive, valid & ~positive), kinds):
            assert chosen.sum() == number
            whole.add(number == len(candidates))
            if number == len(candidates):
                continue
            of_group = {g: (group == g).sum() for g in np.unique(group) if g >= 0}
            taken = group[np.isin(candidates, index[chosen])]
            kept = {g: min(size, share) for g, size in of_group.items()}
            for g, least in kept.items():
                if sum(kept.values()) <= number:
                    assert (taken == g).sum() >= least
                else:
                    assert (taken == g).sum() <= least
    assert whole == {False, True}


@pytest.mark.parametrize(
    "kind, num, fraction, bins",
    [
        ((24, 12, 3, 2), 8, 0.5, 4),  # the shares of objects are more than is needed ...
        ((24, 13, 2, 0), 12, 0.75, 3),  # ... and less
        ((24, 0, 0, 0), 6, 0.25, 2),  # without objects all IoUs are 0
    ],
)
def test_draws_are_distributed_as_those_of_the_plain_algorithm_over_10000_keys(
    kind, num, fraction, bins
):
    """How often each candidate and each pair of candidates is drawn.

    Both counts are binomial, so their difference is close to normal; of the up to 276 pairs, none
    is expected beyond 4.8 standard deviations.
    """
    arrays = image(7, *kind)
    keys = jax.random.split(jax.random.key(1), DRAWS)
    drawn = draw(keys, *(jnp.broadcast_to(x, (DRAWS, len(x))) for x in arrays), num, fraction, bins)
    index, valid = np.asarray(drawn.index), np.asarray(drawn.valid)
    mine = np.zeros((DRAWS, len(arrays[0])))
    np.add.at(mine, (np.nonzero(valid)[0], index[valid]), 1)
    rng, theirs = np.random.default_rng(0), np.zeros_like(mine)
    kinds = plan(*arrays, num, fraction, bins)
    for row in theirs:
        for of_kind in kinds:
            row[plain(rng, *of_kind)] = 1
    assert mine.max() == 1 and (mine.sum(1) == theirs.sum(1)).all()
    a, b = mine.T @ mine, theirs.T @ theirs
    variance = a * (1 - a / DRAWS) + b * (1 - b / DRAWS)
    certain = variance == 0
    np.testing.assert_array_equal(a[certain], b[certain])
    assert (np.abs(a - b)[~certain] / np.sqrt(variance[~certain])).max() < 4.8
    assert not certain.all()


def test_more_candidates_at_the_end_that_are_empty_leave_the_draw_as_it_is():
    status, matched, max_iou = image(3, 60, 30, 4, 0)
    more = (
        np.pad(status, (0, 5), constant_values=-1),
        np.pad(matched, (0, 5)),
        np.pad(max_iou, (0, 5), constant_values=-1),
    )
    key = jax.random.key(2)
    one = balanced.sample(key, *map(jnp.asarray, (status, matched, max_iou)), 20, 0.5)
    two = balanced.sample(key, *map(jnp.asarray, more), 20, 0.5)
    for a, b in zip(one, two):
        np.testing.assert_array_equal(a, b)


PROGRAM = """
import sys

import jax
import numpy as np

from detlab import sharding
from detlab.assign import balanced

mesh = sharding.make_mesh()
rng = np.random.default_rng(0)
status = rng.integers(0, 2, (8, 1100))
iou = np.where(status == 1, rng.uniform(0.5, 1, status.shape), rng.uniform(0, 0.5, status.shape))
arrays = np.arange(8), status, rng.integers(0, 9, status.shape), iou.astype(np.float32)


@jax.jit
def draw(key, numbers, *arrays):
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers)
    return jax.vmap(lambda key, *of_image: balanced.sample(key, *of_image, 512, 0.25))(
        keys, *arrays
    )


drawn = draw(jax.random.key(5), *sharding.put_batch(arrays, mesh))
np.savez(sys.argv[1], **drawn._asdict())
"""


@pytest.mark.slow
def test_four_devices_draw_what_one_draws(run_on_devices, tmp_path):
    found = []
    for devices in (1, 4):
        run_on_devices(devices, PROGRAM, tmp_path / f"{devices}.npz")
        with np.load(tmp_path / f"{devices}.npz") as arrays:
            found.append(dict(arrays))
    one, four = found
    assert one["positive"].sum() == 8 * 128 and one["valid"].all()
    for name, values in one.items():
        np.testing.assert_array_equal(values, four[name])


def test_at_least_one_bin_is_needed():
    arrays = (jnp.zeros(3, int), jnp.zeros(3, int), jnp.zeros(3))
    with pytest.raises(ValueError, match="num_bins must be at least 1, not 0"):
        balanced.sample(jax.random.key(0), *arrays, 4, 0.5, 0)
