"""`python -m detlab.demo`: image, folder, pattern and video in; pictures and JSON out."""

import json
import os
import pathlib

import cv2
import numpy as np
import pytest
import turned
from PIL import Image

from detlab import config as config_lib
from detlab import demo, errors, media, trained, types
from detlab import detect as detect_lib
from detlab.data import records, settings, shapes


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four files: two images with the same stem, a grey one, and a video of three frames."""
    folder = tmp_path_factory.mktemp("photos")
    source = shapes.Shapes("val", num_images=4)
    for i, name in enumerate(["a.png", "a.jpg"]):
        cv2.imwrite(str(folder / name), source[i]["image"][..., ::-1])
    cv2.imwrite(str(folder / "grey.png"), source[2]["image"][:100, :, 0])
    video = cv2.VideoWriter(
        str(folder / "film.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (128, 128)
    )
    for i in range(3):
        video.write(source[i]["image"][..., ::-1])
    video.release()
    (folder / "notes.txt").write_text("not an image")
    return folder


def run(tiny_run, photos, output, *more):
    demo.main(
        ["--workdir", str(tiny_run), "--input", str(photos), "--output", str(output)]
        # After six steps no score passes the detector's default threshold.
        + ["--threshold", "0.001", "--top_k", "5", "--config.model.score_threshold=0.0", *more]
    )
    return json.loads((output / "detections.json").read_text())


def test_a_folder_gives_a_picture_or_video_for_each_file(tiny_run, photos, tmp_path):
    rows = run(tiny_run, photos, tmp_path)
    assert len(rows) == 4
    pictures = {row["picture"] for row in rows}
    assert len(pictures) == 4, "files with the same stem must not overwrite each other"
    for row in rows:
        if "frames" in row:
            assert [len(objects) for objects in row["frames"]] == [5] * 3
            reader = cv2.VideoCapture(row["picture"])
            assert reader.get(cv2.CAP_PROP_FRAME_COUNT) == 3
            assert reader.get(cv2.CAP_PROP_FRAME_WIDTH) == 128
        else:
            assert cv2.imread(row["picture"]) is not None
            assert len(row["objects"]) == 5
            scores = [o["score"] for o in row["objects"]]
            assert scores == sorted(scores, reverse=True)
            for found in row["objects"]:
                assert found["class"] in shapes.CLASS_NAMES
                x1, y1, x2, y2 = found["box"]
                assert 0 <= x1 <= x2 <= row["width"] and 0 <= y1 <= y2 <= row["height"]


def test_one_image_and_a_pattern(tiny_run, photos, tmp_path):
    one = run(tiny_run, photos / "grey.png", tmp_path / "one")
    some = run(tiny_run, f"{photos}/*.png", tmp_path / "some")
    assert [row["file"] for row in some] == [str(photos / "a.png"), str(photos / "grey.png")]
    assert one[0]["objects"] == some[1]["objects"]


def test_a_file_that_is_no_image_is_skipped_with_a_sentence(tiny_run, photos, tmp_path, capsys):
    rows = run(tiny_run, f"{photos}/[gn]*", tmp_path)
    assert len(rows) == 1
    assert "notes.txt" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "what, words",
    [
        ("gone.jpg", ["gone.jpg", "does not exist"]),
        ("*.gone", ["*.gone"]),
        (".", ["contains no images"]),
        ("broken.jpg", ["broken.jpg", "cannot be decoded"]),
        ("x.jpg --top_k 0", ["--top_k is 0"]),
        ("x.jpg --threshold 1.5", ["--threshold is 1.5"]),
        ("x.jpg --threshold nan", ["--threshold is nan"]),
        (
            "x.jpg --config.predict.model.nms_iou=2",
            ["config.predict.model.nms_iou is 2;"],
        ),
        ("x.jpg --config.predict.model.nms_iuo=.5", ["config.predict.model.nms_iuo: detector"]),
        ("x.jpg --config.model.nms_iou=2", ["config.model.nms_iou is 2; it must"]),
    ],
)
def test_a_mistake_gets_one_sentence(what, words, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if what == "broken.jpg":
        (tmp_path / what).write_bytes(b"\x00" * 50)
    if "--config" in what:
        (tmp_path / "x.jpg").touch()
    with pytest.raises(errors.UserError) as error:
        demo.main(["--workdir", str(tiny_run), "--output", "out", "--input", *what.split()])
    for word in words:
        assert word in str(error.value)


def make_inputs(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"GIF89a" if name.endswith("unnamed") else b"")


def test_a_folder_is_searched_with_its_sub_folders_and_names_what_is_passed_over(tmp_path):
    inputs = ["a.JPG", "b.jfif", "c.heic", "s/film.MOV", "s/t/d.avif", "s/unnamed"]
    others = ["._a.JPG", "labels.txt", "s/notes.csv", "s/t/x.xml", "s/t/y.xml"]
    make_inputs(tmp_path, *inputs, *others, ".git/x.jpg", ".DS_Store", "__MACOSX/a.jpg")
    (tmp_path / "s" / "again").symlink_to(tmp_path)
    found = media.find_inputs(str(tmp_path), tmp_path / "out")
    assert found.files == [tmp_path / name for name in inputs]
    assert media.sentence(found, tmp_path) == (
        "passed over, neither images nor videos: ._a.JPG, labels.txt, s/notes.csv and 2 more"
    )
    assert media.output_names(found.files, tmp_path) == [
        "a.png", "b.png", "c.png", "s/film.mp4", "s/t/d.png", "s/unnamed.png"
    ]  # fmt: skip


def test_a_pipe_is_passed_over_and_a_link_that_leads_nowhere_is_not(tmp_path):
    make_inputs(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "b.jpg")
    os.mkfifo(tmp_path / "unnamed")
    (tmp_path / "c.jpg").symlink_to("nowhere")
    found = media.find_inputs(str(tmp_path), tmp_path / "out")
    assert found.files == [tmp_path / "a.jpg", tmp_path / "c.jpg"]
    assert found.passed_over == [tmp_path / "b.jpg", tmp_path / "unnamed"]


def test_results_of_an_earlier_call_inside_the_input_are_not_taken_as_inputs(tmp_path):
    make_inputs(tmp_path, "a.jpg", "found/a.png", "found/s/b.png")
    both = media.find_inputs(str(tmp_path), tmp_path / "found")
    assert len(both.files) == 3  # without a listing they are the user's own
    make_inputs(tmp_path, "found/detections.json")
    assert media.find_inputs(str(tmp_path), tmp_path / "found").files == [tmp_path / "a.jpg"]


def test_a_folder_and_a_pattern_without_pictures_tell_what_is_there(tmp_path):
    make_inputs(tmp_path, "a.txt", "s/b.csv")
    with pytest.raises(errors.UserError) as raised:
        media.find_inputs(str(tmp_path), tmp_path / "out")
    assert str(raised.value) == (
        f"--input {tmp_path} contains no images or videos, nor do its sub-folders; there are "
        "a.txt, s/b.csv; name another folder."
    )
    with pytest.raises(errors.UserError) as raised:
        media.find_inputs(f"{tmp_path}/[s]", tmp_path / "out")
    assert str(raised.value) == (
        f"--input {tmp_path}/[s] does not exist and matches no files but folders, such as "
        f"{tmp_path}/s; name an image, a video, a folder or a quoted glob pattern."
    )
    found = media.find_inputs(f"{tmp_path}/*", tmp_path / "out")
    assert found == ([tmp_path / "a.txt"], [tmp_path / "s"])


class Nothing:
    """A detector that finds nothing and keeps what it has seen."""

    def __init__(self):
        self.seen = []

    def __call__(self, image):
        self.seen.append(image)
        return {}

    def draw(self, image, found, min_side):
        return image

    def as_json(self, found):
        return []


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("exif", ["auto", "upright", "stored"])
def test_the_picture_is_drawn_on_the_pixels_in_which_objects_are_found(tmp_path, exif, extension):
    for orientation in range(1, 9):
        path = tmp_path / f"photo{extension}"
        path.write_bytes(turned.encoded(turned.upright(), orientation, extension))
        detect = Nothing()
        row = media.process(path, tmp_path / "drawn.png", detect, exif)
        expected = turned.upright()
        if exif == "stored":
            expected = turned.stored(expected, orientation)
        assert (row["height"], row["width"]) == expected.shape[:2]
        assert np.abs(detect.seen[0].astype(int) - expected).max() < 60
        drawn = cv2.imread(row["picture"])[..., ::-1]
        np.testing.assert_array_equal(drawn, detect.seen[0])


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.webp"])
def test_the_first_of_several_pictures_in_a_file_is_used_and_told(tmp_path, name):
    pictures = [Image.fromarray(np.full((40, 60, 3), 40 * k, np.uint8)) for k in range(1, 5)]
    pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:])
    detect = Nothing()
    row = media.process(tmp_path / name, tmp_path / "drawn.png", detect)
    assert row["problems"] == [f"{tmp_path / name} holds 4 pictures, of which the first is used"]
    assert abs(detect.seen[0].astype(int) - 40).max() < 5
    pictures[0].save(tmp_path / name)
    assert "problems" not in media.process(tmp_path / name, tmp_path / "drawn.png", detect)


def test_names_that_are_no_utf_8_are_read_and_written(tmp_path):
    folder = tmp_path / os.fsdecode(b"gr\xfcn")  # the ü of Latin-1
    folder.mkdir()
    pictures = [Image.fromarray(np.full((64, 96, 3), 40 * k, np.uint8)) for k in range(1, 4)]
    plain = tmp_path / "film.avi"
    write_video(plain, "MJPG", [np.asarray(picture) for picture in pictures])
    film, animation = folder / os.fsdecode(b"\xe9.avi"), folder / os.fsdecode(b"\xe9.gif")
    film.write_bytes(plain.read_bytes())
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:])
    animation.write_bytes((tmp_path / "a.gif").read_bytes())
    found = media.find_inputs(str(folder), tmp_path / "out")
    assert found.files == [film, animation]
    output = tmp_path / os.fsdecode(b"ou\xdf")
    output.mkdir()
    names = media.output_names(found.files, folder)
    rows = [
        media.process(file, output / name, Nothing())
        for file, name in zip(found.files, names, strict=True)
    ]
    assert len(rows[0]["frames"]) == 3 and rows[0]["problems"] == []
    assert rows[1]["problems"] == [f"{animation} holds 3 pictures, of which the first is used"]
    assert [(output / name).stat().st_size > 500 for name in names] == [True, False]
    drawn = cv2.imdecode(np.fromfile(output / names[1], np.uint8), cv2.IMREAD_COLOR)
    assert drawn.shape == (64, 96, 3)


@pytest.mark.parametrize(
    "data, ending",
    [
        (b"", ": it is empty; download the file again"),
        (bytes(99), ": it begins with nothing but zero bytes, as after a broken download; "
         "download the file again"),
        (b"version https://git-lfs.github.com/spec/v1\n", ": it is a Git LFS pointer, "
         "not the video; fetch the video with `git lfs pull`"),
        (b"Not found", ": it holds text that begins with 'Not found'; download the file again"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isommp42", "; convert it to another format"),
        (b"\x1aE\xdf\xa3" + bytes(range(99)), "; convert it to another format"),
        (None, " (No such file or directory); name another file"),
    ],
)  # fmt: skip
def test_what_is_no_video_gets_its_cause(data, ending, tmp_path):
    path = tmp_path / "film.mp4"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(records.DataError) as error:
        media.process(path, tmp_path / "drawn.mp4", Nothing())
    assert str(error.value) == f"video {path} cannot be decoded{ending}"


def test_output_names_differ():
    names = ("x/a.jpg", "y/a.jpg", "a.png", "b.png", "a_jpg_1.png", "c.AVI")
    results = media.output_names([pathlib.Path(name) for name in names])
    assert len(set(results)) == 6
    assert results[3] == "b.png" and results[5] == "c.mp4"


@pytest.mark.parametrize("what", ["folder", "file", "pattern", "link to the folder", "link to it"])
def test_the_users_own_files_are_never_written_to(what, tiny_run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "load", None)  # the error comes before any work
    target, output = photos, photos
    if what == "file":
        target = photos / "grey.png"
    elif what == "pattern":
        target = f"{photos}/*.png"
    elif what == "link to the folder":
        (tmp_path / "linked").symlink_to(photos)
        output = tmp_path / "linked"
    elif what == "link to it":
        output = tmp_path
        (tmp_path / "grey.png").symlink_to(photos / "grey.png")
    before = {path: path.read_bytes() for path in photos.iterdir()}
    with pytest.raises(errors.UserError, match="another"):
        run(tiny_run, target, output)
    assert {path: path.read_bytes() for path in photos.iterdir()} == before


def test_an_output_that_cannot_be_written_is_found_before_any_work(
    tiny_run, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(trained, "load", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.UserError, match="cannot write into the folder .*file"):
        run(tiny_run, photos, tmp_path / "file")


def write_video(path, code, frames):
    height, width = frames[0].shape[:2]
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), 10, (width, height))
    for frame in frames:
        video.write(frame)
    video.release()


def test_a_video_that_breaks_off_says_so(tiny_run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    path = tmp_path / "cut.avi"
    write_video(path, "MJPG", rng.integers(0, 255, (10, 64, 96, 3), np.uint8))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])
    (row,) = run(tiny_run, path, tmp_path / "out")
    assert 3 < len(row["frames"]) < 10
    sentence = f"ends after {len(row['frames'])} of 10 frames"
    assert sentence in row["problems"][0]
    assert sentence in "".join(capsys.readouterr())
    assert (row["height"], row["width"]) == (64, 96)


def test_frames_of_another_size_are_resized_to_the_first(tmp_path, monkeypatch):
    class Reader:
        def __init__(self, path):
            self.frames = [np.zeros((*size, 3), np.uint8) for size in ((64, 96), (96, 64))]

        def read(self):
            return (True, self.frames.pop(0)) if self.frames else (False, None)

        def get(self, what):  # the header has the size of a video that is stored rotated
            return {cv2.CAP_PROP_FRAME_WIDTH: 64, cv2.CAP_PROP_FRAME_HEIGHT: 96}.get(what, 0)

        def release(self):
            pass

    video_capture, detect = cv2.VideoCapture, Nothing()
    monkeypatch.setattr(media.cv2, "VideoCapture", Reader)
    row = media.process(pathlib.Path("film.mp4"), tmp_path / "film.mp4", detect)
    assert [image.shape for image in detect.seen] == [(64, 96, 3)] * 2
    assert (row["height"], row["width"]) == (64, 96)
    assert row["frames"] == [[], []] and row["problems"] == []
    written = video_capture(str(tmp_path / "film.mp4"))
    assert written.get(cv2.CAP_PROP_FRAME_COUNT) == 2
    assert written.get(cv2.CAP_PROP_FRAME_WIDTH) == 96


@pytest.mark.parametrize(
    "experiment, sides",
    [("yolov5_coco", (640, 512)), ("retinanet_coco", (999, 800)), ("darknet_coco", (608, 608))],
)
def test_a_picture_is_resized_by_the_rule_of_the_demo(experiment, sides):
    """820 px of 1024x820 become 512.5 px on 640x640: 512 in evaluation too, 513 in mmcv."""
    data, seen = config_lib.load(experiment).data, []

    def predict(params, state, images, image_size):
        seen.append(images)
        boxes = np.array([[[0, 0, *images.shape[2:0:-1]]]], np.float32)
        return types.Detections(
            boxes, np.ones((1, 1)), np.zeros((1, 1), int), np.ones((1, 1), bool)
        )

    shown = settings.of(data, "demo")._replace(pad_value=7)
    detect = detect_lib.Detect(predict, {}, {}, shown, ("thing",), 0.5, 9)
    found = detect(np.full((820, 1024, 3), 200, np.uint8))
    [[image]] = seen
    rows, columns = (image[..., 0] == 200).any(axis=1), (image[..., 0] == 200).any(axis=0)
    assert (columns.sum(), rows.sum()) == sides
    np.testing.assert_array_equal(found["boxes"], [[0, 0, 1024, 820]])


@pytest.mark.parametrize(
    "overrides, nms_iou, multi_label",
    [
        ({}, 0.45, False),
        ({"model.nms_iou": "0.7"}, 0.7, False),  # the command line is not ignored
        ({"predict.model.nms_iou": "0.7"}, 0.7, False),
        ({"model.nms_iou": "0.7", "predict.model.nms_iou": "0.3"}, 0.3, False),
        ({"model.multi_label": "True"}, 0.45, True),
    ],
)
def test_the_demo_has_the_fields_of_predict_and_evaluation_its_own(overrides, nms_iou, multi_label):
    config = config_lib.load("yolov5_coco", overrides)
    shown = detect_lib.for_pictures(config, overrides)
    assert (shown.model.nms_iou, shown.model.multi_label) == (nms_iou, multi_label)
    assert shown.model.max_detections == 1000
    assert "max_detections" not in config.model, "evaluation keeps 300"
    assert config.model.get("nms_iou", 0.6) == float(overrides.get("model.nms_iou", 0.6))


@pytest.mark.parametrize("flags, count", [([], 2), (["--threshold", "0.001", "--top_k", "3"], 3)])
def test_threshold_and_number_of_objects_come_from_the_config(
    flags, count, tiny_run, photos, tmp_path, capsys
):
    words = ["--workdir", str(tiny_run), "--input", str(photos / "a.png")]
    words += ["--output", str(tmp_path), "--config.model.score_threshold=0.0"]
    words += ["--config.predict.threshold=0.0005", "--config.predict.top_k=2"]
    demo.main([*words, *flags])
    found = json.loads((tmp_path / "detections.json").read_text())[0]["objects"]
    least = 0.001 if flags else 0.0005
    assert len(found) == count
    assert f"{count} objects with score >= {least:g} in 1 files" in capsys.readouterr().out


def test_class_names_fall_back_to_the_config_and_then_to_numbers(tiny_config):
    config = config_lib.load(tiny_config, {"model.num_classes": "2"})
    config.data.class_names = ("dog", "cow")
    assert detect_lib.names_of(["cat"], config) == ("cat",)
    assert detect_lib.names_of(None, config) == ("dog", "cow")
    config.data.class_names = ()
    assert detect_lib.names_of(None, config) == ("class 0", "class 1")
