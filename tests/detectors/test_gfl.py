"""GFL, built tiny: the losses against plain loops, which loss teaches what, detections."""

import dense_maps
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.detectors import gfl

TINY = tiny.TINY["gfl"].fields
CANVAS = (64, 96)
BINS = 17
POINTS = dense_maps.points(CANVAS)


def made_up(images=3, seed=0):
    """Outputs with random scores and distributions."""
    logits = dense_maps.random(CANVAS, images, 3, seed)
    return gfl.Outputs((), logits, dense_maps.random(CANVAS, images, 4 * BINS, seed + 1, scale=2.0))


def boxes_of(outputs):
    """The boxes [B, N, 4], px, and the probabilities [B, N, 4, K]."""
    logits = dense_maps.flatten(outputs.distance_logits)
    logits = logits.reshape(*logits.shape[:2], 4, BINS)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    distances = (p @ np.arange(BINS)) * POINTS[:, 2:]
    x, y = POINTS[:, 0], POINTS[:, 1]
    left, top, right, bottom = np.moveaxis(distances, -1, 0)
    return np.stack([x - left, y - top, x + right, y + bottom], -1), p


def slow_loss(batch, outputs, targets):
    """The three terms, one point after another, in float64."""
    scores = 1 / (1 + np.exp(-dense_maps.flatten(outputs.cls_logits)))
    boxes, p = boxes_of(outputs)
    cls, box, spread, total, count = 0.0, 0.0, 0.0, 0.0, 0
    for i, status in enumerate(targets.status):
        count += max((status == 1).sum(), 1)
        for n in np.flatnonzero(status >= 0):
            quality = np.zeros(3)
            if status[n] == 1:
                slot = targets.matched[i, n]
                wanted = batch.boxes[i, slot]
                iou, giou = dense_maps.overlaps(boxes[i, n], wanted)
                quality[batch.labels[i, slot]] = iou
                weight = scores[i, n].max()
                total += weight
                box += weight * (1 - giou)
                x, y, stride = POINTS[n]
                sides = [x - wanted[0], y - wanted[1], wanted[2] - x, wanted[3] - y]
                for side, distance in enumerate(sides):
                    distance = np.clip(distance / stride, 0, 15.9)
                    low = int(distance)
                    near, far = -np.log(p[i, n, side, low : low + 2])
                    spread += weight * ((low + 1 - distance) * near + (distance - low) * far) / 4
            s = scores[i, n]
            losses = quality * np.log(s) + (1 - quality) * np.log(1 - s)
            cls -= ((quality - s) ** 2 * losses).sum()
    total = max(total, 1)
    return {
        "loss/cls": cls / count,
        "loss/box": 2.0 * box / total,
        "loss/distribution": 0.25 * spread / total,
    }


@tiny.jit
def targets_and_loss(batch, outputs):
    module = gfl.GFL(**TINY)
    return module.targets(batch, outputs)["main"], *module.loss(batch, outputs)


def test_losses_equal_plain_loops():
    batch = tiny.make_batch(CANVAS, objects=(3, 0, 4))
    batch = batch._replace(image_size=np.int32([CANVAS, CANVAS, (50, 70)]))
    outputs = made_up()
    targets, value, metrics = jax.device_get(targets_and_loss(batch, outputs))
    positives = (targets.status == 1).sum(1)
    assert positives[0] > 0 and positives[1] == 0 and positives[2] > 0
    terms = slow_loss(batch, outputs, targets)
    for name, term in terms.items():
        np.testing.assert_allclose(metrics[name], term, rtol=1e-4, err_msg=name)
        assert term > 0
    np.testing.assert_allclose(value, sum(terms.values()), rtol=1e-4)
    assert metrics["normaliser"] == np.maximum(positives, 1).sum()


def test_targets_are_the_boxes_of_objects_at_points_in_the_corners_of_cells():
    batch = tiny.make_batch(CANVAS, objects=(3, 0, 4))
    targets, *_ = jax.device_get(targets_and_loss(batch, made_up()))
    center = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2
    np.testing.assert_array_equal(center, np.broadcast_to(POINTS[:, :2], center.shape))
    side = targets.boxes[..., 2:] - targets.boxes[..., :2]
    np.testing.assert_array_equal(side, np.broadcast_to(3 * POINTS[:, 2:], side.shape))
    positive = targets.status == 1
    wanted = np.take_along_axis(batch.boxes, targets.matched[..., None], axis=1)
    np.testing.assert_array_equal(
        targets.values["gt_boxes"], np.where(positive[..., None], wanted, 0)
    )


