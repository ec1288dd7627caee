"""VFNet, built tiny: the losses against plain loops, both assignments, detections."""

import dense_maps
import jax
import numpy as np
import pytest
import tiny

from detlab import types
from detlab.detectors import vfnet

TINY = tiny.TINY["vfnet"].fields
CANVAS = (64, 96)
FORMS = {"atss": dict(use_atss=True), "ranges": dict(use_atss=False)}


def made_up(images=3, seed=0):
    """Outputs with random scores and distances of about 16 px."""
    logits = dense_maps.random(CANVAS, images, 3, seed)
    init, refine = (
        tuple(16 * np.exp(x) for x in dense_maps.random(CANVAS, images, 4, seed + i, scale=0.7))
        for i in (1, 2)
    )
    return vfnet.Outputs((), logits, init, refine)


def boxes_of(distances, points):
    """Maps of distances -> boxes [B, N, 4], px."""
    left, top, right, bottom = np.moveaxis(dense_maps.flatten(distances), -1, 0)
    x, y = points[:, 0], points[:, 1]
    return np.stack([x - left, y - top, x + right, y + bottom], -1)


def slow_loss(batch, outputs, targets, points):
    """The three terms, one point after another, in float64."""
    scores = 1 / (1 + np.exp(-dense_maps.flatten(outputs.cls_logits)))
    rounds = {"init": outputs.init_distances, "refine": outputs.refine_distances}
    rounds = {name: boxes_of(distances, points) for name, distances in rounds.items()}
    cls, total, weights = 0.0, dict.fromkeys(rounds, 0.0), dict.fromkeys(rounds, 0.0)
    for i, status in enumerate(targets.status):
        for n in np.flatnonzero(status >= 0):
            quality = np.zeros(3)
            if status[n] == 1:
                slot = targets.matched[i, n]
                for name, boxes in rounds.items():
                    iou, giou = dense_maps.overlaps(boxes[i, n], batch.boxes[i, slot])
                    iou = max(iou, 1e-6)
                    total[name] += iou * (1 - giou)
                    weights[name] += iou
                quality[batch.labels[i, slot]] = iou
            s = scores[i, n]
            scale = np.where(quality > 0, quality, 0.75 * s**2)
            cls -= (scale * (quality * np.log(s) + (1 - quality) * np.log(1 - s))).sum()
    positives = (targets.status == 1).sum()
    return {
        "loss/cls": cls / max(positives, 1),
        "loss/init": 1.5 * total["init"] / max(weights["init"], 1),
        "loss/refine": 2.0 * total["refine"] / max(weights["refine"], 1),
    }


@pytest.fixture(scope="module")
def targets_and_loss():
    """Form -> compiled (batch, outputs) -> (targets, loss, metrics, gradients of the terms)."""

    def of_form(fields):
        module = vfnet.VFNet(**TINY, **fields)

        def terms(outputs, batch):
            _, metrics = module.loss(batch, outputs)
            return {name: x for name, x in metrics.items() if name.startswith("loss/")}

        @tiny.jit
        def run(batch, outputs):
            slopes = jax.jacrev(terms)(outputs, batch)
            return module.targets(batch, outputs)["main"], *module.loss(batch, outputs), slopes

        return lambda *given: jax.device_get(run(*given))

    return {form: of_form(fields) for form, fields in FORMS.items()}


@pytest.mark.parametrize("form", FORMS)
def test_losses_equal_plain_loops(targets_and_loss, form):
    batch = tiny.make_batch(CANVAS, objects=(3, 0, 4))
    batch = batch._replace(image_size=np.int32([CANVAS, CANVAS, (50, 70)]))
    outputs, points = made_up(), dense_maps.points(CANVAS, 0.0 if form == "atss" else 0.5)
    targets, value, metrics, _ = targets_and_loss[form](batch, outputs)
    positives = (targets.status == 1).sum(1)
    assert positives[0] > 0 and positives[1] == 0 and positives[2] > 0
    assert metrics["normaliser"] == positives.sum()
    center = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2
    np.testing.assert_array_equal(center, np.broadcast_to(points[:, :2], center.shape))
    for i, n in np.argwhere(targets.status == 1):
        left, top, right, bottom = targets.values["distances"][i, n]
        x, y = points[n, :2]
        box = [x - left, y - top, x + right, y + bottom]
        np.testing.assert_allclose(box, batch.boxes[i, targets.matched[i, n]], atol=1e-4)
    terms = slow_loss(batch, outputs, targets, points)
    for name, term in terms.items():
        np.testing.assert_allclose(metrics[name], term, rtol=1e-4, err_msg=name)
        assert term > 0
    np.testing.assert_allclose(value, sum(terms.values()), rtol=1e-4)


def test_the_two_assignments_differ(targets_and_loss):
    batch = tiny.make_batch(CANVAS, objects=(3, 0, 4))
    status = [run(batch, made_up())[0].status for run in targets_and_loss.values()]
    assert (status[0] != status[1]).any()


@pytest.mark.parametrize("form", FORMS)
def test_no_loss_teaches_through_the_weights_and_qualities_of_another(targets_and_loss, form):
    batch = tiny.make_batch(CANVAS, objects=(3, 0, 4))
    *_, slopes = targets_and_loss[form](batch, made_up())
    owners = {
        "loss/cls": "cls_logits",
        "loss/init": "init_distances",
        "loss/refine": "refine_distances",
    }
    for name, gradient in slopes.items():
        for map_name in owners.values():
            reached = any(np.any(x) for x in getattr(gradient, map_name))
            assert reached == (map_name == owners[name]), (name, map_name)


