"""What Libra R-CNN changes in Faster R-CNN; the balanced parts have tests of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab import contract
from detlab.detectors import faster_rcnn, libra_rcnn
from detlab.losses import regression

FIELDS = tiny.TINY["libra_rcnn"].fields
KEY = jax.random.key(0)


def test_the_pyramid_alone_adds_parameters_and_a_new_one_changes_nothing():
    images = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.uint8)
    shapes = []
    for module in (libra_rcnn.LibraRCNN(**FIELDS), faster_rcnn.FasterRCNN(**FIELDS)):
        detector = contract.from_module(module)
        params, _ = jax.eval_shape(detector.init, KEY, images)
        shapes.append(jax.tree.map(jnp.shape, params))
    balanced, plain = shapes
    assert set(balanced.pop("balance")) == {"refine"}
    assert balanced == plain


def test_samples_give_each_object_its_share_and_no_empty_row():
    """Of 20 positives of one object and 3 of another, 8 are drawn: round(8 / 2) + 1 = 5 each."""
    rng = np.random.default_rng(0)
    first, second = [0, 0, 20, 20], [60, 30, 90, 60]
    near = np.concatenate([np.tile(first, (19, 1)), np.tile(second, (2, 1))])
    near = near + rng.uniform(-1, 1, near.shape)
    far = np.tile([30, 0, 40, 64], (40, 1)) + rng.uniform(0, 4, (40, 4))
    boxes = np.float32(np.concatenate([near, far, np.zeros((9, 4))]))[None]
    valid = boxes[..., 2] > 0
    proposals = faster_rcnn.proposals_lib.Proposals(boxes, np.ones(valid.shape), valid)
    batch = tiny.make_batch(objects=(2,), slots=3)
    batch = batch._replace(boxes=np.float32([[first, second, [0] * 4]]))
    fields = FIELDS | dict(box_samples=32, box_positive_fraction=0.25)
    module = libra_rcnn.LibraRCNN(**fields)
    run = tiny.jit(lambda keys: module.apply({}, keys, proposals, batch, method="sample"))
    drawn = set()
    for seed in range(20):
        rois = jax.tree.map(
            lambda x: np.asarray(x[0]), run(jax.random.split(jax.random.key(seed), 1))
        )
        assert (rois.status == 1).sum() == 8 and (rois.status == 0).sum() == 24
        assert (rois.boxes[:, 2:] > rois.boxes[:, :2]).all() and len(set(rois.index)) == 32
        of_second = (rois.matched[rois.status == 1] == 1).sum()
        assert of_second == 3, "all of the rare object's, and five of the other"
        drawn.add(tuple(sorted(rois.index)))
    assert len(drawn) > 10


def test_the_rpn_has_at_most_five_negatives_for_each_positive():
    rng = np.random.default_rng(0)
    shapes = [(2, -(-64 // s), -(-96 // s)) for s in FIELDS["strides"]]
    logits = tuple(np.float32(rng.normal(size=(*shape, 3))) for shape in shapes)
    deltas = tuple(np.float32(rng.normal(0, 0.2, (*shape, 12))) for shape in shapes)
    maps = faster_rcnn.Maps((), logits, deltas)
    detector = contract.from_module(libra_rcnn.LibraRCNN(**FIELDS))
    targets = tiny.jit(detector.targets_of_maps)({}, {}, tiny.make_batch(objects=(1, 0)), maps, KEY)
    status = np.asarray(targets["rpn"].status)
    positives, negatives = (status == 1).sum(1), (status == 0).sum(1)
    assert 0 < positives[0] < 5 and negatives[0] == 5 * positives[0]
    assert positives[1] == 0 and negatives[1] == 5, "none counts as one"


def test_the_box_loss_is_balanced_l1_with_the_fields():
    rng = np.random.default_rng(0)
    deltas, wanted = np.float32(rng.normal(size=(2, 3, 4))), np.zeros((2, 3, 4), np.float32)
    module = libra_rcnn.LibraRCNN(balanced_l1_alpha=0.4, balanced_l1_gamma=1.2)
    expected = regression.balanced_l1(deltas, wanted, 0.4, 1.2, 1.0)
    np.testing.assert_array_equal(module.delta_loss(deltas, wanted), expected)


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(iou_bins=0), "iou_bins is 0; it must be at least 1"),
        (dict(refine_level=5), "refine_level is 5; it must be one of 0, 1, 2, 3, 4"),
        (dict(balanced_l1_alpha=0.0), "balanced_l1_alpha is 0.0; it must be above 0"),
        (dict(proposals=0), "proposals is 0; it must be at least 1"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    libra_rcnn.LibraRCNN().check()
    with pytest.raises(ValueError, match=f"^{sentence}"):
        libra_rcnn.LibraRCNN(**fields).check()
