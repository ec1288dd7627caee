"""`python -m detlab.demo`: image, folder, pattern and video in; pictures and JSON out."""

import json

import cv2
import numpy as np
import pytest

from detlab import demo
from detlab import errors
from detlab.data import shapes


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Four files: two images of one stem, a grey one, and a video of three frames."""
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
        + ["--threshold", "0.005", "--top_k", "5", *more]
    )
    return json.loads((output / "detections.json").read_text())


def test_a_folder_gives_a_picture_or_video_for_each_file(tiny_run, photos, tmp_path):
    rows = run(tiny_run, photos, tmp_path)
    assert len(rows) == 4
    pictures = {row["picture"] for row in rows}
    assert len(pictures) == 4, "files of one stem do not overwrite each other"
    for row in rows:
        if "frames" in row:
            assert len(row["frames"]) == 3
            reader = cv2.VideoCapture(row["picture"])
            assert reader.get(cv2.CAP_PROP_FRAME_COUNT) == 3
            assert reader.get(cv2.CAP_PROP_FRAME_WIDTH) == 128
        else:
            assert cv2.imread(row["picture"]) is not None
            assert len(row["objects"]) <= 5
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
        ("gone.jpg", ["gone.jpg", "no file"]),
        ("*.gone", ["*.gone"]),
        (".", ["holds no image"]),
        ("broken.jpg", ["broken.jpg", "cannot be decoded"]),
    ],
)
def test_a_mistake_gets_one_sentence(what, words, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if what == "broken.jpg":
        (tmp_path / what).write_bytes(b"\x00" * 50)
    with pytest.raises(errors.UserError) as error:
        demo.main(["--workdir", str(tiny_run), "--input", what, "--output", "out"])
    for word in words:
        assert word in str(error.value)


def test_output_names_differ():
    paths = [demo.pathlib.Path(p) for p in ("x/a.jpg", "y/a.jpg", "a.png", "b.png")]
    names = demo.output_names(paths)
    assert len(set(names)) == 4 and names[3] == "b"


def test_class_names_fall_back_to_the_config_and_then_to_numbers():
    class Config:
        class data:
            class_names = ()

        class model:
            num_classes = 2

    assert demo.names_of(["cat"], Config) == ("cat",)
    assert demo.names_of(None, Config) == ("class 0", "class 1")
    assert np.size(demo.names_of((), Config)) == 2
