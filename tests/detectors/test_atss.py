"""ATSS, built tiny: anchors, targets, loss, detections; test_contract.py checks the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.assign import atss as assign_lib
from detlab.detectors import atss
from detlab.ops import boxes as boxes_lib

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def subject(subject_of):
    return subject_of("atss")


def test_every_cell_has_one_square_anchor_on_its_corner():
    module = atss.ATSS()
    anchors = np.asarray(module.anchors(module.grid((64, 64))))
    assert anchors[0].tolist() == [-32, -32, 32, 32]
    assert anchors[9].tolist() == [-24, -24, 40, 40]
    assert anchors[-1].tolist() == [-512, -512, 512, 512]


def test_centerness_comes_from_the_box_tower_and_deltas_are_scaled_by_level(subject):
    head = atss.ATSS(**subject.entry.fields).bind({}).head
    assert set(head.box_outputs) == {"box_deltas", "centerness"}
    params, state = subject.variables
    scales = {**params["box_scales"], "scale1": jnp.float32(3.0)}
    images = subject.batch.images
    before = subject.maps(params, state, images)
    after = subject.maps({**params, "box_scales": scales}, state, images)
    np.testing.assert_allclose(after.box_deltas[1], 3 * before.box_deltas[1], rtol=1e-5)
    for name in ("cls_logits", "centerness"):
        for a, b in zip(getattr(after, name), getattr(before, name), strict=True):
            np.testing.assert_array_equal(a, b)


def test_targets_are_boxes_and_the_centerness_of_the_centres_of_anchors(subject):
    batch = tiny.make_batch()
    found = jax.device_get(subject.targets(*subject.variables, batch, KEY))["main"]
    positive = np.argwhere(found.status == 1)
    assert len(positive) > 4
    for i, n in positive:
        box = batch.boxes[i, found.matched[i, n]]
        np.testing.assert_array_equal(found.values["gt_boxes"][i, n], box)
        x, y = (found.boxes[i, n, :2] + found.boxes[i, n, 2:]) / 2
        left, top, right, bottom = x - box[0], y - box[1], box[2] - x, box[3] - y
        assert min(left, top, right, bottom) > 0
        product = min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)
        np.testing.assert_allclose(found.values["centerness"][i, n], np.sqrt(product), rtol=1e-4)


def test_loss_is_that_of_the_targets(subject):
    """The three terms from raw maps and targets, in NumPy."""
    batch = subject.batch

    @tiny.jit
    def everything(params, state, batch):
        maps, state = subject.detector.maps(params, state, batch.images, True)
        _, (metrics, _) = subject.detector.loss_of_maps(params, state, batch, maps, KEY)
        targets = subject.detector.targets_of_maps(params, state, batch, maps, KEY)["main"]
        return maps, targets, metrics

    maps, targets, metrics = jax.device_get(everything(*subject.variables, batch))
    logits, deltas, middle = (
        np.concatenate([level.reshape(2, -1, level.shape[-1]) for level in levels], axis=1)
        for levels in (maps.cls_logits, maps.box_deltas, maps.centerness)
    )
    positive = targets.status == 1
    count = np.maximum(positive.sum(1), 1).sum()
    labels = np.take_along_axis(batch.labels, targets.matched, 1)
    one_hot = np.eye(3)[labels] * positive[..., None]
    p = 1 / (1 + np.exp(-np.float64(logits)))
    p_t = np.where(one_hot == 1, p, 1 - p)
    alpha = np.where(one_hot == 1, 0.25, 0.75)
    focal = -alpha * (1 - p_t) ** 2 * np.log(p_t)
    focal = focal[targets.status >= 0].sum() / count

    anchors = np.float64(targets.boxes[positive])
    size = anchors[:, 2:] - anchors[:, :2]
    center = (anchors[:, 2:] + anchors[:, :2]) / 2
    d = deltas[positive] * [0.1, 0.1, 0.2, 0.2]
    center, size = center + d[:, :2] * size, size * np.exp(d[:, 2:])
    pred = np.float32(np.concatenate([center - size / 2, center + size / 2], -1))
    weight = targets.values["centerness"][positive]
    giou = boxes_lib.giou(pred, targets.values["gt_boxes"][positive])
    box = 2.0 * (weight * (1 - giou)).sum() / weight.sum()

    q = 1 / (1 + np.exp(-np.float64(middle[positive][:, 0])))
    cross_entropy = -(weight * np.log(q) + (1 - weight) * np.log(1 - q)).sum() / count
    for name, value in (("cls", focal), ("box", box), ("centerness", cross_entropy)):
        np.testing.assert_allclose(metrics[f"loss/{name}"], value, rtol=1e-4, err_msg=name)
    assert metrics["normaliser"] == count


def test_loss_uses_targets(subject, monkeypatch):
    """Another threshold changes both, so the targets that tools show are those of training."""
    batch, detector = tiny.make_batch(), subject.detector

    def run():  # new functions, because jit would not trace known ones again
        maps = jax.eval_shape(subject.maps, *subject.variables, batch.images)
        maps = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), maps)

        @tiny.jit
        def both(params, state):
            targets = detector.targets_of_maps(params, state, batch, maps, KEY)["main"]
            return targets.status, detector.loss_of_maps(params, state, batch, maps, KEY)

        return both(*subject.variables)

    status, (value, _) = run()
    monkeypatch.setattr(assign_lib, "threshold", lambda iou, there: 2.0)
    changed_status, (changed, (metrics, _)) = run()
    assert (status == 1).any() and not (changed_status == 1).any()
    assert changed != value and metrics["loss/box"] == 0 and metrics["loss/centerness"] == 0


def test_images_without_objects_train_on_background_alone(subject):
    batch = tiny.make_batch(objects=(0, 0))
    (value, (metrics, _)), grads = subject.loss(*subject.variables, batch, KEY)
    assert metrics["loss/box"] == metrics["loss/centerness"] == metrics["positives"] == 0
    assert np.isfinite(value) and metrics["normaliser"] == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_the_threshold_is_of_class_scores_and_the_score_has_the_centerness(subject):
    params, state = jax.tree.map(lambda x: x, subject.variables)
    for name, bias in (("cls_logits", 0.0), ("centerness", -5.0)):
        params["head"][name] = jax.tree.map(jnp.zeros_like, params["head"][name])
        params["head"][name]["bias"] += bias
    found = subject.candidates(params, state, subject.batch.images, subject.batch.image_size)
    assert found.valid.any()
    score = 0.5 / (1 + np.exp(5.0))  # below the threshold of 0.05
    np.testing.assert_allclose(found.scores[found.valid], score, rtol=1e-5)


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
