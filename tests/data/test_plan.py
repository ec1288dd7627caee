"""The plan is a pure function of the seed: which images make which batch."""

import numpy as np
import pictures
import pytest

from detlab import config as config_lib
from detlab.data import augment, plan, records, settings


def test_images_go_to_the_canvas_that_shows_them_largest():
    wide, tall = plan.group_by_canvas(pictures.SIZES[:7], pictures.CANVASES)
    np.testing.assert_array_equal(wide, [0, 2, 3, 5])  # 2 is square: the first of equals
    np.testing.assert_array_equal(tall, [1, 4, 6])
    # If an image is equally large on two canvases, the one with less empty space wins.
    square, upright = plan.group_by_canvas(
        [(1080, 810), (1080, 810), (90, 90)], [(64, 64), (64, 48)]
    )
    np.testing.assert_array_equal(square, [2])
    np.testing.assert_array_equal(upright, [0, 1])


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 16])
def test_an_epoch_shows_every_image_in_full_batches_of_one_canvas(batch_size):
    groups = dict(
        zip(pictures.CANVASES, plan.group_by_canvas(pictures.SIZES, pictures.CANVASES), strict=True)
    )
    for epoch in range(3):
        steps = plan.epoch_steps(pictures.SIZES, 0, epoch, batch_size, pictures.CANVASES)
        assert len(steps) == plan.steps_per_epoch(pictures.SIZES, batch_size, pictures.CANVASES)
        for step in steps:
            assert step.index.shape == step.seed.shape == (batch_size,)
            assert np.isin(step.index, groups[step.canvas]).all()
            assert step.real.all()
        counts = np.bincount(
            np.concatenate([step.index for step in steps]), minlength=len(pictures.SIZES)
        )
        assert counts.min() >= 1
        for group in groups.values():  # repeats are spread evenly over a group
            assert np.ptp(counts[group]) <= 1


def test_plan_depends_on_seed_and_epoch_only():
    def flat(seed, epoch):
        steps = plan.epoch_steps(pictures.SIZES, seed, epoch, 4, pictures.CANVASES)
        return np.concatenate([np.concatenate([s.index, s.seed, s.canvas]) for s in steps])

    np.testing.assert_array_equal(flat(1, 2), flat(1, 2))
    assert (flat(1, 2) != flat(1, 3)).any()
    assert (flat(1, 2) != flat(2, 2)).any()


SCALES = settings.MultiScale(
    canvases=(((32, 48), (48, 32)), ((24, 36), (36, 24)), ((40, 60), (60, 40))),
    limits=((50, 20), (40, 30), (30, 12)),
)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("multiscale", [settings.MultiScale(), SCALES], ids=["one", "multi-scale"])
def test_an_epoch_shows_every_image_exactly_once_on_any_number_of_processes(processes, multiscale):
    sizes = np.array([(20, 40), (40, 20), (30, 30), (64, 90), (90, 64), (33, 21)] * 4)
    source = pictures.Pictures(sizes)  # twelve wide ones and twelve tall ones: four batches of six
    num_steps = plan.steps_per_epoch(sizes, 6, pictures.CANVASES)
    assert num_steps == 4
    streams = [
        pictures.train(
            source,
            batch_size=6,
            num_steps=num_steps,
            multiscale=multiscale,
            process_index=p,
            process_count=processes,
        )
        for p in range(processes)
    ]
    index, tall = [], []
    for shares in zip(*streams, strict=True):
        shapes_of_step = {share.batch.images.shape for share in shares}
        assert len(shapes_of_step) == 1 and shapes_of_step.pop()[0] == 6 // processes
        index += [i for share in shares for i in share.batch.index.tolist()]
        height, width = shares[0].batch.images.shape[1:3]
        tall.append(height > width)
        groups = plan.group_by_canvas(sizes, pictures.CANVASES)
        assert np.isin(index[-6:], groups[int(tall[-1])]).all()
    assert sorted(index) == list(range(len(sizes)))
    assert sorted(tall) == [False, False, True, True]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_where_batches_do_not_fill_the_first_of_a_group_are_shown_again(processes):
    # Twelve wide and nine tall: two batches of six each, so three tall ones appear twice.
    groups = plan.group_by_canvas(pictures.SIZES, pictures.CANVASES)
    assert [len(group) for group in groups] == [12, 9]
    streams = [
        pictures.train(
            pictures.Pictures(), batch_size=6, num_steps=4, process_index=p, process_count=processes
        )
        for p in range(processes)
    ]
    index = np.concatenate([loaded.batch.index for stream in streams for loaded in stream])
    counts = np.bincount(index, minlength=len(pictures.SIZES))
    assert sorted(counts[groups[0]]) == [1] * 12
    assert sorted(counts[groups[1]]) == [1] * 6 + [2] * 3


