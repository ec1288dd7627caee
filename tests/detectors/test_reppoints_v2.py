"""RepPoints V2, built tiny: targets, losses and joint inference on made-up maps.

Verification targets, the head and the moves of corners have tests of their own.
"""

import jax
import numpy as np
import pytest
import tiny

from detlab.detectors import reppoints_v2
from detlab.ops import anchors as anchors_lib

TINY = tiny.TINY["reppoints_v2"].fields
STRIDES = (8, 16, 32, 64, 128)
CANVAS = (64, 96)
GRID = anchors_lib.grid(CANVAS, STRIDES)
POINTS, LEVEL = np.asarray(GRID.points()), np.asarray(GRID.level())
STRIDE = np.float32(STRIDES)[LEVEL][:, None]
KINDS = ("top_left", "bottom_right")


def to_maps(values):
    """[B, N, D] -> maps [B, Hl, Wl, D] of each level."""
    return tuple(
        values[:, part].reshape(len(values), *shape, -1)
        for part, shape in zip(GRID.slices(), GRID.shapes, strict=True)
    )


def flat(maps):
    return np.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in maps], 1)


def made_up(batch, seed=0):
    """Outputs with boxes near the objects, some with swapped corners: (Outputs, {round: boxes})."""
    rng = np.random.default_rng(seed)
    count, boxes, points = len(batch.boxes), {}, {}
    for name in ("init", "refine"):
        slot = rng.integers(0, batch.boxes.shape[1], (count, len(POINTS)))
        near = np.take_along_axis(batch.boxes, slot[..., None], 1)
        boxes[name] = np.float32(near + rng.normal(0, 6, near.shape))
        relative = (boxes[name] - np.tile(POINTS, 2)) / STRIDE
        others = rng.normal(0, 1, (count, len(POINTS), 14))  # the other seven points
        points[name] = np.float32(np.concatenate([relative[..., [1, 0, 3, 2]], others], -1))

    def random(depth, mean):
        return to_maps(rng.normal(mean, 1, (count, len(POINTS), depth)).astype(np.float32))

    logits, corner_logits, offsets, semantic = (
        random(*x) for x in ((3, -1), (2, -2), (4, 0), (3, -1))
    )
    rounds = (to_maps(points[name]) for name in ("init", "refine"))
    return reppoints_v2.Outputs((), logits, *rounds, corner_logits, offsets, semantic), boxes


def batch_with_padding():
    batch = tiny.make_batch(CANVAS, objects=(3, 0, 4))
    return batch._replace(image_size=np.int32([CANVAS, CANVAS, (60, 90)]))


def targets_and_loss(module, batch, maps):
    compute = tiny.jit(lambda *given: (module.targets(*given), *module.loss(*given)))
    return jax.device_get(compute(batch, maps))


def sigmoid(x):
    return 1 / (1 + np.exp(-np.float64(x)))


def giou(a, b):
    """Of boxes whose corners may be swapped: their areas have a sign."""
    inter = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    union = max(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inter, 1e-6)
    around = np.prod(np.maximum(np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2]), 0))
    around = max(around, 1e-6)
    return inter / union - (around - union) / around


