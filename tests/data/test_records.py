"""Image files are read, boxes are checked, and sources of image files give records."""

import struct

import cv2
import numpy as np
import pytest
import turned

from detlab.data import records


def picture(height=40, width=60):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image, extension):
    return cv2.imencode(extension, image)[1].tobytes()


# ------------------------------------------------------------------------------------------------
# Image files


def test_png_comes_back_as_rgb(tmp_path):
    image = picture()
    path = tmp_path / "a.png"
    path.write_bytes(encoded(image[..., ::-1], ".png"))  # OpenCV writes BGR
    np.testing.assert_array_equal(records.read_image(path), image)


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_alpha_become_three_channels(tmp_path, channels):
    path = tmp_path / "a.png"
    stored = np.full((5, 7, channels), 90, np.uint8)
    path.write_bytes(encoded(stored, ".png"))
    image = records.read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.full((5, 7, 3), 90))


@pytest.mark.parametrize("options", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_read_as_rgb_has_the_pixels_of_one_read_as_bgr(monkeypatch, channels, options):
    _, data = cv2.imencode(".jpg", picture()[..., :channels], options)
    image = records.decode_image(data.tobytes(), "it", "")
    monkeypatch.setattr(records, "_COLOR_RGB", None)  # OpenCV before 4.11
    np.testing.assert_array_equal(image, records.decode_image(data.tobytes(), "it", ""))


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_exif_orientation_is_turned_upright_as_opencv_does(tmp_path, orientation, extension):
    path = tmp_path / f"a{extension}"
    path.write_bytes(turned.encoded(turned.upright(), orientation, extension))
    image = records.read_image(path)
    assert records.read_image_size(path) == image.shape[:2] == (40, 60)
    assert np.abs(image.astype(int) - turned.upright()).max() < 60  # JPEG's error at an edge
    np.testing.assert_array_equal(image, cv2.imread(str(path))[..., ::-1])
    as_stored = records.read_image(path, "stored")
    assert records.read_image_size(path, "stored") == as_stored.shape[:2]
    np.testing.assert_array_equal(records.turn(as_stored, orientation), image)
    # Size in which it was annotated: only that of a quarter turn decides.
    for size in ((40, 60), (60, 40)):
        keeps = orientation >= 5 and size == (60, 40)
        np.testing.assert_array_equal(
            records.read_image(path, "auto", size), as_stored if keeps else image
        )
        np.testing.assert_array_equal(records.read_image(path, "upright", size), image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_follows_the_same_rule_although_opencv_turns_it_always(tmp_path, orientation):
    data = cv2.imencode(".tif", turned.stored(turned.upright(), orientation))[1].tobytes()
    (start,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[start : start + 2])
    entries = [data[start + 2 + 12 * k :][:12] for k in range(count)]
    entries = [e for e in entries if e[:2] != struct.pack("<H", 0x0112)]
    entries.append(struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0))
    table = struct.pack("<H", len(entries)) + b"".join(sorted(entries, key=lambda e: e[1::-1]))
    path = tmp_path / "a.tif"
    path.write_bytes(data[:4] + struct.pack("<I", len(data)) + data[8:] + table + bytes(4))
    np.testing.assert_array_equal(records.read_image(path), turned.upright())
    as_stored = turned.stored(turned.upright(), orientation)
    np.testing.assert_array_equal(records.read_image(path, "stored"), as_stored)
    assert records.read_image_size(path) == (40, 60)
    assert records.read_image_size(path, "stored") == as_stored.shape[:2]
    keeps = orientation >= 5
    assert records.read_image(path, "auto", (60, 40)).shape[:2] == ((60, 40) if keeps else (40, 60))


def test_header_without_a_size_is_not_believed(tmp_path):
    content = bytearray(encoded(picture(), ".png"))
    content[16:24] = bytes(8)
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(records.DataError, match="cannot be decoded") as raised:
        records.read_image_size(path)
    assert raised.value.can_leave_out


@pytest.mark.parametrize("extension", [".jpg", ".png", ".bmp"])
def test_size_is_read_from_the_header(tmp_path, extension):
    path = tmp_path / f"a{extension}"
    path.write_bytes(encoded(picture(33, 57), extension))
    assert records.read_image_size(path) == (33, 57)


@pytest.mark.parametrize("num_segments", [0, 4])
def test_size_needs_the_whole_file_only_where_the_header_lies_far_in(
    tmp_path, monkeypatch, num_segments
):
    content = encoded(picture(33, 57), ".jpg")
    segment = b"\xff\xe2" + struct.pack(">H", 50_000) + bytes(49_998)  # of a colour profile
    path = tmp_path / "a.jpg"
    path.write_bytes(content[:2] + num_segments * segment + content[2:] + bytes(100_000))
    counts, read = [], records._read_bytes
    monkeypatch.setattr(
        records, "_read_bytes", lambda *args: counts.append(len(read(*args))) or read(*args)
    )
    assert records.read_image_size(path) == (33, 57)
    assert counts == [1 << 16, path.stat().st_size][: 2 if num_segments else 1]


def test_missing_image_is_named(tmp_path):
    with pytest.raises(records.DataError, match=r"nothing\.jpg does not exist; put it there"):
        records.read_image(tmp_path / "nothing.jpg")


def test_a_name_that_no_image_file_can_have_is_named(tmp_path):
    for name in ("a\0b/p0.jpg", "p0\0.jpg", "\ud83d.jpg"):
        with pytest.raises(records.DataError) as raised:
            records.read_image(f"{tmp_path}/{name}")
        assert raised.value.can_leave_out
        assert str(raised.value) == (
            f"image file {f'{tmp_path}/{name}'!r} has a name that no file can have; correct it in "
            "the list of images"
        )
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(records.DataError) as raised:
        records.read_image(tmp_path / "folder.jpg")
    assert str(raised.value) == (
        f"image file {tmp_path}/folder.jpg cannot be read (Is a directory); put an image there or "
        "correct its name"
    )


@pytest.mark.parametrize("content", [b"", b"no image at all", encoded(picture(), ".jpg")[100:]])
def test_undecodable_image_is_named(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(records.DataError, match=r"a\.jpg cannot be decoded"):
        records.read_image(path)


@pytest.mark.parametrize("extension", [".jpg", ".png"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.999])
def test_truncated_image_is_named(tmp_path, extension, kept):
    content = encoded(picture(200, 300), extension)
    path = tmp_path / f"a{extension}"
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(records.DataError, match="is truncated"):
        records.read_image(path)


def test_end_mark_of_a_thumbnail_does_not_hide_truncation(tmp_path):
    content = encoded(picture(200, 300), ".jpg")
    thumbnail = encoded(picture(8, 8), ".jpg")
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    content = content[:2] + segment + content[2:]
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert records.read_image(path).shape == (200, 300, 3)
    path.write_bytes(content[:-2000])
    with pytest.raises(records.DataError, match="is truncated"):
        records.read_image(path)


def test_bytes_after_the_end_of_a_jpeg_do_no_harm(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture(), ".jpg") + b"\0" * 300)
    assert records.read_image(path).shape == (40, 60, 3)


# ------------------------------------------------------------------------------------------------
# Boxes


def check(boxes, names=None, strict=True, **options):
    names = names or ["cat"] * len(boxes)
    return records.check_boxes(
        boxes, names, ("dog", "cat"), (40, 60), lambda k: f"file.xml, object {k}", strict, **options
    )


def test_box_that_sticks_out_is_clipped_and_counted():
    checked = check([[-5, 10, 20, 50], [1, 2, 3, 4], [30, 20, 60, 40]])
    np.testing.assert_array_equal(checked.boxes, [[0, 10, 20, 40], [1, 2, 3, 4], [30, 20, 60, 40]])
    assert checked.boxes.dtype == np.float32
    assert checked.num_clipped == 1
    assert checked.problems == ("boxes that reach beyond their image are clipped: 1",)
    assert checked.keep.all()
    np.testing.assert_array_equal(checked.labels, [1, 1, 1])


@pytest.mark.parametrize(
    "box, fault",
    [
        ([5, 5, 5, 9], "has no area"),
        ([9, 5, 5, 9], "has no area"),
        ([60, 5, 70, 9], "lies outside the image"),
        ([5, -9, 9, 0], "lies outside the image"),
    ],
)
def test_unusable_box_raises_or_is_left_out(box, fault):
    boxes = [[1, 2, 3, 4], box]
    with pytest.raises(records.DataError, match=rf"file\.xml, object 1 {fault}$") as raised:
        check(boxes)
    assert raised.value.can_leave_out
    checked = check(boxes, strict=False)
    np.testing.assert_array_equal(checked.boxes, [[1, 2, 3, 4]])
    assert checked.problems == (f"file.xml, object 1 {fault}",)


def test_unknown_class_raises_or_is_left_out():
    boxes, names = [[1, 2, 3, 4], [2, 3, 4, 5]], ["bird", "dog"]
    with pytest.raises(records.DataError, match=r"object 0 has a class .*\(dog, cat\)"):
        check(boxes, names)
    checked = check(boxes, names, strict=False)
    np.testing.assert_array_equal(checked.boxes, [[2, 3, 4, 5]])
    np.testing.assert_array_equal(checked.labels, [0])
    np.testing.assert_array_equal(checked.keep, [False, True])


def test_other_classes_than_the_chosen_ones_are_told_once_a_class():
    names = ["cow", "cat", "bird", "cow"]
    boxes = [[1, 2, 3, 4], [2, 3, 4, 5], [5, 5, 5, 5], [1, 1, 2, 2]]
    checked = check(boxes, names, chosen_from="some.json")  # strict, although the bird has no area
    np.testing.assert_array_equal(checked.keep, [False, True, False, False])
    np.testing.assert_array_equal(checked.labels, [1])
    assert checked.problems == (
        "there are no objects of class dog in some.json",
        "objects of class bird, which is not in class_names, are dropped: 1",
        "objects of class cow, which is not in class_names, are dropped: 2",
    )


def test_none_of_the_chosen_classes_is_a_mistake():
    boxes, names = [[1, 2, 3, 4], [5, 5, 5, 5]], ["Cat", "bird"]
    fault = "there are no objects of class dog, cat in some.json; the classes found are Cat, bird"
    with pytest.raises(records.DataError, match=f"^{fault}; correct class_names") as raised:
        check(boxes, names, chosen_from="some.json")
    assert not raised.value.can_leave_out
    checked = check(boxes, names, strict=False, chosen_from="some.json")
    assert checked.problems == (fault,) and not checked.keep.any()
    assert (
        len(check([], [], chosen_from="some.json").problems) == 2
    )  # without objects there is no mistake


def test_unclipped_boxes_stay_as_they_are_but_for_negative_sides():
    boxes = [[-5, 10, 20, 50], [5, 5, 5, 9], [70, 5, 80, 9]]
    checked = check(boxes, clip=False)
    np.testing.assert_array_equal(checked.boxes, boxes)
    assert checked.num_clipped == 0 and checked.problems == ()
    with pytest.raises(records.DataError, match="object 0 has a negative side"):
        check([[9, 5, 5, 9]], clip=False)


def test_rounding_errors_stick_out_of_nothing():
    checked = check([[0, 0, 60.0000000001, 40]])
    assert checked.num_clipped == 0
    np.testing.assert_array_equal(checked.boxes, [[0, 0, 60, 40]])


def test_image_without_boxes_passes():
    for clip in (True, False):
        checked = check(np.zeros((0, 4)), clip=clip)
        assert checked.boxes.shape == (0, 4)
        assert checked.problems == ()


# ------------------------------------------------------------------------------------------------
# Sources


def make_source(tmp_path, sizes, objects, ignore):
    """Images of these sizes; `objects` gives the image of each object."""
    paths = []
    for i, (height, width) in enumerate(sizes):
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(encoded(np.full((height, width, 3), i, np.uint8), ".png"))
    boxes = [[k, k, k + 2, k + 3] for k in range(len(objects))]
    annotations = records.Annotations(
        np.array(objects),
        boxes,
        np.zeros(len(objects)),
        ignore,
        np.full(len(objects), 6),
        len(sizes),
    )
    return records.FileSource(("cat",), paths, list("abcdef")[: len(sizes)], sizes, annotations)


def test_objects_go_to_their_image_in_their_order(tmp_path):
    source = make_source(tmp_path, [(40, 50)] * 3, [2, 0, 2], [False, True, False])
    np.testing.assert_array_equal(source[2]["boxes"], [[0, 0, 2, 3], [2, 2, 4, 5]])
    np.testing.assert_array_equal(source[0]["ignore"], [True])
    assert source[1]["boxes"].shape == (0, 4)
    assert [len(record["labels"]) for record in source] == [1, 0, 2]
    for name, dtype in (("boxes", "f4"), ("labels", "i4"), ("ignore", "?"), ("area", "f4")):
        assert source[2][name].dtype == np.dtype(dtype)
    assert "image" not in source.annotation(0)


def test_flags_stay_with_their_objects():
    annotations = records.Annotations(
        np.array([1, 0, 1]), np.zeros((3, 4)), [0] * 3, [0] * 3, [0] * 3, 2, flags=[[5], [6], [7]]
    )
    assert annotations[1]["flags"].dtype == np.int32
    np.testing.assert_array_equal(annotations[1]["flags"], [[5], [7]])
    selected = records.select_objects(annotations[1], np.array([False, True]))
    np.testing.assert_array_equal(selected["flags"], [[7]])
    assert selected["boxes"].shape == (1, 4)


def test_image_of_another_size_than_its_annotation_is_named(tmp_path):
    source = make_source(tmp_path, [(40, 50)], [0], [False])
    (tmp_path / "0.png").write_bytes(encoded(np.zeros((50, 40, 3), np.uint8), ".png"))
    with pytest.raises(records.DataError, match=r"0\.png is 40x50 px, but .* says 50x40"):
        source[0]


@pytest.mark.parametrize("strict", [True, False])
def test_a_misspelt_class_is_not_taken_for_one_without_objects(strict):
    boxes, names = [[0, 0, 5, 5], [1, 1, 5, 5]], ["RBC", "Platelets"]
    with pytest.raises(records.DataError, match="class Platlets in x, but 1 of class Platelets"):
        records.check_boxes(
            boxes, names, ("RBC", "Platlets"), (9, 9), str, strict=strict, chosen_from="x"
        )
