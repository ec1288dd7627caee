"""The plan is a pure function, and the stream is the plan carried out, however that is done."""

import signal
import tracemalloc

import numpy as np
import pytest

from detlab import eval as eval_lib
from detlab.data import coco, loader, records, shapes, transforms, voc
from detlab.experiments import common

CANVASES = ((32, 48), (48, 32))
SIZES = np.array([(20, 40), (40, 20), (30, 30), (64, 90), (90, 64), (10, 11), (33, 21)] * 3)


class Pictures:
    """A source of grey images, each of its number, with `counts[i]` objects; some are broken."""

    class_names = ("thing",)

    def __init__(self, sizes=SIZES, counts=None, broken=()):
        self._sizes, self._broken = sizes, broken
        self._counts = [2] * len(sizes) if counts is None else counts

    def __len__(self):
        return len(self._sizes)

    def __getitem__(self, i):
        if i in self._broken:
            raise records.DataError(f"image {i} is broken")
        return {"image": np.full((*self.size(i), 3), i, np.uint8), **self.annotation(i)}

    def annotation(self, i):
        n = self._counts[i]
        start = np.arange(n, dtype=np.float32)
        return {
            "boxes": np.stack([start, start, start + 3, 2 * start + 4], axis=1),  # growing
            "labels": np.arange(n, dtype=np.int32) % 3,
            "ignore": np.arange(n) % 4 == 3,
            "area": np.ones(n, np.float32),
            "index": i,
        }

    def size(self, i):
        return tuple(int(side) for side in self._sizes[i])


ARGUMENTS = {
    "batch_size": 4,
    "canvases": CANVASES,
    "max_boxes": 3,
    "pad_value": 114,
}


def train(source, **changes):
    arguments = {**ARGUMENTS, "seed": 7, "num_steps": 9, "flip_vertical": 0.5, "read_threads": 0}
    return list(loader.train_batches(source, **{**arguments, **changes}))


def evaluate(source, **changes):
    return list(loader.eval_batches(source, **{**ARGUMENTS, "read_threads": 0, **changes}))


def assert_same(stream, other):
    for loaded, expected in zip(stream, other, strict=True):
        for name, value in expected.batch._asdict().items():
            np.testing.assert_array_equal(getattr(loaded.batch, name), value, err_msg=name)
        assert loaded[1:] == expected[1:]


# ------------------------------------------------------------------------------------------------
# The plan


def test_images_go_to_the_canvas_that_shows_them_largest():
    wide, tall = loader.group_by_canvas(SIZES[:7], CANVASES)
    np.testing.assert_array_equal(wide, [0, 2, 3, 5])  # 2 is square: the first of equals
    np.testing.assert_array_equal(tall, [1, 4, 6])
    # A canvas that leaves less empty is better where the picture is no larger on another.
    square, upright = loader.group_by_canvas(
        [(1080, 810), (1080, 810), (90, 90)], [(64, 64), (64, 48)]
    )
    np.testing.assert_array_equal(square, [2])
    np.testing.assert_array_equal(upright, [0, 1])


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 16])
def test_an_epoch_shows_every_image_in_full_batches_of_one_canvas(batch_size):
    groups = dict(zip(CANVASES, loader.group_by_canvas(SIZES, CANVASES), strict=True))
    for epoch in range(3):
        steps = loader.plan(SIZES, 0, epoch, batch_size, CANVASES)
        assert len(steps) == loader.steps_per_epoch(SIZES, batch_size, CANVASES)
        for step in steps:
            assert step.index.shape == step.seed.shape == (batch_size,)
            assert np.isin(step.index, groups[step.canvas]).all()
            assert step.real.all()
        counts = np.bincount(np.concatenate([step.index for step in steps]), minlength=len(SIZES))
        assert counts.min() >= 1
        for group in groups.values():  # repeats are spread evenly over a group
            assert np.ptp(counts[group]) <= 1


def test_plan_depends_on_seed_and_epoch_only():
    def flat(seed, epoch):
        steps = loader.plan(SIZES, seed, epoch, 4, CANVASES)
        return np.concatenate([np.concatenate([s.index, s.seed, s.canvas]) for s in steps])

    np.testing.assert_array_equal(flat(1, 2), flat(1, 2))
    assert (flat(1, 2) != flat(1, 3)).any()
    assert (flat(1, 2) != flat(2, 2)).any()


