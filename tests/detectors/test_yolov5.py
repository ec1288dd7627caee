"""YOLOv5, built tiny: entries and losses on given maps, detections, fields."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import traverse_util

from detlab import contract
from detlab.detectors import yolov5

TINY = tiny.TINY["yolov5"].fields
KEY = jax.random.key(0)
STRIDES = (8, 16, 32)
PER_ANCHOR = 5 + tiny.NUM_CLASSES


def module(**fields):
    return yolov5.YOLOv5(**TINY | fields)


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def cross_entropy(logits, targets):
    p = sigmoid(logits)
    return -(targets * np.log(p) + (1 - targets) * np.log(1 - p))


def slow_ciou(a, b):
    """Of two boxes (centre x, centre y, w, h)."""
    ax, bx = (np.concatenate([x[:2] - x[2:] / 2, x[:2] + x[2:] / 2]) for x in (a, b))
    inside = np.maximum(np.minimum(ax[2:], bx[2:]) - np.maximum(ax[:2], bx[:2]), 0)
    outside = np.maximum(ax[2:], bx[2:]) - np.minimum(ax[:2], bx[:2])
    iou = inside.prod() / (a[2:].prod() + b[2:].prod() - inside.prod())
    v = 4 / np.pi**2 * (np.arctan(b[2] / b[3]) - np.arctan(a[2] / a[3])) ** 2
    distance = ((a[:2] - b[:2]) ** 2).sum() / (outside**2).sum()
    return iou - distance - v * v / (1 - iou + v)


def slow_terms(model, batch, maps, entries, smoothing):
    """The three terms without gains, entry by entry in the order of the assignment."""
    box, objectness, cls = [], [], []
    for level, stride in enumerate(STRIDES):
        raw = maps[level].reshape(*maps[level].shape[:3], 3, -1)
        quality = np.zeros(raw.shape[:4])
        of_box, of_class = [], []
        for image in range(len(raw)):
            of = jax.tree.map(lambda x, at=(image, level): x[at], entries)
            for k in np.flatnonzero(of.valid):
                place = (image, of.row[k], of.column[k], of.anchor[k])
                predicted = sigmoid(raw[place])
                anchor = np.array(model.anchor_sizes[level][of.anchor[k]]) / stride
                decoded = [*(2 * predicted[:2] - 0.5), *(4 * predicted[2:4] ** 2 * anchor)]
                overlap = slow_ciou(np.array(decoded), of.xywh[k].astype(np.float64))
                quality[place] = max(overlap, 0)  # the last one is kept
                of_box.append(1 - overlap)
                wanted = np.full(tiny.NUM_CLASSES, smoothing / 2)
                wanted[batch.labels[image, of.matched[k]]] = 1 - smoothing / 2
                of_class.append(cross_entropy(raw[place][5:], wanted).mean())
        box.append(np.mean(of_box))
        cls.append(np.mean(of_class))
        inside = np.s_[:, :, : CONTENT[1] // stride]
        bce = cross_entropy(raw[inside][..., 4], quality[inside])
        objectness.append(model.level_balance[level] * bce.mean())
    return sum(box), sum(objectness), sum(cls)


# The canvas has two more columns of the coarsest cells than the content.
CONTENT, CANVAS = tiny.TINY["yolov5"].canvas, (64, 160)


@pytest.fixture(scope="module")
def batch():
    """Two objects of the same position and size, learned in the same cells, among others."""
    batch = tiny.make_batch(CONTENT, objects=(4, 3))
    batch.boxes[0, 1] = batch.boxes[0, 0] + 0.5
    batch.labels[0, :2] = (0, 2)
    return batch._replace(images=np.zeros((2, *CANVAS, 3), np.uint8))


@pytest.fixture(scope="module")
def maps():
    """Raw maps such as a network could output."""
    rng = np.random.default_rng(0)
    shapes = [(2, CANVAS[0] // s, CANVAS[1] // s, 3 * PER_ANCHOR) for s in STRIDES]
    return tuple(rng.normal(0, 1.5, shape).astype(np.float32) for shape in shapes)


@pytest.fixture(scope="module")
def run():
    """(batch, maps) -> terms, gradients of all terms and of objectness, entries, targets."""
    model = module(label_smoothing=0.1)

    def compute(batch, maps):
        def terms(maps):
            total, metrics = model.loss(batch, yolov5.Outputs((), maps))
            return {**metrics, "total": total}

        found, pullback = jax.vjp(terms, maps)
        gradients = [
            pullback({name: jnp.float32(name == wanted) for name in found})[0]
            for wanted in ("total", "loss/objectness")
        ]
        return found, gradients, model.entries(batch), model.targets(batch, maps)["main"]

    return tiny.jit(compute)


@pytest.fixture(scope="module")
def found(run, batch, maps):
    return jax.device_get(run(batch, maps))


def test_terms_equal_a_slow_loop(found, batch, maps):
    """With label smoothing, padding beside the content, and cells that learn two objects."""
    terms, _, entries, _ = found
    cells = (entries.row[0] * 100 + entries.column[0]) * 3 + entries.anchor[0]  # [L, E]
    assert any(len(np.unique(c[v])) < v.sum() for c, v in zip(cells, entries.valid[0]))
    expected = slow_terms(module(), batch, maps, entries, 0.1)
    for (name, gain), value in zip(module().gains().items(), expected, strict=True):
        np.testing.assert_allclose(terms[name], gain * value, rtol=1e-5)
    assert terms["positives"] == entries.valid.sum() / 2
    assert terms["total"] == pytest.approx(sum(terms[name] for name in module().gains()), rel=1e-6)


def test_objectness_learns_the_overlap_as_a_constant(found):
    _, (of_all, of_objectness), _, _ = found
    for whole, part in zip(of_all, of_objectness):
        whole, part = (x.reshape(*x.shape[:3], 3, -1) for x in (whole, part))
        assert whole[..., :4].any() and not part[..., :4].any() and not part[..., 5:].any()
        np.testing.assert_array_equal(whole[..., 4], part[..., 4])


def test_cells_that_hold_padding_alone_learn_nothing(found):
    _, (gradients, _), _, _ = found
    for gradient, stride in zip(gradients, STRIDES):
        edge = CONTENT[1] // stride
        objectness = gradient.reshape(*gradient.shape[:3], 3, -1)[..., 4]
        assert objectness[:, :, :edge].all() and not gradient[:, :, edge:].any()


def test_images_without_objects_teach_objectness_alone(run, batch, maps):
    terms, (gradients, _), _, targets = run(batch._replace(valid=np.zeros((2, 4), bool)), maps)
    assert terms["loss/cls"] == terms["loss/box"] == terms["positives"] == 0
    assert terms["total"] == terms["loss/objectness"] > 0 and (targets.status == -1).all()
    assert all(np.isfinite(x).all() and x.any() for x in gradients)


def test_one_class_alone_is_not_learnt():
    """Objectness says it all; the class probability stays at its initial value, one."""
    batch = tiny.make_batch(num_classes=1)
    shapes = [(2, 64 // s, 96 // s, 3 * 6) for s in STRIDES]
    maps = yolov5.Outputs((), [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes])
    jaxpr = jax.make_jaxpr(lambda m: module(num_classes=1).loss(batch, m)[1]["loss/cls"])(maps)
    assert [x.val for x in jaxpr.jaxpr.outvars] == [0.0]
    assert yolov5.prior_bias(1, 1, 10**12, 8)(KEY, (6,))[5] > 10


def test_gains_are_scaled_by_levels_classes_image_size_and_images():
    plain = module().gains()
    assert plain == pytest.approx(
        {"loss/box": 64 * 0.05, "loss/objectness": 64.0, "loss/cls": 64 * 0.5 * 3 / 80}
    )
    other = module(train_size=1280, summed_images=32.0, repeats=(1,) * 5, num_classes=80).gains()
    assert other == pytest.approx(
        {"loss/box": 24 * 0.05, "loss/objectness": 24 * 4.0, "loss/cls": 24 * 0.5}
    )


def test_targets_are_anchors_in_the_cells_that_learn(found, batch):
    targets = found[3]
    assert targets.status.shape == (2, 3 * 5 * 3 * 4)
    assert {-1, 1} == set(np.unique(targets.status)) and {0, 1, 2} == set(np.unique(targets.level))
    sizes = np.float32(module().anchor_sizes)
    for i, n in np.argwhere(targets.status == 1):
        x1, y1, x2, y2 = targets.boxes[i, n]
        stride, level = STRIDES[targets.level[i, n]], targets.level[i, n]
        assert np.abs(sizes[level] - [x2 - x1, y2 - y1]).max(1).min() < 1e-4
        corner = np.array([x1 + x2 - stride, y1 + y2 - stride]) / 2
        x, y, w, h = targets.values["xywh"][i, n] * stride
        center = corner + [x, y]
        box = np.concatenate([center - [w / 2, h / 2], center + [w / 2, h / 2]])
        np.testing.assert_allclose(box, batch.boxes[i, targets.matched[i, n]], atol=1e-3)


def slow_rows(maps, image):
    """(boxes [N, 4] px, scores [N, C], corners of the cells [N, 2]) of an image, in plain loops."""
    boxes, scores, corners = [], [], []
    for level, stride in enumerate(STRIDES):
        raw = maps[level][image].reshape(*maps[level].shape[1:3], 3, -1)
        for row, column, anchor in np.ndindex(raw.shape[:3]):
            p = sigmoid(raw[row, column, anchor])
            center = (2 * p[:2] - 0.5 + [column, row]) * stride
            size = (2 * p[2:4]) ** 2 * module().anchor_sizes[level][anchor]
            boxes.append([*(center - size / 2), *(center + size / 2)])
            scores.append(p[4] * p[5:])
            corners.append([column * stride, row * stride])
    return np.array(boxes), np.array(scores), np.array(corners)


@pytest.fixture(scope="module")
def candidates():
    """(maps, sizes) -> candidates with one class per box, with several; the latter suppressed."""
    fields = dict(num_candidates=40, score_threshold=0.3)
    one, many = module(multi_label=False, **fields), module(**fields)
    agnostic = module(class_agnostic=True, **fields)

    def compute(maps, size):
        given = yolov5.Outputs((), maps), size, CANVAS
        found = many.candidates(*given)
        return (
            {False: one.candidates(*given), True: found},
            {False: many.suppress(found), True: agnostic.suppress(found)},
        )

    return tiny.jit(compute)


@pytest.mark.parametrize("multi_label", [True, False])
def test_candidates_are_the_best_pairs_of_box_and_class(multi_label, candidates, maps):
    size = np.int32([CONTENT, (40, 50)])
    found = jax.device_get(candidates(maps, size)[0][multi_label])
    assert found.scores.shape == (2, 40)
    for i, (height, width) in enumerate(size):
        boxes, scores, corners = slow_rows(maps, i)
        scores[(corners >= [width, height]).any(1)] = 0
        if not multi_label:
            scores = np.where(scores == scores.max(1, keepdims=True), scores, 0)
        order = np.argsort(-scores.reshape(-1))[:40]
        row, label = order // tiny.NUM_CLASSES, order % tiny.NUM_CLASSES
        scores = scores.reshape(-1)[order]
        np.testing.assert_allclose(found.scores[i], scores, rtol=1e-5, atol=1e-6)
        valid = found.valid[i]
        assert valid.any() and (valid == (scores > 0.3)).all()
        np.testing.assert_array_equal(found.labels[i][valid], label[valid])
        np.testing.assert_allclose(found.boxes[i][valid], boxes[row[valid]], rtol=1e-4, atol=1e-3)


def test_class_agnostic_suppression_leaves_one_class_of_a_box(candidates, maps):
    maps = tuple(np.full_like(x, -9) for x in maps)
    maps[1].reshape(2, 4, 10, 3, -1)[0, 1, 2, 0] = [0, 0, 0, 0, 9, 3, 2, -9]
    _, suppressed = candidates(maps, np.int32([CONTENT, CONTENT]))
    for agnostic, labels in ((False, [0, 1]), (True, [0])):
        found = suppressed[agnostic]
        assert found.labels[0][found.valid[0]].tolist() == labels and not found.valid[1].any()
        np.testing.assert_allclose(found.boxes[0, 0], [40 - 9, 24 - 18, 40 + 9, 24 + 18], atol=1e-3)


def test_published_sizes_have_the_published_numbers_of_parameters():
    published = {
        (): 7_235_389,  # s of release 7.0
        (
            ("block", "csp"),
            ("activation", "hard_swish"),
            ("stem", "focus"),
            ("pool", "spp"),
            ("repeats", (3, 9, 9, 3)),
        ): 7_468_157,  # s of release 3.0
    }
    for fields, count in published.items():
        detector = contract.from_module(yolov5.YOLOv5(**dict(fields)))
        images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
        params, _ = jax.eval_shape(detector.init, KEY, images)
        assert sum(x.size for x in jax.tree.leaves(params)) == count


def test_four_levels_reach_stride_64():
    anchors = (((20, 20), (30, 30)),) * 4
    fields = dict(repeats=(1,) * 5, anchor_sizes=anchors, level_balance=(4.0, 1.0, 0.25, 0.06))
    model = module(**fields)
    model.check()
    detector = contract.from_module(model)
    images = jax.ShapeDtypeStruct((1, 128, 64, 3), jnp.uint8)
    variables = jax.eval_shape(detector.init, KEY, images)
    outputs = jax.eval_shape(tiny.maps_of(detector), *variables, images)
    shapes = [x.shape for x in outputs.predictions]
    assert shapes == [(1, 128 // s, 64 // s, 2 * PER_ANCHOR) for s in (8, 16, 32, 64)]
    assert all(x.dtype == jnp.float32 for x in outputs.predictions)
    with pytest.raises(ValueError, match="multiples of 64, not 128x96 px"):
        jax.eval_shape(detector.init, KEY, jax.ShapeDtypeStruct((1, 128, 96, 3), jnp.uint8))


def test_predictors_start_with_the_reference_s_expectations():
    """8 objects in 640 px, with 0.6 classes each, to within PyTorch's initial values."""
    for stride, width in zip(STRIDES, (64, 128, 256)):
        bias = np.asarray(yolov5.prior_bias(3, 80, width, stride)(KEY, (255,)))
        bias = bias.reshape(3, 85)
        bound = 1 / np.sqrt(width)
        expected = np.full(85, np.log(0.6 / 79.00001))
        expected[:5] = 0, 0, 0, 0, np.log(8 / (640 / stride) ** 2)
        assert 0.5 * bound < np.abs(bias - expected).max() <= bound + 1e-5


