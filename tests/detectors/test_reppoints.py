"""RepPoints, built tiny: both rounds of targets, the losses, detections, and its forms.

Everything after the network is tested on made-up maps against plain loops in NumPy.  This also
covers the forms without a recorded case; tests/heads/test_reppoints.py does the same for the head.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import traverse_util

from detlab.detectors import reppoints

TINY = tiny.TINY["reppoints"].fields
GRID = dict(transform="minmax", use_grid_points=True)
PLAIN = {k: v for k, v in TINY.items() if k != "norm_groups"} | dict(norm="none")
KEY = jax.random.key(0)
STRIDES = (8, 16, 32, 64, 128)
CANVAS = (64, 96)
SEED = 0


def cells(canvas=CANVAS):
    """[(y, x, level)] of all points, px, in their order."""
    return [
        (i * stride, j * stride, level)
        for level, stride in enumerate(STRIDES)
        for i in range(-(-canvas[0] // stride))
        for j in range(-(-canvas[1] // stride))
    ]


def to_maps(values, canvas=CANVAS):
    """[B, N, D] -> maps [B, Hl, Wl, D] of each level."""
    shapes = [(-(-canvas[0] // s), -(-canvas[1] // s)) for s in STRIDES]
    ends = np.cumsum([0] + [h * w for h, w in shapes])
    return tuple(
        values[:, a:b].reshape(len(values), h, w, -1)
        for a, b, (h, w) in zip(ends, ends[1:], shapes)
    )


def made_up(batch, canvas=CANVAS, seed=SEED):
    """Outputs with boxes of every overlap with the objects: (Outputs, init, refine), px."""
    rng = np.random.default_rng(seed)
    points = np.array(cells(canvas), np.float32)
    stride = np.float32(STRIDES)[points[:, 2].astype(int)][:, None]
    around = np.tile(points[:, [1, 0]], 2)  # [N, 4]
    found = []
    for _ in ("init", "refine"):
        slot = rng.integers(0, batch.boxes.shape[1], (len(batch.boxes), len(points)))
        boxes = np.take_along_axis(batch.boxes, slot[..., None], 1)
        a, b = np.split(boxes + rng.normal(0, 5, boxes.shape), 2, axis=-1)
        corners = np.minimum(a, b), np.maximum(a, b) + 1
        found.append(np.concatenate(corners, -1).astype(np.float32))
    logits = rng.normal(-1, 1, (len(batch.boxes), len(points), 3)).astype(np.float32)
    maps = [to_maps((boxes - around) / stride, canvas) for boxes in found]
    outputs = reppoints.Outputs((), to_maps(logits, canvas), (), (), *maps)
    return outputs, *found


def iou(a, b):
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    overlap = max(width, 0) * max(height, 0)
    return overlap / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - overlap)


def slow_overlap(candidates, boxes, takes_part):
    """(status, matched): at least 0.5, below 0.4, and the best of each object."""
    ious = np.array([[iou(c, b) for b in boxes] for c in candidates]).reshape(len(candidates), -1)
    ious[~takes_part] = -1
    status, matched = np.zeros(len(candidates), int), np.zeros(len(candidates), int)
    if len(boxes):
        matched = ious.argmax(1)
        status = np.where(ious.max(1) >= 0.5, 1, np.where(ious.max(1) < 0.4, 0, -1))
        for slot, best in enumerate(ious.max(0)):
            claims = (ious[:, slot] == best) & (best > 0)
            status[claims], matched[claims] = 1, slot
    return np.where(takes_part, status, -1), matched


def slow_nearest(boxes, takes_part):
    """(status, matched): the point nearest to each centre on the level of sqrt(area) / 4."""
    points = np.array(cells())
    status, matched = np.zeros(len(points), int), np.zeros(len(points), int)
    nearest = np.full(len(points), np.inf)
    for slot, (x1, y1, x2, y2) in enumerate(boxes):
        level = int(np.clip(np.floor(np.log2(np.sqrt((x2 - x1) * (y2 - y1)) / 4)), 3, 7)) - 3
        y, x = points[:, 0] - (y1 + y2) / 2, points[:, 1] - (x1 + x2) / 2
        distance = np.hypot(y / (y2 - y1), x / (x2 - x1))
        distance[(points[:, 2] != level) | ~takes_part] = np.inf
        n = distance.argmin()
        if distance[n] < nearest[n]:
            nearest[n], status[n], matched[n] = distance[n], 1, slot
    return np.where(takes_part, status, -1), matched


def slow_loss(batch, outputs, init_boxes, refine_boxes, targets):
    """The three terms, one point after another, in float64."""
    logits = np.concatenate([x.reshape(len(x), -1, 3) for x in outputs.cls_logits], 1)
    cls, sums, counts = 0.0, {"init": 0.0, "refine": 0.0}, {"init": 0, "refine": 0}
    for i, per_image in enumerate(targets):
        for (name, (status, matched)), boxes in zip(per_image.items(), (init_boxes, refine_boxes)):
            counts[name] += max((status == 1).sum(), 1)
            for n in np.flatnonzero(status == 1):
                unit = 4 * STRIDES[cells()[n][2]]
                for d in np.abs(np.float64(boxes[i, n]) - batch.boxes[i, matched[n]]) / unit:
                    sums[name] += 0.5 * d * d / 0.11 if d < 0.11 else d - 0.055
        status, matched = per_image["refine"]
        for n in np.flatnonzero(status >= 0):
            for c, p in enumerate(1 / (1 + np.exp(-np.float64(logits[i, n])))):
                if status[n] == 1 and batch.labels[i, matched[n]] == c:
                    cls -= 0.25 * (1 - p) ** 2 * np.log(p)
                else:
                    cls -= 0.75 * p**2 * np.log(1 - p)
    return {
        "loss/cls": cls / counts["refine"],
        "loss/init": 0.5 * sums["init"] / counts["init"],
        "loss/refine": sums["refine"] / counts["refine"],
    }


def targets_and_loss(module, batch, maps):
    compute = tiny.jit(lambda *given: (module.targets(*given), *module.loss(*given)))
    return jax.device_get(compute(batch, maps))


@pytest.mark.parametrize("init_assigner", reppoints.INIT_ASSIGNERS)
def test_targets_and_losses_equal_plain_loops(init_assigner):
    batch = tiny.make_batch(CANVAS, objects=(3, 0, 4))
    batch = batch._replace(image_size=np.int32([CANVAS, CANVAS, (50, 70)]))
    outputs, init_boxes, refine_boxes = made_up(batch)
    module = reppoints.RepPoints(**TINY, init_assigner=init_assigner)
    targets, value, metrics = targets_and_loss(module, batch, outputs)
    points = np.array(cells())
    stride = np.array(STRIDES)[points[:, 2]]
    expected = []
    for i, (height, width) in enumerate(batch.image_size):
        boxes = batch.boxes[i][batch.valid[i]]
        takes_part = (points[:, 0] < height) & (points[:, 1] < width)
        x, y, half = points[:, 1], points[:, 0], 2 * stride
        squares = np.stack([x - half, y - half, x + half, y + half], -1).astype(np.float32)
        first = slow_nearest(boxes, takes_part)
        if init_assigner == "max_iou":
            first = slow_overlap(squares, boxes, takes_part)
        np.testing.assert_array_equal(targets["init"].boxes[i], squares)
        expected.append({"init": first, "refine": slow_overlap(init_boxes[i], boxes, takes_part)})
        for name, (status, matched) in expected[-1].items():
            np.testing.assert_array_equal(targets[name].status[i], status, err_msg=name)
            positive = status == 1
            np.testing.assert_array_equal(targets[name].matched[i][positive], matched[positive])
            wanted = targets[name].values["boxes"][i][positive]
            np.testing.assert_array_equal(wanted, batch.boxes[i][matched[positive]])
    np.testing.assert_allclose(targets["refine"].boxes, init_boxes, rtol=1e-5, atol=1e-4)
    assert all((targets[name].status == 1).any() for name in targets)
    refined = targets["refine"].status[0]  # of an image that fills the canvas
    assert (refined == -1).any() and (targets["refine"].status[1] <= 0).all()
    terms = slow_loss(batch, outputs, init_boxes, refine_boxes, expected)
    for name, term in terms.items():
        np.testing.assert_allclose(metrics[name], term, rtol=1e-4, err_msg=name)
        assert term > 0
    np.testing.assert_allclose(value, sum(terms.values()), rtol=1e-4)
    positives = [max((image["refine"][0] == 1).sum(), 1) for image in expected]
    assert metrics["normaliser"] == sum(positives)


def test_a_larger_canvas_around_the_content_changes_neither_targets_nor_loss():
    batch = tiny.make_batch(CANVAS, objects=(3, 0, 4))
    outputs, *_ = made_up(batch)
    module = reppoints.RepPoints(**TINY)
    targets, value, _ = targets_and_loss(module, batch, outputs)

    larger = (128, 160)
    images = np.zeros((3, *larger, 3), np.uint8)
    images[:, : CANVAS[0], : CANVAS[1]] = batch.images
    around, *_ = made_up(batch, larger, seed=1)
    for name in ("cls_logits", "init_boxes", "refine_boxes"):
        for wide, narrow in zip(getattr(around, name), getattr(outputs, name)):
            wide[:, : narrow.shape[1], : narrow.shape[2]] = narrow
    padded, padded_value, _ = targets_and_loss(module, batch._replace(images=images), around)
    for name in targets:
        for status in (-1, 0, 1):
            count = (targets[name].status == status).sum()
            more = 3 * (len(cells(larger)) - len(cells())) if status == -1 else 0
            assert (padded[name].status == status).sum() == count + more
    np.testing.assert_allclose(padded_value, value, rtol=1e-5)


def test_detections_are_boxes_of_the_second_round_clipped_to_the_content():
    batch = tiny.make_batch(CANVAS)
    outputs, _, refine_boxes = made_up(batch)
    module = reppoints.RepPoints(**TINY, score_threshold=0.3)
    sizes = np.int32([CANVAS, (40, 50)])
    find = tiny.jit(lambda maps, sizes: module.candidates(maps, sizes, CANVAS))
    found = jax.device_get(find(outputs, sizes))
    logits = np.concatenate([x.reshape(2, -1, 3) for x in outputs.cls_logits], 1)
    points = np.array(cells())
    for i, (height, width) in enumerate(sizes):
        clipped = np.clip(refine_boxes[i], 0, np.float32([width, height, width, height]))
        inside = (points[:, 0] < height) & (points[:, 1] < width)
        inside &= (clipped[:, 2:] > clipped[:, :2]).all(1)
        scores = 1 / (1 + np.exp(-logits[i]))
        pairs = np.argwhere((scores > 0.3) & inside[:, None])
        valid = found.valid[i]
        assert len(pairs) == valid.sum() > 0
        rows = np.column_stack([scores[tuple(pairs.T)], pairs[:, 1], clipped[pairs[:, 0]]])
        mine = np.column_stack([found.scores[i], found.labels[i], found.boxes[i]])[valid]
        order, my_order = (np.lexsort(x.round(4).T[::-1]) for x in (rows, mine))
        np.testing.assert_allclose(mine[my_order], rows[order], rtol=1e-4, atol=1e-3)


@pytest.fixture(scope="module")
def forms():
    """Name -> (shapes of all parameters by path, abstract outputs) on a canvas of 65 x 127."""

    def trace(**fields):
        module = reppoints.RepPoints(**fields)
        module.check()
        images = jax.ShapeDtypeStruct((2, 65, 127, 3), jnp.uint8)
        outputs, variables = jax.eval_shape(
            lambda x: module.init_with_output(KEY, x, False, method="maps"), images
        )
        flat = traverse_util.flatten_dict(variables["params"], sep="/")
        return {path: leaf.shape for path, leaf in flat.items()}, outputs

    return {"groups": trace(**TINY), "plain": trace(**PLAIN), "grid": trace(**TINY, **GRID)}


def test_raw_maps_have_one_cell_a_stride(forms):
    channels = dict(cls_logits=3, init_points=18, refine_points=18, init_boxes=4, refine_boxes=4)
    for form, (_, outputs) in forms.items():
        for level, stride in enumerate(STRIDES):
            for name, depth in channels.items():
                found = getattr(outputs, name)[level]
                assert found.shape == (2, -(-65 // stride), -(-127 // stride), depth), (form, name)
                assert found.dtype == jnp.float32


def test_the_forms_differ_in_their_norms_and_their_last_convolutions_alone(forms):
    groups, plain, grid = (shapes for shapes, _ in forms.values())
    convs = [f"neck/lateral{i}" for i in (3, 4, 5)] + [f"neck/output{i}" for i in range(3, 8)]
    convs += ["head/cls_conv0", "head/point_conv0"]
    assert plain.keys() - groups.keys() == {f"{conv}/conv/bias" for conv in convs}
    norms = {f"{conv}/norm/{leaf}" for conv in convs for leaf in ("scale", "bias")}
    assert groups.keys() - plain.keys() == norms
    assert groups.keys() - grid.keys() == {"head/moment_transfer"}
    for name in ("init_points", "refine_points"):
        assert groups[f"head/{name}/bias"] == (18,) and grid[f"head/{name}/bias"] == (4,)


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(norm="batch"), "norm is 'batch'; it must be group or none"),
        (dict(norm_groups=3), "norm_groups is 3; it must be a divisor of neck_width, 256, and "),
        (dict(num_points=8), "num_points is 8; it must be one of 9, 25, 49, 81"),
        (dict(transform="median"), "transform is 'median'; it must be one of moment, minmax, part"),
        (dict(use_grid_points=True), "transform is 'moment'; it must be minmax when use_grid_poi"),
        (dict(init_assigner="atss"), "init_assigner is 'atss'; it must be point or max_iou"),
        (dict(negative_iou=0.6), "negative_iou is 0.6; it must be from 0 to positive_iou"),
        (dict(points_per_object=0), "points_per_object is 0; it must be at least 1"),
        (dict(smooth_l1_beta=0.0), "smooth_l1_beta is 0.0; it must be above 0"),
        (dict(strides=(4, 8)), "strides is .* one for each level from P3 up"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    reppoints.RepPoints().check()
    with pytest.raises(ValueError, match=f"^{sentence}"):
        reppoints.RepPoints(**fields).check()
