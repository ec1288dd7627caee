"""COCO annotation files."""

import json
import unicodedata

import cv2
import numpy as np
import pytest
import turned

from detlab.data import coco, records, wrappers


def make_content():
    """Two images and three categories whose ids have gaps and come in another order."""
    return {
        "images": [
            {"id": 70, "file_name": "b.png", "height": 40, "width": 60},
            {"id": 5, "file_name": "a.png", "height": 50, "width": 50},
        ],
        "categories": [
            {"id": 90, "name": "dog"},
            {"id": 3, "name": "cat"},
            {"id": 17, "name": "hen"},
        ],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 90, "bbox": [1, 2, 3.5, 4], "area": 9.5},
            {"id": 2, "image_id": 70, "category_id": 3, "bbox": [10, 20, 30, 10], "iscrowd": 1},
            {"id": 3, "image_id": 5, "category_id": 17, "bbox": [0, 0, 50, 50], "iscrowd": 0},
        ],
    }


def write_data(folder, content):
    for image in make_content()["images"]:
        shape = (image["height"], image["width"], 3)
        cv2.imwrite(str(folder / image["file_name"]), np.full(shape, image["id"], np.uint8))
    file = folder / "instances.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder, file


def test_labels_follow_ascending_category_ids(tmp_path):
    source = coco.Coco(*write_data(tmp_path, make_content()))
    assert source.class_names == ("cat", "hen", "dog")
    assert source.category_ids == (3, 17, 90)
    assert [source.image_id(i) for i in range(len(source))] == [70, 5]
    assert source.size(0) == (40, 60)
    record = source[1]
    np.testing.assert_array_equal(record["boxes"], [[1, 2, 4.5, 6], [0, 0, 50, 50]])
    np.testing.assert_array_equal(record["labels"], [2, 1])
    np.testing.assert_array_equal(record["area"], [9.5, 2500])  # annotated, else of the box
    assert (record["image"] == 5).all()
    np.testing.assert_array_equal(source[0]["ignore"], [True])  # crowd
    assert source.problems == ()


def test_class_subset_keeps_the_order_asked_for(tmp_path):
    source = coco.Coco(*write_data(tmp_path, make_content()), class_names=("dog", "cat"))
    assert source.category_ids == (90, 3)
    np.testing.assert_array_equal(source.annotation(1)["labels"], [0])
    np.testing.assert_array_equal(source.annotation(0)["labels"], [1])
    # `hen` was not asked for: no fault, but reported and counted.
    assert source.problems == (
        "objects of class hen, which is not in class_names, are dropped: 1",
    ) and source.dropped_boxes == 1  # fmt: skip


def test_tiny_objects_are_left_out_and_counted(tmp_path):
    content = make_content()
    extra = {"image_id": 5, "category_id": 3}
    content["annotations"] += [
        {**extra, "bbox": [1, 1, 0.5, 9], "area": 4.5},
        {**extra, "bbox": [1, 1, 9, 0.99], "area": 8},
        {**extra, "bbox": [1, 1, 9, 9], "area": 0},
        {**extra, "bbox": [1, 1, 1, 1], "area": 0.3},  # stays
    ]
    source = coco.Coco(*write_data(tmp_path, content))
    assert len(source.annotation(1)["boxes"]) == 3
    assert source.dropped_boxes == 3
    assert "with a side under 1 px are dropped: 3" in source.problems[0]


def test_no_images_and_no_objects_pass(tmp_path):
    content = {**make_content(), "annotations": []}
    assert coco.Coco(*write_data(tmp_path, content))[0]["boxes"].shape == (0, 4)
    assert len(coco.Coco(*write_data(tmp_path, {**content, "images": []}))) == 0


# ------------------------------------------------------------------------------------------------
# Numbers, flags, categories and sizes as other programs write them


def as_floats(value):
    """All whole numbers of a JSON value as floats, as pandas writes columns with gaps."""
    if isinstance(value, dict):
        return {key: as_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_floats(item) for item in value]
    return float(value) if isinstance(value, int) else value


