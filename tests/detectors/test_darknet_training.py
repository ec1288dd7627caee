"""The darknet detector in training: the assignment of all heads, and their loss."""

import darknet_deltas
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab import contract, types
from detlab.detectors import darknet
from detlab.experiments import common
from detlab.run import optim
from detlab.run import state as state_lib
from detlab.run import update as update_lib

TINY = tiny.TINY["darknet"].fields
FIELDS = TINY | dict(cfg=TINY["cfg"].partition("[region]")[0])  # its two [yolo]
CANVAS = (64, 96)
SHAPES = ((4, 6), (8, 12))  # of the two heads, in their order
ROWS = 2 * 4 * 6, 2 * 8 * 12
SEED = 4


def module(**changes):
    return darknet.Darknet(**FIELDS | changes)


def random_maps(images, channels=16):
    rng = np.random.default_rng(SEED)
    return tuple(np.float32(rng.normal(0, 1, (images, *s, channels))) for s in SHAPES)


@pytest.fixture(scope="module")
def batch():
    """Three images: with objects, without, and one in the top left quarter of its canvas."""
    made = tiny.make_batch(CANVAS, objects=(4, 0, 2), slots=5, seed=SEED)
    made.boxes[2] *= 0.5
    made.image_size[2] = (32, 48)
    return made


@pytest.fixture(scope="module")
def program():
    """(maps, batch) -> (loss, metrics, gradient with respect to the maps, assignments)."""

    @tiny.jit
    def compute(maps, batch):
        def loss(maps):
            return module().loss(batch, darknet.Outputs((), maps))

        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(maps)
        return value, metrics, gradient, module().learned(batch, darknet.Outputs((), maps))

    return compute


def relative(batch, image):
    """(boxes, labels) of an image as lists of (x, y, w, h) relative to the canvas, and int."""
    corners = batch.boxes[image][batch.valid[image]].astype(np.float64).reshape(-1, 2, 2)
    unit = np.array([CANVAS[1], CANVAS[0]])
    boxes = np.concatenate([corners.mean(1), corners[:, 1] - corners[:, 0]], axis=1)
    labels = batch.labels[image][batch.valid[image]]
    return [*map(tuple, boxes / np.tile(unit, 2))], [*map(int, labels)]


def test_the_descent_of_the_loss_is_the_mean_of_what_darknet_writes_for_every_image(program, batch):
    maps = random_maps(3)
    value, metrics, gradient, _ = program(maps, batch)
    inside = np.zeros((4, 6), bool)
    inside[:2, :3] = True  # cells of the content of the third image
    for head, raw, found in zip(module().heads(), maps, gradient):
        raw = raw.reshape(*raw.shape[:3], 2, 8)
        for image in range(3):
            objects = relative(batch, image)
            expected = darknet_deltas.head_deltas(head, raw[image], *objects, CANVAS)
            if image == 2:
                factor = raw.shape[1] // 4
                outside = ~inside.repeat(factor, 0).repeat(factor, 1)
                assert not expected[outside][..., :4].any(), "objects lie in the content"
                expected[outside, :, 4] = 0  # padding is not background here
            wanted = -expected.reshape(found[image].shape) / 3
            np.testing.assert_allclose(
                found[image], wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max()
            )
    terms = [metrics[f"loss/{name}"] for name in ("box", "objectness", "cls")]
    assert value == pytest.approx(float(sum(terms)), rel=1e-6) and min(terms) > 0


def test_the_loss_of_a_batch_is_the_mean_of_its_images(program, batch):
    """So parts of a batch have equal weights, and there is no normaliser."""
    maps = random_maps(3)
    whole, metrics, gradient, _ = program(maps, batch)
    assert "normaliser" not in metrics
    values, gradients = [], []
    for i in range(3):
        parts = [jax.tree.map(lambda x: x[[i, i, i]], x) for x in (maps, types.Batch(*batch))]
        value, _, found, _ = program(*parts)
        values.append(value)
        gradients.append(found)
    assert whole == pytest.approx(np.mean(values), rel=1e-5)
    for level, expected in enumerate(gradient):
        for i in range(3):  # each of the three equal images has a third of the part's gradient
            np.testing.assert_allclose(gradients[i][level][0], expected[i], rtol=1e-4, atol=1e-7)


