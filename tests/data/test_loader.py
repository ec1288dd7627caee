"""The streams carry out the plan, whatever the threads, processes and unreadable images."""

import signal

import numpy as np
import pictures
import pytest

from detlab.data import coco, loader, records, settings, shapes, voc


class Kept:
    """The records of another source, made only once."""

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
@pytest.mark.parametrize("augment", [pictures.ALL, pictures.YOLO], ids=["ssd", "yolo"])
def test_a_later_start_gives_the_tail_with_multi_scale_and_augmentation(threads, mode, augment):
    source = Kept(shapes.Shapes(num_images=10, size=64))
    arguments = dict(
        num_steps=9, canvases=((48, 48),), resize="fit", augment=augment, read_threads=threads
    )
    arguments["multiscale"] = settings.MultiScale(
        (((48, 48),), ((40, 56),)), ((48, 48), (30, 20)), mode
    )
    whole = pictures.train(source, **{**arguments, "read_threads": 0})
    for start in (0, 4):  # three steps an epoch
        pictures.assert_same(pictures.train(source, start_step=start, **arguments), whole[start:])


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_a_later_start_gives_the_tail_of_the_stream(threads):
    whole = pictures.train(pictures.Pictures(), num_steps=20)  # six steps an epoch
    assert len(whole) == 20
    for start in (0, 1, 6, 13):
        pictures.assert_same(
            pictures.train(
                pictures.Pictures(), num_steps=20, start_step=start, read_threads=threads
            ),
            whole[start:],
        )


def test_epochs_and_seeds_differ_and_images_are_flipped():
    index = np.stack(
        [loaded.batch.index for loaded in pictures.train(pictures.Pictures(), num_steps=12)]
    )
    assert (index[:6] != index[6:]).any()
    placements = np.concatenate(
        [loaded.batch.placement for loaded in pictures.train(pictures.Pictures())]
    )
    assert set(map(tuple, np.sign(placements[:, :2]))) == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


@pytest.mark.parametrize("stream", [pictures.train, pictures.train_yolo, pictures.evaluate])
def test_rows_of_the_processes_make_the_global_batch(stream):
    whole = stream(pictures.Pictures())
    parts = [stream(pictures.Pictures(), process_index=p, process_count=2) for p in range(2)]
    for loaded, *shares in zip(whole, *parts, strict=True):
        for name, value in loaded.batch._asdict().items():
            joined = np.concatenate([getattr(share.batch, name) for share in shares])
            np.testing.assert_array_equal(joined, value, err_msg=name)


def test_evaluation_shows_every_image_once_and_marks_the_filling():
    stream = pictures.evaluate(pictures.Pictures())
    index = np.concatenate([loaded.batch.index[loaded.batch.real] for loaded in stream])
    assert sorted(index) == list(range(len(pictures.SIZES)))
    filling = np.concatenate([loaded.batch.valid[~loaded.batch.real] for loaded in stream])
    assert len(filling) == 4 * len(stream) - len(pictures.SIZES) > 0 and not filling.any()
    assert all((loaded.batch.placement[:, :2] > 0).all() for loaded in stream)
    pictures.assert_same(pictures.evaluate(pictures.Pictures(), read_threads=2), stream)


@pytest.mark.slow  # starts processes that import everything again
def test_worker_processes_do_not_change_the_stream():
    source, canvases = shapes.Shapes(num_images=9), ((128, 128),)
    whole = pictures.train(source, canvases=canvases, num_steps=7)
    pictures.assert_same(pictures.train(source, canvases=canvases, num_steps=7, workers=2), whole)
    pictures.assert_same(
        pictures.evaluate(source, canvases=canvases, workers=1),
        pictures.evaluate(source, canvases=canvases),
    )
    changes = dict(canvases=canvases, num_steps=5, augment=pictures.ALL)
    changes["multiscale"] = settings.MultiScale(limits=((128, 128), (90, 60)))
    pictures.assert_same(
        pictures.train(source, workers=2, **changes), pictures.train(source, **changes)
    )
    pictures.assert_same(pictures.train_yolo(source, workers=2), pictures.train_yolo(source))