@pytest.mark.parametrize("form", FORMS)
def test_without_objects_the_loss_is_of_background_alone(targets_and_loss, form):
    batch = tiny.make_batch(CANVAS, objects=(0, 0, 0))
    _, value, metrics, slopes = targets_and_loss[form](batch, made_up())
    assert metrics["loss/init"] == metrics["loss/refine"] == 0
    assert value == metrics["loss/cls"] > 0 and metrics["normaliser"] == 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))


def test_a_positive_without_overlap_is_no_negative(targets_and_loss):
    """Its quality is 1e-6, so a sure score there costs next to nothing."""
    batch = tiny.make_batch(CANVAS, objects=(1, 0, 0))
    outputs = made_up()
    nothing = tuple(np.zeros_like(x) for x in outputs.refine_distances)
    outputs = outputs._replace(refine_distances=nothing)
    targets, _, before, _ = targets_and_loss["atss"](batch, outputs)
    image, point = np.argwhere(targets.status == 1)[0]
    label = batch.labels[image, targets.matched[image, point]]
    level = targets.level[image, point]
    first = np.flatnonzero(targets.level[image] == level)[0]
    logits = [x.copy() for x in outputs.cls_logits]
    logits[level].reshape(3, -1, 3)[image, point - first, label] = 9.0
    *_, after, _ = targets_and_loss["atss"](batch, outputs._replace(cls_logits=tuple(logits)))
    np.testing.assert_allclose(after["loss/cls"], before["loss/cls"], rtol=1e-4)


def test_distances_that_overflow_away_from_objects_leave_gradients_finite(targets_and_loss):
    batch, outputs = tiny.make_batch(CANVAS, objects=(0, 0, 0)), made_up()
    huge = tuple(np.full_like(x, np.inf) for x in outputs.init_distances)
    outputs = outputs._replace(init_distances=huge, refine_distances=huge)
    _, value, _, slopes = targets_and_loss["atss"](batch, outputs)
    assert np.isfinite(value) and all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))


def test_without_atss_the_targets_are_the_recorded_ones_of_fcos(unit_cases):
    """No recorded case of VFNet has `use_atss` off; its targets are then FCOS's by definition."""
    case, arrays = unit_cases("targets")["fcos_plain"]
    strides, ranges = case["args"]["strides"], case["args"]["regress_ranges"]
    last = arrays["points_0"][-1] + strides[0] / 2
    width, height = map(int, last)
    boxes, labels = np.zeros((3, 12, 4), np.float32), np.zeros((3, 12), np.int32)
    counts = [len(arrays[f"gt_boxes_{i}"]) for i in range(3)]
    for i, count in enumerate(counts):
        boxes[i, :count], labels[i, :count] = arrays[f"gt_boxes_{i}"], arrays[f"gt_labels_{i}"]
    batch = tiny.make_batch((height, width), objects=(0, 0, 0))
    batch = batch._replace(boxes=boxes, valid=np.arange(12) < np.array(counts)[:, None])
    batch = batch._replace(labels=labels, ignore=np.zeros_like(batch.valid))
    limits = tuple(float(low) for low, _ in ranges[1:])
    module = vfnet.VFNet(**TINY | dict(strides=tuple(strides), level_limits=limits, use_atss=False))
    found: types.Targets = jax.device_get(tiny.jit(module.targets)(batch, None)["main"])
    for level in range(len(strides)):
        here = found.level[0] == level
        positive = (found.status == 1)[:, here]
        label = np.take_along_axis(labels, found.matched, axis=1)[:, here]
        expected = arrays[f"labels_{level}"].reshape(3, -1)
        np.testing.assert_array_equal(np.where(positive, label, 5), expected)
        wanted = arrays[f"targets_{level}"].reshape(3, -1, 4)[positive]
        mine = found.values["distances"][:, here][positive]
        np.testing.assert_allclose(mine, wanted, **case["tolerance"])
        assert positive.any()


@pytest.mark.parametrize("form", FORMS)
def test_detections_are_boxes_of_the_second_round_clipped_to_the_content(form):
    outputs, sizes = made_up(images=2), np.int32([CANVAS, (40, 50)])
    module = vfnet.VFNet(**TINY, **FORMS[form], score_threshold=0.3)
    find = tiny.jit(lambda outputs, sizes: module.candidates(outputs, sizes, CANVAS))
    found = jax.device_get(find(outputs, sizes))
    scores = 1 / (1 + np.exp(-dense_maps.flatten(outputs.cls_logits)))
    points = dense_maps.points(CANVAS, 0.0 if form == "atss" else 0.5)
    boxes = boxes_of(outputs.refine_distances, points)
    corner = dense_maps.points(CANVAS)
    for i, (height, width) in enumerate(sizes):
        clipped = np.clip(boxes[i], 0, [width, height, width, height])
        usable = (corner[:, 0] < width) & (corner[:, 1] < height)
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
        (dict(level_limits=(64.0, 32.0)), "level_limits is .* it must be 4 rising numbers above 0"),
        (dict(level_limits=()), "level_limits is .* it must be 4 rising numbers above 0"),
        (dict(offset_gradient=2.0), "offset_gradient is 2.0; it must be from 0 to 1"),
        (dict(topk=0), "topk is 0; it must be at least 1"),
        (dict(anchor_scale=0.0), "anchor_scale is 0.0; it must be above 0"),
        (dict(varifocal_gamma=-1.0), "varifocal_gamma is -1.0; it must be at least 0"),
        (dict(init_weight=-1.0), "init_weight is -1.0; it must be at least 0"),
        (dict(strides=(8,), level_limits=()), "strides is .* at least 2 of them"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    vfnet.VFNet().check()
    with pytest.raises(ValueError, match=f"^{sentence}"):
        vfnet.VFNet(**fields).check()