def test_multi_scale_changes_sizes_only():
    for epoch in range(3):
        steps = plan.epoch_steps(pictures.SIZES, 5, epoch, 4, pictures.CANVASES)
        scaled = plan.epoch_steps(pictures.SIZES, 5, epoch, 4, pictures.CANVASES, SCALES)
        for step, other in zip(steps, scaled, strict=True):
            np.testing.assert_array_equal(step.index, other.index)
            np.testing.assert_array_equal(step.seed, other.seed)
            assert step.limits is None and other.limits.shape == (4, 2)
            # The alternative to the canvas by which the images were grouped.
            assert other.canvas in [
                pair[pictures.CANVASES.index(step.canvas)] for pair in SCALES.canvases
            ]


@pytest.mark.parametrize("mode", ["list", "range"])
def test_multi_scale_depends_on_seed_and_epoch_only(mode):
    def flat(seed, epoch):
        steps = plan.epoch_steps(
            pictures.SIZES, seed, epoch, 4, pictures.CANVASES, SCALES._replace(mode=mode)
        )
        return np.concatenate([[*s.canvas, *s.limits.ravel()] for s in steps])

    np.testing.assert_array_equal(flat(1, 2), flat(1, 2))
    assert (flat(1, 2) != flat(1, 3)).any()
    assert (flat(1, 2) != flat(2, 2)).any()


def test_multi_scale_draws_uniformly():
    sizes = np.array([(20, 40)] * 3000)
    steps = plan.epoch_steps(sizes, 0, 0, 1, pictures.CANVASES, SCALES)
    drawn = [*(step.canvas for step in steps), *(tuple(step.limits[0].tolist()) for step in steps)]
    for choice in ((32, 48), (24, 36), (40, 60), *SCALES.limits):
        # A third each; four standard deviations: 4 * sqrt(3000 * 2 / 9) = 103.
        assert abs(drawn.count(choice) - 1000) < 104
    scales = SCALES._replace(limits=((60, 40), (100, 80)), mode="range")
    limits = np.concatenate(
        [s.limits for s in plan.epoch_steps(sizes, 0, 0, 1, pictures.CANVASES, scales)]
    )
    assert (limits.min(axis=0) == [60, 40]).all() and (limits.max(axis=0) == [100, 80]).all()
    # Before they are sorted, long and short are independent of each other: their sum is 140, with
    # a standard deviation of sqrt(2 * 41^2 / 12) = 17; four of its mean: 4 * 17 / sqrt(3000) = 1.3.
    assert abs(limits.sum(axis=1).mean() - 140) < 1.3
    assert (limits[:, 0] >= limits[:, 1]).all()


def test_limits_of_the_plan_are_kept_and_never_enlarge_beyond_the_canvas():
    multiscale = settings.MultiScale(limits=((30, 20), (500, 400), (40, 12)))
    steps = plan.epoch_steps(pictures.SIZES, 7, 0, 4, pictures.CANVASES, multiscale)
    seen = set()
    for loaded, step in zip(
        pictures.train(pictures.Pictures(), num_steps=6, multiscale=multiscale), steps
    ):
        for i, size, limits in zip(loaded.batch.index, loaded.batch.image_size, step.limits):
            h, w = pictures.SIZES[i]
            long, short = limits
            scale = min(long / max(h, w), short / min(h, w), *np.array(step.canvas) / (h, w))
            np.testing.assert_array_equal(size, [int(h * scale + 0.5), int(w * scale + 0.5)])
            seen.add((long, short))
    assert seen == set(multiscale.limits)


def test_canvases_without_images_have_no_steps():
    steps = plan.epoch_steps(pictures.SIZES[:1], 0, 0, 2, pictures.CANVASES)
    assert [step.canvas for step in steps] == [pictures.CANVASES[0]]
    np.testing.assert_array_equal(steps[0].index, [0, 0])


def test_eval_plan_shows_every_image_once_in_order():
    shown = settings.Settings(pictures.CANVASES, max_boxes=1, pad_value=0)
    steps = plan.evaluation_steps(pictures.SIZES, 4, shown)
    real = np.concatenate([step.index[step.real] for step in steps])
    wide, tall = plan.group_by_canvas(pictures.SIZES, pictures.CANVASES)
    np.testing.assert_array_equal(real, [*wide, *tall])
    for step in steps:
        assert (step.index[~step.real] == -1).all()
        assert step.real[0]  # no step without an image


