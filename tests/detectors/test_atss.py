"""ATSS on made-up maps: anchors, targets, loss, detections; test_contract.py checks the rest."""

import dense_maps
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.assign import atss as assign_lib
from detlab.detectors import atss

TINY = tiny.TINY["atss"].fields
CANVAS = (64, 96)


def made_up(images=3, seed=0):
    """Outputs with random scores, deltas and centerness."""
    maps = (dense_maps.random(CANVAS, images, channels, seed) for channels in (3, 4, 1))
    return atss.Outputs((), *maps)


def everything(batch, outputs):
    """Targets, loss, metrics and the gradients of the maps."""
    module = atss.ATSS(**TINY)
    (value, metrics), grads = jax.value_and_grad(module.loss, argnums=1, has_aux=True)(
        batch, outputs
    )
    return module.targets(batch, outputs)["main"], value, metrics, grads


run = tiny.jit(everything)


def slow_loss(batch, outputs, targets):
    """The three terms, one anchor after another, in float64."""
    logits, deltas, middle = (dense_maps.flatten(x) for x in outputs[1:])
    scores, middle = 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(-middle[..., 0]))
    cls = box = centerness = total = count = 0.0
    for i, status in enumerate(targets.status):
        count += max((status == 1).sum(), 1)
        for n in np.flatnonzero(status >= 0):
            slot = targets.matched[i, n]
            for label, p in enumerate(scores[i, n]):
                if status[n] == 1 and label == batch.labels[i, slot]:
                    cls -= 0.25 * (1 - p) ** 2 * np.log(p)
                else:
                    cls -= 0.75 * p**2 * np.log(1 - p)
            if status[n] != 1:
                continue
            anchor, wanted = np.float64(targets.boxes[i, n]), np.float64(batch.boxes[i, slot])
            x, y = (anchor[:2] + anchor[2:]) / 2
            sides = np.array([x - wanted[0], y - wanted[1], wanted[2] - x, wanted[3] - y])
            weight = np.sqrt(
                min(sides[0], sides[2]) / max(sides[0], sides[2])
                * min(sides[1], sides[3]) / max(sides[1], sides[3])
            )  # fmt: skip
            pred = dense_maps.decoded(anchor, deltas[i, n])
            box += weight * (1 - dense_maps.overlaps(pred, wanted)[1])
            total += weight
            q = middle[i, n]
            centerness -= weight * np.log(q) + (1 - weight) * np.log(1 - q)
    return {
        "loss/cls": cls / count,
        "loss/box": 2.0 * box / total,
        "loss/centerness": centerness / count,
    }


def test_losses_equal_plain_loops():
    batch = tiny.make_batch(CANVAS, objects=(3, 0, 4))
    batch = batch._replace(image_size=np.int32([CANVAS, CANVAS, (50, 70)]))
    outputs = made_up()
    targets, value, metrics, grads = jax.device_get(run(batch, outputs))
    positives = (targets.status == 1).sum(1)
    assert positives[0] > 3 and positives[1] == 0 and positives[2] > 3
    terms = slow_loss(batch, outputs, targets)
    for name, term in terms.items():
        np.testing.assert_allclose(metrics[name], term, rtol=1e-4, err_msg=name)
        assert term > 0
    np.testing.assert_allclose(value, sum(terms.values()), rtol=1e-4)
    assert metrics["normaliser"] == np.maximum(positives, 1).sum()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    assert all(any(map(np.any, maps)) for maps in grads[1:])


def test_images_without_objects_train_on_background_alone():
    batch = tiny.make_batch(CANVAS, objects=(0, 0, 0))
    targets, value, metrics, grads = jax.device_get(run(batch, made_up()))
    assert not targets.status.any() and not targets.values["centerness"].any()
    assert metrics["loss/box"] == metrics["loss/centerness"] == metrics["positives"] == 0
    assert value == metrics["loss/cls"] > 0 and metrics["normaliser"] == 3
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    assert not any(np.any(x) for x in (*grads.box_deltas, *grads.centerness))


def test_targets_are_boxes_at_squares_on_the_corners_of_cells():
    batch = tiny.make_batch(CANVAS, objects=(3, 0, 4))
    targets = jax.device_get(run(batch, made_up()))[0]
    points = dense_maps.points(CANVAS)
    half = TINY["anchor_scale"] * points[:, 2:] / 2
    corners = np.concatenate([points[:, :2] - half, points[:, :2] + half], axis=1)
    np.testing.assert_array_equal(targets.boxes, np.broadcast_to(corners, targets.boxes.shape))
    wanted = np.take_along_axis(batch.boxes, targets.matched[..., None], axis=1)
    positive = (targets.status == 1)[..., None]
    np.testing.assert_array_equal(targets.values["gt_boxes"], np.where(positive, wanted, 0))


def test_loss_uses_targets(monkeypatch):
    """Another threshold changes both, so the targets that tools show are those of training."""
    batch = tiny.make_batch(CANVAS, objects=(3, 0, 4))
    monkeypatch.setattr(assign_lib, "threshold", lambda iou, there: 2.0)
    another = tiny.jit(lambda *arguments: everything(*arguments)[:3])
    targets, _, metrics = another(batch, made_up())
    assert not (targets.status == 1).any()
    assert metrics["loss/box"] == metrics["loss/centerness"] == 0


def test_centerness_comes_from_the_box_tower():
    head = atss.ATSS(**TINY).bind({}).head
    assert set(head.box_outputs) == {"box_deltas", "centerness"}
    assert set(head.cls_outputs) == {"cls_logits"}


def test_the_threshold_is_of_class_scores_and_the_score_has_the_centerness():
    outputs = jax.tree.map(jnp.zeros_like, made_up(images=1))
    outputs = outputs._replace(centerness=tuple(x - 5.0 for x in outputs.centerness))
    candidates = tiny.jit(lambda *given: atss.ATSS(**TINY).candidates(*given, CANVAS))
    found = candidates(outputs, jnp.int32([(40, 50)]))
    assert found.valid.any()
    score = 0.5 / (1 + np.exp(5.0))  # below the threshold of 0.05
    np.testing.assert_allclose(found.scores[found.valid], score, rtol=1e-5)
    assert (found.boxes >= 0).all() and (found.boxes[..., 2:] <= jnp.float32([50, 40])).all()


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(topk=0), "topk is 0; it must be at least 1"),
        (dict(anchor_scale=0.0), "anchor_scale is 0.0; it must be above 0"),
        (dict(norm_groups=3), "norm_groups is 3; it must be a divisor of head_width, 256"),
        (dict(box_weight=-1.0), "box_weight is -1.0; it must be at least 0"),
        (dict(strides=(4, 8)), "strides is .* one for each level from P3 up"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    atss.ATSS().check()
    with pytest.raises(ValueError, match=f"^{sentence}"):
        atss.ATSS(**fields).check()
