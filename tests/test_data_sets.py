"""The data of a run: files that are looked for before it starts, images that are tried."""

import json

import cv2
import numpy as np
import pytest

from detlab import config as config_lib
from detlab import data_sets, errors, evaluation
from detlab import predictions as predictions_lib
from detlab.data import shapes


@pytest.fixture
def config(tmp_path):
    """Six images in two folders, in COCO format, for training and evaluation."""
    images, annotations = [], []
    for i in range(6):
        name = f"{'ab'[i % 2]}/{i}.png"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.full((40, 48, 3), 90, np.uint8))
        images.append(dict(id=i, file_name=name, height=40, width=48))
        box = dict(id=i + 1, image_id=i, category_id=1, bbox=[4, 4, 20, 20], area=400, iscrowd=0)
        annotations.append(box)
    content = dict(images=images, annotations=annotations, categories=[dict(id=1, name="cell")])
    (tmp_path / "all.json").write_text(json.dumps(content))
    overrides = {"data.source": "coco", "data.root": str(tmp_path), "model.num_classes": "1"}
    overrides |= {f"data.{part}_annotations": "all.json" for part in ("train", "eval")}
    return config_lib.load("retinanet_shapes", overrides)


def check(config, part):
    data_sets.check_files(data_sets.open_source(config, part), config, part)


def refusal(call, *arguments):
    with pytest.raises(errors.UserError) as error:
        call(*arguments)
    return str(error.value)


@pytest.mark.parametrize("part, switch", [("train", "skip_broken"), ("eval", "eval_skip_broken")])
@pytest.mark.parametrize("how", ["removed", "a link that leads nowhere"])
def test_missing_files_are_counted_and_named_before_anything_is_read(
    part, switch, how, config, tmp_path, capsys
):
    check(config, part)
    for name in ("a/0.png", "a/2.png", "b/3.png", "b/5.png"):
        (tmp_path / name).unlink()
        if how == "a link that leads nowhere":
            (tmp_path / name).symlink_to("/nowhere/x.png")
    what = (
        f"{part} data: 4 of 6 image files do not exist: {tmp_path}/a/0.png, {tmp_path}/a/2.png,"
        f" {tmp_path}/b/3.png, ...; "
    )
    config.data[switch] = False
    assert refusal(check, config, part) == (
        f"{what}put them there, or pass over them with --config.data.{switch}=True"
        f" (config.data.root is {tmp_path})."
    )
    config.data[switch] = True
    assert capsys.readouterr().out == ""
    check(config, part)
    instead = "others take their place" if part == "train" else "they count as without detections"
    assert capsys.readouterr().out == f"{what}{instead}\n"


@pytest.mark.parametrize("part", ["train", "eval"])
def test_files_of_another_case_are_there_and_told(part, config, tmp_path, capsys):
    for name in ("a/0.png", "b/3.png"):
        (tmp_path / name).rename((tmp_path / name).with_suffix(".PNG"))
    check(config, part)
    assert capsys.readouterr().out == (
        f"{part} data: 2 names in {tmp_path}/all.json are spelt otherwise than their files (the"
        f" first: 'a/0.png' is {tmp_path}/a/0.PNG)\n"
    )


def test_data_without_any_file_are_refused_whatever_is_passed_over(config, tmp_path):
    for path in tmp_path.glob("*/*.png"):
        path.unlink()
    config.data.eval_skip_broken = True
    text = refusal(check, config, "eval")
    assert text.startswith("eval data: 6 of 6 image files do not exist: ")
    assert text.endswith(
        f"; put them there, or correct the paths (config.data.root is {tmp_path})."
    )


def test_files_of_additional_data_are_looked_for_and_repeated_ones_count_once(config, tmp_path):
    config.data.train_also = ({"train_repeat": 3},)
    config.data.skip_broken = False
    (tmp_path / "b/1.png").unlink()
    assert "1 of 6 image files do not exist" in refusal(check, config, "train")


def test_linked_files_exist(config, tmp_path):
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    (tmp_path / "a").mkdir()
    for i in (0, 2, 4):
        (tmp_path / "a" / f"{i}.png").symlink_to(tmp_path / "elsewhere" / f"{i}.png")
    check(config, "eval")


