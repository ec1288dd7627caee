"""Boxes from pairs of corners: the rules, the slots and the reference's two decoders."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detlab.ops import corner_groups, heatmaps, soft_nms

SEED = 0
pair_corners = jax.jit(corner_groups.pair_corners, static_argnums=3)
tags_agree = jax.jit(corner_groups.tags_agree)
centers_agree = jax.jit(corner_groups.centers_agree)


def corners(points, labels, scores, valid=None):
    count = len(points)
    return corner_groups.Corners(
        cells=np.zeros(count, np.int32),
        points=np.asarray(points, np.float32).reshape(count, 2),
        labels=np.asarray(labels, np.int32),
        scores=np.asarray(scores, np.float32),
        valid=np.ones(count, bool) if valid is None else valid,
    )


def random_corners(seed, count=15):
    rng = np.random.default_rng(seed)
    return corners(
        rng.uniform(0, 100, (count, 2)),
        rng.integers(0, 2, count),
        np.sort(rng.uniform(0, 1, count))[::-1],
        rng.uniform(size=count) < 0.8,
    )


def slow_pairs(low, high, agree):
    """(box, score, label) of each pair that is a box, best first."""
    found = []
    for i in range(len(low.scores)):
        for j in range(len(high.scores)):
            (x1, y1), (x2, y2) = low.points[i], high.points[j]
            if low.valid[i] and high.valid[j] and agree[i, j] and x2 > x1 and y2 > y1:
                if low.labels[i] == high.labels[j]:
                    score = (low.scores[i] + high.scores[j]) / 2
                    found.append(([x1, y1, x2, y2], score, low.labels[i]))
    return sorted(found, key=lambda pair: -pair[1])


def reference_case(shared_dir, name):
    folder = shared_dir / "parity"
    case = json.loads((folder / f"{name}.json").read_text())
    with np.load(folder / f"{name}.npz") as arrays:
        return case, {k: v for k, v in arrays.items() if k.endswith("_1") or k.startswith("det_")}


# The second image of CentripetalNet's case has 278 bottom right peaks for 300 slots.  The reference
# fills the rest with other cells at score 0, in the order in which torch.topk returned its ties
# (recorded: label * 1024 + cell).  Three of its 56 boxes come from these cells.
FILLED = (3474, 3477, 3475, 3473, 3472, 3471, 3467, 3463, 3464, 3466, 3426)
FILLED += (3476, 3470, 3433, 3432, 3431, 3430, 3429, 3428, 3427, 3489, 3468)


@pytest.mark.parametrize("name", ["cornernet", "centripetalnet"])
def test_whole_decoder_equals_the_reference(shared_dir, name):
    """From the recorded raw maps of the last stack to the recorded detections."""
    case, arrays = reference_case(shared_dir, f"{name}_hourglass104")
    settings = case["test_cfg"]
    cell_size = 4.0  # 128 px on 32 cells

    @jax.jit
    @jax.vmap
    def decode(maps, filled):
        def find(kind):
            found = corner_groups.find_corners(
                jax.nn.sigmoid(maps[f"{kind}_heat_1"]),
                maps[f"{kind}_off_1"],
                settings["corner_topk"],
                cell_size,
                settings["local_maximum_kernel"],
            )
            if kind == "br":
                labels, cells = jnp.divmod(filled, 1024)
                points = jnp.stack([cells % 32, cells // 32], axis=-1)
                points += heatmaps.take_cells(maps["br_off_1"], cells)
                there = found.valid | (filled >= 0)
                filler = (cells, cell_size * points, labels, jnp.zeros(len(cells)), there)
                found = jax.tree.map(
                    lambda a, b: jnp.where(found.valid.reshape(-1, *(1,) * (a.ndim - 1)), a, b),
                    found,
                    corner_groups.Corners(*filler),
                )
            inside = found._replace(points=jnp.maximum(found.points, 0))
            if name == "cornernet":
                return inside, heatmaps.take_cells(maps[f"{kind}_emb_1"], found.cells)[:, 0]
            shift = heatmaps.take_cells(maps[f"{kind}_centripetal_shift_1"], found.cells)
            shift = (1 if kind == "tl" else -1) * jnp.exp(shift) * cell_size
            return inside, (inside.points, jnp.maximum(found.points + shift, 0))

        (low, low_clue), (high, high_clue) = find("tl"), find("br")
        rule = corner_groups.tags_agree if name == "cornernet" else corner_groups.centers_agree
        agree = rule(low_clue, high_clue, settings["distance_threshold"])
        boxes, scores, labels, valid = corner_groups.pair_corners(low, high, agree, 1000)
        return soft_nms.suppress(
            boxes, scores, labels, valid, 100, method="gaussian", iou_threshold=0.5
        )

    maps = {k: np.moveaxis(v, 1, -1) for k, v in arrays.items() if k[:3] in ("tl_", "br_")}
    filled = np.full((2, settings["corner_topk"]), -1)
    if name == "centripetalnet":
        filled[1, -len(FILLED) :] = FILLED
    boxes, scores, labels, valid = decode(maps, filled)
    for i in range(2):
        # parity/README.md allows 0.1 px and 1e-4; float32 comes much closer.
        np.testing.assert_allclose(boxes[i][valid[i]], arrays[f"det_boxes_{i}"], atol=1e-3)
        np.testing.assert_allclose(scores[i][valid[i]], arrays[f"det_scores_{i}"], atol=1e-5)
        np.testing.assert_array_equal(labels[i][valid[i]], arrays[f"det_labels_{i}"])


def test_two_objects_by_hand():
    low = corners([[10, 10], [12, 11]], [0, 0], [0.9, 0.6])
    high = corners([[30, 20], [40, 50]], [0, 0], [0.8, 0.7])
    agree = tags_agree(np.float32([1, 3]), np.float32([3.2, 0.7]), 0.5)
    np.testing.assert_array_equal(agree, [[False, True], [True, False]])
    boxes, scores, labels, valid = pair_corners(low, high, agree, 3)
    np.testing.assert_array_equal(boxes, [[10, 10, 40, 50], [12, 11, 30, 20], [0, 0, 0, 0]])
    np.testing.assert_allclose(scores, [0.8, 0.7, 0])
    np.testing.assert_array_equal(labels, 0)
    np.testing.assert_array_equal(valid, [True, True, False])


@pytest.mark.parametrize("max_boxes", [10, 300])
def test_random_corners_equal_a_loop_over_pairs(max_boxes):
    """225 pairs: once fewer slots than boxes, once more slots than pairs."""
    for seed in range(5):
        low, high = random_corners([SEED, seed, 0]), random_corners([SEED, seed, 1])
        agree = np.random.default_rng(seed).uniform(size=(15, 15)) < 0.7
        boxes, scores, labels, valid = pair_corners(low, high, agree, max_boxes)
        expected = slow_pairs(low, high, agree)[:max_boxes]
        np.testing.assert_array_equal(valid, np.arange(max_boxes) < len(expected))
        np.testing.assert_array_equal(boxes[valid], [box for box, _, _ in expected])
        np.testing.assert_allclose(scores[valid], [score for _, score, _ in expected], rtol=1e-6)
        np.testing.assert_array_equal(labels[valid], [label for _, _, label in expected])
        assert not boxes[~valid].any() and not scores[~valid].any() and not labels[~valid].any()


def test_corners_of_other_classes_on_wrong_sides_or_invalid_make_no_box():
    agree = np.ones((1, 1), bool)
    low = corners([[10, 10]], [1], [0.5])
    for points, label, ok in (
        ([20, 20], 1, True),
        ([20, 20], 0, False),
        ([10, 20], 1, False),  # no width
        ([20, 9], 1, False),
        ([5, 5], 1, False),
    ):
        assert pair_corners(low, corners([points], [label], [0.5]), agree, 1)[3].item() == ok
    hidden = low._replace(valid=np.array([False]))
    assert not pair_corners(hidden, corners([[20, 20]], [1], [0.5]), agree, 1)[3]


def test_padding_changes_no_box():
    low, high = random_corners([SEED, 9, 0]), random_corners([SEED, 9, 1])
    agree = np.ones((15, 15), bool)
    expected = pair_corners(low, high, agree, 10)
    padded = [
        corner_groups.Corners(
            *(np.pad(v, [(0, 5)] + [(0, 0)] * (v.ndim - 1), mode="edge") for v in side[:-1]),
            valid=np.pad(side.valid, (0, 5)),
        )
        for side in (low, high)
    ]
    for got, want in zip(pair_corners(*padded, np.ones((20, 20), bool), 10), expected):
        np.testing.assert_array_equal(got, want)


def slow_centers_agree(low, low_centers, high, high_centers, threshold):
    agree = np.zeros((len(low), len(high)), bool)
    for i, j in np.ndindex(agree.shape):
        width, height = high[j] - low[i]
        share = 1 / 2.1 if abs(width * height) > 3500 else 1 / 2.4
        cx, cy = (low[i] + high[j]) / 2
        half_width, half_height = share * width / 2, share * height / 2
        centers = np.stack([low_centers[i], high_centers[j]])
        inside = (abs(centers[:, 0] - cx) < half_width) & (abs(centers[:, 1] - cy) < half_height)
        between = abs(np.prod(high_centers[j] - low_centers[i]))
        agree[i, j] = inside.all() and between <= threshold * 4 * half_width * half_height
    return agree


def test_random_centers_equal_a_loop_over_pairs():
    """Boxes above and below the large area; some centres lie near the middle of their box."""
    rng = np.random.default_rng(SEED)
    low, high = rng.uniform(0, 60, (2, 40, 2))
    high += rng.uniform(0, 60, (40, 1))
    low_centers, high_centers = (
        low + rng.uniform(5, 40, low.shape),
        high - rng.uniform(5, 40, (40, 2)),
    )
    points = [np.float32(v) for v in (low, low_centers, high, high_centers)]
    agree = centers_agree(tuple(points[:2]), tuple(points[2:]), 0.5)
    np.testing.assert_array_equal(agree, slow_centers_agree(*points, 0.5))
    assert 30 < agree.sum() < 800  # of 1600


def test_corners_that_point_to_the_middle_agree_and_a_box_without_area_never_does():
    low, high = np.float32([[10, 10]]), np.float32([[50, 30]])
    middle = (low + high) / 2
    assert centers_agree((low, middle), (high, middle), 0.0)
    assert not centers_agree((low, middle), (high, middle + [10, 0]), 0.5)  # outside, 8.3 allowed
    # The centres span 6 x 4 px of a central region of 16.7 x 8.3 px: a ratio of 0.173.
    pair = (low, middle - [3, 2]), (high, middle + [3, 2])
    assert centers_agree(*pair, 0.18) and not centers_agree(*pair, 0.17)
    assert not centers_agree((low, low), (low, low), 0.5)


def test_corners_lie_in_their_cells_by_the_offsets():
    heat, offsets = np.zeros((4, 6, 2), np.float32), np.zeros((4, 6, 2), np.float32)
    heat[1, 2, 0], heat[3, 5, 1] = 0.9, 0.8
    offsets[1, 2], offsets[3, 5] = [0.25, 0.5], [0.5, 0.75]
    find = jax.jit(functools.partial(corner_groups.find_corners, max_corners=2))
    found = find(heat, offsets, cell_size=np.float32([4, 3]))
    np.testing.assert_array_equal(found.points, [[9, 4.5], [22, 11.25]])
    np.testing.assert_array_equal(found.cells, [8, 23])
    np.testing.assert_array_equal(found.labels, [0, 1])
    np.testing.assert_array_equal(found.points, 4 * find(heat, offsets, cell_size=(1, 0.75)).points)


def test_no_corners_make_empty_slots_and_bad_arguments_raise():
    none = corners([], [], [])
    boxes, _, _, valid = pair_corners(none, none, np.zeros((0, 0), bool), 4)
    np.testing.assert_array_equal(boxes, np.zeros((4, 4)))
    assert not valid.any()
    with pytest.raises(ValueError, match="not 0"):
        corner_groups.pair_corners(none, none, np.zeros((0, 0), bool), 0)
