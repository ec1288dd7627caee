"""PASCAL VOC annotations and data in their layout."""

import pathlib
import shutil
import unicodedata

import cv2
import numpy as np
import pytest
import turned

from detlab.data import records, voc

CELLS = ("RBC", "WBC", "Platelets")

CHAIR = """<object><name> chair </name><bndbox>
<xmin>11</xmin><ymin>6</ymin><xmax>31</xmax><ymax>40</ymax></bndbox></object>"""


def write_data(root, objects=CHAIR, size=(40, 60), annotation=None, split="train"):
    """A root with one image, 60 px wide and 40 high, called `one`."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / "JPEGImages" / "one.jpg"), np.full((40, 60, 3), 128, np.uint8))
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("one\n\n")
    if annotation is None:
        height, width = size
        annotation = f"""<annotation><filename>one.jpg</filename><size><width>{width}</width>
            <height>{height}</height></size>{objects}</annotation>"""
    (root / "Annotations" / "one.xml").write_text(annotation)
    return root


def make_object(name="chair", box=(11, 6, 31, 40), extra=""):
    x1, y1, x2, y2 = box
    return f"""<object><name>{name}</name>{extra}<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>
        <xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"""


def test_one_is_subtracted_from_all_four_numbers(tmp_path):
    source = voc.Voc(write_data(tmp_path), "train")
    assert len(source) == 1 and source.size(0) == (40, 60) and source.image_id(0) == "one"
    record = source[0]
    np.testing.assert_array_equal(record["boxes"], [[10, 5, 30, 39]])
    np.testing.assert_array_equal(record["area"], [20 * 34])
    np.testing.assert_array_equal(record["labels"], [8])  # spaces around the name are ignored
    np.testing.assert_array_equal(record["ignore"], [False])
    assert record["image"].shape == (40, 60, 3)


def make_annotation(width):
    return f"<annotation><size><width>{width}</width><height>40</height></size></annotation>"


def write_split(root, *lines, split="train"):
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(lines))


def move_image(root, name, image=None):
    """Gives image and annotation `one` another name; `image` is the file name of the image."""
    for folder, old, new in (
        ("Annotations", "one.xml", f"{name}.xml"),
        ("JPEGImages", "one.jpg", image or f"{name}.jpg"),
    ):
        (root / folder / new).parent.mkdir(parents=True, exist_ok=True)
        (root / folder / old).rename(root / folder / new)


def test_difficult_becomes_ignore(tmp_path):
    objects = CHAIR + make_object("cat", extra="<difficult>1</difficult>")
    objects += make_object("cow", extra="<difficult></difficult>")
    source = voc.Voc(write_data(tmp_path, objects), "train")
    np.testing.assert_array_equal(source.annotation(0)["ignore"], [False, True, False])


@pytest.mark.parametrize("name", ["s/one", "the first", "scan 1", "a.b", "s/t/my scan -1"])
def test_names_may_hold_folders_blanks_and_dots(tmp_path, name):
    write_data(tmp_path)
    move_image(tmp_path, name)
    write_split(tmp_path, f"  {name} ", "")
    source = voc.Voc(tmp_path, "train")
    assert source.image_id(0) == name and source[0]["image"].shape == (40, 60, 3)


@pytest.mark.parametrize("column", ["-1", " 0", "\t1"])
def test_the_column_of_the_splits_of_one_class_is_no_part_of_the_name(tmp_path, column):
    write_data(tmp_path)
    write_split(tmp_path, f"one {column}")
    assert voc.Voc(tmp_path, "train").image_id(0) == "one"


@pytest.mark.parametrize("file", ["one.png", "one.JPG", "one.jpeg", "one.BMP", "s/one.Png"])
def test_image_is_found_whatever_the_suffix_in_its_annotation(tmp_path, file):
    write_data(tmp_path)  # its annotation names one.jpg
    name = file.rpartition(".")[0]
    move_image(tmp_path, name, file)
    write_split(tmp_path, name)
    source = voc.Voc(tmp_path, "train")
    assert source.name(0) == str(tmp_path / "JPEGImages" / file)


def test_the_suffix_in_the_annotation_decides_between_two_images(tmp_path):
    annotation = "<annotation><filename>x.png</filename></annotation>"
    write_data(tmp_path, annotation=annotation)
    for suffix in (".png", ".bmp"):
        cv2.imwrite(str(tmp_path / "JPEGImages" / f"one{suffix}"), np.zeros((9, 9, 3), np.uint8))
    assert voc.Voc(tmp_path, "train").name(0).endswith("one.png")


def test_ids_name_the_folder_where_there_are_several(tmp_path):
    for year in (2007, 2012):
        write_data(tmp_path / f"VOC{year}", split="trainval")
    both = voc.Voc(tmp_path)
    assert [both.image_id(i) for i in range(2)] == ["VOC2007/one", "VOC2012/one"]
    assert voc.Voc(tmp_path, "2012_trainval").image_id(0) == "one"


def test_chosen_classes_leave_the_others_out_and_tell_it(tmp_path):
    objects = CHAIR + 2 * make_object("wheel") + make_object("cat")
    write_data(tmp_path, objects)
    source = voc.Voc(tmp_path, "train", ("cat", "wheel", "cow"))
    np.testing.assert_array_equal(source.annotation(0)["labels"], [1, 1, 0])
    assert source.problems == (
        f"there are no objects of class cow in train of {tmp_path}",
        "objects of class chair, which is not in class_names, are dropped: 1",
    )
    assert source.dropped_boxes == 1
    with pytest.raises(records.DataError, match="no objects of class Cat in .*cat, chair, wheel;"):
        voc.Voc(tmp_path, "train", ("Cat",))
    source = voc.Voc(tmp_path, "train", ("Cat",), strict=False)
    assert "no objects of class Cat" in source.problems[0] and source.dropped_boxes == 4


def test_a_misspelt_class_is_told_among_many_faults(tmp_path):
    objects = CHAIR + 9 * make_object("chair", box=(5, 5, 5, 9))
    source = voc.Voc(write_data(tmp_path, objects), "train", ("chair", "hcair"), strict=False)
    assert source.problems[3:] == (
        "6 more objects are unusable",
        f"there are no objects of class hcair in train of {tmp_path}",
    )
    assert source.dropped_boxes == 9


def test_boxes_of_parts_are_not_objects(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    source = voc.Voc(write_data(tmp_path, make_object("person", extra=part)), "train")
    np.testing.assert_array_equal(source.annotation(0)["boxes"], [[10, 5, 30, 39]])


@pytest.mark.parametrize("annotation", [f"<annotation>{CHAIR}</annotation>", None])
def test_missing_size_is_read_from_the_image(tmp_path, annotation):
    source = voc.Voc(write_data(tmp_path, size=(0, 0), annotation=annotation), "train")
    assert source.size(0) == (40, 60)


def test_image_without_objects_stays(tmp_path):
    source = voc.Voc(write_data(tmp_path, objects=""), "train")
    assert source[0]["boxes"].shape == (0, 4)


# ------------------------------------------------------------------------------------------------
# Lists and annotations of other programs


@pytest.mark.parametrize(
    "line",
    [
        "one.jpg", "one.xml", "./one", "one.JPG", "JPEGImages/one", "JPEGImages/one.jpg",
        "VOC2007/JPEGImages/one.jpg", "/data/VOCdevkit/VOC2007/JPEGImages/one.png", ".\\one.jpg",
        "C:\\data\\JPEGImages\\one.jpg", " one\t", '"one.jpg"', "ONE", "one # blurred", "one.jpg 1",
        "data/obj_train_data/one.jpg -1",
    ],
)  # fmt: skip
def test_a_line_may_name_the_files_of_an_image_here_or_elsewhere(tmp_path, line):
    write_data(tmp_path)
    write_split(tmp_path, "# the first half", "", line, "#two")
    source = voc.Voc(tmp_path, "train")
    assert [source.image_id(i) for i in range(len(source))] == ["one"]
    assert source.name(0) == str(tmp_path / "JPEGImages" / "one.jpg")
    np.testing.assert_array_equal(source.annotation(0)["boxes"], [[10, 5, 30, 39]])


@pytest.mark.parametrize("name", ["Annotations/one", "Annotations/one.xml", "JPEGImages/one.jpg"])
def test_a_line_may_be_an_absolute_path_that_is_there(tmp_path, name):
    write_data(tmp_path)
    write_split(tmp_path, str(tmp_path / name))
    source = voc.Voc(tmp_path, "train")
    assert source.image_id(0) == "one" and source[0]["image"].shape == (40, 60, 3)


def test_names_with_suffix_folder_or_number_sign_stay_whole_where_such_files_exist(tmp_path):
    write_data(tmp_path)
    for name in ("one.jpg", "s/one", "#1"):
        move_image(tmp_path, name)
        write_split(tmp_path, name)
        source = voc.Voc(tmp_path, "train")
        assert source.image_id(0) == name and source.problems == ()
        for folder, suffix in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
            (tmp_path / folder / f"{name}{suffix}").rename(tmp_path / folder / f"one{suffix}")


def test_an_image_listed_by_name_and_by_file_is_listed_twice(tmp_path):
    write_data(tmp_path)
    write_split(tmp_path, "one", "JPEGImages/one.jpg")
    with pytest.raises(records.DataError, match=r"train\.txt lists image 'one' twice$"):
        voc.Voc(tmp_path, "train")


def test_an_image_that_is_missing_is_named_by_its_annotation_file(tmp_path):
    write_data(tmp_path)
    write_split(tmp_path, "two.jpg")
    with pytest.raises(records.DataError) as raised:
        voc.Voc(tmp_path, "train")
    missing = tmp_path / "Annotations" / "two.xml"
    assert str(raised.value) == f"annotation file {missing} does not exist"


def test_the_split_of_one_class_says_that_it_selects_nothing(tmp_path):
    write_data(tmp_path)
    for name in ("two", "three"):
        shutil.copy(tmp_path / "Annotations/one.xml", tmp_path / f"Annotations/{name}.xml")
    write_split(tmp_path, "one 1", "two -1", "three -1", split="chair_train")
    source = voc.Voc(tmp_path, "chair_train")
    file = tmp_path / "ImageSets" / "Main" / "chair_train.txt"
    assert len(source) == 3
    assert source.problems == (
        f"split file {file} marks images as with or without one class (1 with 1, 2 with -1); all 3 "
        "images are used",
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252", "gb18030"])
def test_a_split_is_read_in_the_encoding_it_has(tmp_path, encoding):
    name = "café" if encoding == "cp1252" else "猫 1"
    write_data(tmp_path)
    move_image(tmp_path, name)
    file = tmp_path / "ImageSets" / "Main" / "train.txt"
    file.write_bytes(f"{name}\r\n".encode(encoding))
    assert voc.Voc(tmp_path, "train").image_id(0) == name


def test_a_split_in_an_unknown_encoding_is_to_be_saved_as_utf_8(tmp_path):
    write_data(tmp_path)
    file = tmp_path / "ImageSets" / "Main" / "train.txt"
    file.write_bytes(b"one\ncaf\xe9\n")
    with pytest.raises(records.DataError) as raised:
        voc.Voc(tmp_path, "train")
    assert str(raised.value) == (
        f"split file {file} is not UTF-8 text (byte 0xE9 in line 2); save it as UTF-8"
    )


@pytest.mark.parametrize("listed", ["NFC", "NFD"])
@pytest.mark.parametrize("annotation", ["NFC", "NFD"])
@pytest.mark.parametrize("image", ["NFC", "NFD"])
def test_decomposed_names_are_those_of_composed_ones(tmp_path, listed, annotation, image):
    def name(form):
        return unicodedata.normalize(form, "s/café")

    write_data(tmp_path, make_object(unicodedata.normalize(listed, "naïve")))
    move_image(tmp_path, name(annotation), f"{name(image)}.jpg")
    write_split(tmp_path, name(listed))
    classes = (unicodedata.normalize(annotation, "naïve"),)
    source = voc.Voc(tmp_path, "train", classes)
    assert source.name(0) == str(tmp_path / "JPEGImages" / f"{name(image)}.jpg")
    assert source.image_id(0) == name(listed if listed == annotation else "NFC")
    np.testing.assert_array_equal(source.annotation(0)["labels"], [0])


def in_xml(encoding, name, declared=None):
    declaration = f'<?xml version="1.0" encoding="{declared or encoding}"?>\n'
    return (
        f"{declaration}<annotation><!-- {name} --><path>C:\\{name}.jpg</path>{make_object(name)}"
        "</annotation>"
    ).encode(encoding)


@pytest.mark.parametrize(
    "encoding, name, declared",
    [
        ("gb2312", "猫", None),
        ("gbk", "細胞", "gb2312"),  # not in GB2312, but programs say so
        ("gb18030", "猫", None),
        ("shift_jis", "ネコ", None),
        ("cp932", "①", "Shift_JIS"),
        ("euc-jp", "猫", None),
        ("big5", "貓", None),
        ("euc-kr", "고양이", None),
        ("windows-1251", "кот", None),
        ("koi8-r", "кот", None),
        ("iso-8859-1", "café", None),
        ("windows-1252", "œuf", None),
        ("utf-16", "猫", None),
        ("utf-16-le", "猫", "utf-16"),
        ("utf-8-sig", "猫", "utf-8"),
        # The declaration lies: the file was saved in another encoding.
        ("utf-8", "猫", "utf-16"),
        ("utf-8", "猫狗", "gb2312"),
        ("utf-8", "ネコ", "shift_jis"),
        ("utf-8", "кот", "windows-1251"),
        ("utf-8", "café", "us-ascii"),
        ("utf-16", "猫", "utf-8"),
        ("cp1252", "«CAFÉ»", "windows-1252"),
    ],
)
def test_an_annotation_is_read_in_the_encoding_it_has(tmp_path, encoding, name, declared):
    write_data(tmp_path)
    (tmp_path / "Annotations" / "one.xml").write_bytes(in_xml(encoding, name, declared))
    source = voc.Voc(tmp_path, "train", (name, "dog"))
    np.testing.assert_array_equal(source.annotation(0)["labels"], [0])
    np.testing.assert_array_equal(source.annotation(0)["boxes"], [[10, 5, 30, 39]])


@pytest.mark.parametrize("declared", ["ISO-8859-1", "windows-1252", "latin1"])
def test_one_letter_is_enough_to_tell_utf_8_from_latin_1(tmp_path, declared):
    write_data(tmp_path)
    declaration = f'<?xml version="1.0" encoding="{declared}"?>'
    content = f"{declaration}<annotation>{make_object('café')}</annotation>"
    (tmp_path / "Annotations" / "one.xml").write_text(content, encoding="utf-8")
    source = voc.Voc(tmp_path, "train", ("café",))
    np.testing.assert_array_equal(source.annotation(0)["labels"], [0])


def test_letters_in_an_undeclared_encoding_matter_only_in_the_name_of_a_class(tmp_path):
    write_data(tmp_path)
    file = tmp_path / "Annotations" / "one.xml"
    text = f"<annotation><path>C:\\用户\\one.jpg</path>{CHAIR}</annotation>"
    file.write_bytes(text.encode("gbk"))
    np.testing.assert_array_equal(voc.Voc(tmp_path, "train").annotation(0)["labels"], [8])
    file.write_bytes(in_xml("gbk", "细胞", "utf-8"))
    with pytest.raises(records.DataError) as raised:
        voc.Voc(tmp_path, "train", ("细胞",))
    assert str(raised.value) == (
        f"{file}, object 1 has the name 'ϸ\ufffd\ufffd', whose letters are not in the declared "
        "encoding of the file; save the file as UTF-8"
    )


@pytest.mark.parametrize(
    "head, tail",
    [('<annotation xmlns="http://host/voc">', "</annotation>"), ("<sample>", "</sample>")],
)
def test_objects_in_a_namespace_or_another_root_are_read(tmp_path, head, tail):
    write_data(tmp_path)
    (tmp_path / "Annotations" / "one.xml").write_text(f"{head}{CHAIR}{tail}")
    np.testing.assert_array_equal(voc.Voc(tmp_path, "train").annotation(0)["labels"], [8])


@pytest.mark.parametrize(
    "content, fault",
    [
        (
            b'<?xml version="1.0" encoding="mine"?><a/>',
            "is not well-formed XML (it has the unknown encoding 'mine'; save it as UTF-8)",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`",
        ),
        (b"<a>\0</a>", "is not text (it has zero bytes); give a text file"),
        (
            b"<annotations><image><box/></image></annotations>",
            "is no PASCAL VOC annotation (its root is <annotations>); convert it",
        ),
        (
            b'<kml xmlns="http://www.opengis.net/kml/2.2"><Document/></kml>',
            "is no PASCAL VOC annotation (its root is <kml>); convert it",
        ),
    ],
)
def test_what_is_no_xml_gets_its_true_cause(tmp_path, content, fault):
    write_data(tmp_path)
    file = tmp_path / "Annotations" / "one.xml"
    file.write_bytes(content)
    with pytest.raises(records.DataError) as raised:
        voc.Voc(tmp_path, "train")
    assert str(raised.value) == f"annotation file {file} {fault}"


# ------------------------------------------------------------------------------------------------
# Turned pictures


def write_turned(root, orientation, size=(40, 60), picture=(40, 60)):
    """A root whose image was stored turned, with the box of `turned` annotated upright."""
    x1, y1, x2, y2 = turned.BOX
    write_data(root, make_object(box=(x1 + 1, y1 + 1, x2 + 1, y2 + 1)), size)
    image = turned.upright(*picture)
    (root / "JPEGImages" / "one.jpg").write_bytes(turned.encoded(image, orientation))
    return str(root / "JPEGImages" / "one.jpg")


def assert_white_is_the_box(record):
    x1, y1, x2, y2 = record["boxes"][0].astype(int)
    inside = record["image"][y1:y2, x1:x2].min()
    outside = record["image"].astype(int).sum() - record["image"][y1:y2, x1:x2].astype(int).sum()
    assert inside > 150 and outside < record["image"].size


ALL = "; config.data.exif=upright or stored decides for all"
DOES = "turned upright, as OpenCV does, since no annotated size tells"


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("size", [(40, 60), (0, 0), "square"])
def test_boxes_of_an_upright_annotation_lie_on_the_turned_picture(tmp_path, orientation, size):
    picture = (60, 60) if size == "square" else (40, 60)
    path = write_turned(tmp_path, orientation, picture if size == "square" else size, picture)
    source = voc.Voc(tmp_path, "train")
    assert source.size(0) == picture
    assert_white_is_the_box(source[0])
    sure = size == (40, 60) and orientation >= 5
    how = "turned upright, as annotated sizes say" if sure else DOES
    assert source.problems == (
        f"1 of 1 images have an EXIF orientation: 1 {how} (the first: {path}){ALL}",
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("exif", ["auto", "stored"])
def test_boxes_of_an_annotation_as_stored_lie_on_the_stored_picture(tmp_path, orientation, exif):
    image = turned.upright()
    as_stored = turned.stored(image, orientation)
    rows, columns = (np.flatnonzero(as_stored[..., 0].max(axis=axis)) for axis in (1, 0))
    box = (columns[0] + 1, rows[0] + 1, columns[-1] + 2, rows[-1] + 2)
    write_data(tmp_path, make_object(box=box), as_stored.shape[:2])
    (tmp_path / "JPEGImages" / "one.jpg").write_bytes(turned.encoded(image, orientation))
    source = voc.Voc(tmp_path, "train", exif=exif)
    path = source.name(0)
    if exif == "stored" or orientation >= 5 or orientation == 1:
        assert_white_is_the_box(source[0])
    stays = "1 left as stored, as annotated sizes say"
    assert source.problems == (
        (f"1 of 1 images have an EXIF orientation: {stays} (the first: {path}){ALL}",)
        if exif == "auto" and orientation >= 5
        else (f"1 of 1 images have an EXIF orientation: 1 {DOES} (the first: {path}){ALL}",)
        if exif == "auto" and orientation > 1
        else ()
    )


@pytest.mark.parametrize(
    "exif, size, sentence",
    [
        (
            "stored",
            (40, 60),
            "is 40x60 px (as stored, without its EXIF orientation 6), but its annotation says "
            "60x40; set config.data.exif=auto, with which the annotated size decides",
        ),
        (
            "upright",
            (60, 40),
            "is 60x40 px (turned upright by its EXIF orientation 6), but its annotation says "
            "40x60; set config.data.exif=auto, with which the annotated size decides",
        ),
        (
            "auto",
            (50, 70),
            "is 60x40 px (turned upright by its EXIF orientation 6), but its annotation says "
            "70x50; correct one of them",
        ),
    ],
)
def test_a_size_that_does_not_fit_names_the_orientation(tmp_path, exif, size, sentence):
    path = write_turned(tmp_path, 6, size)
    with pytest.raises(records.DataError) as raised:
        voc.Voc(tmp_path, "train", exif=exif)[0]
    assert str(raised.value) == f"image file {path} {sentence}"


# ------------------------------------------------------------------------------------------------
# Bad input


def test_missing_root_is_named(tmp_path):
    with pytest.raises(records.DataError, match="nowhere does not exist; give the folder"):
        voc.Voc(tmp_path / "nowhere")


def test_missing_split_tells_those_there(tmp_path):
    write_data(tmp_path / "VOC2007", split="trainval")
    write_data(
        tmp_path / "VOC2007", split="cat_trainval"
    )  # lists the images of one class: not a split
    with pytest.raises(records.DataError, match=r"'2007_test' needs .*: 2007_trainval$"):
        voc.Voc(tmp_path, "2007_test")
    with pytest.raises(records.DataError, match=r"'2012_trainval' needs .*: 2007_trainval$"):
        voc.Voc(tmp_path)
    write_data(tmp_path / "flat")
    with pytest.raises(records.DataError, match=r"'val' needs .*splits under .*: train$"):
        voc.Voc(tmp_path / "flat", "val")


def test_empty_split_is_named(tmp_path):
    write_data(tmp_path)
    write_split(tmp_path, "", " ")
    for strict in (True, False):
        with pytest.raises(records.DataError, match=r"split file .*train\.txt lists no images"):
            voc.Voc(tmp_path, "train", strict=strict)
    with pytest.raises(records.DataError, match="no split is given; splits under .*: train"):
        voc.Voc(tmp_path, ())


def test_split_that_is_no_text_is_named(tmp_path):
    write_data(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(records.DataError, match=r"train\.txt is not UTF-8 text \(byte 0xFF in l"):
        voc.Voc(tmp_path, "train")


@pytest.mark.parametrize("splits, words", [("train", "twice"), (("val", "train"), "again after")])
def test_image_listed_twice_is_named_or_left_out_once(tmp_path, splits, words):
    write_data(tmp_path, split="val")
    write_split(tmp_path, "one", *["one"] * (splits == "train"))
    with pytest.raises(records.DataError, match=rf"train\.txt lists image 'one' {words}") as raised:
        voc.Voc(tmp_path, splits)
    assert raised.value.can_leave_out
    source = voc.Voc(tmp_path, splits, strict=False)
    assert len(source) == 1 and source.skipped_records == 1 and len(source.problems) == 1


def test_size_that_no_image_gives_is_a_fault_of_the_image(tmp_path):
    write_data(tmp_path, size=(0, 0))
    (tmp_path / "JPEGImages" / "one.jpg").unlink()
    with pytest.raises(records.DataError, match=r"one\.jpg does not exist") as raised:
        voc.Voc(tmp_path, "train")
    assert raised.value.can_leave_out
    assert voc.Voc(tmp_path, "train", strict=False).skipped_records == 1


@pytest.mark.parametrize(
    "annotation, fault",
    [
        ("<annotation><object>", r"one\.xml is not well-formed XML"),
        ("", r"one\.xml is not well-formed XML"),
        ('<?xml version="1.0" encoding="nonsense"?><a/>', r"one\.xml is not well-formed XML"),
        (
            make_annotation(width="inf"),
            r"one\.xml has the width 'inf', which is not a number of pixels",
        ),
        (make_annotation(width="1e300"), "the width '1e300', which is not a number of pixels"),
        (make_annotation(width="wide"), "the width 'wide', which is not a number of pixels"),
        (make_annotation(width="nan"), "the width 'nan', which is not a number of pixels"),
    ],
)
def test_annotation_that_cannot_be_understood_is_named_or_skipped(tmp_path, annotation, fault):
    write_data(tmp_path, annotation=annotation)
    with pytest.raises(records.DataError, match=fault) as raised:
        voc.Voc(tmp_path, "train")
    assert raised.value.can_leave_out
    source = voc.Voc(tmp_path, "train", strict=False)
    assert len(source) == 0 and source.skipped_records == 1
    assert source.problems[0].startswith("annotation file")


def test_missing_annotation_is_named_or_skipped(tmp_path):
    write_data(tmp_path)
    (tmp_path / "Annotations" / "one.xml").unlink()
    with pytest.raises(records.DataError, match=r"one\.xml does not exist$") as raised:
        voc.Voc(tmp_path, "train")
    assert raised.value.can_leave_out
    assert voc.Voc(tmp_path, "train", strict=False).skipped_records == 1


@pytest.mark.parametrize(
    "bad, fault",
    [
        (make_object("wheel"), r"one\.xml, object 1 \(wheel, .* not in class_names \(aeroplane,"),
        (make_object(box=(9, 9, 9, 9)), r"ymax 9 9 9 9\) has no area"),
        (make_object(box=(70, 9, 80, 19)), r"ymax 70 9 80 19\) lies outside the image"),
        (
            make_object(box=("nan", 9, 80, 19)),
            r"object 1 \(chair\) has the xmin 'nan', which is not a number",
        ),
        (
            make_object(box=(1, "two", 3, 4)),
            r"object 1 \(chair\) has the ymin 'two', which is not a n",
        ),
        (
            make_object(box=(1, "", 3, 4)),
            r"object 1 \(chair\) has the ymin '', which is not a number",
        ),
        ("<object/>", r"one\.xml, object 1 has no name"),
        ("<object><name>cat</name></object>", r"one\.xml, object 1 \(cat\) has no bndbox/xmin"),
        (
            make_object(extra="<difficult>hard</difficult>"),
            "difficult flag 'hard', .* neither 0 nor 1",
        ),
    ],
)
def test_unusable_object_is_named_or_left_out(tmp_path, bad, fault):
    write_data(tmp_path, objects=bad + CHAIR)
    with pytest.raises(records.DataError, match=fault) as raised:
        voc.Voc(tmp_path, "train")
    assert raised.value.can_leave_out
    source = voc.Voc(tmp_path, "train", strict=False)
    assert source.dropped_boxes == 1 and len(source.problems) == 1
    np.testing.assert_array_equal(source[0]["boxes"], [[10, 5, 30, 39]])


def test_box_that_sticks_out_is_clipped(tmp_path):
    source = voc.Voc(write_data(tmp_path, make_object(box=(0, 6, 31, 80))), "train")
    np.testing.assert_array_equal(source[0]["boxes"], [[0, 5, 30, 40]])
    assert source.clipped_boxes == 1
    assert source.problems == ("boxes that reach beyond their image are clipped: 1",)


@pytest.mark.parametrize("damage", ["missing", "truncated", "text"])
def test_broken_image_is_named_when_it_is_read(tmp_path, damage):
    source = voc.Voc(write_data(tmp_path), "train")
    path = pathlib.Path(source.name(0))
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(content[:-20] if damage == "truncated" else b"hello")
    assert len(source.annotation(0)["boxes"]) == 1
    with pytest.raises(records.DataError, match=r"one\.jpg"):
        source[0]


# ------------------------------------------------------------------------------------------------
# Published files


def test_voc_mini_has_its_known_counts(shared_dir):
    root = shared_dir / "data" / "voc_mini"
    for split, count in (("2007_trainval", 15), ("2012_trainval", 10)):
        source = voc.Voc(root, split)
        assert len(source) == 4
        assert sum(len(record["boxes"]) for record in source) == count
    both = voc.Voc(root)
    assert len(both) == 8 and both.problems == ()
    assert sum(record["ignore"].sum() for record in both) == 2
    np.testing.assert_array_equal(both[0]["boxes"], [[138, 199, 206, 300]])
    assert both.class_names[both[0]["labels"][0]] == "train"


def test_bccd_has_its_known_counts(shared_dir):
    root = shared_dir / "data" / "bccd"
    for split, count in (("train", 205), ("val", 87), ("trainval", 292), ("test", 72)):
        assert len(voc.Voc(root, split, CELLS, strict=False)) == count
    source = voc.Voc(root, ("trainval", "test"), CELLS, strict=False)
    labels = np.concatenate([source.annotation(i)["labels"] for i in range(len(source))])
    dropped = np.array([2, 0, 0])  # two RBC without area
    np.testing.assert_array_equal(np.bincount(labels) + dropped, [4155, 372, 361])
    assert source.dropped_boxes == 2 and source.skipped_records == 0
    assert ["00338" in text or "00343" in text for text in source.problems[:2]] == [True, True]
    assert all("reach beyond" in text for text in source.problems[2:])
    assert source[0]["image"].shape == (480, 640, 3)


@pytest.mark.parametrize("name", ["BloodImage_00338", "BloodImage_00343"])
def test_bccd_box_without_area_is_named(shared_dir, tmp_path, name):
    write_data(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(name)
    shutil.copy(
        shared_dir / "data" / "bccd" / "Annotations" / f"{name}.xml", tmp_path / "Annotations"
    )
    with pytest.raises(records.DataError, match=rf"{name}\.xml, object \d+ \(RBC, .*has no area"):
        voc.Voc(tmp_path, "train", CELLS)
