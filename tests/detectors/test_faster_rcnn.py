"""Faster R-CNN, built tiny: proposals and samples, what each term reads, thresholds."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab import contract
from detlab.detectors import faster_rcnn

FIELDS = tiny.TINY["faster_rcnn"].fields
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def detector():
    return contract.from_module(faster_rcnn.FasterRCNN(**FIELDS))


@pytest.fixture(scope="module")
def variables(detector):
    """Weights as the tests need them, without compiling `init`."""
    shapes = jax.eval_shape(detector.init, KEY, jnp.zeros((1, 64, 96, 3), jnp.uint8))
    rng = np.random.default_rng(0)
    params, state = jax.tree.map(lambda x: np.float32(rng.normal(0, 0.1, x.shape)), shapes)
    return params, jax.tree.map(np.abs, state)


@pytest.fixture(scope="module")
def second_stage(detector):
    """(RPN parameters, all, state, batch) -> metrics, gradients of the second stage's terms."""

    def terms(rpn_params, params, state, batch):
        _, (metrics, _) = detector.loss({**params, "rpn": rpn_params}, state, batch, KEY)
        return metrics["loss/cls"] + metrics["loss/box"], metrics

    compute = tiny.jit(jax.grad(terms, has_aux=True))

    def run(params, state, batch):
        gradients, metrics = jax.device_get(compute(params["rpn"], params, state, batch))
        return metrics, gradients

    return run


