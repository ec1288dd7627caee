"""What every detector must do, tested on its tiny form (tests/support/tiny.py).

The everyday tests compile two programs per detector: loss with gradients, and predict.
"""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from ml_collections import ConfigDict

from detlab import contract
from detlab.experiments import common
from detlab.ops import conv as conv_lib
from detlab.run import checkpoint, optim
from detlab.run import state as state_lib

KEY = jax.random.key(0)
FLOAT32 = jnp.dtype(jnp.float32)


# They take about half of the time of all detectors; the others are tested every day.
LONG_TO_COMPILE = {
    *("reppoints", "reppoints_v2", "vfnet", "cornernet", "centripetalnet", "ga_retinanet"),
    *("cascade_rcnn", "ga_rcnn", "pisa_rcnn", "sabl_rcnn"),
}
PARAMS = [
    pytest.param(name, marks=[pytest.mark.slow] if name in LONG_TO_COMPILE else [])
    for name in tiny.TINY
]


@pytest.fixture(scope="module", params=PARAMS)
def subject(request, subject_of):
    return subject_of(request.param)


def terms(metrics):
    return {k: v for k, v in metrics.items() if k.startswith("loss/")}


def test_every_detector_is_asked():
    folder = pathlib.Path(contract.__file__).parent / "detectors"
    there = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert {entry.detector for entry in tiny.TINY.values()} == there


def test_loss_terms_add_up_and_every_tree_keeps_its_structure(subject):
    (value, (metrics, state)), grads = subject.step
    assert value.dtype == np.float32 and value.shape == ()
    assert len(terms(metrics)) > 1 and value > 0
    assert value == pytest.approx(float(sum(terms(metrics).values())), rel=1e-5)
    params, old_state = subject.variables
    assert jax.tree.structure(state) == jax.tree.structure(old_state)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    assert metrics.get("normaliser", np.float32(1)).dtype == np.float32


def test_an_image_without_objects_beside_one_with_all_slots_taken_gives_finite_gradients(subject):
    (value, (metrics, state)), grads = subject.step
    for leaf in jax.tree.leaves((value, metrics, state, grads)):
        assert np.isfinite(leaf).all()
    # A part whose gradients are all zero cannot learn.
    assert all(any(map(np.any, jax.tree.leaves(part))) for part in grads.values())


# Values that are also meaningful for background; all others are zero there.
OF_BACKGROUND = {(name, "index") for name in ("box", "box0", "box1", "box2")}  # of RoIs
OF_BACKGROUND |= {("box", "weights")}


def test_targets_are_finite_everywhere_and_zeros_where_there_is_no_object(subject):
    """Images with objects, without, with only ignored ones, and one that pads the batch."""
    batch = subject.batch
    ignored = batch._replace(
        images=batch.images * np.uint8([1, 0]).reshape(2, 1, 1, 1),
        valid=np.zeros_like(batch.valid),
        ignore=batch.valid,
        index=np.int32([0, -1]),
        real=np.array([True, False]),
    )
    learned = 0
    for given in (batch, ignored):
        found = jax.device_get(subject.targets(*subject.variables, given, KEY))
        for name, targets in found.items():
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(targets))
            positive = targets.status == 1
            assert positive.any(1).tolist() == given.valid.any(1).tolist()
            for key, values in targets.values.items():
                of_entries = values.shape[:2] == positive.shape  # otherwise a map, [B, H, W, ...]
                learns = positive if of_entries else positive.any(1)
                learned += np.count_nonzero(values[learns])
                if (name, key) in OF_BACKGROUND:
                    learns = targets.status >= 0
                assert not values[~learns].any(), (name, key)
    assert learned


def test_live_norms_update_all_their_statistics(subject):
    if subject.entry.detector in tiny.WITHOUT_STATE:
        assert not subject.variables[1]
        return
    (_, (_, state)), _ = subject.step
    before = subject.variables[1]["batch_stats"]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state["batch_stats"], before)
    assert all(jax.tree.leaves(moved))


def test_detections_are_sorted_and_padded_with_zeros(subject):
    found = jax.device_get(
        subject.predict(*subject.variables, subject.batch.images, subject.batch.image_size)
    )
    images, slots = found.scores.shape
    assert images == 2 and found.boxes.shape == (2, slots, 4)
    assert found.boxes.dtype == found.scores.dtype == np.float32
    assert found.labels.dtype == np.int32 and found.valid.dtype == bool
    for boxes, scores, labels, valid in zip(*found):
        count = int(valid.sum())
        assert valid[:count].all()
        assert (np.diff(scores[:count]) <= 0).all() and (scores[:count] > 0).all()
        assert (boxes[:count, 2:] > boxes[:count, :2]).all()
        assert (labels >= 0).all() and (labels < tiny.NUM_CLASSES).all()
        assert not boxes[count:].any() and not scores[count:].any() and not labels[count:].any()


