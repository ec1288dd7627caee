"""RetinaNet-50 with the reference's weights gives the reference's numbers (parity/README.md)."""

import jax
import jax.numpy as jnp
import numpy as np
import parity_cases
import pytest

from converters import mapping
from converters.tables import mmdet_retinanet
from detlab import detector as detector_lib
from detlab import types
from detlab.detectors import retinanet

pytestmark = pytest.mark.slow
SLOTS = 4  # one more than the reference's objects, so that padding is part of the case


@pytest.fixture(scope="module")
def case(shared_dir):
    return parity_cases.load(shared_dir / "parity", "retinanet_r50_fpn")


@pytest.fixture(scope="module")
def detector(case):
    return detector_lib.from_module(
        retinanet.RetinaNet(
            num_classes=case.info["num_classes"],
            pixel_mean=(0.0, 0.0, 0.0),  # the recorded images are normalised
            pixel_std=(1.0, 1.0, 1.0),
        )
    )


@pytest.fixture(scope="module")
def variables(case, detector):
    """(params, state) by the conversion table that users' files go through."""
    n, c, h, w = case.info["input_shape"]
    shapes = jax.eval_shape(detector.init, jax.random.key(0), jnp.zeros((n, h, w, c)))
    flat = mapping.flatten({"params": shapes[0], **shapes[1]})
    tree, _ = mapping.convert(
        case.weights, mmdet_retinanet.table(), {p: s.shape for p, s in flat.items()}
    )
    return tree.pop("params"), tree


@pytest.fixture(scope="module")
def batch(case):
    n, _, h, w = case.info["input_shape"]
    boxes, labels = np.zeros((n, SLOTS, 4), np.float32), np.zeros((n, SLOTS), np.int32)
    valid = np.zeros((n, SLOTS), bool)
    for i, count in enumerate(case.info["gt_counts"]):
        boxes[i, :count] = case.arrays[f"gt_boxes_{i}"]
        labels[i, :count] = case.arrays[f"gt_labels_{i}"]
        valid[i, :count] = True
    return types.Batch(
        images=case.arrays["image"].transpose(0, 2, 3, 1),
        boxes=boxes,
        labels=labels,
        valid=valid,
        ignore=np.zeros_like(valid),
        image_size=np.tile(np.int32([h, w]), (n, 1)),
        placement=np.tile(np.float32([1, 1, 0, 0]), (n, 1)),
        index=np.arange(n, dtype=np.int32),
        real=np.ones(n, bool),
    )


@pytest.fixture(scope="module")
def loss_and_gradients(detector, variables, batch):
    step = jax.jit(jax.value_and_grad(detector.loss, has_aux=True))
    return jax.device_get(step(*variables, batch, jax.random.key(0)))


def test_raw_maps_agree_to_1e_4_of_the_largest_value(case, detector, variables, batch):
    outputs = jax.jit(detector.forward)(*variables, batch.images)
    for mine, theirs in (
        ("features", "fpn"),
        ("cls_logits", "cls_score"),
        ("box_deltas", "bbox_pred"),
    ):
        for level, value in enumerate(getattr(outputs, mine)):
            assert case.error(f"{theirs}_{level}", parity_cases.nchw(value)) < 1e-4


def test_every_anchor_has_the_same_target(case, detector, variables, batch):
    targets = jax.jit(detector.targets)(*variables, batch, jax.random.key(0))["main"]
    for i in range(len(batch.images)):
        gt_inds = case.arrays[f"train_assign.bbox_head.assigner.{i}.gt_inds"]
        np.testing.assert_array_equal(targets.status[i], np.sign(gt_inds))
        positive = gt_inds > 0
        np.testing.assert_array_equal(targets.matched[i][positive], gt_inds[positive] - 1)
    deltas = np.concatenate(
        [case.arrays[f"train_targets.bbox_head.get_targets.0.2_{level}"] for level in range(5)], 1
    )
    positive = np.asarray(targets.status) == 1
    mine = np.asarray(targets.values["deltas"])
    np.testing.assert_allclose(mine[positive], deltas[positive], rtol=1e-4, atol=1e-5)


def test_losses_agree_to_1e_3(case, loss_and_gradients):
    (total, (metrics, _)), _ = loss_and_gradients
    for mine, theirs in (("loss/cls", "loss_cls"), ("loss/box", "loss_bbox")):
        assert metrics[mine] == pytest.approx(case.info["losses"][theirs], rel=1e-3)
    assert total == pytest.approx(case.info["total_loss"], rel=1e-3)


def test_gradients_of_every_trained_parameter_agree(case, detector, loss_and_gradients):
    _, gradients = loss_and_gradients
    named = mapping.reverse({"params": gradients}, mmdet_retinanet.table())
    norms, dots = case.info["grad_norms"], case.info["grad_dots"]
    largest = max(norms.values())
    for key, norm in norms.items():
        gradient, weight = named[key].astype(np.float64), case.weights[key].astype(np.float64)
        mine = np.linalg.norm(gradient)
        assert abs(mine - norm) <= 1e-3 * max(norm, 1e-3 * largest), key
        slack = 1e-3 * abs(dots[key]) + 1e-5 * mine * np.linalg.norm(weight)
        assert abs((gradient * weight).sum() - dots[key]) <= slack, key
    for key in case.info["frozen"]:
        assert not named[key].any(), f"{key} is frozen in the reference"


def test_detections_agree(case, detector, variables, batch):
    found = jax.device_get(jax.jit(detector.predict)(*variables, batch.images, batch.image_size))
    for i, count in enumerate(case.info["detections"]):
        assert found.valid[i].sum() == count
        scores = found.scores[i][:count]
        np.testing.assert_allclose(scores, case.arrays[f"det_scores_{i}"], atol=1e-4)
        np.testing.assert_array_equal(found.labels[i][:count], case.arrays[f"det_labels_{i}"])
        np.testing.assert_allclose(found.boxes[i][:count], case.arrays[f"det_boxes_{i}"], atol=0.1)