def targets_of(module):
    """(batch, key) -> Targets from made-up RPN maps, without a backbone."""
    rng = np.random.default_rng(0)
    shapes = [(2, -(-64 // s), -(-96 // s)) for s in FIELDS["strides"]]
    logits = tuple(np.float32(rng.normal(size=(*shape, 3))) for shape in shapes)
    deltas = tuple(np.float32(rng.normal(0, 0.2, (*shape, 12))) for shape in shapes)
    maps = faster_rcnn.Maps((), logits, deltas)
    run = tiny.jit(contract.from_module(module).targets_of_maps)
    return lambda batch, key: jax.device_get(run({}, {}, batch, maps, key))


@pytest.fixture(scope="module")
def targets():
    return targets_of(faster_rcnn.FasterRCNN(**FIELDS))


def test_shapes_of_both_stages(detector, variables):
    images = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.uint8)
    maps = jax.eval_shape(tiny.maps_of(detector), *variables, images)
    for level, stride in enumerate((4, 8, 16, 32)):
        cells = (2, -(-64 // stride), -(-96 // stride))
        assert maps.rpn_logits[level].shape == (*cells, 3)
        assert maps.rpn_deltas[level].shape == (*cells, 12)
    size = jax.ShapeDtypeStruct((2, 2), jnp.int32)
    outputs = jax.eval_shape(
        lambda *args: detector.outputs(*args, (64, 96)), *variables, maps, size
    )
    count = FIELDS["proposals"]
    assert outputs.proposals.boxes.shape == (2, count, 4)
    assert outputs.cls_logits.shape == (2, count, 4) and outputs.box_deltas.shape == (2, count, 12)


def test_padding_is_never_sampled_and_deltas_lead_to_the_objects(targets):
    """With content that leaves few anchors and proposals in one image or the other."""
    batch = tiny.make_batch(objects=(2, 0))
    size = np.int32([[60, 90], [8, 8]])
    found = targets(batch._replace(image_size=size), KEY)
    assert found.keys() == {"rpn", "box"}
    anchors, box = found["rpn"], found["box"]
    for i, (height, width) in enumerate(size):
        filled = box.status[i] >= 0
        assert (box.boxes[i, filled, 2:] > box.boxes[i, filled, :2]).all()
        assert len(set(box.values["index"][i, filled])) == filled.sum() > 0
        sampled = anchors.status[i] >= 0
        corner = (anchors.boxes[i, :, :2] + anchors.boxes[i, :, 2:]) / 2  # of the anchor's cell
        assert 0 < sampled.sum() <= FIELDS["rpn_samples"]
        assert (corner[sampled] < [width, height]).all() and (corner >= [width, height]).any()
    assert (box.status[1] == -1).any() and not (box.status[1] == 1).any()

    stds = {"rpn": 1.0, "box": np.array(faster_rcnn.FasterRCNN.delta_stds)}
    for name, of in found.items():
        positive = of.status[0] == 1
        assert positive.any()
        centre = (of.boxes[0, positive, :2] + of.boxes[0, positive, 2:]) / 2
        size = of.boxes[0, positive, 2:] - of.boxes[0, positive, :2]
        delta = of.values["deltas"][0, positive] * stds[name]
        centre, size = centre + delta[:, :2] * size, size * np.exp(delta[:, 2:])
        gts = batch.boxes[0][of.matched[0, positive]]
        np.testing.assert_allclose(centre - size / 2, gts[:, :2], atol=1e-3)
        np.testing.assert_allclose(centre + size / 2, gts[:, 2:], atol=1e-3)


def test_samples_depend_on_the_key_and_the_number_of_the_image(targets):
    batch = tiny.make_batch(objects=(3, 3))
    same = jax.tree.map(lambda x: np.stack([x[0], x[0]]), batch)
    first, again = targets(same, KEY)["rpn"].status, targets(batch, KEY)["rpn"].status
    other = targets(same, jax.random.key(1))["rpn"].status
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[0] != first[1]).any(), "each image has its own draw"
    assert (first != other).any()


def test_a_stage_with_a_seam_of_its_own_leaves_the_draw_of_the_other_as_it_is(targets):
    class Objects(faster_rcnn.FasterRCNN):
        def sample(self, keys, proposals, batch):
            nothing = proposals._replace(valid=jnp.zeros_like(proposals.valid))
            return super().sample(keys, nothing, batch)

    batch = tiny.make_batch(objects=(3, 2))
    found, plain = targets_of(Objects(**FIELDS))(batch, KEY), targets(batch, KEY)
    jax.tree.map(np.testing.assert_array_equal, found["rpn"], plain["rpn"])
    assert (found["box"].status == 1).sum() == 5 and not (found["box"].status == 0).any()
    assert (plain["box"].status == 0).any()


@pytest.mark.slow
def test_without_objects_everything_is_background(second_stage, variables):
    metrics, _ = second_stage(*variables, tiny.make_batch(objects=(0, 0)))
    assert metrics["loss/rpn_box"] == metrics["loss/box"] == metrics["positives"] == 0
    assert metrics["loss/rpn_cls"] > 0 and metrics["loss/cls"] > 0
    assert metrics["normaliser"] > 0


def test_proposals_are_constants_of_the_box_head(second_stage, variables):
    metrics, gradients = second_stage(*variables, tiny.make_batch(objects=(3, 3)))
    assert metrics["loss/cls"] > 0 and metrics["loss/box"] > 0
    assert not any(np.any(g) for g in jax.tree.leaves(gradients))


ON_FOUR_DEVICES = """
import re

import jax
import tiny
from ml_collections import ConfigDict

from detlab import contract
from detlab import sharding

entry = tiny.TINY["faster_rcnn"]
config = ConfigDict(dict(detector=entry.detector, model=entry.fields))
detector = contract.build(config)
mesh = sharding.make_mesh()
batch = sharding.put_batch(tiny.make_batch(entry.canvas, objects=(4, 0, 2, 3)), mesh)
weights = jax.eval_shape(detector.init, jax.random.key(0), batch.images[:1])
everywhere = sharding.replicated(mesh)
weights = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), weights
)
with jax.set_mesh(mesh):
    step = tiny.jit(jax.value_and_grad(detector.loss, has_aux=True))
    text = step.lower(*weights, batch, jax.random.key(0)).compile().as_text()
found = re.findall(r" (all-[a-z-]+|collective-[a-z-]+|reduce-scatter)\\(", text)
entry = text.partition("ENTRY ")[2]
assert set(found) == {"all-reduce"}, set(found)
assert entry.count(" all-reduce(") == len(found), "a loop communicates with other devices"
print("fine")
"""


@pytest.mark.slow
def test_devices_share_sums_alone_and_none_in_a_loop(run_on_devices):
    """Proposals, samples and RoIs of an image stay on its device."""
    assert run_on_devices(4, ON_FOUR_DEVICES).endswith("fine\n")


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(strides=(8, 16, 32, 64)), "strides is .* one for each level from P2 up"),
        (dict(strides=(4, 8, 16)), "strides is .* 4, 8, 16, 32 and so on.* at least 4 of them"),
        (
            dict(rpn_negative_iou=0.8),
            "rpn_negative_iou is 0.8; it must be from 0 to rpn_positive_iou",
        ),
        (dict(proposals=0), "proposals is 0; it must be at least 1"),
        (dict(box_positive_fraction=1.5), "box_positive_fraction is 1.5; it must be from 0 to 1"),
        (dict(sampling_ratio=-1), "sampling_ratio is -1; it must be at least 0"),
        (dict(delta_stds=(0.1,)), "delta_stds is .* four numbers above 0"),
        (dict(depth=20), "depth is 20; it must be one of 18, 34, 50, 101"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    faster_rcnn.FasterRCNN().check()
    with pytest.raises(ValueError, match=re.compile(f"^{sentence}")):
        faster_rcnn.FasterRCNN(**fields).check()
