"""WIDER FACE annotations."""

import unicodedata

import cv2
import numpy as np
import pytest
import turned

from detlab.data import loader, records, settings, wider, wrappers

A, B = "0--Parade/a_1.jpg", "1--Handshaking/b.c_2.jpg"
ZEROS = "0 0 0 0 0 0 0 0 0 0 "
TWO_FACES = [A, "2", "10 5 20 30 2 1 1 0 2 1 ", "1 2 3 4 0 0 0 1 0 0"]


def write_data(root, *lines, split="train", size=(40, 60)):
    """A root with the images A and B, 60 px wide and 40 high, and these annotations."""
    for name in (A, B):
        path = root / f"WIDER_{split}" / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((*size, 3), 128, np.uint8))
    (root / "wider_face_split").mkdir(exist_ok=True)
    file = root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt"
    file.write_text("\n".join(lines))
    return root


def test_boxes_flags_and_size_of_an_image(tmp_path):
    source = wider.Wider(write_data(tmp_path, *TWO_FACES))
    assert len(source) == 1 and source.class_names == ("face",) and source.problems == ()
    assert source.image_id(0) == "0--Parade/a_1" and source.name(0).endswith(A)
    record = source[0]
    assert record["image"].shape == (*source.size(0), 3) == (40, 60, 3)
    np.testing.assert_array_equal(record["boxes"], [[10, 5, 30, 35], [1, 2, 4, 6]])
    np.testing.assert_array_equal(record["labels"], [0, 0])
    np.testing.assert_array_equal(record["area"], [600, 12])
    assert record["flags"].dtype == np.int32
    assert dict(zip(wider.FLAGS, record["flags"][0].tolist(), strict=True)) == {
        "blur": 2, "expression": 1, "illumination": 1, "invalid": 0, "occlusion": 2, "pose": 1,
    }  # fmt: skip


def test_invalid_becomes_ignore(tmp_path):
    source = wider.Wider(write_data(tmp_path, *TWO_FACES))
    np.testing.assert_array_equal(source.annotation(0)["ignore"], [False, True])
    np.testing.assert_array_equal(source.annotation(0)["flags"][:, 3], [0, 1])


@pytest.mark.parametrize("after", [[ZEROS], [], ["", ZEROS, " "]])
def test_image_without_faces_stays_with_and_without_its_line_of_zeros(tmp_path, after):
    source = wider.Wider(write_data(tmp_path, B, "0", *after, *TWO_FACES, "", ""))
    assert [source.image_id(i) for i in range(2)] == ["1--Handshaking/b.c_2", "0--Parade/a_1"]
    assert source[0]["boxes"].shape == (0, 4) and source[0]["flags"].shape == (0, 6)
    assert len(source[1]["boxes"]) == 2 and source.problems == ()
    assert len(wrappers.for_training(source)) == 1
    assert len(wrappers.for_training(source, keep_empty=True)) == 2


def test_image_without_faces_may_be_the_last(tmp_path):
    for end in ([], [ZEROS]):
        assert len(wider.Wider(write_data(tmp_path, *TWO_FACES, B, "0", *end))) == 2


def test_ids_name_the_split_where_there_are_several(tmp_path):
    write_data(tmp_path, *TWO_FACES)
    write_data(tmp_path, *TWO_FACES, split="val")
    both = wider.Wider(tmp_path, ("train", "val"))
    assert [both.image_id(i) for i in range(2)] == ["train/0--Parade/a_1", "val/0--Parade/a_1"]
    assert wider.Wider(tmp_path, "val").image_id(0) == "0--Parade/a_1"


@pytest.mark.parametrize("strict", [True, False])
def test_face_of_no_width_is_left_out_and_counted_but_stops_nothing(tmp_path, strict):
    write_data(tmp_path, A, "3", f"5 5 0 9 {'0 ' * 6}", TWO_FACES[2], f"5 5 0 0 {'0 ' * 6}")
    source = wider.Wider(tmp_path, strict=strict)
    np.testing.assert_array_equal(source.annotation(0)["boxes"], [[10, 5, 30, 35]])
    np.testing.assert_array_equal(source.annotation(0)["flags"], [[2, 1, 1, 0, 2, 1]])
    assert source.dropped_boxes == 2
    assert source.problems == ("faces without width or height are dropped: 2",)


def test_face_that_sticks_out_is_clipped(tmp_path):
    source = wider.Wider(write_data(tmp_path, A, "1", f"-5 30 20 30 {'0 ' * 6}"))
    np.testing.assert_array_equal(source.annotation(0)["boxes"], [[0, 30, 15, 40]])
    assert source.clipped_boxes == 1


def test_the_flags_reach_no_batch_and_stop_none(tmp_path):
    source = wider.Wider(write_data(tmp_path, *TWO_FACES))
    small = settings.Settings(canvases=((64, 64),), max_boxes=4, pad_value=0)
    batches = loader.eval_batches(source, small, batch_size=1)
    batch = next(batches).batch
    np.testing.assert_array_equal(batch.valid, [[True, False, False, False]])
    np.testing.assert_array_equal(batch.ignore, [[False, True, False, False]])