SCALES = loader.MultiScale(
    canvases=(((32, 48), (48, 32)), ((24, 36), (36, 24)), ((40, 60), (60, 40))),
    limits=((50, 20), (40, 30), (30, 12)),
)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("multiscale", [loader.MultiScale(), SCALES], ids=["one", "multi-scale"])
def test_an_epoch_shows_every_image_exactly_once_on_any_number_of_processes(processes, multiscale):
    sizes = np.array([(20, 40), (40, 20), (30, 30), (64, 90), (90, 64), (33, 21)] * 4)
    source = Pictures(sizes)  # twelve wide ones and twelve tall ones: four batches of six
    num_steps = loader.steps_per_epoch(sizes, 6, CANVASES)
    assert num_steps == 4
    streams = [
        train(
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
    for step, shares in enumerate(zip(*streams, strict=True)):
        shapes_of_step = {share.batch.images.shape for share in shares}
        assert len(shapes_of_step) == 1 and shapes_of_step.pop()[0] == 6 // processes
        index += [i for share in shares for i in share.batch.index.tolist()]
        height, width = shares[0].batch.images.shape[1:3]
        tall.append(height > width)
        groups = loader.group_by_canvas(sizes, CANVASES)
        assert np.isin(index[-6:], groups[int(tall[-1])]).all()
    assert sorted(index) == list(range(len(sizes)))
    assert sorted(tall) == [False, False, True, True]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_where_batches_do_not_fill_the_first_of_a_group_are_shown_again(processes):
    # Twelve wide and nine tall: two batches of six each, so that three tall ones come twice.
    groups = loader.group_by_canvas(SIZES, CANVASES)
    assert [len(group) for group in groups] == [12, 9]
    streams = [
        train(Pictures(), batch_size=6, num_steps=4, process_index=p, process_count=processes)
        for p in range(processes)
    ]
    index = np.concatenate([loaded.batch.index for stream in streams for loaded in stream])
    counts = np.bincount(index, minlength=len(SIZES))
    assert sorted(counts[groups[0]]) == [1] * 12
    assert sorted(counts[groups[1]]) == [1] * 6 + [2] * 3


def test_multi_scale_changes_sizes_only():
    for epoch in range(3):
        steps = loader.plan(SIZES, 5, epoch, 4, CANVASES)
        scaled = loader.plan(SIZES, 5, epoch, 4, CANVASES, SCALES)
        for step, other in zip(steps, scaled, strict=True):
            np.testing.assert_array_equal(step.index, other.index)
            np.testing.assert_array_equal(step.seed, other.seed)
            assert step.limits is None and other.limits.shape == (4, 2)
            # The alternative in the place of the canvas that grouped the images.
            assert other.canvas in [pair[CANVASES.index(step.canvas)] for pair in SCALES.canvases]


@pytest.mark.parametrize("mode", ["list", "range"])
def test_multi_scale_depends_on_seed_and_epoch_only(mode):
    def flat(seed, epoch):
        steps = loader.plan(SIZES, seed, epoch, 4, CANVASES, SCALES._replace(mode=mode))
        return np.concatenate([[*s.canvas, *s.limits.ravel()] for s in steps])

    np.testing.assert_array_equal(flat(1, 2), flat(1, 2))
    assert (flat(1, 2) != flat(1, 3)).any()
    assert (flat(1, 2) != flat(2, 2)).any()


def test_multi_scale_draws_uniformly():
    sizes = np.array([(20, 40)] * 3000)
    steps = loader.plan(sizes, 0, 0, 1, CANVASES, SCALES)
    drawn = [*(step.canvas for step in steps), *(tuple(step.limits[0].tolist()) for step in steps)]
    for choice in ((32, 48), (24, 36), (40, 60), *SCALES.limits):
        # A third each; four standard deviations: 4 * sqrt(3000 * 2 / 9) = 103.
        assert abs(drawn.count(choice) - 1000) < 104
    scales = SCALES._replace(limits=((60, 40), (100, 80)), mode="range")
    limits = np.concatenate([s.limits for s in loader.plan(sizes, 0, 0, 1, CANVASES, scales)])
    assert (limits.min(axis=0) == [60, 40]).all() and (limits.max(axis=0) == [100, 80]).all()
    # Before they are sorted, long and short are independent of each other: their sum is 140, with
    # a standard deviation of sqrt(2 * 41^2 / 12) = 17; four of its mean: 4 * 17 / sqrt(3000) = 1.3.
    assert abs(limits.sum(axis=1).mean() - 140) < 1.3
    assert (limits[:, 0] >= limits[:, 1]).all()


def test_limits_of_the_plan_are_kept_and_never_enlarge_beyond_the_canvas():
    multiscale = loader.MultiScale(limits=((30, 20), (500, 400), (40, 12)))
    steps = loader.plan(SIZES, 7, 0, 4, CANVASES, multiscale)
    seen = set()
    for loaded, step in zip(train(Pictures(), num_steps=6, multiscale=multiscale), steps):
        for i, size, limits in zip(loaded.batch.index, loaded.batch.image_size, step.limits):
            h, w = SIZES[i]
            long, short = limits
            scale = min(long / max(h, w), short / min(h, w), *np.array(step.canvas) / (h, w))
            np.testing.assert_array_equal(size, [int(h * scale + 0.5), int(w * scale + 0.5)])
            seen.add((long, short))
    assert seen == set(multiscale.limits)


def test_canvases_without_images_have_no_steps():
    steps = loader.plan(SIZES[:1], 0, 0, 2, CANVASES)
    assert [step.canvas for step in steps] == [CANVASES[0]]
    np.testing.assert_array_equal(steps[0].index, [0, 0])


def test_eval_plan_shows_every_image_once_in_order():
    steps = loader.eval_plan(SIZES, 4, CANVASES)
    real = np.concatenate([step.index[step.real] for step in steps])
    wide, tall = loader.group_by_canvas(SIZES, CANVASES)
    np.testing.assert_array_equal(real, [*wide, *tall])
    for step in steps:
        assert (step.index[~step.real] == -1).all()
        assert step.real[0]  # no step without an image


# ------------------------------------------------------------------------------------------------
# Batches


def test_batch_fields_by_hand():
    record = Pictures(counts=[4] * 21)[1]  # 40 high, 20 wide; object 3 is ignored
    record = transforms.mirror_horizontal(transforms.resize_keep_ratio(record, 32, 48))
    batch = loader.to_batch([record, None], (32, 48), max_boxes=5, pad_value=(9, 8, 7))
    assert batch.images.shape == (2, 32, 48, 3) and batch.images.dtype == np.uint8
    assert (batch.images[0, :, :16] == 1).all()
    assert (batch.images[0, :, 16:] == [9, 8, 7]).all() and (batch.images[1] == [9, 8, 7]).all()
    np.testing.assert_array_equal(batch.image_size, [[32, 16], [32, 48]])
    np.testing.assert_allclose(batch.placement, [[-0.8, 0.8, 16, 0], [1, 1, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(batch.boxes[0, 1], [12.8, 0.8, 15.2, 4.8], rtol=1e-6)
    np.testing.assert_array_equal(batch.boxes[0, 4], [0, 0, 0, 0])
    np.testing.assert_array_equal(batch.labels[0], [0, 1, 2, 0, 0])
    np.testing.assert_array_equal(batch.valid, [[1, 1, 1, 0, 0], [0] * 5])
    np.testing.assert_array_equal(batch.ignore, [[0, 0, 0, 1, 0], [0] * 5])
    np.testing.assert_array_equal(batch.index, [1, -1])
    np.testing.assert_array_equal(batch.real, [True, False])
    dtypes = {name: value.dtype.str[1:] for name, value in batch._asdict().items()}
    assert dtypes == {
        "images": "u1", "boxes": "f4", "labels": "i4", "valid": "b1", "ignore": "b1",
        "image_size": "i4", "placement": "f4", "index": "i4", "real": "b1",
    }  # fmt: skip


def test_the_largest_objects_get_the_slots_and_the_rest_is_counted():
    source = Pictures(counts=[6] + [0] * 20)  # objects 0..5 grow; 3 is ignored
    record = transforms.resize_fixed(source[0], 20, 40)
    batch = loader.to_batch([record], (32, 48), max_boxes=3, pad_value=0)
    np.testing.assert_array_equal(batch.boxes[0], record["boxes"][[2, 4, 5]])
    assert batch.valid.all()
    assert loader.count_dropped([record, None], max_boxes=3) == 3
    batch = loader.to_batch([record], (32, 48), max_boxes=6, pad_value=0)
    np.testing.assert_array_equal(batch.ignore[0], [0, 0, 0, 1, 0, 0])
    dropped = [loaded.dropped_boxes for loaded in evaluate(source)]
    assert sum(dropped) == dropped[0] == 3


@pytest.mark.parametrize("resize", ["fit", "letterbox", "stretch", (30, 25)])
def test_placement_leads_back_to_the_annotation(resize):
    source = Pictures()
    for loaded in [*train(source, resize=resize), *evaluate(source, resize=resize)]:
        batch = loaded.batch
        for row in np.flatnonzero(batch.real):
            i = int(batch.index[row])
            corners = batch.boxes[row][batch.valid[row]].reshape(-1, 2, 2)
            sx, sy, tx, ty = batch.placement[row]
            original = np.sort((corners - [tx, ty]) / [sx, sy], axis=1).reshape(-1, 4)
            # Coordinates under 50 px in float32, divided by scales from 0.3: 1e-4 px is ample.
            np.testing.assert_allclose(original, source.annotation(i)["boxes"], atol=1e-4)


def test_evaluation_maps_letterboxed_boxes_back_to_the_image():
    source = Pictures()
    for loaded in evaluate(source, resize="letterbox"):
        batch = loaded.batch
        for row in np.flatnonzero(batch.real):
            i = int(batch.index[row])
            boxes = eval_lib.to_original(batch.boxes[row, :2], batch.placement[row], source.size(i))
            np.testing.assert_allclose(boxes, source.annotation(i)["boxes"], atol=1e-4)
            # The whole canvas, border and all, is clipped to the whole image.
            canvas = np.array([[0, 0, *batch.images.shape[2:0:-1]]], np.float32)
            whole = eval_lib.to_original(canvas, batch.placement[row], source.size(i))
            height, width = source.size(i)
            np.testing.assert_allclose(whole, [[0, 0, width, height]], atol=1e-4)


def test_resize_choices_give_the_sizes_they_say():
    source = Pictures(sizes=np.array([(20, 40)] * 4))
    sizes = {
        resize: tuple(train(source, num_steps=1, resize=resize)[0].batch.image_size[0])
        for resize in ("fit", "letterbox", "stretch", (30, 25), (40, 12))
    }
    assert sizes == {
        "fit": (24, 48), "letterbox": (32, 48), "stretch": (32, 48), (30, 25): (15, 30),
        (40, 12): (12, 24),
    }  # fmt: skip


def test_training_mosaics_and_evaluation_round_sides_as_they_are_told(monkeypatch):
    """20x39 px on 32x48 px: 24.6 px high, in the middle."""
    source, tiles = Pictures(sizes=np.array([(20, 39)] * 4)), []

    def four(pictures, *arguments, make=loader.mosaic.four):
        tiles.extend(picture["image"].shape[:2] for picture in pictures)
        return make(pictures, *arguments)

    monkeypatch.setattr(loader.mosaic, "four", four)
    once = dict(num_steps=1, flip_horizontal=0.0, flip_vertical=0.0)
    for rounding, height in (("half_up", 25), ("down", 24), ("up", 25), ("whole", 24)):
        rule = dict(resize="letterbox", rounding=rounding)
        expected = [[48 / 39, height / 20, 0, (32 - height) // 2]] * 4
        for loaded in (*train(source, **once, **rule), *evaluate(source, **rule)):
            np.testing.assert_allclose(loaded.batch.placement, expected, rtol=1e-6)
        train(source, augment=MOSAIC, **once, **rule)
        assert set(tiles) == {(height, 48)}
        tiles.clear()


@pytest.mark.parametrize("resize", ["fit", "letterbox"])
def test_the_border_has_the_colour_of_the_config(resize):
    batch = train(Pictures(), num_steps=1, resize=resize, augment=SSD, pad_value=(1, 2, 3))[0].batch
    for image, i in zip(batch.images, batch.index):
        colours = {tuple(colour) for colour in image.reshape(-1, 3).tolist()}
        assert (1, 2, 3) in colours and (i, i, i) in colours and len(colours) == 2


# ------------------------------------------------------------------------------------------------
# Augmentation


ALL = loader.Augment(photometric=0.8, expand=0.5, crop="min_iou", cutout=0.5)
SSD = loader.Augment(expand=1.0, crop="random", crop_size=(0.8, 1.0))
YOLO = loader.Augment(
    crop="jitter",
    crop_jitter=0.1,
    mosaic=0.7,
    mosaic_nine=0.4,
    affine=0.8,
    affine_degrees=10.0,
    affine_shear=3.0,
    affine_perspective=1e-3,
    mixup=0.4,
    mixup_beta=2.0,
    hsv=0.9,
)


def test_the_keys_and_defaults_are_those_of_the_experiments():
    assert loader.Augment(**common.base("retinanet").data.augment) == loader.Augment()


def test_what_is_off_draws_nothing():
    assert loader.augmentations(loader.Augment(), 0) == ((), ())
    before, after = loader.augmentations(ALL, 0)
    assert len(before) == 3 and len(after) == 1
    before, after = loader.augmentations(YOLO, 0)
    assert len(before) == 1 and len(after) == 1


def test_augmented_boxes_lie_on_their_picture():
    source = shapes.Shapes(num_images=24, size=96)
    stream = train(source, num_steps=6, canvases=((80, 96),), augment=ALL, max_boxes=9)
    sizes = set()
    for loaded in stream:
        batch = loaded.batch
        assert loaded.dropped_boxes == 0  # what a crop leaves out was not dropped for want of slots
        assert batch.valid.any(axis=1).all()
        for boxes, (height, width) in zip(batch.boxes, batch.image_size):
            assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
            sizes.add((height, width))
        assert ((batch.boxes[batch.valid][:, 2:] - batch.boxes[batch.valid][:, :2]) > 0).all()
    assert len(sizes) > 3


class Kept:
    """The records of another source, made once."""

    def __init__(self, source):
        self._records = [source[i] for i in range(len(source))]

    def __len__(self):
        return len(self._records)

    def __getitem__(self, i):
        return self._records[i]

    def size(self, i):
        return self._records[i]["image"].shape[:2]


@pytest.mark.parametrize("threads", [0, 1, 2])
@pytest.mark.parametrize("mode", ["list", "range"])
@pytest.mark.parametrize("augment", [ALL, YOLO], ids=["ssd", "yolo"])
def test_a_later_start_gives_the_tail_with_multi_scale_and_augmentation(threads, mode, augment):
    source = Kept(shapes.Shapes(num_images=10, size=64))
    arguments = dict(
        num_steps=9, canvases=((48, 48),), resize="fit", augment=augment, read_threads=threads
    )
    arguments["multiscale"] = loader.MultiScale(
        (((48, 48),), ((40, 56),)), ((48, 48), (30, 20)), mode
    )
    whole = train(source, **{**arguments, "read_threads": 0})
    for start in (0, 4):  # three steps an epoch
        assert_same(train(source, start_step=start, **arguments), whole[start:])


# ------------------------------------------------------------------------------------------------
# Streams


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_a_later_start_gives_the_tail_of_the_stream(threads):
    whole = train(Pictures(), num_steps=20)  # six steps an epoch
    assert len(whole) == 20
    for start in (0, 1, 6, 13):
        assert_same(
            train(Pictures(), num_steps=20, start_step=start, read_threads=threads), whole[start:]
        )


def test_epochs_and_seeds_differ_and_images_are_flipped():
    index = np.stack([loaded.batch.index for loaded in train(Pictures(), num_steps=12)])
    assert (index[:6] != index[6:]).any()
    placements = np.concatenate([loaded.batch.placement for loaded in train(Pictures())])
    assert set(map(tuple, np.sign(placements[:, :2]))) == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


def train_yolo(source, **changes):
    return train(source, augment=YOLO, **changes)


@pytest.mark.parametrize("stream", [train, train_yolo, evaluate])
def test_rows_of_the_processes_make_the_global_batch(stream):
    whole = stream(Pictures())
    parts = [stream(Pictures(), process_index=p, process_count=2) for p in range(2)]
    for loaded, *shares in zip(whole, *parts, strict=True):
        for name, value in loaded.batch._asdict().items():
            joined = np.concatenate([getattr(share.batch, name) for share in shares])
            np.testing.assert_array_equal(joined, value, err_msg=name)


def test_evaluation_shows_every_image_once_and_marks_the_filling():
    stream = evaluate(Pictures())
    index = np.concatenate([loaded.batch.index[loaded.batch.real] for loaded in stream])
    assert sorted(index) == list(range(len(SIZES)))
    filling = np.concatenate([loaded.batch.valid[~loaded.batch.real] for loaded in stream])
    assert len(filling) == 4 * len(stream) - len(SIZES) > 0 and not filling.any()
    assert all((loaded.batch.placement[:, :2] > 0).all() for loaded in stream)
    assert_same(evaluate(Pictures(), read_threads=2), stream)


@pytest.mark.slow  # starts processes that import everything anew
def test_worker_processes_do_not_change_the_stream():
    source, canvases = shapes.Shapes(num_images=9), ((128, 128),)
    whole = train(source, canvases=canvases, num_steps=7)
    assert_same(train(source, canvases=canvases, num_steps=7, workers=2), whole)
    assert_same(evaluate(source, canvases=canvases, workers=1), evaluate(source, canvases=canvases))
    changes = dict(canvases=canvases, num_steps=5, augment=ALL)
    changes["multiscale"] = loader.MultiScale(limits=((128, 128), (90, 60)))
    assert_same(train(source, workers=2, **changes), train(source, **changes))
    assert_same(train_yolo(source, workers=2), train_yolo(source))


# ------------------------------------------------------------------------------------------------
# Pictures of several images

MOSAIC = loader.Augment(mosaic=1.0)
GREY = np.array([(60, 60)] * 12)  # images that fill the canvas: number i has the colour i
SQUARE = dict(canvases=((60, 60),), resize="letterbox", flip_horizontal=0.0, flip_vertical=0.0)


def colours_of(image):
    return set(np.unique(image).tolist()) - {114}


def test_a_mosaic_shows_its_own_image_and_others_of_the_whole_source():
    counts = np.zeros(len(GREY))
    stream = train(Pictures(GREY), augment=MOSAIC, num_steps=60, **SQUARE)
    for loaded in stream:
        for image, i, size in zip(loaded.batch.images, loaded.batch.index, loaded.batch.image_size):
            shown = colours_of(image)
            assert 1 <= len(shown) <= 4
            np.testing.assert_array_equal(size, [60, 60])
            counts[list(shown - {int(i)})] += 1
    # About 240 mosaics of three others, each of 12 images as often: 60 minus those that are twice
    # in a mosaic or out of sight.  Four standard deviations of 50 are 28.
    assert abs(counts - counts.mean()).max() < 28 and 35 < counts.mean() < 60
    placements = np.concatenate([loaded.batch.placement for loaded in stream])
    np.testing.assert_array_equal(placements, np.tile([1, 1, 0, 0], (240, 1)))


def test_mosaics_are_as_frequent_as_asked_for_and_some_have_nine():
    source = Pictures(np.array([(24, 24)] * 40))
    augment = loader.Augment(mosaic=0.5, mosaic_nine=0.5)
    arguments = dict(SQUARE, multiscale=loader.MultiScale(limits=((24, 24),)), resize="fit")
    stream = train(source, augment=augment, num_steps=100, **arguments)
    shown = np.array([len(colours_of(image)) for step in stream for image in step.batch.images])
    # Tiles of 24 px: the middle 60 px show nine in a square of 72 px nearly whole.
    half = 4 * np.sqrt(0.25 / 400)
    assert abs((shown == 1).mean() - 0.5) < half
    assert shown.max() == 9 and abs((shown >= 5).mean() - 0.25) < half


def test_a_source_of_one_image_makes_mosaics_of_it_alone():
    for nine in (0.0, 1.0):
        augment = YOLO._replace(mosaic=1.0, mosaic_nine=nine, mixup=1.0, hsv=0.0, crop="none")
        for loaded in train(
            Pictures(GREY[:1]), augment=augment, num_steps=3, pad_value=0, **SQUARE
        ):
            assert (loaded.batch.images == 0).all() and (loaded.batch.index == 0).all()
            assert loaded.batch.valid.any()


@pytest.mark.parametrize("counts", [[0] * 12, [0, 1] * 6], ids=["none", "some"])
def test_images_without_objects_go_into_mosaics(counts):
    stream = train(Pictures(GREY, counts), augment=YOLO, num_steps=9, **SQUARE)
    assert any(loaded.batch.valid.any() for loaded in stream) == any(counts)


@pytest.mark.parametrize("resize", ["fit", "letterbox", "stretch", (40, 30)])
def test_a_mosaic_fills_its_canvas_whatever_the_resize(resize):
    augment = loader.Augment(mosaic=1.0, affine=1.0, affine_scale=0.2)
    for loaded in train(Pictures(), augment=augment, resize=resize, max_boxes=9):
        batch = loaded.batch
        np.testing.assert_array_equal(batch.image_size, [batch.images.shape[1:3]] * 4)
        height, width = batch.images.shape[1:3]
        assert (batch.boxes >= 0).all() and (batch.boxes <= [width, height, width, height]).all()
        sides = batch.boxes[..., 2:] - batch.boxes[..., :2]
        assert (sides[batch.valid] > 2).all()


def test_mixup_draws_its_part_and_its_second_image():
    augment = loader.Augment(mixup=0.5, mixup_beta=2.0)
    values, mixed = [], 0
    for loaded in train(Bright(GREY, [1] * 12), augment=augment, num_steps=200, **SQUARE):
        for image, valid in zip(loaded.batch.images, loaded.batch.valid):
            assert len(np.unique(image)) == 1
            if valid.sum() == 2:
                mixed += 1
                values.append(image[0, 0, 0] / 240)
    assert abs(mixed / 800 - 0.5) < 4 * np.sqrt(0.25 / 800)
    # Mixed are 0 and 240 half of the time, each alone with a quarter.
    parts = np.array(values)
    between = parts[(parts > 0) & (parts < 1)]
    assert abs(len(between) / mixed - 0.5) < 4 * np.sqrt(0.25 / mixed)
    assert abs(between.mean() - 0.5) < 4 * np.sqrt(0.05 / len(between))  # Beta(2, 2)
    assert abs(between.var() - 0.05) < 0.02


class Bright(Pictures):
    """Every second image is black, the others are light."""

    def __getitem__(self, i):
        return {**super().__getitem__(i), "image": np.full((60, 60, 3), 240 * (i % 2), np.uint8)}


def test_an_affine_map_alone_keeps_the_size_of_the_picture():
    augment = loader.Augment(affine=1.0)
    still = train(Pictures(), augment=loader.Augment())
    for loaded, intact in zip(train(Pictures(), augment=augment), still, strict=True):
        np.testing.assert_array_equal(loaded.batch.image_size, intact.batch.image_size)
        np.testing.assert_array_equal(loaded.batch.index, intact.batch.index)
    assert any(
        (a.batch.boxes != b.batch.boxes).any() for a, b in zip(still, train_yolo(Pictures()))
    )


def test_one_photograph_of_a_mosaic_is_in_memory_at_a_time():
    class Large(Pictures):
        def __getitem__(self, i):
            return {**self.annotation(i), "image": np.zeros((1500, 2000, 3), np.uint8)}

    source = Large(np.array([(1500, 2000)] * 9))  # 9 MB each
    augment = loader.Augment(mosaic=1.0, mosaic_nine=1.0, affine=1.0, mixup=1.0)
    tracemalloc.start()
    try:
        train(source, augment=augment, canvases=((200, 200),), batch_size=1, num_steps=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Two photographs, as one is let go when the next is there; a plane of 400 x 400 px and tiles.
    assert peak < 2 * 9e6 + 3e6


# ------------------------------------------------------------------------------------------------
# What can go wrong


@pytest.mark.parametrize("threads", [0, 2])
def test_broken_images_of_a_mosaic_are_replaced_and_told_each_time(threads):
    whole = train(Pictures(GREY), augment=MOSAIC, num_steps=8, **SQUARE)
    stream = train(
        Pictures(GREY, broken=(4, 5)), augment=MOSAIC, num_steps=8, read_threads=threads, **SQUARE
    )
    told = []
    for loaded, intact in zip(stream, whole, strict=True):
        expected = np.where(np.isin(intact.batch.images, [4, 5]), 6, intact.batch.images)
        np.testing.assert_array_equal(loaded.batch.images, expected)
        index = np.where(np.isin(intact.batch.index, [4, 5]), 6, intact.batch.index)
        np.testing.assert_array_equal(loaded.batch.index, index)
        told += loaded.skipped
    # 32 mosaics of four: 128 images, a sixth of which 5 takes the place of, or both.
    assert set(told) == {"image 4 is broken", "image 5 is broken"}
    assert told.count("image 5 is broken") > told.count("image 4 is broken") > 2
    with pytest.raises(records.DataError, match="image [45] is broken"):
        train(
            Pictures(GREY, broken=(4, 5)), augment=MOSAIC, num_steps=8, skip_broken=False, **SQUARE
        )


def test_broken_image_is_replaced_by_the_next_of_its_canvas_and_told():
    # The wide group is 0 2 3 5 7 ..: 3 is the next that works after 0 and 2.
    stream = train(Pictures(broken=(0, 2)), num_steps=6)
    whole = train(Pictures(), num_steps=6)
    told = []
    for loaded, intact in zip(stream, whole, strict=True):
        expected = np.where(np.isin(intact.batch.index, [0, 2]), 3, intact.batch.index)
        np.testing.assert_array_equal(loaded.batch.index, expected)
        told += loaded.skipped
    assert set(told) == {"image 0 is broken", "image 2 is broken"}
    assert_same(train(Pictures(broken=(0, 2)), num_steps=6, read_threads=2), stream)


def test_the_last_of_a_group_is_replaced_by_its_first():
    stream = train(Pictures(broken=(20,)), num_steps=6)  # the tall group is 1 4 6 .. 20
    for loaded, intact in zip(stream, train(Pictures(), num_steps=6), strict=True):
        expected = np.where(intact.batch.index == 20, 1, intact.batch.index)
        np.testing.assert_array_equal(loaded.batch.index, expected)


@pytest.mark.parametrize("threads", [0, 2])
def test_broken_image_raises_where_asked_for_and_in_evaluation(threads):
    source = Pictures(broken=(8,))
    with pytest.raises(records.DataError, match="image 8 is broken"):
        train(source, skip_broken=False, read_threads=threads)
    with pytest.raises(records.DataError, match="image 8 is broken"):
        evaluate(source, read_threads=threads)


@pytest.mark.parametrize("threads", [0, 2])
def test_evaluation_can_leave_broken_images_out_and_replaces_none(threads):
    stream = evaluate(Pictures(broken=(0, 8)), skip_broken=True, read_threads=threads)
    for loaded, intact in zip(stream, evaluate(Pictures()), strict=True):
        lost = np.isin(intact.batch.index, [0, 8])
        np.testing.assert_array_equal(loaded.batch.real, intact.batch.real & ~lost)
        np.testing.assert_array_equal(loaded.batch.index, np.where(lost, -1, intact.batch.index))
        assert not loaded.batch.valid[lost].any()
    told = [sentence for loaded in stream for sentence in loaded.skipped]
    assert told == ["image 0 is broken", "image 8 is broken"]


def test_worker_processes_leave_signals_to_their_parent():
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    try:
        loader._start_worker(0, 1)
        assert all(signal.getsignal(number) is signal.SIG_IGN for number in numbers)
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


def test_too_many_broken_images_raise():
    sizes = np.array([(20, 40)] * 30)
    with pytest.raises(records.DataError, match="21 images in a row cannot be read, the first"):
        train(Pictures(sizes, broken=range(30)))
    assert len(train(Pictures(sizes, broken=range(20)))) == 9


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match="a batch of 4 images cannot be shared by 3"):
        train(Pictures(), process_count=3)
    for resize in ("crop", (1, 2, 3)):
        with pytest.raises(ValueError, match="neither .fit. nor .letterbox. nor .stretch. nor"):
            train(Pictures(), resize=resize)
    for stream in (train, evaluate):
        with pytest.raises(ValueError, match="rounding 'near' is none of half_up, half_even, down"):
            stream(Pictures(), rounding="near")
        with pytest.raises(ValueError, match="shrink 'cubic' is none of linear, area"):
            stream(Pictures(), shrink="cubic")
    with pytest.raises(ValueError, match="crop 'some' is neither"):
        train(Pictures(), augment=loader.Augment(crop="some"))
    with pytest.raises(ValueError, match="mode 'some' is neither"):
        train(Pictures(), multiscale=loader.MultiScale(mode="some"))
    with pytest.raises(ValueError, match="alternative to 2 canvases must have as many"):
        train(Pictures(), multiscale=loader.MultiScale(canvases=(((32, 32),),)))
    with pytest.raises(ValueError, match='limits do not go with resize "letterbox"'):
        train(Pictures(), resize="letterbox", multiscale=loader.MultiScale(limits=((9, 9),)))
    with pytest.raises(records.DataError, match="the data source has no images"):
        train(Pictures(sizes=np.zeros((0, 2))))


def test_real_data_streams(shared_dir):
    data = shared_dir / "data"
    mini = coco.Coco(
        data / "coco_mini" / "val2017",
        data / "coco_mini" / "annotations" / "instances_val2017.json",
    )
    stream = evaluate(mini, canvases=((64, 96), (96, 64)), max_boxes=100)
    assert sum(int(loaded.batch.real.sum()) for loaded in stream) == 41
    assert sum(int(loaded.batch.valid.sum()) for loaded in stream) == 391 - 5
    assert sum(int(loaded.batch.ignore.sum()) for loaded in stream) == 5
    assert sum(loaded.dropped_boxes for loaded in evaluate(mini, max_boxes=2)) > 100
    stream = train(voc.Voc(data / "voc_mini"), num_steps=3)
    assert all(loaded.batch.valid.any() for loaded in stream)