BOUNDS = ("num_candidates", "candidates_per_level")
ALL_PASS = dict(score_threshold=0.0, max_tag_distance=1e9)


def far_apart(self, top_left, bottom_right):
    """Pairs of corners more than 8 px apart along both axes, in place of a detector's `agree`."""
    first, second = top_left[0].points[:, None], bottom_right[0].points
    return ((second - first) > 8).all(-1)


def test_bounds_on_candidates_are_told_where_more_pass(subject, monkeypatch):
    """All candidates of the first image pass; the second has only a few cells of content."""
    config = ConfigDict(dict(detector=subject.entry.detector, model=subject.entry.fields))

    def those_it_has(fields):
        return {k: v for k, v in fields.items() if contract.field(config, k) is not None}

    # Tiny forms have fewer proposals and pairs of corners than cells; in Cascade R-CNN more than 10
    # candidates of the second image pass, and 15 or more of the first.
    few = 10 if those_it_has(dict(proposals=0, max_tag_distance=0)) else 50
    few = 14 if those_it_has(dict(stage_ious=0)) else few
    # Guided anchors of one cell differ, so each of the second image's 7 cells proposes.
    few = 7 * tiny.NUM_CLASSES if subject.entry.detector == "ga_rcnn" else few
    if those_it_has(dict(max_center_distance=0)):
        # No field lets corners pair that do not point to the middle of their box.
        few = 10
        monkeypatch.setattr(contract.module_class(config), "agree", far_apart)
    small, large = (
        subject.build(**those_it_has(ALL_PASS | dict.fromkeys(BOUNDS, bound)))
        for bound in (few, 10**6)
    )

    @tiny.jit  # one program, without suppression
    def exceeded(*arguments):
        return [one.predict_with_bounds(*arguments)[1] for one in (small, large)]

    size = np.int32([subject.entry.canvas, (8, 8)])
    told = exceeded(*subject.variables, subject.batch.images, size)
    for of_bound, expected in zip(told, ([True, False], [False, False])):
        found = {field: flags.tolist() for field, flags in of_bound.items()}
        assert found == those_it_has(dict.fromkeys(BOUNDS, expected))


@pytest.mark.slow
def test_a_new_network_has_a_finite_loss(subject):
    (value, (metrics, _)), grads = subject.initial_step
    assert value > 0
    for leaf in jax.tree.leaves((value, metrics, grads)):
        assert np.isfinite(leaf).all()
    for leaf in jax.tree.leaves(subject.initial):
        assert np.isfinite(leaf).all()


@pytest.mark.slow
def test_bfloat16_convolves_in_16_bits_and_gives_32(subject):
    """Reads the program before compilation: XLA's CPU backend emulates 16 bits in 32."""
    low = subject.build(dtype="bfloat16")
    batch, (params, state) = subject.batch, subject.variables
    step = tiny.jit(jax.value_and_grad(low.loss, has_aux=True))
    lowered = step.lower(params, state, batch, KEY).as_text()
    convolutions = re.findall(r"stablehlo\.convolution.*-> tensor<\S*x(\w+)>", lowered)
    assert len(convolutions) > 5 and set(convolutions) == {"bf16"}
    (value, (metrics, new_state)), grads = jax.eval_shape(step, params, state, batch, KEY)
    maps, _ = jax.eval_shape(lambda *args: low.maps(*args, False), params, state, batch.images)
    assert {x.dtype for x in jax.tree.leaves(maps.features)} <= {jnp.dtype(jnp.bfloat16)}
    maps = maps._replace(features=())
    targets = jax.eval_shape(low.targets, params, state, batch, KEY)
    found = jax.eval_shape(low.predict, params, state, batch.images, batch.image_size)
    for leaf in jax.tree.leaves((value, metrics, new_state, grads, maps, targets, found)):
        assert leaf.dtype == FLOAT32 or not jnp.issubdtype(leaf.dtype, jnp.floating)


