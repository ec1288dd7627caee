"""YOLOv3, built tiny: targets, loss, detections, table."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tables
import tiny

from detlab import contract, types
from detlab.converters import mapping
from detlab.converters.tables import mmdet_yolov3
from detlab.detectors import yolov3

TINY = tiny.TINY["yolov3"].fields
CANVAS = (64, 96)
CELLS = 8 * 12 + 4 * 6 + 2 * 3
KEY = jax.random.key(0)
TERMS = ("loss/cls", "loss/objectness", "loss/xy", "loss/wh")


def module(**fields):
    return yolov3.YOLOv3(**{**TINY, **fields})


@pytest.fixture(scope="module")
def subject(subject_of):
    return subject_of("yolov3")


@pytest.fixture(scope="module")
def detector(subject):
    return subject.detector


@pytest.fixture(scope="module")
def variables(subject):
    return subject.variables


@pytest.fixture(scope="module")
def targets(subject):
    return subject.targets


@pytest.fixture(scope="module")
def predict(subject):
    return subject.predict


@pytest.fixture(scope="module")
def loss(subject):
    return subject.loss


@pytest.mark.parametrize("size", [(64, 96), (65, 127)])
def test_raw_maps_have_one_cell_a_stride_and_three_anchors_a_cell(detector, variables, size):
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8)
    outputs = jax.eval_shape(tiny.maps_of(detector), *variables, images)
    for level, stride in enumerate((8, 16, 32)):
        cells = (2, -(-size[0] // stride), -(-size[1] // stride))
        assert outputs.features[level].shape == (*cells, 8 * 2**level)
        assert outputs.predictions[level].shape == (*cells, 3 * (5 + 3))
        assert outputs.predictions[level].dtype == jnp.float32


def test_initial_scores_are_the_priors(subject, variables):
    images = tiny.make_batch().images
    head = tiny.jit(lambda images: subject.detector.init(KEY, images)[0]["head"])(images)
    outputs = subject.maps({**variables[0], "head": head}, variables[1], images)
    for stride, maps in zip((8, 16, 32), outputs.predictions):
        scores = jax.nn.sigmoid(maps.reshape(-1, 8))
        assert scores[:, 4].mean() == pytest.approx(8 / (608 / stride) ** 2, rel=0.2)
        assert scores[:, 5:].mean() == pytest.approx(0.01, rel=0.2)


def test_the_terms_are_four(loss, variables):
    (_, (metrics, _)), _ = loss(*variables, tiny.make_batch(), KEY)
    assert {name for name in metrics if name.startswith("loss/")} == set(TERMS)


def test_loss_is_the_formula_on_recorded_rows(variables, targets):
    """Every term by hand, from made-up raw maps instead of the network's."""
    batch = tiny.make_batch()
    rng = np.random.default_rng(3)
    maps = tuple(
        rng.standard_normal((2, 64 // s, 96 // s, 24)).astype(np.float32) for s in (8, 16, 32)
    )
    value, metrics = tiny.jit(module().loss)(batch, yolov3.Outputs((), maps))

    found = targets(*variables, batch, KEY)["main"]
    rows = np.concatenate([m.reshape(2, -1, 8) for m in maps], axis=1).astype(np.float64)
    positive, counted = np.asarray(found.status) == 1, np.asarray(found.status) >= 0
    assert positive.any() and not counted.all()
    wanted = np.asarray(found.values["xywh"], np.float64)[positive]
    labels = np.take_along_axis(batch.labels, np.asarray(found.matched), 1)[positive]

    def bce(logits, target):
        p = 1 / (1 + np.exp(-logits))
        return -(target * np.log(p) + (1 - target) * np.log(1 - p)).sum()

    sums = (
        bce(rows[positive][:, 5:], np.eye(3)[labels]),
        bce(rows[counted][:, 4], positive[counted]),
        2 * bce(rows[positive][:, :2], wanted[:, :2]),
        2 * np.square(rows[positive][:, 2:4] - wanted[:, 2:]).sum(),
    )
    for name, expected in zip(TERMS, sums):
        assert metrics[name] == pytest.approx(8 / 2 * expected, rel=1e-5)  # 8 images of 2
    assert value == pytest.approx(4 * sum(sums), rel=1e-5)


@pytest.mark.slow
def test_loss_of_a_batch_is_the_mean_of_its_parts():
    """With norms that do not depend on the batch, as accumulation requires."""
    batch = tiny.make_batch()

    def loss(batch):
        shapes = [(len(batch.images), 64 // s, 96 // s, 24) for s in (8, 16, 32)]
        maps = yolov3.Outputs((), [jnp.full(shape, float(shape[1])) for shape in shapes])
        return module().loss(batch, maps)[0]

    whole = loss(batch)
    parts = [loss(types.Batch(*(x[i : i + 1] for x in batch))) for i in (0, 1)]
    assert parts[0] != parts[1]
    assert whole == pytest.approx(float(sum(parts)) / 2, rel=1e-6)


@pytest.mark.slow
def test_overfitting_one_batch_lowers_the_loss_and_finds_its_objects(subject, detector, predict):
    batch = tiny.make_batch()
    optimizer = optax.adam(5e-3)
    params, state = subject.initial

    @tiny.jit_loop
    def run(params, state):
        def update(carry, _):
            params, state, opt_state = carry
            grad = jax.value_and_grad(detector.loss, has_aux=True)
            (value, (_, state)), grads = grad(params, state, batch, KEY)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), state, opt_state), value

        carry = params, state, optimizer.init(params)
        return jax.lax.scan(update, carry, length=200)

    (params, state, _), values = run(params, state)
    assert values[-1] < 0.25 * values[0]  # the cross entropy of positions does not reach 0
    found = predict(params, state, batch.images, batch.image_size)
    for i in range(2):
        for box, label in zip(batch.boxes[i, :3], batch.labels[i, :3]):
            same = np.asarray(found.valid[i] & (found.labels[i] == label))
            distance = np.abs(np.asarray(found.boxes[i])[same] - box).max(1)
            assert distance.min() < 8, "a detection of its class within 8 px"


def test_targets_of_an_object_are_its_place_in_the_cell_and_its_size(variables, targets):
    batch = tiny.make_batch(objects=(1,), slots=1)
    box = np.float32([[[30.0, 10.0, 56.0, 28.0]]])  # 26x18 around (43, 19)
    found = targets(*variables, batch._replace(boxes=box), KEY)["main"]
    positive = np.flatnonzero(found.status[0] == 1)
    best = 3 * (2 * 12 + 5) + 2  # row 2, column 5 of stride 8, the third anchor: 26x18
    assert best in positive
    expected = [43 / 8 - 5, 19 / 8 - 2, 0.0, 0.0]
    np.testing.assert_allclose(found.values["xywh"][0, best], expected, atol=1e-6)
    stride = np.array([8, 16, 32])[found.level[0, positive]]
    centre = (found.boxes[0, positive, :2] + found.boxes[0, positive, 2:]) / 2
    np.testing.assert_array_equal(centre[:, 0] // stride, 43 // stride)
    np.testing.assert_array_equal(centre[:, 1] // stride, 19 // stride)


def test_a_larger_canvas_around_the_content_changes_no_target(variables, targets):
    batch = tiny.make_batch()
    canvas = np.zeros((2, 128, 128, 3), np.uint8)
    canvas[:, :64, :96] = batch.images
    padded = targets(*variables, batch._replace(images=canvas), KEY)["main"]
    exact = targets(*variables, batch, KEY)["main"]
    stride = np.array([8, 16, 32])[padded.level[0]]
    centre = (np.asarray(padded.boxes[0, :, :2]) + np.asarray(padded.boxes[0, :, 2:])) / 2
    inside = (centre < [96, 64]).all(1)
    assert (stride[~inside] > 0).any() and inside.sum() == 3 * CELLS
    np.testing.assert_array_equal(padded.status[:, inside], exact.status)
    assert (np.asarray(padded.status)[:, ~inside] == -1).all()


def test_an_image_without_objects_trains_on_background_alone(loss, variables):
    batch = tiny.make_batch()
    empty = batch._replace(valid=np.zeros_like(batch.valid), boxes=np.zeros_like(batch.boxes))
    (value, (metrics, _)), grads = loss(*variables, empty, KEY)
    assert metrics["loss/cls"] == metrics["loss/xy"] == metrics["loss/wh"] == 0
    assert metrics["positives"] == 0 and value == metrics["loss/objectness"] > 0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def of_maps(maps, **fields):
    """Candidates of made-up raw maps [1, Hl, Wl, A * (5 + C)], finest first."""

    find = tiny.jit(lambda maps, size: module(**fields).candidates(maps, size, CANVAS))
    found = find(yolov3.Outputs((), maps), jnp.array([CANVAS]))
    return jax.tree.map(lambda x: np.asarray(x[0]), found)


def quiet_maps():
    """One row [A, 5 + C] per cell; nothing is an object of any class."""
    return [np.full((1, 64 // s, 96 // s, 3, 8), -20, np.float32) for s in (8, 16, 32)]


def flat(maps):
    return [m.reshape(*m.shape[:3], -1) for m in maps]


def logit(p):
    return np.log(p / (1 - p))


def test_thresholds_look_at_class_score_and_objectness_apart():
    maps = quiet_maps()
    for column, (objectness, score) in enumerate([(0.1, 0.3), (0.1, 0.04), (0.004, 0.9)]):
        maps[0][0, 0, column, 0, :6] = 0, 0, 0, 0, logit(objectness), logit(score)
    found = of_maps(flat(maps))
    # Only the first passes, with 0.1 * 0.3, although that is below score_threshold; the second
    # has too low a class score, the third too low an objectness.
    assert found.valid.sum() == 1
    assert found.scores[found.valid] == pytest.approx(0.03, rel=1e-5)


def test_candidates_are_chosen_by_class_score_among_all_levels():
    maps = quiet_maps()
    for level, (objectness, score) in enumerate([(0.9, 0.5), (0.01, 0.8), (0.5, 0.6)]):
        maps[level][0, 1, 1, 2, :5] = 0, 0, 0, 0, logit(objectness)
        maps[level][0, 1, 1, 2, 6] = logit(score)
    found = of_maps(flat(maps), num_candidates=2)
    assert found.valid.all() and (found.labels == 1).all()
    np.testing.assert_allclose(found.scores, [0.01 * 0.8, 0.5 * 0.6], rtol=1e-5)


def test_boxes_are_places_in_cells_and_multiples_of_anchors():
    maps = quiet_maps()
    maps[1][0, 3, 2, 0, :6] = logit(0.25), logit(0.5), np.log(2), np.log(0.5), 2, 2
    found = of_maps(flat(maps))
    centre, size = np.array([2.25, 3.5]) * 16, np.array([2 * 18, 0.5 * 36])
    expected = np.concatenate([centre - size / 2, centre + size / 2])
    assert found.valid.sum() == 1
    np.testing.assert_allclose(found.boxes[found.valid][0], expected, rtol=1e-5)


@pytest.mark.parametrize("log_size", [200.0, -200.0])
def test_sizes_that_overflow_or_vanish_are_no_detections(log_size):
    maps = quiet_maps()
    maps[0][0, 2, 2, 0, 2:6] = log_size, log_size, 2, 2
    assert not of_maps(flat(maps)).valid.any()


def test_cells_of_padding_give_no_candidates(subject, variables):
    params = jax.tree.map(lambda x: x, variables[0])
    for level in yolov3.LEVELS:  # everything is an object of every class
        bias = params["head"][f"predict{level}"]["bias"]
        params["head"][f"predict{level}"]["bias"] = jnp.full_like(bias, 3.0)
    size = np.int32([[64, 96], [40, 50]])
    found = subject.candidates(params, variables[1], tiny.make_batch().images, size)
    centre = (found.boxes[..., :2] + found.boxes[..., 2:]) / 2
    for i, (height, width) in enumerate(size):
        reach = -(-np.array([width, height]) // 32) * 32  # of the coarsest cell with content
        assert found.valid[i].any()
        assert (np.asarray(centre[i])[np.asarray(found.valid[i])] < reach).all()


@pytest.mark.slow
def test_rematerialisation_changes_neither_values_nor_paths(variables, loss):
    again = contract.from_module(module(remat=True))
    batch = tiny.make_batch()
    images = jax.ShapeDtypeStruct((1, *CANVAS, 3), jnp.uint8)
    shapes = jax.eval_shape(again.init, KEY, images)
    assert jax.tree.structure(shapes) == jax.tree.structure(variables)
    compute = tiny.jit(jax.value_and_grad(again.loss, has_aux=True))
    (value, (_, state)), grads = compute(*variables, batch, KEY)
    (expected, (_, expected_state)), expected_grads = loss(*variables, batch, KEY)
    # The same float32 operations, which XLA may fuse and so round differently.
    assert value == pytest.approx(float(expected), rel=1e-6)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
    # Statistics are updated once, not again when blocks are recomputed.
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_stored_norms_of_the_backbone_keep_their_statistics_and_learn(variables):
    stored = contract.from_module(module(backbone_norm="stored"))
    assert stored.frozen == ("batch_stats/backbone/.*",)
    assert contract.from_module(module(backbone_norm="frozen")).frozen == (
        "batch_stats/backbone/.*",
        "params/backbone/.*norm/.*",
    )
    params, state = variables
    grads, (_, new_state) = tiny.jit(jax.grad(stored.loss, has_aux=True))(
        params, state, tiny.make_batch(), KEY
    )
    before, after = state["batch_stats"], new_state["batch_stats"]
    for a, b in zip(jax.tree.leaves(before["backbone"]), jax.tree.leaves(after["backbone"])):
        np.testing.assert_array_equal(a, b)
    assert all(np.any(g) for g in jax.tree.leaves(grads["backbone"]["stem"]["norm"]))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before["neck"], after["neck"])
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    "field, value, sentence",
    [
        ("backbone_norm", "group", "backbone_norm is 'group'; it must be one of batch, stored"),
        (
            "backbone_blocks",
            (1, 1),
            "backbone_blocks is (1, 1); it must be five block counts above 0",
        ),
        ("prior_objects", 400.0, "prior_objects is 400.0; it must be above 0 and below 361"),
        ("anchor_sizes", (((10, 13),),), "it must be pairs (width, height) above 0 for each"),
        ("anchor_sizes", (((9, 9),), ((9, 9),), ((9, 0),)), "it must be pairs (width, height)"),
        ("negative_iou", 0.6, "negative_iou is 0.6; it must be from 0 to positive_iou"),
        ("summed_images", 0.0, "summed_images is 0.0; it must be above 0"),
        ("pixel_std", (1.0, 0.0, 1.0), "it must be three numbers above 0"),
        ("dtype", "int8", "dtype is 'int8'; it must be one of float32"),
    ],
)
def test_fields_that_cannot_be_are_refused_in_a_sentence(field, value, sentence):
    module().check()
    yolov3.YOLOv3().check()
    with pytest.raises(ValueError, match=re.escape(sentence)):
        module(**{field: value}).check()


def test_the_table_counts_levels_from_the_coarsest():
    _, tensors = tables.there_and_back(mmdet_yolov3.table(), "yolov3", TINY)
    assert tensors["neck.detect1.conv2.conv.weight"].shape == (64, 32, 3, 3)
    assert tensors["bbox_head.convs_pred.2.weight"].shape == (24, 16, 1, 1)


def test_file_of_the_pretrained_backbone_has_the_names_of_the_whole_without_their_start():
    leaves, whole = tables.there_and_back(mmdet_yolov3.table(), "yolov3", TINY)
    file = {
        name.removeprefix("backbone."): x
        for name, x in whole.items()
        if name.startswith("backbone.")
    }
    shapes = tables.shapes("yolov3", TINY)
    tree, _ = mapping.convert(file, mmdet_yolov3.backbone_table(), shapes)
    filled = mapping.flatten(tree)
    assert set(filled) == {path for path in leaves if path.split("/")[1] == "backbone"}
    bgr, _ = mapping.convert(file, mmdet_yolov3.backbone_table(bgr=True), shapes)
    stem = "params/backbone/stem/conv/kernel"
    np.testing.assert_array_equal(mapping.flatten(bgr)[stem], leaves[stem][:, :, ::-1])
