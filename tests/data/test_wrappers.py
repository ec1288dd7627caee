"""Sources made of other sources: filtered, repeated, joined, with other classes."""

import pickle

import cv2
import numpy as np
import pytest

from detlab.data import records, shapes, wrappers

NO_COUNTS = dict(dropped_boxes=0, clipped_boxes=0, skipped_records=0, filtered_records=0)


def make_source(folder, sizes, objects, ignore=None, labels=None, class_names=("cat",), **options):
    """Images of these sizes, as grey as their number; `objects` gives the image of each object."""
    paths = []
    for i, (height, width) in enumerate(sizes):
        paths.append(folder / f"{i}.png")
        cv2.imwrite(str(paths[-1]), np.full((height, width, 3), i, np.uint8))
    count = len(objects)
    flags = options.pop("flags", None)
    annotations = records.Annotations(
        image=np.array(objects, np.int64),
        boxes=[[k, k, k + 2, k + 3] for k in range(count)],
        labels=np.zeros(count) if labels is None else labels,
        ignore=np.zeros(count) if ignore is None else ignore,
        area=np.full(count, 6),
        num_images=len(sizes),
        flags=flags,
    )
    ids = options.pop("ids", "abcdef")[: len(sizes)]
    return records.FileSource(class_names, paths, ids, sizes, annotations, **options)


@pytest.fixture
def pets(tmp_path):
    """Four images: a cat and a dog; a bird; a dog; nothing."""
    return make_source(
        tmp_path, [(40, 50)] * 4, [0, 0, 1, 2], labels=[0, 1, 2, 1],
        class_names=("cat", "dog", "bird"),
    )  # fmt: skip


def ids(source):
    return [source.image_id(i) for i in range(len(source))]


def grey(source):
    """The grey values of the images, which are the numbers of their files."""
    return [int(record["image"][0, 0, 0]) for record in source]


# ------------------------------------------------------------------------------------------------
# Filtered


def test_training_filter_drops_small_and_empty_images(tmp_path):
    sizes = [(40, 50), (31, 50), (40, 50), (40, 50), (32, 32)]
    objects, ignore = [0, 1, 3, 4], [False, False, True, False]
    source = wrappers.for_training(make_source(tmp_path, sizes, objects, ignore))
    assert ids(source) == ["a", "e"]  # c is empty, d all ignored
    assert records.counts(source) == {**NO_COUNTS, "filtered_records": 3}  # nothing is broken
    assert source.problems == (
        "3 of 5 images are filtered out: 1 with a side under 32 px, 2 without an object to learn",
    )
    record = source[1]
    assert record["index"] == 1 and source.annotation(1)["index"] == 1
    assert record["image"].shape == (*source.size(1), 3) == (32, 32, 3)
    assert source.name(1).endswith("4.png")
    assert [r["index"] for r in source] == [0, 1]


def test_empty_images_can_be_kept_and_small_ones_still_go(tmp_path):
    source = make_source(tmp_path, [(40, 50), (31, 50), (40, 50)], [0, 2], [False, True])
    kept = wrappers.for_training(source, keep_empty=True)
    assert ids(kept) == ["a", "c"]
    assert kept.problems == ("1 of 3 images are filtered out: 1 with a side under 32 px",)
    assert ids(wrappers.for_training(source, min_side=0, keep_empty=True)) == ["a", "b", "c"]


def test_small_objects_are_ignored_and_counted(tmp_path):
    source = make_source(tmp_path, [(40, 50)] * 2, [0, 0, 1, 1], [False, False, False, True])
    small = wrappers.SmallIgnored(source, 3)  # they have 2x3 px
    assert all(small.annotation(i)["ignore"].all() for i in range(2)) and small[1]["ignore"].all()
    assert not source.annotation(0)["ignore"].any()
    assert small.problems[-1] == "objects with a side under 3 px are ignored: 3"
    assert len(wrappers.for_training(small)) == 0
    none = wrappers.SmallIgnored(source, 2)
    assert none.problems == source.problems and not none.annotation(0)["ignore"].any()