def test_targets_are_what_the_loss_learns(program, batch):
    maps = random_maps(3)
    _, metrics, _, learned = program(maps, batch)

    targets = tiny.jit(module().targets)(batch, darknet.Outputs((), maps))
    main, entries = targets["main"], targets["entries"]
    assert main.status.shape == (3, sum(ROWS))
    assert entries.status.shape == (3, 2 * 2 * 5)  # heads, anchors, slots
    np.testing.assert_array_equal(main.level[0], np.repeat([1, 0], ROWS))

    counts = np.concatenate([x.counts for x in learned], axis=1)
    np.testing.assert_array_equal(main.status == -1, ~counts)
    assert metrics["ignored"] == pytest.approx((~counts).sum() / 3)
    positive = np.asarray(entries.status) == 1
    assert metrics["positives"] == pytest.approx(positive.sum() / 3)
    assert not positive[1].any() and not (main.status[1] == 1).any()
    for image in (0, 2):
        rows = entries.values["row"][image][positive[image]]
        assert set(rows.tolist()) == set(np.flatnonzero(main.status[image] == 1).tolist())
        assert (main.status[image][rows] == 1).all()
        np.testing.assert_array_equal(
            entries.boxes[image][positive[image]], main.boxes[image][rows]
        )
        assert not entries.values["row"][image][~positive[image]].any()
        # The object's centre is in the cell of the anchor that learns it.
        boxes = batch.boxes[image][entries.matched[image][positive[image]]]
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        cells = (entries.boxes[image][:, :2] + entries.boxes[image][:, 2:]) / 2
        strides = np.where(entries.level[image] == 1, 16, 8)[positive[image]]
        assert (np.abs(centers - cells[positive[image]]).max(1) <= strides / 2).all()


@pytest.mark.slow
def test_delta_normalizer_multiplies_every_delta(batch, program):
    maps = random_maps(3)
    value, *_ = program(maps, batch)
    both = FIELDS["cfg"].replace("mask=", "delta_normalizer=0.25\nmask=")
    halved, _ = tiny.jit(module(cfg=both).loss)(batch, darknet.Outputs((), maps))
    assert halved == pytest.approx(0.25 * float(value), rel=1e-5)


@pytest.mark.slow
def test_the_class_score_of_ignored_rows_is_a_field(batch):
    """The original darknet ignores good boxes whatever their class scores are."""
    maps = [np.zeros((3, *shape, 16), np.float32) for shape in SHAPES]
    head = module().heads()[0]
    left, top, right, bottom = batch.boxes[0, 0]
    column, row = int((left + right) / 32), int((top + bottom) / 32)
    place = np.array([(left + right) / 32 - column, (top + bottom) / 32 - row])
    sigmoids = np.clip((place + 0.025) / 1.05, 0.01, 0.99)
    anchors = np.array([head.anchors[i] for i in head.mask])
    raw = maps[0].reshape(3, 4, 6, 2, 8)  # both anchors of the cell predict the object
    raw[0, row, column, :, :2] = np.log(sigmoids / (1 - sigmoids))
    raw[0, row, column, :, 2:4] = np.log(np.array([right - left, bottom - top]) / anchors)
    raw[..., 5:] = -4.0  # no class
    strict = FIELDS["cfg"].replace("iou_thresh=0.2", "iou_thresh=1")

    def ignored(score):
        detector = module(cfg=strict, ignore_class_score=score)
        outputs = darknet.Outputs((), tuple(map(jnp.asarray, maps)))
        learned = tiny.jit(lambda batch: detector.learned(batch, outputs))(batch)[0]
        return int((~learned.counts[0]).sum())

    assert ignored(0.25) == 0
    assert ignored(-1.0) >= 1


