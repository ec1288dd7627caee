"""Random samples: exact quotas, fair draws, and no dependence on devices or padding."""

import functools
import itertools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.assign import sampling

SEED = 0
SLOTS = 40  # all images of the quota tests share a program


@functools.partial(tiny.jit, static_argnums=(2, 3, 4))
def sample_batch(rngs, status, num, fraction, negatives_per_positive=None):
    def one(rng, status):
        return sampling.sample(rng, status, num, fraction, negatives_per_positive)

    return jax.vmap(one)(rngs, status)


def keys(count, seed=SEED):
    return jax.random.split(jax.random.key(seed), count)


def images(counts):
    """Statuses [B, SLOTS] of images with the given (positives, negatives), in random order."""
    rng = np.random.default_rng(SEED)
    rows = [
        np.repeat([1, 0, -1], [positives, negatives, SLOTS - positives - negatives])
        for positives, negatives in counts
    ]
    return np.stack([rng.permutation(row) for row in rows])


COUNTS = [(0, 0), (0, 5), (0, 40), (1, 0), (1, 39), (3, 20), (4, 4), (5, 2), (12, 28), (40, 0)]


def quota(positives, negatives, num, fraction, ratio):
    """The reference's rule in Python integers: (positives, negatives) drawn."""
    drawn = min(positives, int(num * fraction))
    room = num - drawn
    if ratio is not None:
        room = min(room, int(ratio * max(1, drawn)))
    return drawn, min(negatives, room)


@pytest.mark.parametrize(
    "num, fraction, ratio",
    [
        (16, 0.25, None),
        (16, 0.5, 3),
        (9, 0.5, 1.5),
        (7, 1.0, None),
        (5, 0.0, 2),
        (100000, 0.5, None),
    ],
)
def test_quotas_are_exact_and_nothing_is_drawn_twice(num, fraction, ratio):
    """Negatives also fill the slots that positives leave, never the other way round."""
    status = images(COUNTS)
    drawn = sample_batch(keys(len(COUNTS)), status, num, fraction, ratio)
    assert drawn.index.shape == (len(COUNTS), min(num, SLOTS))
    assert drawn.index.dtype == jnp.int32
    for i, counts in enumerate(COUNTS):
        index, valid, positive = (np.asarray(values[i]) for values in drawn)
        num_positives, num_negatives = quota(*counts, num, fraction, ratio)
        assert (positive.sum(), valid.sum()) == (num_positives, num_positives + num_negatives)
        # Positives first, then negatives, then empty slots.
        np.testing.assert_array_equal(positive, np.arange(len(index)) < num_positives)
        np.testing.assert_array_equal(valid, np.arange(len(index)) < valid.sum())
        np.testing.assert_array_equal(status[i][index[valid]], positive[valid])
        assert len(set(index[valid].tolist())) == valid.sum()
        np.testing.assert_array_equal(index[~valid], 0)


@pytest.mark.parametrize("num, fraction", [(12, 0.5), (7, 0.25), (500, 0.5), (8, 1.0)])
def test_positives_are_in_as_many_of_the_first_slots_as_is_said(num, fraction):
    status = np.ones((1, SLOTS), np.int32)
    found = sample_batch(keys(1), status, num, fraction)
    most = sampling.most_positives(num, fraction, found.index.shape[1])
    assert most == found.positive.sum() and found.positive[0, :most].all()


def test_a_literal_image_where_all_are_taken():
    drawn = sampling.sample(jax.random.key(3), jnp.array([-1, 1, 0, -1, 0]), 8, 0.25)
    np.testing.assert_array_equal(drawn.valid, [True, True, True, False, False])
    np.testing.assert_array_equal(drawn.positive, [True, False, False, False, False])
    assert drawn.index[0] == 1 and set(drawn.index[1:3].tolist()) == {2, 4}


def test_all_samples_are_equally_likely_over_10000_keys():
    """Of 6 positives, 6 negatives and 4 ignored, 3 and 3 are drawn: 20 x 20 pairs of subsets.

    Chi-square of the 20 subsets of each kind (19 degrees of freedom) and of their 400 pairs
    (399), against the 0.999 quantiles 43.8 and 489.
    """
    status = np.array([1, 0, -1, 1, 0, 0, 1, -1, -1, 1, 1, 0, 0, 1, -1, 0])
    drawn = sample_batch(keys(10_000), jnp.broadcast_to(status, (10_000, 16)), 6, 0.5)
    assert drawn.valid.all()
    index = np.sort(np.asarray(drawn.index).reshape(-1, 2, 3), axis=-1)
    numbers = []
    for part, kind in enumerate((1, 0)):
        subsets = list(itertools.combinations(np.flatnonzero(status == kind), 3))
        matches = (index[:, part, None] == np.array(subsets)).all(axis=-1)  # [10000, 20]
        assert (matches.sum(axis=1) == 1).all()
        numbers.append(matches.argmax(axis=1))

    def chi_square(values, kinds):
        expected = len(values) / kinds
        return ((np.bincount(values, minlength=kinds) - expected) ** 2 / expected).sum()

    assert chi_square(numbers[0], 20) < 43.8
    assert chi_square(numbers[1], 20) < 43.8
    assert chi_square(20 * numbers[0] + numbers[1], 400) < 489