def test_whole_floats_are_the_integers_that_they_equal(tmp_path):
    source = coco.Coco(*write_data(tmp_path, as_floats(make_content())))
    known = coco.Coco(*write_data(tmp_path, make_content()))
    assert source.class_names == known.class_names and source.problems == ()
    assert source.category_ids == (3, 17, 90)
    ids = [source.image_id(i) for i in range(2)]
    assert ids == [70, 5] and all(type(image_id) is int for image_id in ids)
    assert all(type(category_id) is int for category_id in source.category_ids)
    for i in range(2):
        assert source.size(i) == known.size(i)
        for key, value in known.annotation(i).items():
            np.testing.assert_array_equal(source.annotation(i)[key], value)


def test_ids_that_are_text_stay_text(tmp_path):
    content = make_content()
    for image in content["images"]:
        image["id"] = f"0{image['id']}"
    for category in content["categories"]:
        category["id"] = f"n{category['id']}"
    for annotation in content["annotations"]:
        annotation["image_id"] = f"0{annotation['image_id']}"
        annotation["category_id"] = f"n{annotation['category_id']}"
    source = coco.Coco(*write_data(tmp_path, content))
    assert [source.image_id(i) for i in range(2)] == ["070", "05"] and source.problems == ()
    assert source.category_ids == ("n17", "n3", "n90")  # in the order of text
    assert source.class_names == ("hen", "cat", "dog")
    assert source.annotation(1)["labels"].tolist() == [2, 0]


def test_class_names_that_are_numbers_become_text(tmp_path):
    content = make_content()
    content["categories"] = [{"id": k, "name": name} for k, name in ((3, 7), (17, 8.0), (90, "9"))]
    assert coco.Coco(*write_data(tmp_path, content)).class_names == ("7", "8", "9")


@pytest.mark.parametrize(
    "value, ignored",
    [(0.0, False), (None, False), (False, False), (float("nan"), False), ("0", False)]
    + [(1.0, True), (True, True), ("1", True), ("true", True), ("", False)],
)
def test_flags_are_read_in_every_form(value, ignored, tmp_path):
    content = make_content()
    for annotation in content["annotations"]:
        annotation["iscrowd"] = value
    source = coco.Coco(*write_data(tmp_path, content))
    assert source.annotation(1)["ignore"].tolist() == [ignored, ignored]
    assert source.problems == ()


@pytest.mark.parametrize("area", [None, float("nan")])
def test_an_area_that_is_not_given_is_that_of_the_box(area, tmp_path):
    content = make_content()
    content["annotations"][0]["area"] = area
    for min_side in (0, 1):
        source = coco.Coco(*write_data(tmp_path, content), min_side=min_side)
        assert source.annotation(1)["area"].tolist() == [14, 2500]


@pytest.mark.parametrize(
    "marks, key",
    [
        ({"ignore": 1}, "ignore"),
        ({"ignore": True, "iscrowd": 0}, "ignore"),
        ({"difficult": 1.0}, "difficult"),
        ({"isDifficult": "true"}, "isDifficult"),
        ({"is_crowd": 1}, "is_crowd"),
        ({"isGroupOf": 1}, "isGroupOf"),
        ({"attributes": {"ignored": True, "occluded": True}}, "ignored"),
        ({"extra": {"ignore": 1}}, "ignore"),
    ],
)
def test_ignore_flags_of_other_names_are_honoured_and_told(marks, key, tmp_path):
    content = make_content()
    content["annotations"][0] |= marks
    for min_side in (0, 1):
        source = coco.Coco(*write_data(tmp_path, content), min_side=min_side)
        assert source.annotation(1)["ignore"].tolist() == [True, False]
        assert source.problems == (f"objects marked {key!r} are ignored as crowds are: 1",)