def test_filters_add_to_the_counts_of_their_source(tmp_path):
    source = make_source(tmp_path, [(40, 50)] * 3, [0])
    source.dropped_boxes, source.clipped_boxes, source.skipped_records = 1, 2, 3
    source.problems = ("a box is dropped",)
    once = wrappers.Filtered(source, [0, 1])
    assert list(records.counts(wrappers.Filtered(once, [0])).values()) == [1, 2, 3, 2]
    assert once.problems == ("a box is dropped", "1 of 3 images are filtered out: not selected")


def test_the_cause_comes_first_where_no_image_is_left(tmp_path):
    source = make_source(tmp_path, [(40, 50)] * 3, [0])
    source.problems = ("something about the boxes",)
    assert wrappers.for_training(source, 60).problems == (
        "3 of 3 images are filtered out: 3 with a side under 60 px, 0 without an object to learn",
        "something about the boxes",
    )
    source.dropped_boxes = 9
    assert wrappers.for_training(source, 60).problems[0] == "something about the boxes"


# ------------------------------------------------------------------------------------------------
# Repeated and joined


def test_repeated_shows_the_same_images_again_and_counts_them_once(pets):
    pets.dropped_boxes = 2
    source = wrappers.Repeated(wrappers.Filtered(pets, [2, 0]), 3)
    assert grey(source) == [2, 0, 2, 0, 2, 0]
    assert ids(source) == ["c", "a"] * 3
    assert [record["index"] for record in source] == list(range(6))
    assert records.counts(source) == {**NO_COUNTS, "dropped_boxes": 2, "filtered_records": 2}
    with pytest.raises(ValueError, match="times is 0"):
        wrappers.Repeated(pets, 0)


def test_concatenated_sources_follow_one_another(tmp_path, pets):
    (tmp_path / "b").mkdir()
    other = make_source(
        tmp_path / "b", [(50, 60)], [0], labels=[2], class_names=pets.class_names, ids="x",
        problems=("a word",), dropped_boxes=1, clipped_boxes=2, skipped_records=3,
    )  # fmt: skip
    source = wrappers.Concatenated([wrappers.Filtered(pets, [1, 2]), other])
    assert ids(source) == ["b", "c", "x"] and grey(source) == [1, 2, 0]
    assert [record["index"] for record in source] == [0, 1, 2]
    assert [r["labels"].tolist() for r in source] == [[2], [1], [2]]
    assert source.size(2) == (50, 60) and source.name(2) == other.name(0)
    assert list(records.counts(source).values()) == [1, 2, 3, 2]
    assert source.problems == ("2 of 4 images are filtered out: not selected", "a word")
    assert source[-1]["index"] == 2
    with pytest.raises(IndexError):
        source[3]


def test_ids_that_clash_get_the_number_of_their_source(pets):
    source = wrappers.Concatenated([pets, wrappers.Filtered(pets, [3])])
    assert ids(source) == ["0/a", "0/b", "0/c", "0/d", "1/d"]


def test_repeats_within_a_source_are_no_clash(pets):
    other = wrappers.Filtered(pets, [3])
    both = wrappers.Concatenated([wrappers.Repeated(wrappers.Filtered(pets, [0]), 2), other])
    assert ids(both) == ["a", "a", "d"]


def test_sources_of_different_classes_are_not_joined(pets):
    with pytest.raises(records.DataError, match="joined: cat, dog, bird and rectangle, ellipse"):
        wrappers.Concatenated([pets, shapes.Shapes()])


def test_records_of_joined_sources_have_the_same_entries(tmp_path):
    with_flags = make_source(tmp_path, [(40, 50)], [0], flags=[[1, 2]], ids="x")
    plain = make_source(tmp_path, [(40, 50)], [0])
    np.testing.assert_array_equal(with_flags[0]["flags"], [[1, 2]])
    both = wrappers.Concatenated([with_flags, plain])
    assert both[0].keys() == both[1].keys() == plain[0].keys()
    assert both.annotation(0).keys() == plain.annotation(0).keys()
    alone = wrappers.Concatenated([with_flags, wrappers.Filtered(plain, [])])
    assert "flags" in alone[0]