def test_every_one_of_many_candidates_is_drawn_as_often_over_10000_keys():
    """64 of 100 negatives, 8 of 50 positives: counts against the binomial's mean and variance.

    The counts of a kind add up to a constant, hence the factor (n - 1) / n; 0.999 quantiles of
    chi-square with 99 and 49 degrees of freedom.
    """
    status = jnp.asarray(np.random.default_rng(SEED).permutation([1] * 50 + [0] * 100 + [-1] * 50))
    drawn = sample_batch(keys(10_000, 1), jnp.broadcast_to(status, (10_000, 200)), 72, 1 / 9)
    counts = np.bincount(np.asarray(drawn.index).ravel(), minlength=200)
    for kind, taken, limit in ((1, 8, 85.4), (0, 64, 148.2)):
        of_kind = counts[np.asarray(status) == kind]
        n = len(of_kind)
        mean = 10_000 * taken / n
        assert of_kind.sum() == 10_000 * taken
        variance = mean * (1 - taken / n)
        assert (((of_kind - mean) ** 2 / variance).sum() * (n - 1) / n) < limit
    assert counts[np.asarray(status) == -1].sum() == 0


def test_the_order_of_the_draw_is_fair_too():
    """Each of 5 negatives is drawn first equally often: chi-square, 4 degrees, 0.999 quantile."""
    drawn = sample_batch(keys(10_000, 2), jnp.zeros((10_000, 5), int), 5, 0.5)
    counts = np.bincount(np.asarray(drawn.index[:, 0]), minlength=5)
    assert ((counts - 2000) ** 2 / 2000).sum() < 18.5


def test_equal_keys_draw_equal_samples_and_other_keys_others():
    status = jnp.broadcast_to(jnp.arange(SLOTS) % 2, (3, SLOTS))
    one, other = keys(2)
    index = sample_batch(jnp.stack([one, one, other]), status, 16, 0.5).index
    np.testing.assert_array_equal(index[0], index[1])
    assert (index[0] != index[2]).any()


def test_an_image_alone_draws_what_it_draws_in_a_batch():
    status, rngs = images(COUNTS), keys(len(COUNTS))
    together = sample_batch(rngs, status, 16, 0.25)
    alone = tiny.jit(lambda rng, status: sampling.sample(rng, status, 16, 0.25))
    for i in range(len(COUNTS)):
        for one, many in zip(alone(rngs[i], status[i]), together):
            np.testing.assert_array_equal(one, many[i])


PROGRAM = """
import sys

import jax
import numpy as np

from detlab import sharding
from detlab.assign import sampling

mesh = sharding.make_mesh()
assert mesh.size == int(sys.argv[1])
status = np.random.default_rng(0).integers(-1, 2, (8, 3000))
numbers = np.arange(8)


@jax.jit
def draw(rng, numbers, status):
    rngs = jax.vmap(lambda i: jax.random.fold_in(rng, i))(numbers)
    return jax.vmap(lambda rng, status: sampling.sample(rng, status, 256, 0.25))(rngs, status)


drawn = draw(jax.random.key(5), *sharding.put_batch((numbers, status), mesh))
np.savez(sys.argv[2], **drawn._asdict())
"""


def test_four_devices_draw_what_one_draws(repository, tmp_path):
    found = []
    for devices in (1, 4):
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        }
        file = tmp_path / f"{devices}.npz"
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(devices), str(file)],
            cwd=repository,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,  # so that the assertion shows the output
        )
        assert result.returncode == 0, result.stderr
        with np.load(file) as arrays:
            found.append(dict(arrays))
    one, four = found
    assert one["valid"].all() and one["positive"].sum() == 8 * 64
    for name, values in one.items():
        np.testing.assert_array_equal(values, four[name])


def test_a_hundred_thousand_candidates_without_enough_of_a_kind():
    """Sizes of a real image: 3 positives among 100,000 anchors, most of them outside."""
    status = np.full(100_000, -1)
    status[[7, 50_000, 99_999]] = 1
    status[1000:1200] = 0
    drawn = tiny.jit(lambda s: sampling.sample(jax.random.key(0), s, 256, 0.5))(status)
    assert set(drawn.index[:3].tolist()) == {7, 50_000, 99_999}
    assert set(drawn.index[3:203].tolist()) == set(range(1000, 1200))
    assert drawn.valid.sum() == 203 and drawn.positive.sum() == 3


def test_no_candidates_give_no_slots_and_bad_arguments_raise():
    drawn = sampling.sample(jax.random.key(0), jnp.zeros(0, int), 256, 0.5)
    assert all(values.shape == (0,) for values in drawn)
    key, status = jax.random.key(0), jnp.zeros(3, int)
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        sampling.sample(key, status[None], 4, 0.5)
    with pytest.raises(ValueError, match="not 0"):
        sampling.sample(key, status, 0, 0.5)
    with pytest.raises(ValueError, match="not 1.5"):
        sampling.sample(key, status, 4, 1.5)