def slow_loss(batch, outputs, boxes, targets, by_giou):
    """The six terms, one point after another, in float64, from the targets."""
    logits, semantic, heat_logits, offsets = (
        flat(getattr(outputs, name))
        for name in ("cls_logits", "semantic_logits", "corner_logits", "corner_offsets")
    )
    sums = dict.fromkeys(("cls", "init", "refine", "heat", "offset", "positive", "negative"), 0.0)
    counts = {"init": 0, "refine": 0, **{kind: 0 for kind in KINDS}}
    found = {kind: [0.0, 0.0] for kind in KINDS}
    weights, cells = 0.0, 0
    values = targets["verification"].values

    def focal(p, positive):
        return -0.25 * (1 - p) ** 2 * np.log(p) if positive else -0.75 * p**2 * np.log(1 - p)

    for i in range(len(batch.boxes)):
        height, width = batch.image_size[i]
        inside = (POINTS[:, 1] < height) & (POINTS[:, 0] < width)
        for name in ("init", "refine"):
            status, matched = targets[name].status[i], targets[name].matched[i]
            counts[name] += max((status == 1).sum(), 1)
            for n in np.flatnonzero(status == 1):
                got, wanted = (
                    np.float64(x) / (4 * STRIDE[n])
                    for x in (boxes[name][i, n], batch.boxes[i, matched[n]])
                )
                if by_giou:
                    sums[name] += 1 - giou(got, wanted)
                    continue
                for d in np.abs(got - wanted):
                    sums[name] += 0.5 * d * d / 0.11 if d < 0.11 else d - 0.055
        for n in np.flatnonzero(inside):
            for c in range(3):
                own = status[n] == 1 and batch.labels[i, matched[n]] == c
                sums["cls"] += focal(sigmoid(logits[i, n, c]), own)
                weight = np.float64(values["foreground"][i, n, c])
                term = focal(sigmoid(semantic[i, n, c]), weight > 0)
                sums["positive" if weight > 0 else "negative"] += (weight or 1) * term
                weights, cells = weights + weight, cells + (weight > 0)
        for k, kind in enumerate(KINDS):
            heat, offset = values[f"{kind}_heat"][i], values[f"{kind}_offset"][i]
            counts[kind] += max((heat == 1).sum(), 1)
            for n in np.flatnonzero(inside):
                p = sigmoid(heat_logits[i, n, k])
                if heat[n] == 1:
                    found[kind][0] -= (1 - p) ** 2 * np.log(p)
                    for d in np.abs(offsets[i, n, 2 * k : 2 * k + 2] - offset[n]):
                        found[kind][1] += 4.5 * d * d if d < 1 / 9 else d - 1 / 18
                else:
                    found[kind][0] -= (1 - heat[n]) ** 4 * p**2 * np.log(1 - p)
    init_weight, refine_weight = (1.0, 2.0) if by_giou else (0.5, 1.0)
    return {
        "loss/cls": sums["cls"] / counts["refine"],
        "loss/init": init_weight * sums["init"] / counts["init"],
        "loss/refine": refine_weight * sums["refine"] / counts["refine"],
        "loss/heat": 0.25 * sum(found[kind][0] / counts[kind] for kind in KINDS) / 2,
        "loss/offset": sum(found[kind][1] / counts[kind] for kind in KINDS) / 2,
        "loss/semantic": 0.1 * (sums["positive"] / weights + sums["negative"] / cells),
    }


GIOU = dict(box_loss="giou", init_weight=1.0, refine_weight=2.0)


@pytest.mark.parametrize("form", [{}, GIOU], ids=["smooth_l1", "giou"])
def test_losses_equal_plain_loops(form):
    batch = batch_with_padding()
    outputs, boxes = made_up(batch)
    module = reppoints_v2.RepPointsV2(**TINY, **form)
    targets, value, metrics = targets_and_loss(module, batch, outputs)
    np.testing.assert_allclose(targets["refine"].boxes, boxes["init"], rtol=1e-5, atol=1e-4)
    for name in ("init", "refine"):
        status = targets[name].status
        assert (status == 1).any(1).tolist() == [True, False, True]
        outside = (POINTS[:, 1] >= 60) | (POINTS[:, 0] >= 90)
        assert ((status[2] == -1) == outside).all() and (status[:2] >= 0).all()
    swapped = (boxes["refine"][..., 2:] < boxes["refine"][..., :2]).any(-1)
    assert swapped.any()
    terms = slow_loss(batch, outputs, boxes, targets, bool(form))
    for name, term in terms.items():
        np.testing.assert_allclose(metrics[name], term, rtol=2e-4, err_msg=name)
        assert term > 0
    np.testing.assert_allclose(value, sum(terms.values()), rtol=1e-4)


def test_an_object_that_no_box_of_the_first_round_overlaps_takes_all_candidates_inside_it():
    """The corners of all boxes are swapped, so their overlaps and the threshold of ATSS are 0."""
    batch = tiny.make_batch(CANVAS, objects=(1, 1), slots=1)
    outputs, _ = made_up(batch)
    init = np.zeros((2, len(POINTS), 18), np.float32)
    init[..., :2], init[..., 2:4] = 0.25, -0.25  # strides
    module = reppoints_v2.RepPointsV2(**TINY)
    found = jax.device_get(
        tiny.jit(module.targets)(batch, outputs._replace(init_points=to_maps(init)))
    )["refine"]
    for i, (x1, y1, x2, y2) in enumerate(batch.boxes[:, 0]):
        distance = np.hypot(POINTS[:, 0] - (x1 + x2) / 2, POINTS[:, 1] - (y1 + y2) / 2)
        candidates = np.concatenate(
            [part.start + np.argsort(distance[part])[:9] for part in GRID.slices()]
        )
        x, y = POINTS[candidates].T
        inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
        assert sorted(np.flatnonzero(found.status[i] == 1)) == sorted(candidates[inside])


