"""`python -m detlab.eval`: figures, saved predictions, pictures, refusals."""

import json

import cv2
import numpy as np
import pytest

from detlab import errors
from detlab import eval as eval_lib
from detlab.data import shapes
from detlab.data import transforms


def test_figures_equal_those_of_training_and_those_of_saved_predictions(
    tiny_run, tiny_config, tmp_path, capsys
):
    files = {k: str(tmp_path / f"{k}.json") for k in ("figures", "again", "predictions")}
    eval_lib.main(
        ["--workdir", str(tiny_run), "--checkpoint", "last", "--json", files["figures"]]
        + ["--predictions", files["predictions"]]
    )
    output = capsys.readouterr().out
    assert "rectangle" in output and "AP50" in output and "mAP07" in output
    eval_lib.main(
        ["--config", tiny_config, "--predictions", files["predictions"], "--json", files["again"]]
    )
    figures = json.loads(open(files["figures"]).read())
    again = json.loads(open(files["again"]).read())
    trained = json.loads((tiny_run / "eval.json").read_text())
    for key in eval_lib.scalars(figures):
        assert figures[key] == pytest.approx(trained[key], abs=1e-6)
        # Saved boxes are rounded to 0.001 px.
        assert again[key] == pytest.approx(figures[key], abs=1e-3)


def test_every_image_is_predicted_once_though_the_last_batch_is_partial(
    tiny_run, tmp_path, capsys
):
    path = tmp_path / "predictions.json"
    eval_lib.main(
        ["--workdir", str(tiny_run), "--predictions", str(path), "--config.eval.batch_size=64"]
    )
    images = json.loads(path.read_text())["images"]
    assert sorted(p["image_id"] for p in images) == list(range(200))


def test_pictures_are_drawn_for_as_many_images_as_asked(tiny_run, tmp_path):
    eval_lib.main(
        ["--workdir", str(tiny_run), "--draw", str(tmp_path / "pictures"), "--draw_limit", "3"]
        + ["--threshold", "0.01"]
    )
    files = sorted((tmp_path / "pictures").iterdir())
    assert len(files) == 3 and cv2.imread(str(files[0])).shape[2] == 3


@pytest.mark.parametrize("canvas", [(128, 128), (64, 200), (300, 97)])
def test_boxes_come_back_to_the_original_image_exactly(canvas):
    record = shapes.Shapes("val", num_images=1)[0]
    moved = transforms.pad(transforms.resize_keep_ratio(record, *canvas), canvas, 0)
    back = eval_lib.to_original(moved["boxes"], moved["placement"], (128, 128))
    np.testing.assert_allclose(back, record["boxes"], atol=1e-3)


def test_a_perfect_prediction_scores_one_in_both_protocols():
    truth = eval_lib.ground_truth(shapes.Shapes("val", num_images=20))
    perfect = [
        {k: t[k] for k in ("image_id", "boxes", "labels")} | {"scores": np.ones(len(t["boxes"]))}
        for t in truth
    ]
    result = eval_lib.score(truth, perfect, shapes.CLASS_NAMES)
    assert result["AP"] == result["mAP07"] == result["mAP12"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda run, tiny: ["--workdir", "gone"], ["gone", "does not exist"]),
        (lambda run, tiny: ["--workdir", "."], ["holds no checkpoint"]),
        (lambda run, tiny: ["--workdir", run, "--checkpoint", "99"], ["'99'", "best, last"]),
        (lambda run, tiny: ["--workdir", run, "--config", tiny], ["either --workdir or"]),
        (lambda run, tiny: [], ["give --workdir"]),
        (lambda run, tiny: ["--config", tiny], ["--checkpoint"]),
        (lambda run, tiny: ["--config", tiny, "--predictions", "gone.json"], ["gone.json"]),
        (lambda run, tiny: ["--config", tiny, "--predictions", tiny], ["not a file of"]),
        (lambda run, tiny: ["--workdir", run, "--config.data.source=voc"], ["config.data.root"]),
    ],
)
def test_a_mistake_gets_one_sentence(make, words, tiny_run, tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.UserError) as error:
        eval_lib.main(make(str(tiny_run), tiny_config))
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_predictions_of_other_classes_are_refused(tiny_config, tmp_path):
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps({"class_names": ["cat", "dog"], "images": []}))
    with pytest.raises(errors.UserError, match="cat, dog"):
        eval_lib.main(["--config", tiny_config, "--predictions", str(path)])