@pytest.mark.parametrize(
    "size, shown, evaluated",
    [  # height, width px: the photographs of the shared folder and hard ratios
        ((720, 1280), (384, 640), (384, 672)),
        ((1080, 810), (640, 480), (672, 512)),
        ((576, 768), (480, 640), (512, 672)),
        ((424, 640), (448, 640), (448, 672)),
        ((512, 773), (448, 640), (448, 672)),
        ((600, 600), (640, 640), (672, 672)),
        ((820, 1024), (512, 640), (544, 672)),  # 512.5 px: rounded to 512 in detect.py alone
        ((4000, 100), (640, 32), (672, 32)),
        ((3, 1000), (32, 640), (32, 672)),
    ],
)
def test_rectangles_are_those_of_detect_and_of_val(size, shown, evaluated):
    config = config_lib.load("yolov5_coco")
    of_demo = settings.of(config.data, "demo", config.predict)
    of_eval = settings.of(config.data, "eval", config.eval)
    assert plan.canvas_of(size, of_demo) == shown
    assert plan.rectangle_of(size, of_eval) == evaluated


@pytest.mark.parametrize(
    "name, size, fitted, rectangle",
    [  # height, width px: mmcv's sides, and mmdetection's with size_divisor=32
        ("retinanet_coco", (720, 1280), (750, 1333), (768, 1344)),
        ("retinanet_coco", (1080, 810), (1067, 800), (1088, 800)),
        ("retinanet_coco", (424, 640), (800, 1208), (800, 1216)),
        ("retinanet_coco", (640, 642), (800, 803), (800, 832)),
        ("retinanet_coco", (4000, 100), (1333, 33), (1344, 64)),
        ("retinanet_coco", (738, 1281), (768, 1333), (768, 1344)),  # 767.96
        ("retinanet_coco", (791, 1372), (769, 1333), (800, 1344)),  # 768.51
        ("retinanet_coco", (1001, 1737), (768, 1333), (768, 1344)),  # 768.20: 768 in mmcv
        ("yolov3_coco", (820, 1024), (487, 608), (512, 608)),
        ("retinanet_voc", (375, 500), (600, 800), (608, 800)),
    ],
)
@pytest.mark.parametrize("use", ["demo", "eval"])
def test_rectangles_of_a_picture_that_is_fitted_pad_it_as_mmdetection(
    name, size, fitted, rectangle, use
):
    config = config_lib.load(name, {"eval.rectangles": "32", "predict.rectangles": "32"})
    block = config.eval if use == "eval" else config.predict
    shown = settings.of(config.data, use, block)
    assert plan.canvas_of(size, shown) == rectangle
    record = records.without_objects(np.zeros((*size, 3), np.uint8))
    assert augment.resizer(shown)(record, *rectangle)["image_size"] == fitted
    on_canvas = shown._replace(rectangles=0)
    canvas = plan.canvas_of(size, on_canvas)
    assert augment.resizer(on_canvas)(record, *canvas)["image_size"] == fitted


def test_sizes_of_all_pictures_make_at_most_39_rectangles():
    config = config_lib.load("yolov5_coco")
    for use, block in (("demo", config.predict), ("eval", config.eval)):
        shown = settings.of(config.data, use, block)
        sizes = [(side, 1000) for side in range(1, 1001)] + [(1000, side) for side in range(1, 999)]
        found = {plan.rectangle_of(size, shown) for size in sizes}
        assert len(found) == 39 + (0 if use == "demo" else 2)


def test_evaluation_groups_images_by_their_rectangle():
    config = config_lib.load("yolov5_coco")
    shown = settings.of(config.data, "eval", config.eval)
    sizes = [(480, 640), (640, 480), (500, 640), (500, 500), (640, 480)]
    groups = plan.eval_groups(sizes, shown)
    assert [(canvas, group.tolist()) for canvas, group in groups] == [
        ((512, 672), [0]), ((544, 672), [2]), ((672, 512), [1, 4]), ((672, 672), [3]),
    ]  # fmt: skip
    steps = plan.evaluation_steps(sizes, 2, shown)
    assert [step.canvas for step in steps] == [canvas for canvas, _ in groups]
    assert [step.index.tolist() for step in steps] == [[0, -1], [2, -1], [1, 4], [3, -1]]


def test_the_canvas_of_a_letterbox_has_room_for_the_rounded_picture():
    """820 of 1024 px become 512, and 828 become 518, as YOLOv5's detect.py rounds them."""
    data = config_lib.load("yolov5_coco").data
    data.canvases = ((640, 640), (512, 640), (640, 512))
    shown = settings.of(data, "demo")
    sizes = {(820, 1024): (512, 640), (1024, 820): (640, 512), (828, 1024): (640, 640)}
    assert {size: plan.canvas_of(size, shown) for size in sizes} == sizes
    shown = shown._replace(resize="fit")
    assert plan.canvas_of((820, 1024), shown) == (640, 640)
    assert plan.canvas_of((512, 640), shown) == (512, 640)