def test_data_without_files_have_none_missing():
    config = config_lib.load("retinanet_shapes")
    data_sets.check_files(shapes.Shapes("val", num_images=3), config, "eval")


def test_some_images_are_read_from_the_first_to_the_last(config, tmp_path, capsys):
    source = data_sets.open_source(config, "eval")
    data_sets.read_some(source, config, "eval", count=3)
    assert capsys.readouterr().out == "eval data: 3 of 3 images tried are read\n"
    (tmp_path / "b/5.png").write_text("no image")
    text = refusal(data_sets.read_some, source, config, "eval")
    assert text.startswith(f"eval data: image file {tmp_path}/b/5.png ")
    way = "or pass over unreadable images with --config.data.eval_skip_broken=True."
    assert text.endswith(way)
    config.data.eval_skip_broken = True
    data_sets.read_some(source, config, "eval")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"eval data: image file {tmp_path}/b/5.png ")
    assert second == "eval data: 5 of 6 images tried are read"


def test_an_image_that_ends_an_evaluation_names_the_key_that_passes_over_it(config, tmp_path):
    (tmp_path / "b/5.png").write_text("no image")
    source = data_sets.open_source(config, "eval")
    text = refusal(list, data_sets.evaluation_batches(source, config))
    assert "b/5.png" in text and text.endswith("with --config.data.eval_skip_broken=True.")


# ------------------------------------------------------------------------------------------------
# Evaluation without objects


def truth_of(*ignored):
    """One image for each argument: the flags of its objects."""
    return [
        dict(
            image_id=i,
            height=40,
            width=48,
            boxes=np.tile(np.float32([[4, 4, 24, 24]]), (len(flags), 1)),
            labels=np.zeros(len(flags), np.int32),
            ignore=np.array(flags, bool),
            area=np.full(len(flags), 400, np.float32),
        )
        for i, flags in enumerate(ignored)
    ]


@pytest.mark.parametrize(
    "truth, sentence",
    [
        (truth_of([]), "no object to find in the 1 images of the evaluation data: the figures are"),
        (
            truth_of([True, True], [], [True]),
            "no object to find in the 3 images of the evaluation data; 3 are marked as crowd,"
            " difficult or invalid: the figures are n/a (-1 in files)",
        ),
        (truth_of([True, False], []), ""),
    ],
)
def test_evaluation_without_objects_is_one_sentence(truth, sentence, capsys):
    assert evaluation.report_no_objects(truth) is bool(sentence)
    assert capsys.readouterr().out.startswith(sentence)


@pytest.mark.parametrize("found", [0, 2])
def test_figures_without_objects_are_not_numbers(found):
    predictions = [
        dict(
            image_id=0,
            boxes=np.tile(np.float32([[4, 4, 24, 24]]), (found, 1)),
            scores=np.full(found, 0.5, np.float32),
            labels=np.zeros(found, np.int32),
        )
    ]
    result = evaluation.score(truth_of([True], []), predictions, ("cell", "nucleus"))
    assert set(evaluation.scalars(result).values()) == {-1.0}
    for row in result["classes"]:
        assert {row[key] for key in ("AP", "AP50", "AP75", "AR100", "AP07", "AP12")} == {-1.0}
    text = predictions_lib.report(result)
    assert text.count("n/a") == 2 * 4 + 12 + 2
    assert "-1.0" not in text and "0.000" not in text
    assert predictions_lib.summary(result) == ("AP n/a  AP50 n/a  AP75 n/a  mAP07 n/a  mAP12 n/a")


def test_a_class_without_objects_is_not_zero_and_the_others_keep_their_figures():
    truth = truth_of([False], [False])
    predictions = [
        {k: t[k] for k in ("image_id", "boxes", "labels")} | {"scores": np.float32([0.9])}
        for t in truth
    ]
    result = evaluation.score(truth, predictions, ("cell", "nucleus"))
    assert result["AP"] == pytest.approx(1) and result["mAP12"] == pytest.approx(1)
    cell, nucleus = result["classes"]
    assert cell["AP12"] == pytest.approx(1) and nucleus["AP12"] == nucleus["AP07"] == -1
    assert predictions_lib.report(result).splitlines()[3].split()[-4:] == ["n/a"] * 4
