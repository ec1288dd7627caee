"""`detlab tools errors`: JSON, pictures and table from saved predictions."""

import json

import annotated
import pytest

from detlab import config as config_lib
from detlab import errors, evaluation
from detlab import predictions as predictions_lib
from detlab.data import shapes
from detlab.tools import errors as tool


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(flags, folder): predictions on shapes, all right but for one moved box."""
    folder = tmp_path_factory.mktemp("errors")
    source = shapes.Shapes("val", num_images=200)
    predictions = annotated.perfect(evaluation.ground_truth(source))
    predictions[3]["boxes"][0] += 1000
    predictions_lib.write(folder / "p.json", predictions, source.class_names)
    return ["--config", "retinanet_shapes", "--predictions", str(folder / "p.json")], folder


def test_json_pictures_and_table(run, tmp_path, capsys):
    flags, _ = run
    tool.main([*flags, "--output", str(tmp_path / "out"), "--limit", "12"])
    told = capsys.readouterr().out
    assert told.endswith(f"{tmp_path}/out/errors.json\n") and "background" in told
    content = json.loads((tmp_path / "out/errors.json").read_text())
    results = content["results"]
    assert content["inputs"]["images"] == 12 and results["num_images"] == 12
    kinds = results["kinds"]["all"]
    assert kinds["background"]["count"] == kinds["missed"]["count"] == 1
    assert results["images"][0]["image_id"] == 3 and results["images"][1]["f1"] == 1
    assert 0.9 < results["figures"]["AP"] < 1
    names = ("kinds", "thresholds", "precision_recall", "confusion", "calibration")
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == set(names)


def test_a_threshold_is_taken_and_checked(run, tmp_path):
    flags, _ = run
    words = [*flags, "--output", str(tmp_path), "--limit", "5"]
    tool.main([*words, "--threshold", "0.25"])
    assert json.loads((tmp_path / "errors.json").read_text())["results"]["threshold"] == 0.25
    with pytest.raises(errors.UserError, match="--threshold is 2; it must be from 0 to 1."):
        tool.main([*words, "--threshold", "2"])


@pytest.mark.parametrize(
    "words, sentence",
    [
        ([], "give --workdir, the folder of a finished run, or --config with --predictions."),
        (["--config", "retinanet_shapes"], "--config retinanet_shapes needs --predictions FILE"),
        (["--workdir", "{folder}/none"], "none holds no run: config.json cannot be read"),
    ],
)
def test_missing_predictions_get_one_sentence(words, sentence, run, tmp_path):
    words = [word.format(folder=tmp_path) for word in words]
    with pytest.raises(errors.UserError, match=sentence):
        tool.main([*words, "--output", str(tmp_path)])


def test_a_run_without_predictions_says_how_to_get_them(tmp_path):
    config = config_lib.to_json(config_lib.load("retinanet_shapes"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(errors.UserError, match="has no predictions, which a finished run writes"):
        tool.main(["--workdir", str(tmp_path), "--output", str(tmp_path)])