@pytest.mark.parametrize("threads", [0, 2])
def test_broken_images_of_a_mosaic_are_replaced_and_told_each_time(threads):
    whole = pictures.train(
        pictures.Pictures(pictures.GREY), augment=pictures.MOSAIC, num_steps=8, **pictures.SQUARE
    )
    stream = pictures.train(
        pictures.Pictures(pictures.GREY, broken=(4, 5)),
        augment=pictures.MOSAIC,
        num_steps=8,
        read_threads=threads,
        **pictures.SQUARE,
    )
    told = []
    for loaded, intact in zip(stream, whole, strict=True):
        expected = np.where(np.isin(intact.batch.images, [4, 5]), 6, intact.batch.images)
        np.testing.assert_array_equal(loaded.batch.images, expected)
        index = np.where(np.isin(intact.batch.index, [4, 5]), 6, intact.batch.index)
        np.testing.assert_array_equal(loaded.batch.index, index)
        told += loaded.skipped
    # 32 mosaics of four: 128 images, a sixth of which are 4 or 5.
    assert set(told) == {"image 4 is broken", "image 5 is broken"}
    assert told.count("image 5 is broken") > told.count("image 4 is broken") > 2
    with pytest.raises(records.DataError, match="image [45] is broken"):
        pictures.train(
            pictures.Pictures(pictures.GREY, broken=(4, 5)),
            augment=pictures.MOSAIC,
            num_steps=8,
            skip_broken=False,
            **pictures.SQUARE,
        )


def test_broken_image_is_replaced_by_the_next_of_its_canvas_and_told():
    # The wide group is 0 2 3 5 7 ..: 3 is the next readable image after 0 and 2.
    stream = pictures.train(pictures.Pictures(broken=(0, 2)), num_steps=6)
    whole = pictures.train(pictures.Pictures(), num_steps=6)
    told = []
    for loaded, intact in zip(stream, whole, strict=True):
        expected = np.where(np.isin(intact.batch.index, [0, 2]), 3, intact.batch.index)
        np.testing.assert_array_equal(loaded.batch.index, expected)
        told += loaded.skipped
    assert set(told) == {"image 0 is broken", "image 2 is broken"}
    pictures.assert_same(
        pictures.train(pictures.Pictures(broken=(0, 2)), num_steps=6, read_threads=2), stream
    )


def test_the_last_of_a_group_is_replaced_by_its_first():
    stream = pictures.train(
        pictures.Pictures(broken=(20,)), num_steps=6
    )  # the tall group is 1 4 6 .. 20
    for loaded, intact in zip(
        stream, pictures.train(pictures.Pictures(), num_steps=6), strict=True
    ):
        expected = np.where(intact.batch.index == 20, 1, intact.batch.index)
        np.testing.assert_array_equal(loaded.batch.index, expected)


@pytest.mark.parametrize("threads", [0, 2])
def test_broken_image_raises_where_asked_for_and_in_evaluation(threads):
    source = pictures.Pictures(broken=(8,))
    with pytest.raises(records.DataError, match="image 8 is broken"):
        pictures.train(source, skip_broken=False, read_threads=threads)
    with pytest.raises(records.DataError, match="image 8 is broken"):
        pictures.evaluate(source, read_threads=threads)


@pytest.mark.parametrize("threads", [0, 2])
def test_evaluation_can_leave_broken_images_out_and_replaces_none(threads):
    stream = pictures.evaluate(
        pictures.Pictures(broken=(0, 8)), skip_broken=True, read_threads=threads
    )
    for loaded, intact in zip(stream, pictures.evaluate(pictures.Pictures()), strict=True):
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
    with pytest.raises(records.DataError, match="21 images in a row cannot be read; the first"):
        pictures.train(pictures.Pictures(sizes, broken=range(30)))
    assert len(pictures.train(pictures.Pictures(sizes, broken=range(20)))) == 9