def test_state_is_restored_exactly(subject, tmp_path):
    """Everything that a run of this detector keeps, with random values in all of it."""
    config = common.base(subject.entry.detector)
    config.optim.update(name="adamw", ema_decay=0.9)
    params, state = subject.variables
    optimizer = optim.build(config.optim, params, 1000, 2, 1, subject.detector.frozen)
    shapes = jax.eval_shape(
        lambda p, s: state_lib.of_weights(p, s, optimizer, config), params, state
    )
    rng = np.random.default_rng(0)
    train_state = jax.tree.map(
        lambda x: jax.device_put(rng.uniform(0, 100, x.shape).astype(x.dtype)), shapes
    )
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(train_state, {})
    restored = checkpoints.restore(shapes)
    checkpoints.close()
    assert jax.tree.structure(restored) == jax.tree.structure(train_state)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(train_state), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_more_slots_change_nothing(subject):
    more = tiny.with_more_slots(subject.batch, 3)
    (value, (metrics, state)), grads = subject.loss(*subject.initial, more, KEY)
    (expected, (expected_metrics, expected_state)), expected_grads = subject.initial_step
    assert value == pytest.approx(float(expected), rel=1e-5)
    for name, term in terms(metrics).items():
        np.testing.assert_allclose(term, expected_metrics[name], rtol=1e-5, atol=1e-7)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max() + 1e-9)


@pytest.mark.slow
def test_bfloat16_is_near_float32(subject):
    low = subject.build(dtype="bfloat16")
    value, (metrics, _) = tiny.jit(low.loss)(*subject.initial, subject.batch, KEY)
    (expected, (expected_metrics, _)), _ = subject.initial_step
    assert value != expected, "the loss shows the lower precision"
    assert value == pytest.approx(float(expected), rel=0.02)
    for name, term in terms(metrics).items():
        assert term == pytest.approx(
            float(expected_metrics[name]), rel=0.02, abs=0.02 * float(expected)
        )


@pytest.mark.slow
def test_predict_is_suppress_of_candidates(subject):
    images, size = subject.batch.images, subject.batch.image_size
    candidates = subject.candidates(*subject.variables, images, size)
    predicted = subject.predict(*subject.variables, images, size)
    for a, b in zip(tiny.jit(subject.detector.suppress)(candidates), predicted):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_from_given_maps_everything_is_the_same_bit_for_bit(subject):
    """Losses, gradients, state and random targets: computed as a whole, and from the maps.

    Both are in one program, because XLA may round the same operations differently in two.
    """
    detector, (params, state) = subject.detector, subject.variables

    @tiny.jit
    def both(params, state, batch):
        whole = jax.value_and_grad(detector.loss, has_aux=True)(params, state, batch, KEY)
        targets = detector.targets(params, state, batch, KEY)

        def maps_of(params):
            return detector.maps(params, state, batch.images, True, KEY)

        maps, back, new_state = jax.vjp(maps_of, params, has_aux=True)

        def loss_of(params, maps):
            return detector.loss_of_maps(params, new_state, batch, maps, KEY)

        found, (grads, of_maps) = jax.value_and_grad(loss_of, (0, 1), has_aux=True)(params, maps)
        grads = jax.tree.map(jnp.add, grads, *back(of_maps))
        parts = detector.targets_of_maps(params, new_state, batch, maps, KEY)
        return (whole, targets), ((found, grads), parts)

    whole, parts = jax.device_get(both(params, state, subject.batch))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)


def operations(traced, *platforms: str) -> tuple[int, list[str]]:
    """(number of convolutions, products with a map) of a program before compilation.

    A product with a map has an operand of four axes, [B, H, W, D]; products of linear layers, RoIs
    and deformed samples have fewer.
    """
    text = traced.lower(lowering_platforms=platforms).as_text()
    products = re.findall(r"stablehlo\.dot_general.*", text)
    with_map = [p for p in products if re.search(r"tensor<\d+x\d+x\d+x\d+x", p)]
    return text.count("stablehlo.convolution"), with_map


def test_a_cpu_is_given_products_that_operations_finds():
    x, kernel = np.ones((1, 4, 4, 8), np.float32), np.ones((1, 1, 8, 8), np.float32)
    traced = jax.jit(conv_lib.conv).trace(x, kernel)
    convolutions, products = operations(traced, "cpu")
    assert (convolutions, len(products)) == (0, 1)
    assert operations(traced, "cuda", "tpu") == (2, [])  # one branch for each platform


def test_accelerators_are_given_native_convolutions_alone(subject):
    """A 1x1 convolution as a product, good on CPUs, crashes XLA's GPU compiler in jax 0.10."""
    batch = subject.batch
    training = subject.loss.trace(*subject.variables, batch, KEY)
    prediction = subject.predict.trace(*subject.variables, batch.images, batch.image_size)
    for traced in (training, prediction):
        convolutions, products = operations(traced, "cuda", "tpu")
        assert convolutions > 5 and not products
