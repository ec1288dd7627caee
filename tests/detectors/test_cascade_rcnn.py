"""What Cascade R-CNN changes in Faster R-CNN: stages that refine and sample again."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab import contract
from detlab.detectors import cascade_rcnn, faster_rcnn

# The tiny form has two stages.
THREE = {
    name: getattr(cascade_rcnn.CascadeRCNN, name)
    for name in ("stage_ious", "stage_stds", "stage_weights")
}
FIELDS = tiny.TINY["cascade_rcnn"].fields | THREE
KEY = jax.random.key(0)
CANVAS = (64, 96)
# Of every RoI, in px after the first stage's stds: half its width to the right, twice as high.
DELTAS = np.float32([0.5 / 0.1, 0, 0, np.log(2) / 0.2])


def made_up_maps():
    rng = np.random.default_rng(0)
    shapes = [(2, -(-CANVAS[0] // s), -(-CANVAS[1] // s)) for s in FIELDS["strides"]]
    features = tuple(np.float32(rng.normal(size=(*shape, 16))) for shape in shapes)
    logits = tuple(np.float32(rng.normal(size=(*shape, 3))) for shape in shapes)
    deltas = tuple(np.float32(rng.normal(0, 0.2, (*shape, 12))) for shape in shapes)
    return faster_rcnn.Maps(features, logits, deltas)


@pytest.fixture(scope="module")
def params():
    """Random heads, of which the first moves every box by the same deltas."""
    rng = np.random.default_rng(0)
    detector = contract.from_module(cascade_rcnn.CascadeRCNN(**FIELDS))
    images = jax.ShapeDtypeStruct((1, *CANVAS, 3), jnp.uint8)
    shapes, _ = jax.eval_shape(detector.init, KEY, images)
    heads = {name: shapes[name] for name in shapes if name.startswith("box_head")}
    assert list(heads) == ["box_head_0", "box_head_1", "box_head_2"]
    params = jax.tree.map(lambda x: np.float32(rng.normal(0, 0.1, x.shape)), heads)
    kernel = params["box_head_0"]["box_deltas"]["kernel"]
    params["box_head_0"]["box_deltas"] = {"kernel": np.zeros_like(kernel), "bias": DELTAS}
    return params


# More samples than proposals: a draw must not depend on the slots of objects.
FEW = dict(train_proposals=8, box_samples=30, box_positive_fraction=1.0)


@pytest.fixture(scope="module")
def detector():
    return contract.from_module(cascade_rcnn.CascadeRCNN(**FIELDS | FEW))


@pytest.fixture(scope="module")
def targets_of(detector, params):
    """(batch) -> targets from made-up maps, without a backbone."""
    maps, run = made_up_maps(), tiny.jit(detector.targets_of_maps)
    return lambda batch: jax.device_get(run(params, {}, batch, maps, KEY))


def test_a_stage_samples_the_refined_boxes_of_the_stage_before_and_the_objects(targets_of):
    batch = tiny.make_batch(objects=(3, 0))
    targets = targets_of(batch)
    assert set(targets) == {"rpn", "box0", "box1", "box2"}
    before, after = targets["box0"], targets["box1"]
    assert before.boxes.shape[1] == after.boxes.shape[1] == 8 + 4
    for i in range(2):
        filled = before.status[i] >= 0
        proposals = filled & (before.values["index"][i] < 8)
        assert (before.status[i, filled & ~proposals] == 1).all()
        x1, y1, x2, y2 = before.boxes[i, proposals].T
        shift, more = (x2 - x1) / 2, (y2 - y1) / 2
        moved = np.stack([x1 + shift, y1 - more, x2 + shift, y2 + more], -1)
        refined = np.clip(moved, 0, [CANVAS[1], CANVAS[0]] * 2)
        index = after.values["index"][i]
        again = (after.status[i] >= 0) & (index < 8)
        assert again.sum() == len(refined) > 0
        np.testing.assert_allclose(after.boxes[i, again], refined[index[again]], atol=1e-3)
        objects = (after.status[i] >= 0) & (index >= 8)
        assert objects.sum() == (after.status[i, objects] == 1).sum() == batch.valid[i].sum()
    assert {int(x) for x in np.unique(targets["box2"].status)} == {-1, 0, 1}


@pytest.mark.slow
def test_more_slots_of_objects_leave_the_draws_of_all_stages_as_they_are(targets_of):
    batch = tiny.make_batch(objects=(3, 0))
    targets, more = targets_of(batch), targets_of(tiny.with_more_slots(batch, 3))
    for name in ("box0", "box1", "box2"):
        slots = targets[name].status.shape[1]
        np.testing.assert_array_equal(more[name].boxes[:, :slots], targets[name].boxes)
        assert (more[name].status[:, slots:] == -1).all()


@pytest.mark.slow
def test_refined_boxes_are_constants_of_later_stages(detector, params):
    def terms(params, batch, maps):
        _, (metrics, _) = detector.loss_of_maps(params, {}, batch, maps, KEY)
        return sum(metrics[f"loss/{name}{i}"] for name in ("cls", "box") for i in (1, 2))

    gradients = tiny.jit(jax.grad(terms))(params, tiny.make_batch(objects=(3, 0)), made_up_maps())
    first, second, third = (gradients[f"box_head_{i}"] for i in range(3))
    assert not any(map(np.any, jax.tree.leaves(first)))
    assert np.any(second["box_deltas"]["bias"]) and np.any(third["cls_logits"]["bias"])


def test_thresholds_rise_from_stage_to_stage():
    """All stages see the same proposals here: objects, and boxes of chosen IoUs with them."""
    module = cascade_rcnn.CascadeRCNN(**FIELDS)
    boxes = np.float32([[[0, 0, 10, 10], [0, 0, 10, 5.5], [0, 0, 10, 6.5], [0, 0, 10, 7.5]]])
    batch = tiny.make_batch(objects=(1,), slots=1)._replace(boxes=boxes[:, :1])
    valid = np.ones((1, 4), bool)
    proposals = faster_rcnn.proposals_lib.Proposals(boxes, np.ones((1, 4)), valid)
    keys = jax.random.split(KEY, 1)
    for iou, positives in zip(module.stage_ious, (5, 4, 3), strict=True):
        rois = module.apply({}, keys, proposals, batch, iou, method="sample")
        assert (rois.status == 1).sum() == positives
        assert (rois.status == 0).sum() == 5 - positives


def test_scores_are_those_of_the_mean_logits():
    module = cascade_rcnn.CascadeRCNN(num_classes=2)
    logits = np.float32([[[[3, 0, 0]]], [[[0, 3, 0]]], [[[0, 0, 6]]]])
    found = module.scores([(x, None) for x in logits])
    mean = np.exp([1, 1, 2])
    np.testing.assert_allclose(found, [[(mean / mean.sum())[:2]]], rtol=1e-6)


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(stage_ious=()), "stage_ious is .* one or more numbers above 0 and at most 1"),
        (dict(stage_ious=(0.5, 1.2)), "stage_ious is .* one or more numbers above 0"),
        (dict(stage_ious=(0.5,)), "stage_stds is .* of 1 stages, as stage_ious"),
        (dict(stage_stds=((0.1,),) * 3), "stage_stds is .* four numbers above 0 for each stage"),
        (dict(stage_weights=(1.0,)), "stage_weights is .* of 3 stages, as stage_ious"),
        (dict(box_beta=0.0), "box_beta is 0.0; it must be above 0"),
        (dict(positive_iou=0.6), "positive_iou is 0.6; it must be left at its default: set stage_"),
        (dict(rpn_samples=0), "rpn_samples is 0; it must be at least 1"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    cascade_rcnn.CascadeRCNN().check()
    with pytest.raises(ValueError, match=re.compile(f"^{sentence}")):
        cascade_rcnn.CascadeRCNN(**fields).check()