def test_rematerialisation_keeps_the_paths():
    images = jax.ShapeDtypeStruct((1, *CANVAS, 3), jnp.uint8)
    trees = [
        jax.eval_shape(contract.from_module(module(remat=remat)).init, KEY, images)
        for remat in (True, False)
    ]
    assert jax.tree.structure(trees[0]) == jax.tree.structure(trees[1])


def test_frozen_paths_are_those_of_the_norms():
    images = jax.ShapeDtypeStruct((1, *CANVAS, 3), jnp.uint8)
    params, state = jax.eval_shape(contract.from_module(module()).init, KEY, images)
    paths = traverse_util.flatten_dict({"params": params, **state}, sep="/")

    def frozen(norm):
        patterns = module(norm=norm).frozen_paths()
        return {path for path in paths if any(re.fullmatch(p, path) for p in patterns)}

    assert frozen("batch") == set()
    assert frozen("stored") == {path for path in paths if path.startswith("batch_stats/")}
    assert frozen("frozen") == {path for path in paths if "/norm/" in path}


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(block="c4"), "block is 'c4'; it must be one of csp, c3"),
        (dict(activation="relu"), "activation is 'relu'; .* silu, hard_swish, leaky_relu"),
        (dict(stem="conv"), "stem is 'conv'; it must be one of focus, conv6"),
        (dict(pool="spp6"), "pool is 'spp6'; it must be one of spp, sppf"),
        (dict(pool_size=4), "pool_size is 4; it must be odd"),
        (dict(repeats=(3, 6)), "repeats is .* four or five bottleneck counts"),
        (dict(repeats=(3, 6, 9, 3, 3)), "anchor_sizes is .* for each of 4 levels"),
        (
            dict(level_balance=(1.0, 1.0)),
            "level_balance is .* a number above 0 for each of 3 levels",
        ),
        (dict(anchor_ratio=1.0), "anchor_ratio is 1.0; it must be above 1"),
        (dict(label_smoothing=1.0), "label_smoothing is 1.0; it must be at least 0 and below 1"),
        (dict(norm="group"), "norm is 'group'; it must be one of batch, stored, frozen"),
        (dict(summed_images=0.0), "summed_images is 0.0; it must be above 0"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    yolov5.YOLOv5().check()
    with pytest.raises(ValueError, match=f"^{sentence}"):
        yolov5.YOLOv5(**fields).check()