@pytest.fixture(scope="module")
def slopes():
    """Term -> its gradient with respect to the maps, of a batch and of one without objects."""

    @tiny.jit
    def find(batch, outputs):
        def terms(outputs):
            _, metrics = gfl.GFL(**TINY).loss(batch, outputs)
            return {name: x for name, x in metrics.items() if name.startswith("loss/")}

        return jax.jacrev(terms)(outputs), terms(outputs)

    return find


def test_no_loss_teaches_through_the_weights_and_qualities_of_another(slopes):
    found, _ = slopes(tiny.make_batch(CANVAS, objects=(3, 0, 4)), made_up())
    for name, gradient in found.items():
        reached = {
            map_name: any(np.any(x) for x in getattr(gradient, map_name))
            for map_name in ("cls_logits", "distance_logits")
        }
        of_classes = name == "loss/cls"
        assert reached == {"cls_logits": of_classes, "distance_logits": not of_classes}


def test_without_objects_nothing_is_divided_by_zero(slopes):
    found, terms = slopes(tiny.make_batch(CANVAS, objects=(0, 0, 0)), made_up())
    assert terms["loss/box"] == terms["loss/distribution"] == 0 < terms["loss/cls"]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


def test_the_weights_of_few_bad_positives_are_not_scaled_up(slopes):
    """Their sum, below 1, is not the divisor: the losses shrink with the scores."""
    batch, outputs = tiny.make_batch(CANVAS, objects=(1, 0, 0)), made_up()

    def terms(bias):
        logits = tuple(jnp.full_like(x, bias) for x in outputs.cls_logits)
        return slopes(batch, outputs._replace(cls_logits=logits))[1]

    low, lower = terms(-7.0), terms(-9.0)
    for name in ("loss/box", "loss/distribution"):
        np.testing.assert_allclose(lower[name] / low[name], np.exp(-2), rtol=2e-3)


def test_a_side_beyond_the_distribution_is_clipped_for_the_distribution_loss_alone(slopes):
    batch, outputs = tiny.make_batch(CANVAS, objects=(1, 0, 0)), made_up()

    def terms(right):
        box = np.float32([-100, -100, right, 3000])
        return slopes(batch._replace(boxes=batch.boxes * 0 + box), outputs)[1]

    far, farther = terms(3000.0), terms(4000.0)  # 16 strides of the last level are 2048 px
    assert far["loss/distribution"] == farther["loss/distribution"] > 0
    assert far["loss/box"] != farther["loss/box"]


def test_detections_are_the_means_of_the_distributions_clipped_to_the_content():
    outputs, sizes = made_up(images=2), np.int32([CANVAS, (40, 50)])
    module = gfl.GFL(**TINY, score_threshold=0.3)
    find = tiny.jit(lambda outputs, sizes: module.candidates(outputs, sizes, CANVAS))
    found = jax.device_get(find(outputs, sizes))
    scores = 1 / (1 + np.exp(-dense_maps.flatten(outputs.cls_logits)))
    boxes, _ = boxes_of(outputs)
    for i, (height, width) in enumerate(sizes):
        clipped = np.clip(boxes[i], 0, [width, height, width, height])
        usable = (POINTS[:, 0] < width) & (POINTS[:, 1] < height)
        usable &= (clipped[:, 2:] > clipped[:, :2]).all(1)
        point, label = np.nonzero((scores[i] > 0.3) & usable[:, None])
        expected = np.column_stack([scores[i][point, label], label, clipped[point]])
        mine = np.column_stack([found.scores[i], found.labels[i], found.boxes[i]])[found.valid[i]]
        assert len(mine) == len(expected) > 0
        expected, mine = (x[np.argsort(x[:, 0])] for x in (expected, mine))
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(norm_groups=3), "norm_groups is 3; it must be a divisor of head_width, 256"),
        (dict(max_distance=0), "max_distance is 0; it must be at least 1"),
        (dict(topk=0), "topk is 0; it must be at least 1"),
        (dict(quality_beta=0.5), "quality_beta is 0.5; it must be at least 1"),
        (dict(anchor_scale=0.0), "anchor_scale is 0.0; it must be above 0"),
        (dict(distribution_weight=-1.0), "distribution_weight is -1.0; it must be at least 0"),
        (dict(strides=(4, 8)), "strides is .* one for each level from P3 up"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    gfl.GFL().check()
    with pytest.raises(ValueError, match=f"^{sentence}"):
        gfl.GFL(**fields).check()
