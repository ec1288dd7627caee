"""What PAA changes in ATSS, on made-up maps; test_contract.py checks the rest."""

import dense_maps
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab import contract
from detlab.detectors import atss, paa

TINY = tiny.TINY["paa"].fields
CANVAS = (64, 96)


def made_up(images=3, seed=0):
    """Outputs with random scores, deltas and predicted IoU."""
    maps = (dense_maps.random(CANVAS, images, channels, seed) for channels in (3, 4, 1))
    return atss.Outputs((), *maps)


@tiny.jit
def run(batch, outputs):
    """Targets, loss, metrics and the gradients of the maps."""
    module = paa.PAA(**TINY)
    (value, metrics), grads = jax.value_and_grad(module.loss, argnums=1, has_aux=True)(
        batch, outputs
    )
    return module.targets(batch, outputs), value, metrics, grads


def focal(logits, label):
    """The focal loss of an anchor, summed over the classes; `label` None: background."""
    p = 1 / (1 + np.exp(-np.float64(logits)))
    losses = -0.75 * p**2 * np.log(1 - p)
    if label is not None:
        losses[label] = -0.25 * (1 - p[label]) ** 2 * np.log(p[label])
    return losses.sum()


def test_parameters_are_those_of_atss():
    images = jax.ShapeDtypeStruct((1, *CANVAS, 3), jnp.uint8)
    shapes = [
        jax.eval_shape(contract.from_module(kind(**TINY)).init, jax.random.key(0), images)
        for kind in (atss.ATSS, paa.PAA)
    ]
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])
    assert jax.tree.map(jnp.shape, shapes[0]) == jax.tree.map(jnp.shape, shapes[1])


def test_targets_and_losses_equal_plain_loops():
    batch = tiny.make_batch(CANVAS, objects=(3, 0, 4))
    outputs = made_up()
    targets, value, metrics, grads = jax.device_get(run(batch, outputs))
    first, final = targets["candidates"], targets["main"]
    logits, deltas, last = (dense_maps.flatten(x) for x in outputs[1:])
    assert ((final.status == 1) <= (first.status == 1)).all()
    assert ((final.status == -1) == (first.status == -1)).all()

    def against(i, n):
        """The loss of the anchor if it learns its candidate's object, IoU and GIoU with it."""
        slot = first.matched[i, n]
        pred = dense_maps.decoded(first.boxes[i, n], deltas[i, n])
        iou, giou = dense_maps.overlaps(pred, batch.boxes[i, slot])
        return focal(logits[i, n], batch.labels[i, slot]) + 1.3 * (1 - giou), iou, giou

    # In this batch, the positives of an object have the lowest losses of its candidates.
    for i, slot in np.argwhere(batch.valid):
        for level in range(5):
            own = (first.status[i] == 1) & (first.matched[i] == slot) & (first.level[i] == level)
            kept = own & (final.status[i] == 1)
            losses = sorted((against(i, n)[0], bool(kept[n])) for n in np.flatnonzero(own))
            assert [k for _, k in losses] == sorted((k for _, k in losses), reverse=True)
            assert kept.sum() <= 9
        own = final.matched[i][final.status[i] == 1] == slot
        assert own.any()

    cls = box = quality = total = 0.0
    for i, n in np.argwhere(final.status >= 0):
        if final.status[i, n] == 0:
            cls += focal(logits[i, n], None)
            continue
        _, iou, giou = against(i, n)
        np.testing.assert_allclose(final.values["iou"][i, n], iou, rtol=1e-3, atol=1e-6)
        cls += focal(logits[i, n], batch.labels[i, final.matched[i, n]])
        box, total = box + iou * (1 - giou), total + iou
        q = 1 / (1 + np.exp(-last[i, n, 0]))
        quality -= iou * np.log(q) + (1 - iou) * np.log(1 - q)
    count = (final.status == 1).sum()
    terms = {
        "loss/cls": cls / max(count, 3),
        "loss/box": 1.3 * box / total,
        "loss/iou": 0.5 * quality / count,
    }
    for name, term in terms.items():
        np.testing.assert_allclose(metrics[name], term, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(value, sum(terms.values()), rtol=1e-4)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))
    assert all(any(map(np.any, maps)) for maps in grads[1:])


def test_images_without_objects_train_on_background_alone():
    batch = tiny.make_batch(CANVAS, objects=(0, 0, 0))
    targets, value, metrics, grads = jax.device_get(run(batch, made_up()))
    assert not targets["candidates"].status.any() and not targets["main"].status.any()
    assert metrics["loss/box"] == metrics["loss/iou"] == metrics["positives"] == 0
    assert value == metrics["loss/cls"] > 0 and metrics["normaliser"] == 3
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_the_best_anchors_of_a_level_keep_all_their_classes():
    """Two anchors of each level with their three classes, scored sqrt(class score * IoU)."""
    outputs = made_up(images=1)
    bounds = dict(candidates_per_level=2), dict(candidates_per_level=2, num_candidates=4)

    @tiny.jit
    def both(outputs):
        modules = (paa.PAA(**TINY, **fields) for fields in bounds)
        return [x.candidates(outputs, jnp.int32([CANVAS]), CANVAS) for x in modules]

    found, few = both(outputs)
    expected = []
    for logits, iou in zip(outputs.cls_logits, outputs.centerness, strict=True):
        scores = 1 / (1 + np.exp(-logits)) / (1 + np.exp(-iou))
        scores = np.sqrt(scores.reshape(-1, 3))
        expected += list(scores[np.argsort(-scores.max(1))[:2]].ravel())
    np.testing.assert_allclose(found.scores[0], np.sort(expected)[::-1], rtol=1e-5)
    np.testing.assert_allclose(few.scores, found.scores[:, :4])


def test_voting_moves_boxes_and_nothing_else():
    modules = [paa.PAA(**TINY, voting=on) for on in (True, False)]

    @tiny.jit
    def both(outputs):
        candidates = modules[0].candidates(outputs, jnp.int32([CANVAS]), CANVAS)
        return [module.suppress(candidates) for module in modules]

    voted, kept = both(made_up(images=1))
    for name in ("scores", "labels", "valid"):
        np.testing.assert_array_equal(getattr(voted, name), getattr(kept, name))
    assert np.abs(voted.boxes - kept.boxes).max() > 0.5
    assert not voted.boxes[~voted.valid].any()


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