# ------------------------------------------------------------------------------------------------
# Classes


def labels_of(source):
    return [record["labels"].tolist() for record in source]


def test_chosen_classes_get_labels_in_their_order_and_others_go(pets):
    source = wrappers.choose_classes(pets, ("bird", "cat"))
    assert source.class_names == ("bird", "cat")
    assert labels_of(source) == [[1], [0], [], []]
    assert source[0]["labels"].dtype == np.int32
    np.testing.assert_array_equal(source[0]["boxes"], [[0, 0, 2, 3]])
    assert source.dropped_boxes == 2
    assert source.problems == ("objects of class dog, which is not in class_names, are dropped: 2",)
    assert ids(wrappers.for_training(source)) == ["a", "b"]


def test_renaming_comes_before_choosing(pets):
    source = wrappers.choose_classes(pets, ("hound", "cat"), (("dog", "hound"), ("bird", "dog")))
    assert source.class_names == ("hound", "cat") and labels_of(source) == [[1, 0], [], [0], []]


def test_names_may_be_exchanged(pets):
    source = wrappers.choose_classes(pets, rename=(("dog", "cat"), ("cat", "dog")))
    assert source.class_names == ("dog", "cat", "bird")
    assert labels_of(source) == labels_of(pets)  # the same objects under other names


def test_names_that_become_equal_are_one_class(pets):
    source = wrappers.choose_classes(pets, rename=(("dog", "pet"), ("cat", "pet")))
    assert source.class_names == ("pet", "bird")
    assert labels_of(source) == [[0, 0], [1], [0], []]
    assert source.dropped_boxes == 0 and source.problems == ()


def test_a_source_whose_classes_stay_is_given_back_as_it_is(pets):
    assert wrappers.choose_classes(pets) is pets
    assert wrappers.choose_classes(pets, ("cat", "dog", "bird"), (("cat", "cat"),)) is pets


@pytest.mark.parametrize(
    "chosen, rename, fault",
    [
        (("cat", "dgo"), (), "class_names has 'dgo', .* no such class; did you mean 'dog'"),
        (("zebra",), (), "class_names has 'zebra', .*; its classes: cat, dog, bird"),
        ((), (("birds", "fowl"),), "rename_classes has 'birds', .*; did you mean 'bird'"),
        (("dog",), (("dog", "hound"),), "class_names has 'dog', .*; its classes: cat, hound, bird"),
    ],
)
def test_a_class_that_is_not_there_is_named_with_what_was_meant(pets, chosen, rename, fault):
    with pytest.raises(records.DataError, match=fault):
        wrappers.choose_classes(pets, chosen, rename)


def test_a_new_name_that_is_there_already_is_no_misspelling(pets):
    source = wrappers.choose_classes(pets, (), (("Cat", "cat"), ("dog", "hound")))
    assert source.class_names == ("cat", "hound", "bird")
    assert source.problems == ("rename_classes has 'Cat', but the data set has no such class",)


def test_the_cause_comes_first_where_no_object_is_left(tmp_path):
    source = make_source(
        tmp_path, [(40, 50)], [0], class_names=("cat", "dog"), problems=("a word",)
    )
    assert wrappers.choose_classes(source, ("dog",)).problems == (
        "there are no objects of class dog in the data set",
        "objects of class cat, which is not in class_names, are dropped: 1",
        "a word",
    )


def test_wrappers_around_wrappers_survive_pickling(pets):
    chosen = wrappers.choose_classes(pets, ("dog",))
    source = wrappers.Concatenated([wrappers.Repeated(chosen, 2), wrappers.for_training(chosen)])
    back = pickle.loads(pickle.dumps(source))
    assert ids(back) == ids(source) and labels_of(back) == labels_of(source)
    assert back.problems == source.problems and records.counts(back) == records.counts(source)