# ------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    "lines, number, fault",
    [
        (["12 5 20 30 2 1 1 0 2 1", "2"], 1, "the name of an image, found '12 5 20"),
        ([A], 2, f"the number of faces of {A}, found the end of the file"),
        ([A, "two"], 2, f"the number of faces of {A}, found 'two'"),
        ([A, "-1"], 2, "the number of faces"),
        ([A, "1.0"], 2, "the number of faces"),
        ([A, TWO_FACES[2]], 2, "the number of faces"),
        ([*TWO_FACES[:3], B, "0"], 4, f"face 2 of 2 of {A}, .* found '{B}'"),
        (TWO_FACES[:3], 4, "face 2 of 2 .* found the end of the file"),
        ([A, "1", *TWO_FACES[2:]], 4, "the name of an image, found '1 2 3 4"),
        ([A, "0", ZEROS, ZEROS], 4, "the name of an image"),
        ([A, "1", "1 2 3 4"], 3, "x y w h and six flags"),
        ([A, "1", "1 2 3 4 0 0 0 0 0 0 0"], 3, "x y w h and six flags"),
        ([A, "1", "1 2 3 x 0 0 0 0 0 0"], 3, "x y w h and six flags"),
        ([A, "1", "1 2 3 nan 0 0 0 0 0 0"], 3, "x y w h and six flags"),
        ([A, "1", "1 2 3 4.0.0 0 0 0 0 0 0"], 3, "x y w h and six flags"),
        ([A, "1", f"1 2 3 {10**12} 0 0 0 0 0 0"], 3, "x y w h and six flags"),
        ([A, "1", "1 2 3 4 3 0 0 0 0 0"], 3, "x y w h and six flags"),
        ([A, "1", "1 2 3 4 0 0 0 -1 0 0"], 3, "x y w h and six flags"),
        ([A, "1", "1 2 3 4 0 0 0 0.5 0 0"], 3, "x y w h and six flags"),
    ],
)
def test_malformed_line_is_named_whether_strict_or_not(tmp_path, lines, number, fault):
    write_data(tmp_path, *lines)
    for strict in (True, False):
        with pytest.raises(
            records.DataError, match=rf"_train_bbx_gt\.txt, line {number}: expected .*{fault}"
        ) as raised:
            wider.Wider(tmp_path, strict=strict)
        assert "correct the line or download the file again" in str(raised.value)
        assert not raised.value.can_leave_out


@pytest.mark.parametrize(
    "face, fault",
    [
        ("5 5 -3 9", r"line 3: face 5 5 -3 9 \(x y w h\) has no area"),
        ("70 5 9 9", r"line 3: face 70 5 9 9 \(x y w h\) lies outside the image"),
    ],
)
def test_unusable_face_is_named_or_left_out(tmp_path, face, fault):
    write_data(tmp_path, A, "2", f"{face} 0 0 0 0 0 0", TWO_FACES[2])
    with pytest.raises(records.DataError, match=fault) as raised:
        wider.Wider(tmp_path)
    assert raised.value.can_leave_out
    source = wider.Wider(tmp_path, strict=False)
    np.testing.assert_array_equal(source.annotation(0)["boxes"], [[10, 5, 30, 35]])
    assert source.dropped_boxes == 1 and len(source.problems) == 1


@pytest.mark.parametrize("damage", ["missing", "text", "twice"])
def test_unusable_image_is_named_or_skipped(tmp_path, damage):
    again = [A, "0"] if damage == "twice" else []
    write_data(tmp_path, *TWO_FACES, B, "0", *again)
    path = tmp_path / "WIDER_train" / "images" / B
    if damage == "missing":
        path.unlink()
    elif damage == "text":
        path.write_text("hello")
    fault = {
        "missing": r"b\.c_2\.jpg does not exist",
        "text": r"b\.c_2\.jpg cannot be decoded",
        "twice": r"line 7 lists image '0--Parade/a_1\.jpg' again after line 1",
    }[damage]
    with pytest.raises(records.DataError, match=fault) as raised:
        wider.Wider(tmp_path)
    assert raised.value.can_leave_out
    source = wider.Wider(tmp_path, strict=False)
    assert source.skipped_records == 1 and len(source.problems) == 1
    assert len(source) == (2 if damage == "twice" else 1)
    assert len(source.annotation(0)["boxes"]) == 2


def test_missing_folder_and_split_tell_what_is_there(tmp_path):
    with pytest.raises(records.DataError, match="no folder wider_face_split; give the folder"):
        wider.Wider(tmp_path)
    write_data(tmp_path, *TWO_FACES)
    with pytest.raises(records.DataError, match=r"'test' needs the file .*: train$"):
        wider.Wider(tmp_path, "test")
    with pytest.raises(records.DataError, match="no split is given; splits under .*: train$"):
        wider.Wider(tmp_path, ())


