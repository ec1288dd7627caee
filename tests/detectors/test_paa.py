"""What PAA changes in ATSS: targets, loss, prediction; test_contract.py checks the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab import contract
from detlab.detectors import atss, paa
from detlab.ops import boxes as boxes_lib

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def subject(subject_of):
    return subject_of("paa")


@pytest.fixture(scope="module")
def results(subject):
    """Maps, targets and metrics of one batch, from one program."""
    batch = tiny.make_batch()

    @tiny.jit
    def everything(params, state, batch):
        maps, state = subject.detector.maps(params, state, batch.images, True)
        _, (metrics, _) = subject.detector.loss_of_maps(params, state, batch, maps, KEY)
        targets = subject.detector.targets_of_maps(params, state, batch, maps, KEY)
        return maps, targets, metrics

    return batch, *jax.device_get(everything(*subject.variables, batch))


def flat(levels):
    return np.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in levels], axis=1)


def decoded(anchors, deltas):
    anchors = np.float64(anchors)
    size, center = anchors[..., 2:] - anchors[..., :2], (anchors[..., 2:] + anchors[..., :2]) / 2
    d = deltas * [0.1, 0.1, 0.2, 0.2]
    center, size = center + d[..., :2] * size, size * np.exp(np.clip(d[..., 2:], -4.135, 4.135))
    return np.float32(np.concatenate([center - size / 2, center + size / 2], -1))


def cross_entropy(logits, targets):
    p = 1 / (1 + np.exp(-np.float64(logits)))
    return -targets * np.log(p) - (1 - targets) * np.log(1 - p)


def focal(logits, one_hot):
    p = 1 / (1 + np.exp(-np.float64(logits)))
    p_t, alpha = np.where(one_hot == 1, p, 1 - p), np.where(one_hot == 1, 0.25, 0.75)
    return -alpha * (1 - p_t) ** 2 * np.log(p_t)


def test_parameters_are_those_of_atss(subject):
    plain = contract.from_module(atss.ATSS(**subject.entry.fields))
    images = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.uint8)
    shapes = jax.eval_shape(plain.init, KEY, images)
    assert jax.tree.map(jnp.shape, subject.variables) == jax.tree.map(jnp.shape, shapes)


def test_the_positives_of_an_object_have_the_lowest_losses_of_its_candidates(results):
    batch, maps, targets, _ = results
    first, final = targets["candidates"], targets["main"]
    logits, boxes = flat(maps.cls_logits), decoded(first.boxes, flat(maps.box_deltas))
    assert ((final.status == 1) <= (first.status == 1)).all()
    assert ((final.status == -1) == (first.status == -1)).all()
    for i, slot in np.argwhere(batch.valid):
        own = (first.status[i] == 1) & (first.matched[i] == slot)
        positive = (final.status[i] == 1) & (final.matched[i] == slot)
        assert 0 < positive.sum() < own.sum()
        cls = focal(logits[i, own], np.eye(3)[batch.labels[i, slot]]).sum(-1)
        loss = cls + 1.3 * (1 - boxes_lib.giou(boxes[i, own], batch.boxes[i, slot]))
        ranks = np.argsort(np.argsort(np.asarray(loss)))[positive[own]]
        assert sorted(ranks) == list(range(len(ranks)))  # fewer than 9 on each level here


def test_values_are_the_objects_box_and_the_iou_of_the_prediction(results):
    batch, maps, targets, _ = results
    final = targets["main"]
    boxes = decoded(final.boxes, flat(maps.box_deltas))
    for i, n in np.argwhere(final.status == 1):
        box = batch.boxes[i, final.matched[i, n]]
        np.testing.assert_array_equal(final.values["gt_boxes"][i, n], box)
        iou = boxes_lib.iou(boxes[i, n], box)
        np.testing.assert_allclose(final.values["iou"][i, n], iou, rtol=1e-3, atol=1e-6)


def test_loss_is_that_of_the_targets(results):
    batch, maps, targets, metrics = results
    final = targets["main"]
    positive, counted = final.status == 1, final.status >= 0
    labels = np.take_along_axis(batch.labels, final.matched, 1)
    cls = focal(flat(maps.cls_logits), np.eye(3)[labels] * positive[..., None])
    cls = cls[counted].sum() / max(positive.sum(), 2)
    boxes = decoded(final.boxes, flat(maps.box_deltas))[positive]
    iou, gt_boxes = final.values["iou"][positive], final.values["gt_boxes"][positive]
    box = 1.3 * (iou * (1 - boxes_lib.giou(boxes, gt_boxes))).sum() / iou.sum()
    quality = cross_entropy(flat(maps.centerness)[positive][:, 0], iou)
    expected = {"cls": cls, "box": box, "iou": 0.5 * quality.sum() / positive.sum()}
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[f"loss/{name}"], value, rtol=1e-3, err_msg=name)


def test_the_score_is_the_root_of_class_score_times_iou(subject):
    params, state = jax.tree.map(lambda x: x, subject.variables)
    for name, bias in (("cls_logits", 0.0), ("centerness", -3.0)):
        params["head"][name] = jax.tree.map(jnp.zeros_like, params["head"][name])
        params["head"][name]["bias"] += bias
    found = subject.candidates(params, state, subject.batch.images, subject.batch.image_size)
    assert found.valid.any()
    expected = np.sqrt(0.5 / (1 + np.exp(3.0)))
    np.testing.assert_allclose(found.scores[found.valid], expected, rtol=1e-5)


def test_the_best_anchors_of_a_level_keep_all_their_classes():
    """One image of 16 cells; three classes; the two best anchors of the level give six pairs."""
    module = paa.PAA(num_classes=3, strides=(8,), candidates_per_level=2)
    rng = np.random.default_rng(0)
    maps = atss.Outputs(
        features=(),
        cls_logits=(jnp.float32(rng.normal(size=(1, 4, 4, 3))),),
        box_deltas=(jnp.zeros((1, 4, 4, 4)),),
        centerness=(jnp.float32(rng.normal(size=(1, 4, 4, 1))),),
    )
    found = module.candidates(maps, jnp.int32([[32, 32]]), (32, 32))
    scores = 1 / (1 + np.exp(-flat(maps.cls_logits))) / (1 + np.exp(-flat(maps.centerness)))
    scores = np.sqrt(scores[0])
    best = np.argsort(-scores.max(1))[:2]
    np.testing.assert_allclose(found.scores[0], np.sort(scores[best].ravel())[::-1], rtol=1e-5)
    few = paa.PAA(num_classes=3, strides=(8,), candidates_per_level=2, num_candidates=4)
    assert few.candidates(maps, jnp.int32([[32, 32]]), (32, 32)).scores.shape == (1, 4)


def test_voting_moves_boxes_and_nothing_else(subject):
    params, state = jax.tree.map(lambda x: x, subject.variables)
    params["head"]["cls_logits"]["bias"] += 3.0
    arguments = params, state, subject.batch.images, subject.batch.image_size
    candidates = subject.candidates(*arguments)

    def suppressed(**fields):
        return tiny.jit(paa.PAA(**subject.entry.fields, **fields).suppress)(candidates)

    voted, kept = suppressed(), suppressed(voting=False)
    for name in ("scores", "labels", "valid"):
        np.testing.assert_array_equal(getattr(voted, name), getattr(kept, name))
    assert np.abs(voted.boxes - kept.boxes).max() > 0.5
    np.testing.assert_array_equal(voted.boxes[~voted.valid], 0)


def test_images_without_objects_train_on_background_alone(subject):
    batch = tiny.make_batch(objects=(0, 0))
    (value, (metrics, _)), grads = subject.loss(*subject.variables, batch, KEY)
    assert metrics["loss/box"] == metrics["loss/iou"] == metrics["positives"] == 0
    assert np.isfinite(value) and metrics["normaliser"] == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(candidate_iou=1.0), "candidate_iou is 1.0; it must be between 0 and 1"),
        (dict(iou_weight=-1.0), "iou_weight is -1.0; it must be at least 0"),
        (dict(voting_sigma=0.0), "voting_sigma is 0.0; it must be above 0"),
        (dict(num_candidates=0), "num_candidates is 0; it must be at least 1"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    paa.PAA().check()
    with pytest.raises(ValueError, match=f"^{sentence}"):
        paa.PAA(**fields).check()
