"""Pictures of the pipeline: boxes computed by hand, and the very batches of training."""

import json

import cv2
import numpy as np
import pytest

from detlab import config as config_lib
from detlab import errors
from detlab.data import loader
from detlab.data import settings as settings_lib
from detlab.tools import browse, images


def run(arguments, folder):
    browse.main([*arguments, "--output", str(folder)])
    return json.loads((folder / "browse.json").read_text())["results"]["images"]


def test_each_step_moves_the_boxes_as_computed_by_hand(coco_data, tmp_path):
    flags = [*coco_data(), "--steps", "--config.data.flip_horizontal=1.0", "--class=cat"]
    first, second = run(flags, tmp_path / "first")
    assert first["name"].endswith("a.png") and second["name"].endswith("b.png")
    assert [step["name"] for step in first["steps"]] == [
        "image", "resize", "flip_horizontal", "flip_vertical",
    ]  # fmt: skip
    assert [step["applied"] for step in first["steps"]] == [True, True, True, False]
    cats = [step["objects"][0]["box"] for step in first["steps"]]
    assert cats == [[10, 10, 30, 30], [20, 20, 60, 60], [140, 20, 180, 60], [140, 20, 180, 60]]
    assert first["objects"][0] == {"class": "cat", "box": [140, 20, 180, 60], "ignore": False}
    assert [entry["ignore"] for entry in second["objects"]] == [False, True]
    sheet = cv2.imread(str(tmp_path / "first" / "browse.jpg"))
    row = cv2.imread(str(tmp_path / "first" / first["picture"]))
    # Five cells a row on the sheet, which has two images; four on the picture of one, in two rows.
    assert 5 * 320 < sheet.shape[1] < 6 * 320 and 4 * 320 < row.shape[1] < 5 * 320
    assert sheet.shape[0] == row.shape[0]

    other = run([*flags, "--config.data.flip_horizontal=0.0"], tmp_path / "second")[0]
    assert other["objects"][0]["box"] == [20, 20, 60, 60]
    assert (cv2.imread(str(tmp_path / "second" / "browse.jpg")) != sheet).any()


def test_evaluation_is_drawn_without_chance_and_images_are_chosen(coco_data, tmp_path):
    flags = [*coco_data(), "--part=eval", "--config.data.flip_horizontal=1.0"]
    shown = run(flags, tmp_path / "out")
    assert [image["name"][-5:] for image in shown] == ["a.png", "b.png", "c.png"]
    assert shown[0]["objects"][0]["box"] == [20, 20, 60, 60] and shown[2]["objects"] == []
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 4  # and the sheet
    names = [
        [image["name"][-5:] for image in run([*flags, *more], tmp_path / "out")]
        for more in (["--only_ignored"], ["--size=small"], ["--start=1", "--every=2"])
    ]
    assert names == [["b.png"], ["a.png", "b.png"], ["b.png"]]


@pytest.mark.parametrize("experiment", ["yolov5_shapes", "ssd_shapes"])
def test_the_pictures_are_those_of_the_training_stream(experiment):
    more = {"mixup": "0.5", "mosaic": "0.5", "affine": "0.8"} if experiment[0] == "y" else {}
    more = {f"data.augment.{key}": value for key, value in more.items()}
    config = config_lib.load(experiment, {"train.batch_size": "2", **more})
    source = images.open_part(config, "train", whole=False)
    stream = browse.Stream(source, config, "train", seed=3)
    for i in (0, 5, 9):
        seen = stream(i)
        settings = settings_lib.of(config.data, "train")
        (loaded,) = loader.train_batches(
            source, settings, batch_size=2, seed=3, num_steps=seen.step + 1, start_step=seen.step
        )
        assert loaded.batch.index[seen.row] == i
        for name in ("images", "boxes", "labels", "valid"):
            wanted = getattr(loaded.batch, name)[seen.row]
            np.testing.assert_array_equal(getattr(seen.batch, name)[0], wanted)


@pytest.mark.parametrize(
    "more, sentence",
    [
        (["--class=cot"], "--class: the data have no class 'cot'; did you mean cat"),
        (["--count=0"], "--count is 0; it must be at least 1."),
        (["--start=9"], "of the 2 images looked at, 2 have such objects, none of them after"),
        (["--size=large", "--only_ignored"], "of the 2 images looked at, 0 have such objects"),
    ],
)
def test_a_choice_of_nothing_is_told_in_a_sentence(coco_data, tmp_path, more, sentence):
    with pytest.raises(errors.UserError, match=sentence):
        browse.main([*coco_data(), "--output", str(tmp_path / "out"), *more])


def test_an_unreadable_image_is_replaced_as_in_training_and_told_in_evaluation(
    coco_data, tmp_path, capsys
):
    flags = coco_data()
    (tmp_path / "images" / "b.png").write_bytes(b"")
    shown = run(flags, tmp_path / "out")
    assert [len(image["skipped"]) for image in shown] == [0, 1]
    assert shown[1]["name"].endswith("b.png") and "b.png" in shown[1]["skipped"][0]
    run([*flags, "--part=eval"], tmp_path / "out")
    assert "not drawn: " in capsys.readouterr().out
