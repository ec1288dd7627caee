"""What PISA changes in Faster R-CNN; ranks, weights and samples have tests of their own."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab import contract, types
from detlab.assign import rois as rois_lib
from detlab.detectors import faster_rcnn, pisa_rcnn

FIELDS = tiny.TINY["pisa_rcnn"].fields
KEY = jax.random.key(0)
CLASSES = tiny.NUM_CLASSES


@pytest.fixture(scope="module")
def losses():
    """(targets, logits, deltas) -> (terms, their gradients) of the box heads, PISA's and plain."""
    modules = [kind(**FIELDS) for kind in (pisa_rcnn.PISARCNN, faster_rcnn.FasterRCNN)]

    @tiny.jit
    def both(batch, targets, logits, deltas):
        def terms(outputs, module):
            return module.apply({}, batch, targets, *outputs, method="box_loss")[0]

        outputs = logits, deltas
        return [(terms(outputs, x), jax.jacrev(terms)(outputs, x)) for x in modules]

    return lambda *args: jax.device_get(both(*args))


def made_up(positives=(5, 3), rows=12, empty=2, seed=0):
    """(batch, targets, logits, deltas): RoIs of two images, with `empty` slots at the end."""
    rng = np.random.default_rng(seed)
    batch = tiny.make_batch(objects=(3, 2))
    place = np.arange(rows)
    status = np.stack(
        [np.where(place < n, 1, np.where(place < rows - empty, 0, -1)) for n in positives]
    )
    matched = np.stack([rng.integers(0, n, rows) for n in (3, 2)])
    low = rng.uniform(0, 40, (2, rows, 2))
    boxes = np.concatenate([low, low + rng.uniform(10, 40, low.shape)], -1)
    positive = status[..., None] == 1
    values = {
        "deltas": np.float32(rng.normal(0, 0.5, boxes.shape) * positive),
        "weights": np.float32(status >= 0),
    }
    targets = types.Targets(
        np.float32(boxes), np.zeros_like(status), np.int32(status), np.int32(matched), values
    )
    logits = np.float32(rng.normal(size=(2, rows, CLASSES + 1)))
    return batch, targets, logits, np.float32(rng.normal(0, 0.5, (2, rows, 4 * CLASSES)))


def test_ranks_move_the_gradient_between_positives_and_keep_the_loss(losses):
    batch, targets, *outputs = made_up()
    (terms, gradients), (expected, of_plain) = losses(batch, targets, *outputs)
    np.testing.assert_allclose(terms["loss/cls"], expected["loss/cls"], rtol=1e-5)
    found, other = (x["loss/cls"][0] for x in (gradients, of_plain))
    positive = targets.status == 1
    np.testing.assert_allclose(found[~positive], other[~positive], rtol=1e-5, atol=1e-8)
    assert np.abs(found - other)[positive].max() > 0.1 * np.abs(other).max()
    assert not found[targets.status == -1].any()


def test_weights_of_negatives_scale_their_gradients(losses):
    batch, targets, *outputs = made_up()
    weights = np.where(targets.status == 0, np.float32(3), targets.values["weights"])
    heavier = targets._replace(values={**targets.values, "weights": weights})
    (_, found), (_, other) = (losses(batch, x, *outputs)[0] for x in (heavier, targets))
    found, other = found["loss/cls"][0], other["loss/cls"][0]
    factor = np.where(targets.status == 0, 3, 1)[..., None]
    np.testing.assert_allclose(found, factor * other, rtol=1e-5, atol=1e-8)


def test_carl_sends_the_gradient_of_the_boxes_into_the_scores_of_positives(losses):
    batch, targets, *outputs = made_up()
    (_, gradients), _ = losses(batch, targets, *outputs)
    of_logits, of_deltas = gradients["loss/carl"]
    positive = targets.status == 1
    labels = np.take_along_axis(batch.labels, targets.matched, 1)
    own = np.take_along_axis(of_logits, labels[..., None], -1)[..., 0]
    assert not of_logits[~positive].any() and own[positive].all()
    assert own.min() < 0 < own.max() and of_deltas[positive].any()
    assert not gradients["loss/box"][0].any()


def test_without_positives_the_losses_are_those_of_the_background(losses):
    for positives, empty in (((0, 0), 2), ((0, 0), 12)):
        batch, targets, *outputs = made_up(positives, empty=empty)
        (terms, gradients), (expected, _) = losses(batch, targets, *outputs)
        assert terms["loss/box"] == terms["loss/carl"] == 0
        np.testing.assert_allclose(terms["loss/cls"], expected["loss/cls"], rtol=1e-6)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((terms, gradients)))


def sampled(logits, status, boxes=None, **fields):
    """`ranked_sample` of one image with these candidates; deltas are 0."""
    count = len(status)
    if boxes is None:
        boxes = np.float32([[20 * i, 0, 20 * i + 10, 10] for i in range(count)])
    module = pisa_rcnn.PISARCNN(**FIELDS | fields)
    rows = np.float32(boxes), np.int32(status), np.zeros(count, np.int32), np.zeros(count)
    found = rois_lib.Candidates(
        *(np.float32(x)[None] if x.dtype == float else x[None] for x in rows)
    )
    deltas = np.zeros((1, count, 4 * CLASSES), np.float32)
    arrays = jax.random.split(KEY, 1), found, np.float32(logits)[None], deltas
    rois = tiny.jit(lambda *args: module.apply({}, *args, method="ranked_sample"))(*arrays)
    return jax.tree.map(lambda x: np.asarray(x)[0], rois)