def slow_candidates(outputs, boxes, image, size, threshold):
    """Rows (score, label, box) of all pairs above the threshold, boxes refined."""
    height, width = size
    limits = np.float32([width, height, width, height])
    heat, offsets = outputs.corner_logits, outputs.corner_offsets
    rows = []
    for n, scores in enumerate(sigmoid(flat(outputs.cls_logits)[image])):
        if POINTS[n, 1] >= height or POINTS[n, 0] >= width:
            continue
        box = np.clip(boxes[image, n], 0, limits)
        if LEVEL[n] > 0:
            source = (LEVEL[n] - 1) // 2
            stride, moved = STRIDES[source], []
            for k in range(2):
                scores_k = sigmoid(heat[source][image, ..., k])
                last_row, last_column = scores_k.shape[0] - 2, scores_k.shape[1] - 2
                x, y = box[2 * k : 2 * k + 2]
                j, i = min(int(x // stride), last_column), min(int(y // stride), last_row)
                best = scores_k[i : i + 2, j : j + 2].argmax()
                i, j = i + best // 2, j + best % 2
                offset = offsets[source][image, i, j, 2 * k : 2 * k + 2]
                moved += [(j + offset[0]) * stride, (i + offset[1]) * stride]
            box = np.clip(moved, 0, limits)
        rows += [(score, label, *box) for label, score in enumerate(scores) if score > threshold]
    return np.array(rows)


@pytest.mark.parametrize("keep_swapped", [False, True])
def test_candidates_have_boxes_of_the_second_round_with_corners_at_peaks(keep_swapped):
    batch = tiny.make_batch(CANVAS)
    outputs, boxes = made_up(batch)
    module = reppoints_v2.RepPointsV2(**TINY, score_threshold=0.3, keep_swapped=keep_swapped)
    sizes = np.int32([CANVAS, (40, 50)])
    find = tiny.jit(lambda maps, sizes: module.candidates(maps, sizes, CANVAS))
    found = jax.device_get(find(outputs, sizes))
    for i, size in enumerate(sizes):
        rows = slow_candidates(outputs, boxes["refine"], i, size, 0.3)
        proper = (rows[:, 4:] > rows[:, 2:4]).all(1)
        assert not proper.all()
        rows = rows if keep_swapped else rows[proper]
        valid = found.valid[i]
        assert len(rows) == valid.sum() > 0
        mine = np.column_stack([found.scores[i], found.labels[i], found.boxes[i]])[valid]
        order, my_order = (np.lexsort(x.round(4).T[::-1]) for x in (rows, mine))
        np.testing.assert_allclose(mine[my_order], rows[order], rtol=1e-4, atol=1e-3)


def test_a_larger_canvas_around_the_content_changes_no_loss():
    """On canvases of multiples of 128 px; on others coarse cells stand for other cells of P3."""
    batch = tiny.make_batch((128, 128), objects=(3, 0, 4))
    module = reppoints_v2.RepPointsV2(**TINY)
    losses = []
    for canvas in ((128, 128), (128, 256)):
        images = np.zeros((3, *canvas, 3), np.uint8)
        rng, maps = np.random.default_rng(0), {}
        for name, depth in (
            ("cls_logits", 3),
            ("init_points", 18),
            ("refine_points", 18),
            ("corner_logits", 2),
            ("corner_offsets", 4),
            ("semantic_logits", 3),
        ):
            levels = []
            for stride in STRIDES:
                rows, columns = (-(-side // stride) for side in canvas)
                values = np.full((3, rows, columns, depth), 7, np.float32)
                content = 128 // stride
                values[:, :content, :content] = rng.normal(0, 1, (3, content, content, depth))
                levels.append(values)
            maps[name] = tuple(levels)
        given = batch._replace(images=images), reppoints_v2.Outputs(features=(), **maps)
        losses.append(tiny.jit(module.loss)(*given)[0])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(norm_groups=3), "norm_groups is 3; it must be a divisor of neck_width, head_width a"),
        (dict(pool_width=40), "norm_groups is 32; it must be a divisor of .*, 256, 256 and 40"),
        (dict(num_points=8), "num_points is 8; it must be one of 9, 25, 49, 81"),
        (dict(head_convs=0), "head_convs is 0; it must be at least 1"),
        (dict(shared_convs=0), "shared_convs is 0; it must be at least 1"),
        (dict(box_loss="l1"), "box_loss is 'l1'; it must be one of smooth_l1, giou"),
        (dict(min_overlap=1.0), "min_overlap is 1.0; it must be between 0 and 1"),
        (dict(offset_beta=0.0), "offset_beta is 0.0; it must be above 0"),
        (dict(topk=0), "topk is 0; it must be at least 1"),
        (dict(semantic_weight=-1.0), "semantic_weight is -1.0; it must be at least 0"),
        (dict(strides=(4, 8)), "strides is .* one for each level from P3 up"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    reppoints_v2.RepPointsV2().check()
    with pytest.raises(ValueError, match=f"^{sentence}"):
        reppoints_v2.RepPointsV2(**fields).check()
