"""What SABL changes in Faster and Cascade R-CNN: buckets instead of deltas, for few RoIs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab import contract
from detlab.assign import rois as rois_lib
from detlab.detectors import cascade_rcnn, sabl_rcnn
from detlab.ops import proposals as proposals_lib

FIELDS = tiny.TINY["sabl_rcnn"].fields  # two stages
ONE_STAGE = dict(stage_ious=(0.5,), stage_scales=(1.7,), stage_weights=(1.0,))
KEY = jax.random.key(0)
CANVAS = (64, 96)


def made_up_maps():
    rng = np.random.default_rng(0)
    shapes = [(2, -(-CANVAS[0] // s), -(-CANVAS[1] // s)) for s in FIELDS["strides"]]
    features = tuple(np.float32(rng.normal(size=(*shape, 16))) for shape in shapes)
    logits = tuple(np.float32(rng.normal(size=(*shape, 3))) for shape in shapes)
    deltas = tuple(np.float32(rng.normal(0, 0.2, (*shape, 12))) for shape in shapes)
    return cascade_rcnn.Maps(features, logits, deltas)


def heads(module, seed=0):
    """Random weights of the box heads alone."""
    rng = np.random.default_rng(seed)
    detector = contract.from_module(module)
    images = jax.ShapeDtypeStruct((1, *CANVAS, 3), jnp.uint8)
    shapes, _ = jax.eval_shape(detector.init, KEY, images)
    shapes = {name: shapes[name] for name in shapes if name.startswith("box_head")}
    return jax.tree.map(lambda x: np.float32(rng.normal(0, 0.2, x.shape)), shapes)


def test_a_single_stage_has_the_names_of_faster_rcnn():
    assert set(heads(sabl_rcnn.SABLRCNN(**FIELDS))) == {"box_head_0", "box_head_1"}
    assert set(heads(sabl_rcnn.SABLRCNN(**FIELDS | ONE_STAGE))) == {"box_head"}


class InAllSlots(sabl_rcnn.SABLRCNN):
    """Localises every RoI with a gradient."""

    def stage_outputs(self, stage, maps, rois, valid, train):
        return super().stage_outputs(stage, maps, rois, valid, train=False)


@pytest.mark.slow
def test_localising_the_slots_of_positives_alone_changes_no_loss_and_no_gradient():
    boxes = np.random.default_rng(0).uniform(0, 40, (2, 24, 2))
    boxes = np.float32(np.concatenate([boxes, boxes + 20], -1))  # 6 of 24 slots can be positive
    status = np.broadcast_to(np.int32(3 * [1] + 15 * [0] + 6 * [-1]), (2, 24))
    index = np.zeros_like(status)
    rois = rois_lib.RoIs(boxes * (status >= 0)[..., None], status, index, index)

    def of_a_stage(module_class):
        module = module_class(**FIELDS)

        def loss(params, maps, batch):
            def terms(module):
                targets = module.stage_targets(0, rois, batch)
                outputs = module.stage_outputs(0, maps, rois.boxes, status >= 0, train=True)
                found, _ = module.box_loss(batch, targets, *outputs)
                return found, outputs

            found, outputs = module.apply({"params": params}, method=terms)
            return sum(found.values()), (found, outputs)

        given = heads(module), made_up_maps(), tiny.make_batch(objects=(3, 1))
        return tiny.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(*given)

    found, expected = of_a_stage(sabl_rcnn.SABLRCNN), of_a_stage(InAllSlots)
    assert all(value > 0 for value in found[0][1][0].values())
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5 * np.abs(other).max() + 1e-9)


def test_features_of_rois_are_computed_once_for_each_stage():
    """On a CPU, RoIAlign writes the features of a RoI in one loop for each of four levels."""
    module = sabl_rcnn.SABLRCNN(**FIELDS)
    detector = contract.from_module(module)
    batch = tiny.make_batch(objects=(3, 0))

    def loss(params, maps, batch):
        return detector.loss_of_maps(params, {}, batch, maps, KEY)[0]

    lowered = jax.jit(loss).lower(heads(module), made_up_maps(), batch)
    writes = r"dynamic_update_slice.*tensor<\d+x7x7x16xf32>, tensor<1x7x7x16xf32>"
    assert len(re.findall(writes, lowered.as_text())) == 4 * len(module.stage_ious)


def test_a_stage_moves_the_sides_of_every_roi_to_the_best_buckets():
    """A RoI of 28 px, enlarged by 1.7 to 47.6 px, has buckets of 3.4 px."""
    module = sabl_rcnn.SABLRCNN()
    rois = np.float32([[[30, 20, 58, 48]]])
    logits, offsets = np.zeros((2, 1, 1, 4, 7), np.float32)
    logits[0, 0, range(4), [1, 2, 0, 6]] = 5
    offsets[0, 0, range(4), [1, 2, 0, 6]] = [0, 0.5, -1, 0]
    size = np.int32([[49, 200]])
    found = module.apply({}, 0, rois, (None, logits, offsets), size, method="refine")
    left, right = 44 - 23.8 + 1.5 * 3.4, 44 + 23.8 - 2.5 * 3.4 - 0.5 * 3.4
    top, bottom = 34 - 23.8 + 0.5 * 3.4 + 3.4, 34 + 23.8 - 6.5 * 3.4
    np.testing.assert_allclose(found[0, 0], [left, top, right, bottom], rtol=1e-5)
    logits[0, 0, 3] = [5, 0, 0, 0, 0, 0, 0]
    found = module.apply({}, 0, rois, (None, logits, offsets), size, method="refine")
    assert found[0, 0, 3] == 48  # of an image with 49 rows


@pytest.mark.slow
def test_the_next_stage_samples_the_refined_boxes_of_background_too():
    few = dict(train_proposals=8, box_samples=30, box_positive_fraction=0.2)
    module = sabl_rcnn.SABLRCNN(**FIELDS | few)
    params, batch = heads(module), tiny.make_batch(objects=(3, 0))
    found = jax.device_get(
        tiny.jit(contract.from_module(module).targets_of_maps)(
            params, {}, batch, made_up_maps(), KEY
        )
    )
    first, second = found["box0"], found["box1"]
    for i in range(2):
        proposals = (first.status[i] >= 0) & (first.values["index"][i] < 8)
        assert (first.status[i, proposals] == 0).any()
        again = (second.status[i] >= 0) & (second.values["index"][i] < 8)
        assert again.sum() == min(proposals.sum(), 30)


def rois_of(boxes, status):
    boxes, status = np.float32([boxes]), np.int32([status])
    return rois_lib.RoIs(boxes, status, np.zeros_like(status), np.zeros_like(status))


def test_losses_of_hand_computed_buckets():
    """The object is the RoI itself, so its sides lie in the middle of equal buckets."""
    module = sabl_rcnn.SABLRCNN(num_classes=3)
    box = [30, 20, 58, 48]
    batch = tiny.make_batch(objects=(1,), slots=1)._replace(boxes=np.float32([[box]]))
    rois = rois_of([box, [0, 0, 9, 9], [0, 0, 0, 0]], [1, 0, -1])
    targets = module.apply({}, 0, rois, batch, method="stage_targets")
    # From outside the RoI's side is at 9.8 px, 2.882 buckets; middles are at 0.5, 1.5 and so on.
    for side, sign in enumerate((-1, 1, -1, 1)):
        offsets = sign * targets.values["offsets"][0, 0, side, :4]
        np.testing.assert_allclose(offsets, [2.382, 1.382, 0.382, -0.618], atol=1e-3)
    assert targets.values["labels"][0, 0].argmax(-1).tolist() == [2] * 4
    assert targets.values["offset_weights"][0, 0].tolist() == [[0, 0, 1, 1, 0, 0, 0]] * 4
    assert not any(values[0, 1:].any() for values in targets.values.values())
    logits, buckets = np.zeros((1, 3, 4)), np.zeros((1, 1, 4, 7))  # sides of one slot alone
    terms, metrics = module.apply({}, batch, targets, logits, buckets, buckets, method="box_loss")
    assert metrics["normaliser"] == 2
    assert terms["loss/cls"] == pytest.approx(np.log(4))
    # Of seven buckets the fourth, which is close, does not count.
    assert terms["loss/bucket"] == pytest.approx(6 * np.log(2) / 2)
    distances = 0.3823 - 0.05 + 0.6177 - 0.05  # smooth L1 with beta 0.1
    assert terms["loss/offset"] == pytest.approx(4 * distances / 2, rel=1e-3)


class Given(sabl_rcnn.SABLRCNN):
    """Predicts `maps`."""

    def outputs(self, maps, image_size, canvas):
        return maps


def test_scores_above_the_threshold_are_rectified_by_the_buckets_of_the_last_stage():
    """Even buckets: two of seven are neighbours, so 2/7 of the class score remain."""
    rois = np.float32([[[10, 10, 30, 30]]])
    proposals = proposals_lib.Proposals(rois, np.ones((1, 1)), np.ones((1, 1), bool))
    logits, even = np.float32([[[0, 0, -99]]]), np.zeros((1, 1, 4, 7), np.float32)
    sure = even + np.float32([99, 0, 0, 0, 0, 0, 0])

    def scores(first, last):
        stages = tuple((logits, buckets, even) for buckets in (first, last))
        outputs = cascade_rcnn.Outputs((), (), (), proposals, (rois,) * 3, stages)
        two = dict(stage_ious=(0.5, 0.6), stage_scales=(1.7, 1.5), stage_weights=(1.0, 0.5))
        module = Given(num_classes=2, score_threshold=0.4, num_candidates=2, **two)
        found = module.apply({}, outputs, np.int32([CANVAS]), CANVAS, method="candidates")
        assert found.valid.all()
        return found.scores[0]

    np.testing.assert_allclose(scores(sure, even), [1 / 7, 1 / 7], rtol=1e-5)
    np.testing.assert_allclose(scores(even, sure), [0.5, 0.5], rtol=1e-5)


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(stage_ious=()), "stage_ious is .* one or more numbers above 0 and at most 1"),
        (dict(stage_ious=(0.5, 0.6)), "stage_scales is .* numbers above 0 of 2 stages"),
        (dict(stage_scales=(0.0,)), "stage_scales is .* numbers above 0 of 1 stages, as stage_iou"),
        (dict(stage_weights=(1.0, 1.0)), "stage_weights is .* of 1 stages, as stage_ious"),
        (dict(stage_stds=((0.1, 0.1, 0.2, 0.2),)), "stage_stds is .* left empty: SABL has no"),
        (dict(delta_stds=(1.0,) * 4), "delta_stds is .* left at its default: set stage_scales"),
        (dict(positive_iou=0.6), "positive_iou is 0.6; it must be left at its default: set stage_"),
        (dict(box_beta=0.0), "box_beta is 0.0; it must be above 0"),
        (dict(roi_size=1), "roi_size is 1; it must be at least 2"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    sabl_rcnn.SABLRCNN().check()
    with pytest.raises(ValueError, match=re.compile(f"^{sentence}")):
        sabl_rcnn.SABLRCNN(**fields).check()