def test_of_negatives_the_best_of_each_place_come_first_whatever_their_class():
    """Two places with two boxes each, one elsewhere whose score is too low for a rank."""
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [50, 0, 60, 10], [50, 0, 60, 9], [80, 0, 90, 9]]
    logits = np.zeros((5, CLASSES + 1))
    logits[[0, 1, 2, 3], [0, 1, 2, 0]] = 2, 3, 1, 4
    logits[4, CLASSES] = 9
    found = sampled(logits, [0] * 5, boxes, box_samples=5)
    assert found.index.tolist() == [3, 1, 0, 2, 4]
    # Ranks 0 to 3, and the last one counts like rank 3; the square roots of (5 - rank) / 5.
    losses = -np.asarray(jax.nn.log_softmax(logits))[found.index, CLASSES]
    weights = np.sqrt((5 - np.array([0, 1, 2, 3, 3])) / 5)
    expected = weights * losses.sum() / (weights * losses).sum()
    np.testing.assert_allclose(found.weights, expected, rtol=1e-5)
    assert sampled(logits, [0] * 5, boxes, box_samples=3).index.tolist() == [3, 1, 0]


def test_samples_have_exact_quotas_and_no_empty_row():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40, CLASSES + 1))
    for kinds, positives, negatives in (
        ((10, 25, 5), 4, 12),
        ((2, 33, 5), 2, 14),
        ((10, 3, 27), 4, 3),
        ((0, 0, 40), 0, 0),
    ):
        status = rng.permutation(np.repeat([1, 0, -1], kinds))
        found = sampled(logits, status, box_samples=16, box_positive_fraction=0.25)
        assert [(found.status == k).sum() for k in (1, 0)] == [positives, negatives]
        filled = found.status >= 0
        np.testing.assert_array_equal(status[found.index[filled]], found.status[filled])
        assert len(set(found.index[filled])) == filled.sum()
        assert not found.weights[~filled].any() and (found.weights[filled] > 0).all()
        assert (found.weights[found.status == 1] == 1).all()
        assert not found.boxes[~filled].any()


def test_parameters_are_those_of_faster_rcnn():
    images = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.uint8)
    mine, plain = (
        jax.eval_shape(contract.from_module(kind(**FIELDS)).init, KEY, images)
        for kind in (pisa_rcnn.PISARCNN, faster_rcnn.FasterRCNN)
    )
    assert jax.tree.map(jnp.shape, mine) == jax.tree.map(jnp.shape, plain)


def test_features_and_head_are_computed_once_and_the_gradient_is_of_the_sample(subject_of):
    """Reads the program for a CPU, which writes and reads RoIs one by one, level by level."""
    subject = subject_of("pisa_rcnn")
    step = jax.jit(jax.grad(lambda *args: subject.detector.loss(*args)[0]))
    traced = step.trace(*subject.variables, subject.batch, KEY)
    text = traced.lower(lowering_platforms=("cpu",)).as_text()
    levels, images, size = 4, 2, (7, 7, FIELDS["neck_width"])
    sampled = FIELDS["box_samples"]
    candidates = FIELDS["train_proposals"] + subject.batch.boxes.shape[1]

    def rows_of(operation):
        """The number of RoIs in each array of features that the operation reads or writes."""
        shape = "x".join(map(str, size))
        found = re.findall(rf"stablehlo\.{operation} .* : \(tensor<(\d+)x{shape}xf32>,", text)
        return [int(rows) for rows in found]

    assert rows_of("dynamic_update_slice") == levels * [images * candidates]
    assert rows_of("dynamic_slice") == levels * [images * sampled]

    features, width = np.prod(size), FIELDS["box_width"]
    products = re.findall(r"stablehlo\.dot_general .* : (.*)", text)
    shapes = [re.findall(r"tensor<([0-9x]+)xf32>", product) for product in products]
    all_rows, rows = f"{images}x{candidates}", f"{images}x{sampled}"
    assert [x for x in shapes if any(str(features) in y.split("x") for y in x)] == [
        # Forward for all; the gradients of the kernel and of the features for the sample.
        [f"{all_rows}x{features}", f"{features}x{width}", f"{all_rows}x{width}"],
        [f"{features}x{images * sampled}", f"{images * sampled}x{width}", f"{features}x{width}"],
        [f"{rows}x{width}", f"{width}x{features}", f"{rows}x{features}"],
    ]


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(rank_iou=0.0), "rank_iou is 0.0; it must be above 0 and at most 1"),
        (dict(rank_score=1.5), "rank_score is 1.5; it must be from 0 to 1"),
        (dict(isr_negative_k=-1.0), "isr_negative_k is -1.0; it must be at least 0"),
        (dict(carl_bias=2.0), "carl_bias is 2.0; it must be from 0 to 1"),
        (dict(box_beta=0.0), "box_beta is 0.0; it must be above 0"),
        (dict(proposals=0), "proposals is 0; it must be at least 1"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    pisa_rcnn.PISARCNN().check()
    with pytest.raises(ValueError, match=f"^{sentence}"):
        pisa_rcnn.PISARCNN(**fields).check()
