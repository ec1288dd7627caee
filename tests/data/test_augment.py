"""How a record is changed before it enters a batch: sizes, colours, images made from several."""

import tracemalloc

import numpy as np
import pictures
import pytest

from detlab.data import augment as augment_lib
from detlab.data import settings, shapes


def test_resize_choices_give_the_sizes_they_say():
    source = pictures.Pictures(sizes=np.array([(20, 40)] * 4))
    sizes = {
        resize: tuple(pictures.train(source, num_steps=1, resize=resize)[0].batch.image_size[0])
        for resize in ("fit", "letterbox", "stretch", (30, 25), (40, 12))
    }
    assert sizes == {
        "fit": (24, 48), "letterbox": (32, 48), "stretch": (32, 48), (30, 25): (15, 30),
        (40, 12): (12, 24),
    }  # fmt: skip


def test_training_mosaics_and_evaluation_round_sides_as_they_are_told(monkeypatch):
    """20x39 px on 32x48 px: 24.6 px high, centred."""
    source, tiles = pictures.Pictures(sizes=np.array([(20, 39)] * 4)), []

    def four(pictures, *arguments, make=augment_lib.mosaic.four):
        tiles.extend(picture["image"].shape[:2] for picture in pictures)
        return make(pictures, *arguments)

    monkeypatch.setattr(augment_lib.mosaic, "four", four)
    once = dict(num_steps=1, flip_horizontal=0.0, flip_vertical=0.0)
    for rounding, height in (("half_up", 25), ("down", 24), ("up", 25), ("whole", 24)):
        rule = dict(resize="letterbox", rounding=rounding)
        expected = [[48 / 39, height / 20, 0, (32 - height) // 2]] * 4
        for loaded in (*pictures.train(source, **once, **rule), *pictures.evaluate(source, **rule)):
            np.testing.assert_allclose(loaded.batch.placement, expected, rtol=1e-6)
        pictures.train(source, augment=pictures.MOSAIC, **once, **rule)
        assert set(tiles) == {(height, 48)}
        tiles.clear()


@pytest.mark.parametrize("resize", ["fit", "letterbox"])
def test_the_border_has_the_colour_of_the_config(resize):
    batch = pictures.train(
        pictures.Pictures(), num_steps=1, resize=resize, augment=pictures.SSD, pad_value=(1, 2, 3)
    )[0].batch
    for image, i in zip(batch.images, batch.index):
        colours = {tuple(colour) for colour in image.reshape(-1, 3).tolist()}
        assert (1, 2, 3) in colours and (i, i, i) in colours and len(colours) == 2


def test_what_is_off_draws_nothing():
    assert augment_lib.augmentations(settings.Augment(), 0) == ((), ())
    before, after = augment_lib.augmentations(pictures.ALL, 0)
    assert len(before) == 3 and len(after) == 1
    before, after = augment_lib.augmentations(pictures.YOLO, 0)
    assert len(before) == 1 and len(after) == 1


def test_augmented_boxes_lie_on_their_picture():
    source = shapes.Shapes(num_images=24, size=96)
    stream = pictures.train(
        source, num_steps=6, canvases=((80, 96),), augment=pictures.ALL, max_boxes=9
    )
    sizes = set()
    for loaded in stream:
        batch = loaded.batch
        assert loaded.dropped_boxes == 0  # objects that a crop removes are not counted as dropped
        assert batch.valid.any(axis=1).all()
        for boxes, (height, width) in zip(batch.boxes, batch.image_size):
            assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
            sizes.add((height, width))
        assert ((batch.boxes[batch.valid][:, 2:] - batch.boxes[batch.valid][:, :2]) > 0).all()
    assert len(sizes) > 3


def test_a_mosaic_shows_its_own_image_and_others_of_the_whole_source():
    counts = np.zeros(len(pictures.GREY))
    stream = pictures.train(
        pictures.Pictures(pictures.GREY), augment=pictures.MOSAIC, num_steps=60, **pictures.SQUARE
    )
    for loaded in stream:
        for image, i, size in zip(loaded.batch.images, loaded.batch.index, loaded.batch.image_size):
            shown = pictures.colours_of(image)
            assert 1 <= len(shown) <= 4
            np.testing.assert_array_equal(size, [60, 60])
            counts[list(shown - {int(i)})] += 1
    # About 240 mosaics with three others, uniform over 12 images: 60 each, minus those that are in
    # a mosaic twice or not visible.  Four standard deviations of 50 are 28.
    assert abs(counts - counts.mean()).max() < 28 and 35 < counts.mean() < 60
    placements = np.concatenate([loaded.batch.placement for loaded in stream])
    np.testing.assert_array_equal(placements, np.tile([1, 1, 0, 0], (240, 1)))


def test_mosaics_are_as_frequent_as_asked_for_and_some_have_nine():
    source = pictures.Pictures(np.array([(24, 24)] * 40))
    augment = settings.Augment(mosaic=0.5, mosaic_nine=0.5)
    arguments = dict(
        pictures.SQUARE, multiscale=settings.MultiScale(limits=((24, 24),)), resize="fit"
    )
    stream = pictures.train(source, augment=augment, num_steps=100, **arguments)
    shown = np.array(
        [len(pictures.colours_of(image)) for step in stream for image in step.batch.images]
    )
    # Nine tiles of 24 px make a square of 72 px, of which the middle 60 px show nearly all.
    half = 4 * np.sqrt(0.25 / 400)
    assert abs((shown == 1).mean() - 0.5) < half
    assert shown.max() == 9 and abs((shown >= 5).mean() - 0.25) < half


def test_a_source_of_one_image_makes_mosaics_of_it_alone():
    for nine in (0.0, 1.0):
        augment = pictures.YOLO._replace(
            mosaic=1.0, mosaic_nine=nine, mixup=1.0, hsv=0.0, crop="none"
        )
        for loaded in pictures.train(
            pictures.Pictures(pictures.GREY[:1]),
            augment=augment,
            num_steps=3,
            pad_value=0,
            **pictures.SQUARE,
        ):
            assert (loaded.batch.images == 0).all() and (loaded.batch.index == 0).all()
            assert loaded.batch.valid.any()


@pytest.mark.parametrize("counts", [[0] * 12, [0, 1] * 6], ids=["none", "some"])
def test_images_without_objects_go_into_mosaics(counts):
    stream = pictures.train(
        pictures.Pictures(pictures.GREY, counts),
        augment=pictures.YOLO,
        num_steps=9,
        **pictures.SQUARE,
    )
    assert any(loaded.batch.valid.any() for loaded in stream) == any(counts)


@pytest.mark.parametrize("resize", ["fit", "letterbox", "stretch", (40, 30)])
def test_a_mosaic_fills_its_canvas_whatever_the_resize(resize):
    augment = settings.Augment(mosaic=1.0, affine=1.0, affine_scale=0.2)
    for loaded in pictures.train(pictures.Pictures(), augment=augment, resize=resize, max_boxes=9):
        batch = loaded.batch
        np.testing.assert_array_equal(batch.image_size, [batch.images.shape[1:3]] * 4)
        height, width = batch.images.shape[1:3]
        assert (batch.boxes >= 0).all() and (batch.boxes <= [width, height, width, height]).all()
        sides = batch.boxes[..., 2:] - batch.boxes[..., :2]
        assert (sides[batch.valid] > 2).all()


def test_mixup_draws_its_part_and_its_second_image():
    augment = settings.Augment(mixup=0.5, mixup_beta=2.0)
    values, mixed = [], 0
    for loaded in pictures.train(
        Bright(pictures.GREY, [1] * 12), augment=augment, num_steps=200, **pictures.SQUARE
    ):
        for image, valid in zip(loaded.batch.images, loaded.batch.valid):
            assert len(np.unique(image)) == 1
            if valid.sum() == 2:
                mixed += 1
                values.append(image[0, 0, 0] / 240)
    assert abs(mixed / 800 - 0.5) < 4 * np.sqrt(0.25 / 800)
    # Half of the mixtures are of 0 and 240, a quarter of 0 alone, a quarter of 240 alone.
    parts = np.array(values)
    between = parts[(parts > 0) & (parts < 1)]
    assert abs(len(between) / mixed - 0.5) < 4 * np.sqrt(0.25 / mixed)
    assert abs(between.mean() - 0.5) < 4 * np.sqrt(0.05 / len(between))  # Beta(2, 2)
    assert abs(between.var() - 0.05) < 0.02


class Bright(pictures.Pictures):
    """Every second image is black, the others are light."""

    def __getitem__(self, i):
        return {**super().__getitem__(i), "image": np.full((60, 60, 3), 240 * (i % 2), np.uint8)}


def test_an_affine_map_alone_keeps_the_size_of_the_picture():
    augment = settings.Augment(affine=1.0)
    still = pictures.train(pictures.Pictures(), augment=settings.Augment())
    for loaded, intact in zip(
        pictures.train(pictures.Pictures(), augment=augment), still, strict=True
    ):
        np.testing.assert_array_equal(loaded.batch.image_size, intact.batch.image_size)
        np.testing.assert_array_equal(loaded.batch.index, intact.batch.index)
    assert any(
        (a.batch.boxes != b.batch.boxes).any()
        for a, b in zip(still, pictures.train_yolo(pictures.Pictures()))
    )


def test_one_photograph_of_a_mosaic_is_in_memory_at_a_time():
    class Large(pictures.Pictures):
        def __getitem__(self, i):
            return {**self.annotation(i), "image": np.zeros((1500, 2000, 3), np.uint8)}

    source = Large(np.array([(1500, 2000)] * 9))  # 9 MB each
    augment = settings.Augment(mosaic=1.0, mosaic_nine=1.0, affine=1.0, mixup=1.0)
    tracemalloc.start()
    try:
        pictures.train(source, augment=augment, canvases=((200, 200),), batch_size=1, num_steps=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Two photographs, as one is freed after the next is read; a plane of 400 x 400 px and tiles.
    assert peak < 2 * 9e6 + 3e6