def test_counters_must_be_those_of_the_classes():
    cfg = FIELDS["cfg"].replace("mask=", "counters_per_class=5,6\nmask=")
    with pytest.raises(
        ValueError, match="num_classes is 3; it must be 2, the number of counters_per_class"
    ):
        module(cfg=cfg).check()
    module(cfg=cfg.replace("5,6", "5,6,7")).check()
    with pytest.raises(ValueError, match="ignore_class_score is 2"):
        module(ignore_class_score=2.0).check()


def test_a_detector_of_another_number_of_classes_has_its_channels():
    detector = contract.from_module(module(num_classes=5))
    shapes = jax.eval_shape(detector.init, jax.random.key(0), jnp.zeros((1, *CANVAS, 3), jnp.uint8))
    maps = jax.eval_shape(tiny.maps_of(detector), *shapes, jnp.zeros((1, *CANVAS, 3), jnp.uint8))
    assert [x.shape for x in maps.predictions] == [(1, *s, 20) for s in SHAPES]


REGION = """[net]
width=96
height=64
channels=3
[convolutional]
filters=16
size=16
stride=16
activation=linear
[region]
anchors=1,1, 2,2
num=2
classes=3
softmax=1
bias_match=1
"""


@pytest.fixture(scope="module")
def region_batch():
    return tiny.make_batch(CANVAS, objects=(3, 0), seed=SEED)


@pytest.fixture(scope="module")
def region_program():
    """(maps, batch, images seen) -> (loss, state and targets, gradient with respect to the maps)"""
    detector = contract.from_module(darknet.Darknet(cfg=REGION, num_classes=3))

    @tiny.jit
    def compute(raw, batch, seen):
        state = {"loss_state": {"seen": seen}}

        def loss(raw):
            given = {}, state, batch, darknet.Outputs((), (raw,)), jax.random.key(0)
            value, (_, after) = detector.loss_of_maps(*given)
            return value, (after, detector.targets_of_maps(*given))

        return jax.value_and_grad(loss, has_aux=True)(raw)

    return lambda raw, batch, seen: compute(raw, batch, np.int32(seen))


@pytest.mark.parametrize("seen", [0, 12797, 12798, 12800])
def test_the_loss_of_a_region_is_the_mean_of_what_darknet_writes(
    region_batch, region_program, seen
):
    """Darknet counts the images of a batch before it; at 12800 boxes are drawn no more."""
    raw = random_maps(2)[0]
    (value, (state, targets)), gradient = region_program(raw, region_batch, seen)
    head = darknet_deltas.Region(((1, 1), (2, 2)), bias_match=True)
    for image in range(2):
        objects = relative(region_batch, image)
        shaped = raw[image].reshape(4, 6, 2, 8)
        expected = darknet_deltas.region_deltas(head, shaped, *objects, seen + 2)
        drawn = np.abs(expected[..., :4]).max(-1) > 0
        assert drawn.all() if seen + 2 < 12800 else drawn.sum() == 2 * (image == 0)
        expected = -expected.reshape(4, 6, 16) / 2
        np.testing.assert_allclose(
            gradient[image], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
        )
    assert value > 0
    assert int(state["loss_state"]["seen"]) == min(seen + 2, 12800)
    counts = [int((x.status[0] == 1).sum()) for x in (targets["main"], targets["entries"])]
    assert counts == [2, 2], "of three objects, two meet in a row"


def test_boxes_of_padding_are_not_drawn(region_batch, region_program):
    content = region_batch._replace(image_size=np.tile(np.int32([32, 48]), (2, 1)))
    nothing = content._replace(valid=np.zeros_like(content.valid))
    _, gradient = region_program(random_maps(2)[0], nothing, 0)
    has_one = np.any(gradient, axis=-1)
    assert has_one[:, :2, :3].all() and has_one.sum() == 2 * 2 * 3


