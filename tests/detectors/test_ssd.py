"""What is specific to SSD; tests/detectors/test_contract.py checks the rest."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tables
import tiny

from detlab import contract
from detlab.converters import mapping
from detlab.converters.tables import mmdet_ssd
from detlab.detectors import ssd
from detlab.experiments.recipes import ssd as recipe

TINY = tiny.TINY["ssd"].fields
KEY = jax.random.key(0)
CLASSES = 3
PRESETS = {  # unit case of its anchors -> fields
    "anchors_ssd300": {},
    "anchors_ssd300_voc": recipe.voc_fields(""),
    "anchors_ssd512": recipe.fields("512"),
}


@pytest.fixture(scope="module")
def subject(subject_of):
    return subject_of("ssd")


# ------------------------------------------------------------------------------------------------
# Anchors


@pytest.mark.parametrize("name", PRESETS)
def test_the_presets_have_the_anchors_of_the_reference(unit_cases, name):
    case, arrays = unit_cases("priors")[name]
    module = ssd.SSD(**PRESETS[name])
    grid = module.grid((module.input_size,) * 2)
    assert len(grid.level()) == {300: 8732, 512: 24564}[module.input_size]
    # The case has maps of other sizes.
    anchors = module.anchors(grid._replace(shapes=case["args"]["featmap_sizes"]))
    expected = [arrays[f"anchors_{level}"] for level in range(len(grid.shapes))]
    np.testing.assert_allclose(anchors, np.concatenate(expected), **case["tolerance"])


@pytest.mark.parametrize("name", ["anchors_ssd300", "anchors_ssd512"])
@pytest.mark.parametrize("canvas", [(300, 300), (512, 512), (333, 500), (641, 417)])
def test_any_canvas_has_one_anchor_for_each_prediction_spread_over_it(name, canvas):
    module = ssd.SSD(**PRESETS[name], backbone_width=1, fc_width=2)
    images = jax.ShapeDtypeStruct((1, *canvas, 3), jnp.uint8)
    detector = contract.from_module(module)
    maps = jax.eval_shape(
        tiny.maps_of(detector), *jax.eval_shape(detector.init, KEY, images), images
    )
    grid = module.grid(canvas)
    for shape, count, x in zip(grid.shapes, grid.per_cell, maps.box_deltas):
        assert x.shape == (1, *shape, 4 * count)
    for (rows, columns), (stride_x, stride_y) in zip(grid.shapes, grid.strides):
        reach = np.array([rows * stride_y, columns * stride_x])
        assert (reach >= canvas).all() and (reach < np.array(canvas) + (stride_y, stride_x)).all()


def test_a_canvas_without_a_cell_on_some_level_is_refused():
    ssd.SSD().check_canvas(257, 257)
    with pytest.raises(ValueError, match="128x300 px leave no cell for level 4 of 6; use a larger"):
        ssd.SSD().check_canvas(128, 300)
    assert ssd.SSD().grid((128, 300)).shapes[4][0] == 0


# ------------------------------------------------------------------------------------------------
# Assignment and loss


def made_up(seed=0):
    """(module, batch with empty second image, raw maps)."""
    module, batch = ssd.SSD(**TINY), tiny.make_batch(objects=(3, 0))
    rng = np.random.default_rng(seed)
    grid = module.grid((64, 96))
    kinds = [
        tuple(
            rng.normal(size=(2, *shape, count * channels)).astype(np.float32)
            for shape, count in zip(grid.shapes, grid.per_cell)
        )
        for channels in (CLASSES + 1, 4)
    ]
    return module, batch, ssd.Outputs((), *kinds)


def flat(maps, channels):
    return np.concatenate([np.asarray(x).reshape(2, -1, channels) for x in maps], axis=1)


def test_the_loss_is_the_formula_with_three_hard_negatives_for_each_positive():
    """Every term by hand, in float64."""
    module, batch, maps = made_up()
    value, metrics = tiny.jit(module.loss)(batch, maps)
    targets = tiny.jit(module.targets)(batch, maps)["main"]
    logits = flat(maps.cls_logits, CLASSES + 1).astype(np.float64)
    deltas = flat(maps.box_deltas, 4).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    positive, negative = (np.asarray(targets.status[0]) == kind for kind in (1, 0))
    count = positive.sum()
    assert 0 < 3 * count < negative.sum() and not (np.asarray(targets.status[1]) == 1).any()

    labels = batch.labels[0][np.asarray(targets.matched[0])[positive]]
    of_positives = -log_p[0, positive, labels].sum()
    of_negatives = np.sort(-log_p[0, negative, CLASSES])[::-1][: 3 * count].sum()
    far = np.abs(deltas[0] - np.asarray(targets.values["deltas"][0]))[positive]
    box = np.where(far < 1, far**2 / 2, far - 0.5).sum()
    normaliser = count + 1  # an image without positives counts as one
    assert metrics["normaliser"] == normaliser
    cls = (of_positives + of_negatives) / normaliser
    assert metrics["loss/cls"] == pytest.approx(cls, rel=1e-5)
    assert metrics["loss/box"] == pytest.approx(box / normaliser, rel=1e-5)
    assert value == pytest.approx(cls + box / normaliser, rel=1e-5)


def test_only_positives_and_the_hardest_negatives_get_a_gradient():
    module, batch, maps = made_up()
    grads = tiny.jit(jax.grad(lambda maps: module.loss(batch, maps)[0]))(maps)
    targets = tiny.jit(module.targets)(batch, maps)["main"]
    moved = flat(grads.cls_logits, CLASSES + 1).any(-1)
    positive = np.asarray(targets.status) == 1
    assert moved[positive].all() and moved[0].sum() == 4 * positive.sum()
    assert not moved[1].any(), "an image without positives has no hard negatives"


def test_without_any_object_the_loss_is_0_with_finite_gradients():
    module, batch, maps = made_up()
    empty = batch._replace(valid=np.zeros_like(batch.valid))
    value, grads = tiny.jit(jax.value_and_grad(lambda m: module.loss(empty, m)[0]))(maps)
    assert value == 0
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_an_object_claims_only_one_of_the_anchors_that_share_its_best_overlap(subject):
    batch = tiny.make_batch(objects=(1,), slots=1)
    # Between the centres of two cells of the finest level, too small for an overlap of 0.5.
    batch = batch._replace(boxes=np.float32([[[6, 2, 10, 6]]]))
    targets = subject.targets(*subject.variables, batch, KEY)["main"]
    assert (np.asarray(targets.status) == 1).sum() == 1


# ------------------------------------------------------------------------------------------------
# Prediction, fields and conversion


def test_scores_are_those_of_a_softmax_with_the_background_last():
    module, _, maps = made_up()
    size = np.int32([[64, 96], [64, 96]])
    find = tiny.jit(lambda maps: module.candidates(maps, size, (64, 96)))
    found = jax.device_get(find(maps))
    logits = flat(maps.cls_logits, CLASSES + 1).astype(np.float64)
    scores = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    best = scores[0, :, :CLASSES].max()
    assert found.scores[0].max() == pytest.approx(best, rel=1e-5)
    top = found.scores[0].argmax()
    assert found.labels[0, top] == scores[0, :, :CLASSES].max(0).argmax()


@pytest.mark.slow
def test_with_live_norms_all_statistics_move(subject):
    live = subject.build(norm="batch")
    batch = tiny.make_batch()
    params, state = tiny.weights(live)
    (value, (_, new_state)), grads = tiny.jit(jax.value_and_grad(live.loss, has_aux=True))(
        params, state, batch, KEY
    )
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, grads)))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), new_state, state)
    assert all(jax.tree.leaves(moved)) and set(state["batch_stats"]) == {"backbone", "neck"}


@pytest.mark.slow
def test_rematerialisation_changes_neither_values_nor_paths(subject):
    again = subject.build(remat=True)
    batch = tiny.make_batch()
    (value, _), grads = tiny.jit(jax.value_and_grad(again.loss, has_aux=True))(
        *subject.variables, batch, KEY
    )
    (expected, _), expected_grads = subject.loss(*subject.variables, batch, KEY)
    assert value == pytest.approx(float(expected), rel=1e-6)
    assert jax.tree.structure(grads) == jax.tree.structure(expected_grads)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize(
    "field, value, sentence",
    [
        ("backbone_convs", (2, 2), "backbone_convs is (2, 2); it must be the numbers of"),
        ("extra_layers", ((8, 3, 2),) * 2, "it must be channels (at least 2), kernel size, stride"),
        ("extra_layers", ((1, 3, 2, 1),) * 2, "it must be channels (at least 2), kernel size"),
        ("side_percents", (1, 2, 3), "it must be 5 rising numbers above 0, one more than there"),
        ("side_percents", (1, 2, 4, 3, 5), "it must be 5 rising numbers above 0"),
        ("level_ratios", ((2,),) * 3, "it must be 4 tuples of numbers above 0, one for each level"),
        ("norm", "group", "norm is 'group'; it must be one of none, batch"),
        ("input_size", 0, "input_size is 0; it must be at least 1"),
        ("negatives_per_positive", -1.0, "it must be at least 0"),
        ("smooth_l1_beta", 0.0, "smooth_l1_beta is 0.0; it must be above 0"),
        ("negative_iou", 0.6, "negative_iou is 0.6; it must be from 0 to positive_iou"),
    ],
)
def test_fields_that_cannot_be_are_refused_in_a_sentence(field, value, sentence):
    ssd.SSD().check()
    with pytest.raises(ValueError, match=re.escape(sentence)):
        ssd.SSD(**{**TINY, field: value}).check()


def test_files_from_before_and_after_the_change_of_names_give_the_same_weights():
    leaves, new = tables.there_and_back(mmdet_ssd.table(), "ssd", TINY)
    old_leaves, old = tables.there_and_back(mmdet_ssd.old_table(), "ssd", TINY)
    assert leaves.keys() == old_leaves.keys()
    pairs = {
        "backbone.extra.0.weight": "neck.extra_layers.0.0.conv.weight",
        "backbone.extra.3.bias": "neck.extra_layers.1.1.conv.bias",
        "backbone.l2_norm.weight": "neck.l2_norm.weight",
        "bbox_head.cls_convs.2.weight": "bbox_head.cls_convs.2.0.weight",
        "bbox_head.reg_convs.0.bias": "bbox_head.reg_convs.0.0.bias",
        "backbone.features.0.weight": "backbone.features.0.weight",
    }
    for before, after in pairs.items():
        np.testing.assert_array_equal(old[before], new[after])
    assert len(old) == len(new)


def test_a_file_of_the_pretrained_backbone_fills_the_backbone():
    leaves, whole = tables.there_and_back(mmdet_ssd.table(), "ssd", TINY)
    file = {
        name.removeprefix("backbone."): x
        for name, x in whole.items()
        if name.startswith("backbone.")
    }
    tree, _ = mapping.convert(file, mmdet_ssd.backbone_table(), tables.shapes("ssd", TINY))
    filled = mapping.flatten(tree)
    assert set(filled) == {path for path in leaves if path.startswith("params/backbone/")}