def test_file_that_is_empty_or_no_text_is_named(tmp_path):
    write_data(tmp_path, "", " ")
    with pytest.raises(records.DataError, match=r"bbx_gt\.txt lists no images"):
        wider.Wider(tmp_path)
    file = tmp_path / "wider_face_split" / "wider_face_train_bbx_gt.txt"
    file.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(records.DataError, match=r"bbx_gt\.txt is not UTF-8 text \(byte 0xFF in l"):
        wider.Wider(tmp_path)


# ------------------------------------------------------------------------------------------------
# Lists of other programs, and turned pictures


@pytest.mark.parametrize(
    "name",
    ["0--Parade\\a_1.jpg", "./0--Parade/a_1.jpg", "WIDER_train/images/0--Parade/a_1.jpg",
     "0--Parade/a_1.JPG", "0--parade/A_1.jpg", f"\t{A} "],
)  # fmt: skip
def test_another_spelling_finds_the_image(tmp_path, name):
    source = wider.Wider(write_data(tmp_path, name, *TWO_FACES[1:]))
    assert source.name(0) == str(tmp_path / "WIDER_train" / "images" / A)
    assert source.image_id(0) == "0--Parade/a_1"
    np.testing.assert_array_equal(source.annotation(0)["boxes"], [[10, 5, 30, 35], [1, 2, 4, 6]])
    file = tmp_path / "wider_face_split" / "wider_face_train_bbx_gt.txt"
    told = f"a name in {file} is spelt otherwise than its file: {name!r} is {source.name(0)}"
    assert source.problems == (
        () if name.strip().endswith(f"./{A}") or name.strip() == A else (told,)
    )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252", "gb18030"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_the_list_is_read_in_the_encoding_it_has(tmp_path, encoding, form):
    write_data(tmp_path)
    images = tmp_path / "WIDER_train" / "images"
    name = "0--Fête/défilé.jpg"
    path = images / unicodedata.normalize(form, name)
    path.parent.mkdir()
    (images / A).rename(path)
    file = tmp_path / "wider_face_split" / "wider_face_train_bbx_gt.txt"
    file.write_bytes("\r\n".join([name, *TWO_FACES[1:]]).encode(encoding))
    source = wider.Wider(tmp_path)
    assert source.name(0) == str(path) and source.image_id(0) == "0--Fête/défilé"
    assert len(source.annotation(0)["boxes"]) == 2 and source[0]["image"].shape == (40, 60, 3)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("exif", ["auto", "upright", "stored"])
def test_a_turned_picture_is_upright_unless_the_key_says_stored(tmp_path, orientation, exif):
    x1, y1, x2, y2 = turned.BOX
    write_data(tmp_path, A, "1", f"{x1} {y1} {x2 - x1} {y2 - y1} 0 0 0 0 0 0")
    path = tmp_path / "WIDER_train" / "images" / A
    path.write_bytes(turned.encoded(turned.upright(), orientation))
    source = wider.Wider(tmp_path, exif=exif)
    image = source[0]["image"]
    if exif == "stored":
        expected = turned.stored(turned.upright(), orientation)
    else:
        expected = turned.upright()
        np.testing.assert_array_equal(source.annotation(0)["boxes"], [turned.BOX])
    assert source.size(0) == image.shape[:2] == expected.shape[:2]
    assert np.abs(image.astype(int) - expected).max() < 60  # JPEG's error at an edge
    told = [text for text in source.problems if "EXIF" in text]
    assert told == (
        [
            "1 of 1 images have an EXIF orientation: 1 turned upright, as OpenCV does, since "
            f"no annotated size tells (the first: {path}); "
            "config.data.exif=upright or stored decides for all"
        ]
        if exif == "auto"
        else []
    )


# ------------------------------------------------------------------------------------------------
# Published files


@pytest.mark.parametrize("split, faces, invalid", [("val", 333, 86), ("train", 197, 8)])
def test_wider_mini_has_its_known_counts(shared_dir, split, faces, invalid):
    source = wider.Wider(shared_dir / "data" / "wider_mini", split)
    objects = [source.annotation(i) for i in range(len(source))]
    assert len(source) == 24 and source.problems == ()
    assert sum(len(o["boxes"]) for o in objects) == faces
    assert sum(o["ignore"].sum() for o in objects) == invalid
    image = source[0]["image"]
    assert image.shape == (*source.size(0), 3) and image.shape[1] == 1024


def test_wider_mini_keeps_the_numbers_of_its_first_face(shared_dir):
    source = wider.Wider(shared_dir / "data" / "wider_mini", "val")
    assert source.image_id(0) == "0--Parade/0_Parade_Parade_0_478"
    np.testing.assert_array_equal(source.annotation(0)["boxes"][0], [25, 353, 40, 372])
    np.testing.assert_array_equal(source.annotation(0)["flags"][0], [2, 0, 0, 0, 1, 0])