def test_parts_of_a_batch_are_counted_one_after_another():
    """As darknet's subdivisions: the last part of the update that reaches 12800 is not drawn."""
    batch = tiny.make_batch(CANVAS, objects=(3, 0, 2, 4), seed=SEED)
    detector = contract.from_module(darknet.Darknet(cfg=REGION, num_classes=3))
    params, _ = tiny.weights(detector, CANVAS)
    config = common.base("darknet")
    config.optim.update(name="sgd", lr=0.1, lr_batch_size=0, momentum=0.0, weight_decay=0.0)
    config.optim.update(schedule="constant", warmup_steps=0, clip_norm=0.0)
    optimizer = optim.build(config.optim, params, 10, 4, 1, ())

    def after(parts, seen):
        config.train.update(batch_size=4, accumulate=parts)
        state = {"loss_state": {"seen": np.int32(seen)}}
        initial = state_lib.of_weights(params, state, optimizer, config)
        found, _ = tiny.jit(update_lib.of(detector, optimizer, config))(initial, batch)
        return found.params["layers"]["layer0"]["kernel"], int(found.state["loss_state"]["seen"])

    (drawn, _), (free, _) = after(1, 0), after(1, 12800)
    for parts in (1, 2):
        kernel, seen = after(parts, 4)
        assert seen == 8
        np.testing.assert_allclose(kernel, drawn, rtol=1e-5, atol=1e-6)
    kernel, seen = after(1, 12796)
    assert seen == 12800
    np.testing.assert_allclose(kernel, free, rtol=1e-5, atol=1e-6)
    kernel, seen = after(2, 12796)
    assert seen == 12800
    assert min(np.abs(kernel - other).max() for other in (drawn, free)) > 1e-4


@pytest.mark.parametrize(
    "keys",
    [
        "",
        "iou_loss=giou\niou_thresh=0.2\nuc_normalizer=0.5\nmax_delta=0.4\nscale_x_y=1.1\n",
    ],
)
def test_the_loss_of_a_gaussian_head_is_the_mean_of_what_darknet_writes(region_batch, keys):
    anchors = "anchors=18,18, 26,26\n"
    cfg = REGION.replace("[region]", "[Gaussian_yolo]").replace("filters=16", "filters=24")
    cfg = cfg.replace("softmax=1\nbias_match=1\n", keys).replace("anchors=1,1, 2,2\n", anchors)
    detector = darknet.Darknet(cfg=cfg, num_classes=3)
    raw = np.float32(np.random.default_rng(SEED).normal(0, 0.7, (2, 4, 6, 24)))

    @tiny.jit
    def compute(raw, batch):
        return jax.value_and_grad(lambda x: detector.loss(batch, darknet.Outputs((), (x,)))[0])(raw)

    value, gradient = compute(raw, region_batch)
    assert np.isfinite(value)
    head = darknet_deltas.Head(((18, 18), (26, 26)), (0, 1), iou_loss="mse")
    given = dict(x.split("=") for x in keys.split())
    head = head._replace(**{k: v if k == "iou_loss" else float(v) for k, v in given.items()})
    for image in range(2):
        shaped = raw[image].reshape(4, 6, 2, 12)
        plain = np.concatenate([shaped[..., [0, 2, 4, 6]], shaped[..., 8:]], axis=-1)
        spread = shaped[..., [1, 3, 5, 7]]
        objects = relative(region_batch, image)
        deltas, of_spread = darknet_deltas.head_deltas(head, plain, *objects, CANVAS, spread)
        expected = np.zeros(shaped.shape)
        expected[..., [0, 2, 4, 6]], expected[..., 8:] = deltas[..., :4], deltas[..., 4:]
        expected[..., [1, 3, 5, 7]] = of_spread
        expected = -expected.reshape(4, 6, 24) / 2
        np.testing.assert_allclose(
            gradient[image], expected, rtol=2e-4, atol=2e-5 * np.abs(expected).max()
        )
        assert (np.abs(of_spread).max() > 0.01) == (image == 0)