@pytest.mark.parametrize(
    "marks, problems",
    [
        ({"isfake": 1}, ("objects marked 'isfake' are used like all others: 1",)),
        ({"uncertain": True}, ("objects marked 'uncertain' are used like all others: 1",)),
        (
            {"difficult": 3},
            ("objects whose 'difficult' is neither 0 nor 1 are used like all others: 1",),
        ),
        ({"occluded": 1, "truncated": 1, "score": 0.5}, ()),
        ({"ignore": 0, "difficult": False, "isfake": None}, ()),
    ],
)
def test_flags_that_are_not_honoured_are_named(marks, problems, tmp_path):
    content = make_content()
    content["annotations"][0] |= marks
    source = coco.Coco(*write_data(tmp_path, content))
    assert source.annotation(1)["ignore"].tolist() == [False, False]
    assert source.problems == problems


def test_of_categories_with_one_name_those_without_objects_are_left_out(tmp_path):
    content = make_content()
    content["categories"] += [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    source = coco.Coco(*write_data(tmp_path, content))
    assert source.class_names == ("cat", "hen", "dog") and source.category_ids == (3, 17, 90)
    assert source.category_labels == {3: 0, 17: 1, 90: 2, 0: -1, 1: -1}
    assert source.annotation(1)["labels"].tolist() == [2, 1]
    assert source.problems == (
        "categories without objects whose name another has are left out: 2, 0 (cat), 1 (dog)",
    )
    assert coco.Coco(*write_data(tmp_path, content), class_names=("dog",)).category_ids == (90,)
    # Without any object, the last one stays: a group comes before its class.
    source = coco.Coco(*write_data(tmp_path, content | {"annotations": []}))
    assert source.category_ids == (3, 17, 90)


def test_categories_with_one_name_and_objects_are_one_class(tmp_path):
    content = make_content()
    content["categories"].append({"id": 2, "name": "dog", "supercategory": "wolf"})
    content["annotations"].append({"image_id": 70, "category_id": 2, "bbox": [1, 1, 9, 9]})
    source = coco.Coco(*write_data(tmp_path, content))
    assert source.class_names == ("dog", "cat", "hen") and source.category_ids == (2, 3, 17)
    assert source.annotation(0)["labels"].tolist() == [1, 0]
    assert source.problems == (
        "categories of the name dog are one class: 2 (objects: 1), 90 (objects: 1)",
    )


def test_a_category_listed_twice_is_one(tmp_path):
    content = make_content()
    content["categories"].append({"id": 3.0, "name": "cat"})
    assert coco.Coco(*write_data(tmp_path, content)).category_ids == (3, 17, 90)


@pytest.mark.parametrize(
    "size",
    [{}, {"height": 0, "width": 0}, {"height": None, "width": None}, {"height": 50}]
    + [{"height": "50", "width": "50"}, {"height": -1, "width": float("nan")}],
)
def test_a_missing_size_is_that_of_the_image_file(size, tmp_path):
    content = make_content()
    content["images"][1] = {"id": 5, "file_name": "a.png", **size}
    source = coco.Coco(*write_data(tmp_path, content))
    assert source.size(1) == (50, 50) and source[1]["image"].shape == (50, 50, 3)
    assert source.annotation(1)["boxes"][1].tolist() == [0, 0, 50, 50]


def test_an_image_without_size_and_file_is_named_with_both(tmp_path):
    content = make_content()
    content["images"][0] = {"id": 70, "file_name": "gone.png", "width": 60}
    folder, file = write_data(tmp_path, content)
    with pytest.raises(records.DataError) as error:
        coco.Coco(folder, file)
    assert str(error.value) == (
        f"{file}: entry 0 of 'images' has no 'height', and image file {folder / 'gone.png'} does"
        " not exist; put it there or remove it from the list of images"
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_every_unicode_encoding_is_read(encoding, tmp_path):
    content = make_content()
    content["categories"][0]["name"] = "Hündin"
    folder, file = write_data(tmp_path, "")
    file.write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    assert coco.Coco(folder, file).class_names == ("cat", "hen", "Hündin")


def test_another_encoding_is_to_be_saved_as_utf_8(tmp_path):
    folder, file = write_data(tmp_path, "")
    file.write_bytes(b'{"images": [],\n"x": "\xfc"}')
    with pytest.raises(records.DataError) as error:
        coco.Coco(folder, file)
    assert str(error.value) == (
        f"annotation file {file} is not UTF-8 text (byte 0xFC in line 2); save it as UTF-8"
    )


def test_of_many_faults_the_first_are_told_and_the_others_counted(tmp_path):
    content = make_content()
    content["annotations"] += [{"image_id": k} for k in range(10)]
    source = coco.Coco(*write_data(tmp_path, content), class_names=("cat", "dog"), strict=False)
    assert len(source.problems) == 5 and source.dropped_boxes == 11
    assert source.problems[3:] == (
        "7 more objects are unusable",
        "objects of class hen, which is not in class_names, are dropped: 1",
    )


# ------------------------------------------------------------------------------------------------
# Bad input


def test_missing_folder_and_file_are_named(tmp_path):
    folder, file = write_data(tmp_path, make_content())
    with pytest.raises(records.DataError, match="image folder .*nowhere does not exist"):
        coco.Coco(folder / "nowhere", file)
    with pytest.raises(records.DataError, match=r"nothing\.json cannot be read \(No such file"):
        coco.Coco(folder, folder / "nothing.json")


@pytest.mark.parametrize(
    "change, fault",
    [
        (lambda c: json.dumps(c)[:-30], r"instances\.json is not valid JSON"),
        (lambda c: "[]", "has no list 'images'"),
        (lambda c: {**c, "categories": None}, "has no list 'categories'"),
        (lambda c: "[" * 100_000, r"instances\.json is not valid JSON"),
        # Skipping a category would shift all labels.
        (lambda c: {**c, "categories": [{"id": 1}]}, "entry 0 of 'categories' has no 'name'"),
        (lambda c: {**c, "categories": []}, "has no categories; give an instances_.*COCO format$"),
        (lambda c: {**c, "categories": [None]}, "entry 0 of 'categories' is null, which is not"),
        (
            lambda c: {**c, "categories": [{"id": 1.5, "name": "cat"}]},
            "'categories' has the id 1.5, which is not an integer or a string; correct the file",
        ),
        (
            lambda c: {**c, "categories": [*c["categories"], {"id": 3, "name": "cow"}]},
            "gives the category id 3 to two classes, cat and cow; give each its own id",
        ),
        (lambda c: "", r"instances\.json is empty; give an instances_\*\.json in COCO format"),
        (
            lambda c: "version https://git-lfs.github.com/spec/v1\noid sha256:0",
            r"instances\.json is a Git LFS pointer, not the file itself; fetch the file with",
        ),
    ],
)
def test_file_that_is_no_coco_file_is_named(tmp_path, change, fault):
    folder, file = write_data(tmp_path, change(make_content()))
    for strict in (True, False):
        with pytest.raises(records.DataError, match=fault):
            coco.Coco(folder, file, strict=strict)


@pytest.mark.parametrize(
    "chosen, fault",
    [
        (("cow",), "has no class 'cow'; its classes: cat, hen, dog; correct class_names$"),
        (("cat", "doog"), "has no class 'doog'; its classes: cat, hen, dog; did you mean 'dog'"),
        (("cat", "Dog"), "has no class 'Dog'; its classes: cat, hen, dog; did you mean 'dog'"),
    ],
)
def test_classes_of_which_the_file_has_none_or_one_that_is_misspelt_are_refused(
    chosen, fault, tmp_path
):
    with pytest.raises(records.DataError, match=fault):
        coco.Coco(*write_data(tmp_path, make_content()), class_names=chosen)


@pytest.mark.parametrize(
    "chosen, labels, told",
    [
        (
            ("cow", "cat", "hen", "dog"),
            [3, 2],
            "has no class cow (its classes: cat, hen, dog); it counts as a class without objects",
        ),
        (
            ("dog", "cow", "hen", "pig", "cat"),
            [0, 2],
            "has no class cow, pig (its classes: cat, hen, dog); they count as classes without"
            " objects",
        ),
        (
            ("hen", "cat", "dog", "dog_1"),
            [2, 0],
            "has no class dog_1 (its classes: cat, hen, dog); it counts as a class without objects",
        ),
    ],
)
def test_classes_that_the_file_lacks_have_no_objects_and_are_told_once(
    chosen, labels, told, tmp_path
):
    folder, file = write_data(tmp_path, make_content())
    source = coco.Coco(folder, file, class_names=chosen)
    assert source.class_names == chosen
    assert source.annotation(1)["labels"].tolist() == labels
    assert source.problems == (f"annotation file {file} {told}",)
    assert source.category_ids == tuple({"cat": 3, "hen": 17, "dog": 90}.get(c) for c in chosen)


def test_chosen_class_without_objects_is_told_and_none_at_all_is_an_error(tmp_path):
    content = make_content()
    content["categories"].append({"id": 40, "name": "cow"})
    folder, file = write_data(tmp_path, content)
    source = coco.Coco(folder, file, class_names=("cow", "cat", "hen", "dog"))
    assert source.problems == (f"there are no objects of class cow in {file}",)
    assert source.category_ids == (40, 3, 17, 90)
    with pytest.raises(records.DataError, match=r"no objects of class cow in .*are cat, dog, hen"):
        coco.Coco(folder, file, class_names=("cow",))
    source = coco.Coco(folder, file, class_names=("cow",), strict=False)
    assert "no objects of class cow" in source.problems[0] and source.dropped_boxes == 3
    assert coco.Coco(folder, file).problems == ()  # not a chosen list


BBOX_FAULT = "which is not a list of 4 finite numbers"


@pytest.mark.parametrize(
    "bad, fault",
    [
        ({"image_id": 6}, "entry 3 of 'annotations' has the image_id 6, which no usable image"),
        ({"category_id": 4}, "entry 3 of 'annotations' has the category_id 4, which no category"),
        ({"bbox": [60, 1, 9, 9]}, r"annotation 9 \(cat, bbox \[60, 1, 9, 9\]\) lies outside"),
        ({"bbox": [float("nan"), 1, 9, 9]}, rf"has the bbox \[NaN, 1, 9, 9\], {BBOX_FAULT}"),
        ({"bbox": [1, 1, 10**400, 9]}, BBOX_FAULT),
        ({"bbox": [1, 2, 3]}, BBOX_FAULT),
        ({"bbox": [1, 2, 3, "4"]}, BBOX_FAULT),
        ({"bbox": None}, BBOX_FAULT),
        ({"image_id": [5]}, r"image_id \[5\], which is not an integer or a string"),
        ({"category_id": {}}, "category_id {}, which is not an integer"),
        ({"area": "9"}, 'area "9", which is not a finite number'),
        ({"image_id": 5.5}, "image_id 5.5, which is not an integer or a string"),
        ({"category_id": None}, "category_id null, which is not an integer or a string"),
        ({"category_id": True}, "category_id true, which is not an integer or a string"),
        ({"image_id": "5"}, r"image_id '5', which no usable image has \(5 is there; write both"),
        ({"category_id": "3"}, r"category_id '3', which no category has \(3 is there; write"),
        ({"area": float("inf")}, "area Infinity, which is not a finite number"),
        ({"iscrowd": "maybe"}, 'iscrowd "maybe", which is not 0 or 1'),
        ({"iscrowd": 2}, "iscrowd 2, which is not 0 or 1"),
        (None, "entry 3 of 'annotations' is null, which is not a JSON object"),
        (3, "entry 3 of 'annotations' is 3, which is not a JSON object"),
        ([], "entry 3 of 'annotations' is .*, which is not a JSON object"),
    ],
)
def test_unusable_object_is_named_or_left_out(tmp_path, bad, fault):
    content = make_content()
    good = {"id": 9, "image_id": 5, "category_id": 3, "bbox": [1, 1, 9, 9]}
    content["annotations"].append({**good, **bad} if isinstance(bad, dict) else bad)
    folder, file = write_data(tmp_path, content)
    with pytest.raises(records.DataError, match=rf"instances\.json.*{fault}") as raised:
        coco.Coco(folder, file)
    assert raised.value.can_leave_out
    source = coco.Coco(folder, file, strict=False)
    assert source.dropped_boxes == 1 and len(source.problems) == 1
    assert len(source.annotation(1)["boxes"]) == 2


@pytest.mark.parametrize(
    "bad, fault",
    [
        ({"id": 70}, "entry 2 of 'images' repeats the id 70"),
        ({"id": None}, "id null, which is not an integer or a string"),
        ({"file_name": 7}, "file_name 7, which is not a non-empty string"),
        ({"file_name": ""}, 'file_name "", which is not a non-empty string'),
        ({"height": "40"}, 'height "40", which is not a number of at least 1'),
        ({"width": 0}, "width 0, which is not a number of at least 1"),
        ({"width": float("inf")}, "width Infinity, which is not a number of at least 1"),
        (None, "entry 2 of 'images' is null, which is not a JSON object"),
        ({}, "entry 2 of 'images' has no 'height'"),
    ],
)
def test_unusable_image_is_named_or_left_out(tmp_path, bad, fault):
    content = make_content()
    good = {"id": 9, "file_name": "c.png", "height": 40, "width": 60}
    extra = {"id": 9, "file_name": "c.png"} if bad == {} else bad and {**good, **bad}
    content["images"].append(extra)
    folder, file = write_data(tmp_path, content)
    with pytest.raises(records.DataError, match=rf"instances\.json.*{fault}") as raised:
        coco.Coco(folder, file)
    assert raised.value.can_leave_out
    source = coco.Coco(folder, file, strict=False)
    assert [source.image_id(i) for i in range(len(source))] == [70, 5]
    assert source.skipped_records == 1 and len(source.problems) == 1
    assert (
        len(source.annotation(0)["boxes"]) == 1
    )  # of a repeated id, the first image has the objects


def test_evaluation_keeps_boxes_as_annotated(tmp_path):
    content = make_content()
    extra = {"image_id": 5, "category_id": 3}
    boxes = [[-3, 4, 20, 60], [1, 1, 0, 9], [1, 1, 0.5, 0.5], [60, 1, 9, 9]]
    content["annotations"] += [{**extra, "bbox": box} for box in boxes]
    folder, file = write_data(tmp_path, content)
    source = coco.Coco(folder, file, min_side=0)
    np.testing.assert_array_equal(
        source.annotation(1)["boxes"][2:],
        [[-3, 4, 17, 64], [1, 1, 1, 10], [1, 1, 1.5, 1.5], [60, 1, 69, 10]],
    )
    assert source.problems == () and source.clipped_boxes == 0
    content["annotations"].pop()  # outside: an error in training
    source = coco.Coco(*write_data(tmp_path, content), min_side=1)
    np.testing.assert_array_equal(source.annotation(1)["boxes"][2:], [[0, 4, 17, 50]])
    assert source.clipped_boxes == 1 and source.dropped_boxes == 2
    assert source.problems == (
        "boxes that reach beyond their image are clipped: 1",
        "objects without area or with a side under 1 px are dropped: 2",
    )


# ------------------------------------------------------------------------------------------------
# Published files


def test_coco_mini_has_its_known_counts(shared_dir):
    folder = shared_dir / "data" / "coco_mini"
    source = coco.Coco(folder / "val2017", folder / "annotations" / "instances_val2017.json")
    assert len(source) == 41 and source.problems == ()
    assert len(source.class_names) == 80 and source.class_names[0] == "person"
    assert source.category_ids[-1] == 90 and source.class_names[79] == "toothbrush"
    objects = [source.annotation(i) for i in range(len(source))]
    assert sum(len(o["boxes"]) for o in objects) == 391
    assert sum(o["ignore"].sum() for o in objects) == 5
    assert len(np.unique(np.concatenate([o["labels"] for o in objects]))) == 51
    empty = [source.image_id(i) for i, o in enumerate(objects) if not len(o["boxes"])]
    assert empty == [250, 508]
    assert len(wrappers.for_training(source)) == 39
    assert source[0]["image"].shape == (*source.size(0), 3)


# ------------------------------------------------------------------------------------------------
# Names of other programs, and turned pictures


@pytest.mark.parametrize(
    "name, file",
    [
        ("sub\\b.png", "sub/b.png"),
        ("images/sub/b.png", "sub/b.png"),
        ("D:\\photos\\b.png", "b.png"),
        ("b.PNG", "b.png"),
        ("b%201.png", "b 1.png"),
        ("ガ.png", unicodedata.normalize("NFD", "ガ.png")),
        (unicodedata.normalize("NFD", "é.png"), "é.png"),
    ],
)
def test_another_spelling_finds_the_image_and_is_told(tmp_path, name, file):
    content = make_content()
    content["images"][0]["file_name"] = name
    folder, annotations = write_data(tmp_path, content)
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / "b.png").rename(folder / file)
    source = coco.Coco(folder, annotations)
    assert source.name(0) == str(folder / file) and source[0]["image"].shape == (40, 60, 3)
    assert source.problems == (
        f"a name in {annotations} is spelt otherwise than its file: {name!r} is {folder / file}",
    )


def test_two_names_do_not_become_one_image(tmp_path):
    content = make_content()
    content["images"][0]["file_name"] = "train/b.png"
    content["images"][1].update(file_name="val/b.png", height=40, width=60)
    source = coco.Coco(*write_data(tmp_path, content))
    for i, name in enumerate(("train/b.png", "val/b.png")):
        with pytest.raises(records.DataError) as raised:
            source[i]
        assert str(raised.value) == (
            f"image file {tmp_path / name} does not exist; put it there or remove it from the list "
            "of images"
        )


def test_decomposed_names_of_classes_are_those_of_composed_ones(tmp_path):
    content = make_content()
    content["categories"][0]["name"] = unicodedata.normalize("NFD", "épée")
    source = coco.Coco(*write_data(tmp_path, content), class_names=("épée", "cat"))
    np.testing.assert_array_equal(source.annotation(1)["labels"], [0])


def test_one_sentence_counts_all_turned_pictures(tmp_path):
    """Each picture of 60x40 px: a quarter turn annotated upright, one as stored, a half turn."""
    images = [(6, (40, 60)), (8, (60, 40)), (3, (40, 60)), (1, (40, 60)), (5, (40, 60))]
    content = {
        "images": [
            {"id": k, "file_name": f"{k}.jpg", "height": size[0], "width": size[1]}
            for k, (_, size) in enumerate(images)
        ],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 1, "bbox": [10, 4, 20, 24]} for k in range(5)
        ],
    }
    for k, (orientation, _) in enumerate(images):
        (tmp_path / f"{k}.jpg").write_bytes(turned.encoded(turned.upright(), orientation))
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(content))
    source = coco.Coco(tmp_path, file)
    assert source.problems == (
        "4 of 5 images have an EXIF orientation: 2 turned upright, as annotated sizes say (the "
        f"first: {tmp_path}/0.jpg), 1 turned upright, as OpenCV does, since no annotated size "
        f"tells (the first: {tmp_path}/2.jpg), 1 left as stored, as annotated sizes say (the "
        f"first: {tmp_path}/1.jpg); config.data.exif=upright or stored decides for all",
    )
    for k in (0, 2, 3, 4):
        assert np.abs(source[k]["image"].astype(int) - turned.upright()).max() < 60
    as_stored = turned.stored(turned.upright(), 8)
    assert np.abs(source[1]["image"].astype(int) - as_stored).max() < 60
    assert coco.Coco(tmp_path, file, exif="stored").problems == ()
