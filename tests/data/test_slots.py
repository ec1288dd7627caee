"""Objects without a slot are told before training."""

import numpy as np
import pytest

from detlab.data import loader, records, settings, shapes, slots, wrappers

CANVAS = (64, 96)


def make_source(*counts, size=CANVAS):
    """Images with these numbers of objects of 8 px, spread over the image; no files."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, np.array(size[::-1]) - 8, (sum(counts), 2))
    annotations = records.Annotations(
        image=np.repeat(np.arange(len(counts)), counts),
        boxes=np.concatenate([corners, corners + 8], axis=1),
        labels=np.zeros(sum(counts)),
        ignore=np.zeros(sum(counts)),
        area=np.full(sum(counts), 64),
        num_images=len(counts),
    )
    ids = list(range(len(counts)))
    return records.FileSource(("cat",), ids, ids, [size] * len(counts), annotations)


def make_settings(max_boxes, **augment):
    return settings.Settings(
        canvases=(CANVAS,), max_boxes=max_boxes, pad_value=0, augment=settings.Augment(**augment)
    )


@pytest.mark.parametrize(
    "counts, max_boxes, sentence",
    [
        (
            (150,),
            48,
            "1 of 1 images has more objects than the 48 slots of config.data.max_boxes, up to 150;"
            " 102 of their 150 objects, the smallest, are not learnt; --config.data.max_boxes=150"
            " has room for all",
        ),
        (
            (12, 3, 0, 20, 9),
            10,
            "2 of 5 images have more objects than the 10 slots of config.data.max_boxes, up to 20;"
            " 12 of their 32 objects, the smallest, are not learnt; --config.data.max_boxes=20"
            " has room for all",
        ),
        ((10, 10, 3), 10, ""),
        ((0, 0), 1, ""),
    ],
)
def test_images_that_lose_objects_are_counted_and_others_not(counts, max_boxes, sentence):
    assert slots.shortage(make_source(*counts), make_settings(max_boxes), seed=0) == sentence


def test_objects_to_ignore_lose_their_slots_first_and_are_told_apart():
    source = make_source(12, 9)
    ignored = np.arange(21) % 3 == 0  # 4 of 12 and 3 of 9
    source._annotations._columns["ignore"] = ignored
    start = "2 of 2 images have more objects than the {} slots of config.data.max_boxes, up to 12; "
    end = "; --config.data.max_boxes=12 has room for all"
    assert slots.shortage(source, make_settings(8), 0) == (
        start.format(8) + "5 of their 7 objects to ignore are learnt as background" + end
    )
    assert slots.shortage(source, make_settings(7), 0) == (
        start.format(7)
        + "1 of their 14 objects, the smallest, are not learnt and 6 of their 7 objects to ignore "
        + "are learnt as background"
        + end
    )


def test_a_repeated_image_counts_once():
    source = wrappers.Repeated(make_source(12, 3), 4)
    assert slots.shortage(source, make_settings(10), 0).startswith("1 of 2 images has more")


def test_objects_of_classes_that_are_not_learnt_need_no_slot():
    source = make_source(12, 3)
    source.class_names = ("cat", "dog")
    source = wrappers.choose_classes(source, ("dog",))
    assert slots.shortage(source, make_settings(10), 0) == ""


@pytest.mark.parametrize(
    "augment", [dict(mosaic=1.0), dict(mosaic=1.0, affine=1.0), dict(mixup=1.0), dict(mosaic=0.5)]
)
def test_joined_images_are_counted_as_training_makes_them(augment):
    """The loader, which reads pixels, loses about as many objects."""

    class Blank(wrappers.Filtered):
        def __getitem__(self, i):
            return {"image": np.zeros((*self.size(i), 3), np.uint8), **self.annotation(i)}

    source = make_source(20, 30, 40, 10)
    made = make_settings(32, **augment)
    sentence = slots.shortage(source, made, seed=0)
    words = "of 100 training pictures drawn as a sample, which join images, have more objects than"
    assert words in sentence and sentence.endswith("has room for these")
    over = int(sentence.split()[0])
    batches = loader.train_batches(
        Blank(source, range(4)), made, batch_size=1, seed=1, num_steps=100
    )
    lost = sum(loaded.dropped_boxes > 0 for loaded in batches)
    assert 0 < lost and abs(over - lost) <= 20  # two standard deviations of a fair coin


def test_joined_images_that_fit_give_no_alarm():
    source = make_source(20, 30, 40, 10)
    made = make_settings(160, mosaic=1.0)
    assert slots.shortage(source, made, 0) == ""
    # Four images of 30 objects exceed 100 slots, but a mosaic shows about a quarter of its plane.
    assert slots.shortage(make_source(30, 30), make_settings(110, mosaic=1.0), 0) == ""


def test_sources_know_their_fullest_image():
    assert make_source(3, 8, 0).max_objects == 8 and make_source(0).max_objects == 0
    source = shapes.Shapes("val", num_images=50)
    assert source.max_objects == max(len(source.annotation(i)["labels"]) for i in range(50))
    joined = wrappers.Concatenated([make_source(3), make_source(8, 1)])
    assert wrappers.for_training(joined).max_objects == 8