def test_bad_arguments_raise():
    with pytest.raises(
        ValueError, match="a batch of 4 images cannot be split evenly over 3 processes"
    ):
        pictures.train(pictures.Pictures(), process_count=3)
    for resize in ("crop", (1, 2, 3)):
        with pytest.raises(ValueError, match="must be .fit., .letterbox., .stretch. or .long"):
            pictures.train(pictures.Pictures(), resize=resize)
    for stream in (pictures.train, pictures.evaluate):
        with pytest.raises(
            ValueError, match="rounding is 'near'; it must be one of half_up, half_even"
        ):
            stream(pictures.Pictures(), rounding="near")
        with pytest.raises(ValueError, match="shrink is 'cubic'; it must be one of linear, area"):
            stream(pictures.Pictures(), shrink="cubic")
    with pytest.raises(ValueError, match="crop is 'some'; it must be none, random"):
        pictures.train(pictures.Pictures(), augment=settings.Augment(crop="some"))
    with pytest.raises(ValueError, match="multiscale is 'some'; it must be"):
        pictures.train(pictures.Pictures(), multiscale=settings.MultiScale(mode="some"))
    with pytest.raises(ValueError, match="entry of multiscale_canvases must have 2 canvases"):
        pictures.train(pictures.Pictures(), multiscale=settings.MultiScale(canvases=(((32, 32),),)))
    with pytest.raises(ValueError, match='limits cannot be used with resize "letterbox"'):
        pictures.train(
            pictures.Pictures(),
            resize="letterbox",
            multiscale=settings.MultiScale(limits=((9, 9),)),
        )
    with pytest.raises(records.DataError, match="the data source has no images"):
        pictures.train(pictures.Pictures(sizes=np.zeros((0, 2))))


def test_real_data_streams(shared_dir):
    data = shared_dir / "data"
    mini = coco.Coco(
        data / "coco_mini" / "val2017",
        data / "coco_mini" / "annotations" / "instances_val2017.json",
    )
    stream = pictures.evaluate(mini, canvases=((64, 96), (96, 64)), max_boxes=100)
    assert sum(int(loaded.batch.real.sum()) for loaded in stream) == 41
    assert sum(int(loaded.batch.valid.sum()) for loaded in stream) == 391 - 5
    assert sum(int(loaded.batch.ignore.sum()) for loaded in stream) == 5
    assert sum(loaded.dropped_boxes for loaded in pictures.evaluate(mini, max_boxes=2)) > 100
    stream = pictures.train(voc.Voc(data / "voc_mini"), num_steps=3)
    assert all(loaded.batch.valid.any() for loaded in stream)


def test_an_evaluation_on_rectangles_shows_each_picture_in_a_margin():
    shown = dict(canvases=((64, 64),), resize="letterbox", rectangles=32, margin=0.5)
    batches = [loaded.batch for loaded in pictures.evaluate(pictures.Pictures(), **shown)]
    assert {batch.images.shape[1:3] for batch in batches} == {(64, 96), (96, 64), (96, 96)}
    seen = np.concatenate([batch.index[batch.real] for batch in batches])
    assert sorted(seen) == list(range(21))
    for batch in batches:
        for row in np.flatnonzero(batch.real):
            image, size = batch.images[row], pictures.SIZES[batch.index[row]]
            content = (image != 114).any(-1)
            sides = content.any(1).sum(), content.any(0).sum()
            assert max(sides) == 64 and abs(min(sides) - min(size) * 64 / max(size)) <= 0.5
            assert (batch.image_size[row] == image.shape[:2]).all()


def test_images_without_rounding_are_float32_also_in_empty_rows():
    shown = dict(canvases=((32, 32),), resize="stretch", shrink="corners")
    for loaded in pictures.evaluate(pictures.Pictures(broken=(0, 1)), skip_broken=True, **shown):
        assert loaded.batch.images.dtype == np.float32
        assert loaded.batch.boxes.dtype == np.float32
