"""`python -m detlab.eval`: metrics, saved predictions, pictures, errors."""

import contextlib
import io
import json
import types as python_types

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from detlab import config as config_lib
from detlab import errors, evaluation, files, sharding, types
from detlab import eval as eval_lib
from detlab import predictions as predictions_lib
from detlab.data import batch as batch_lib
from detlab.data import records, shapes, transforms


class Renamed:
    """Shapes with the given ids; the images at `broken` are unreadable."""

    def __init__(self, ids, broken=()):
        self._shapes = shapes.Shapes("val", num_images=len(ids))
        self._ids, self._broken = ids, broken
        self.class_names = shapes.CLASS_NAMES

    def __len__(self):
        return len(self._ids)

    def __getitem__(self, i):
        if i in self._broken:
            raise records.DataError(f"image file {self._ids[i]} cannot be decoded")
        return self._shapes[i]

    def annotation(self, i):
        return self._shapes.annotation(i)

    def size(self, i):
        return self._shapes.size(i)

    def image_id(self, i):
        return self._ids[i]


def perfect(truth):
    return [
        {k: t[k] for k in ("image_id", "boxes", "labels")}
        | {"scores": np.ones(len(t["boxes"]), np.float32)}
        for t in truth
    ]


@pytest.fixture(scope="module")
def evaluated(tiny_run, tmp_path_factory):
    """A folder with figures.json, predictions.json, pictures and the output of an evaluation."""
    folder = tmp_path_factory.mktemp("evaluated")
    with contextlib.redirect_stdout(io.StringIO()) as output:
        eval_lib.main(
            ["--workdir", str(tiny_run), "--checkpoint", "last", "--threshold", "0.01"]
            + ["--json", str(folder / "figures.json")]
            + ["--predictions", str(folder / "predictions.json")]
            + ["--draw", str(folder / "pictures"), "--draw_limit", "3"]
        )
    (folder / "output.txt").write_text(output.getvalue())
    return folder


def test_figures_equal_those_of_training_and_those_of_saved_predictions(
    evaluated, tiny_run, tiny_config, tmp_path
):
    output = (evaluated / "output.txt").read_text()
    assert "rectangle" in output and "AP50" in output and "mAP07" in output
    assert "compiled prediction for 64x64 in" in output and "img/s after compilation" in output
    figures = json.loads((evaluated / "figures.json").read_text())
    trained = json.loads((tiny_run / "eval.json").read_text())
    for key in evaluation.scalars(figures):
        assert figures[key] == pytest.approx(trained[key], abs=1e-6)

    arguments = ["--config", tiny_config, "--predictions", str(evaluated / "predictions.json")]
    eval_lib.main([*arguments, "--json", str(tmp_path / "again.json")])
    again = json.loads((tmp_path / "again.json").read_text())
    assert figures["AR100"] > 0
    for key in evaluation.scalars(figures):
        # Saved boxes are rounded to 0.001 px.
        assert again[key] == pytest.approx(figures[key], abs=1e-3)


def test_every_image_is_predicted_once_though_the_last_batch_is_partial(evaluated):
    images = json.loads((evaluated / "predictions.json").read_text())["images"]
    assert sorted(p["image_id"] for p in images) == list(range(200))


def test_pictures_are_drawn_for_as_many_images_as_asked(evaluated):
    names = sorted(path.name for path in (evaluated / "pictures").iterdir())
    assert names == ["0.png", "1.png", "2.png", "contact_sheet.png"]
    for name in names:
        assert cv2.imread(str(evaluated / "pictures" / name)).shape[2] == 3


def test_every_image_gets_its_own_picture_whatever_its_id(tmp_path):
    ids = ["img.v1.001", "img.v1.002", "a/x", "b/x", "a_x", "A_X", "contact_sheet", 7]
    source = Renamed(ids)
    truth = evaluation.ground_truth(source)
    assert predictions_lib.draw(tmp_path, source, truth, perfect(truth), 0.5, limit=0) == 8
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.png"
        for name in ("img.v1.001", "img.v1.002", "a_x", "b_x", "a_x_5", "A_X_6")
        + ("contact_sheet_7", "7", "contact_sheet")
    }
    sheet = cv2.imread(str(tmp_path / "contact_sheet.png"))
    assert sheet.shape[0] < sheet.shape[1]


def test_names_that_numbering_would_repeat_still_differ():
    assert files.unique_names(["a", "a_2", "a", "b"]) == ["a", "a_2", "a_2_2", "b"]


def test_an_image_that_cannot_be_drawn_is_left_out_with_a_sentence(tmp_path, capsys):
    source = Renamed(["one", "two", "three"], broken=[1])
    truth = evaluation.ground_truth(source)
    assert predictions_lib.draw(tmp_path, source, truth, perfect(truth), 0.5, limit=0) == 2
    assert "image file two cannot be decoded" in capsys.readouterr().out
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"one.png", "three.png", "contact_sheet.png"}


def test_a_picture_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    source = Renamed(["one"])
    truth = evaluation.ground_truth(source)
    with pytest.raises(errors.UserError, match="cannot write .*one.png"):
        predictions_lib.draw(tmp_path / "file", source, truth, [], 0.5, limit=0)


def nothing_found(params, state, images, image_size):
    batch = images.shape[0]
    found = types.Detections(
        boxes=jnp.zeros((batch, 1, 4)),
        scores=jnp.zeros((batch, 1)),
        labels=jnp.zeros((batch, 1), jnp.int32),
        valid=image_size[:, :1] > 0,
    )
    return found, {}


def test_images_that_cannot_be_read_are_skipped_only_where_the_config_says_so(tiny_config, capsys):
    source = Renamed(["one", "two", "three"], broken=[1])
    mesh = sharding.make_mesh()
    config = config_lib.load(tiny_config, {"eval.batch_size": "2"})
    with pytest.raises(errors.UserError, match="image file two cannot be decoded"):
        evaluation.predict(nothing_found, {}, {}, source, config, mesh)
    config.data.eval_skip_broken = True
    predictions, _ = evaluation.predict(nothing_found, {}, {}, source, config, mesh)
    assert [p["image_id"] for p in predictions] == ["one", "three"]
    output = capsys.readouterr().out
    assert "skipped: image file two cannot be decoded" in output
    assert "unreadable images: 1 of 3, counted as images without detections" in output


@pytest.mark.parametrize("shrink, grey", [("linear", 255), ("area", 128)])
def test_pictures_are_made_smaller_by_the_rule_of_evaluation(shrink, grey, tiny_config):
    """Of four rows, bilinear interpolation reads the two in the middle."""

    class Stripes(Renamed):
        def __getitem__(self, i):
            rows = np.tile(np.uint8([0, 255, 255, 0]), 32)
            return super().__getitem__(i) | {"image": np.tile(rows[:, None, None], (1, 128, 3))}

    def look(params, state, images, image_size):
        np.testing.assert_array_equal(images[0], np.full((32, 32, 3), grey))
        return nothing_found(params, state, images, image_size)

    mesh = sharding.make_mesh()
    config = config_lib.load(tiny_config, {"data.canvases": "((32, 32),)"})
    config.eval.batch_size = mesh.size
    config.data.eval_shrink = shrink
    predictions, _ = evaluation.predict(look, {}, {}, Stripes(["one"]), config, mesh)
    assert len(predictions) == 1


def reached_on_wide_images(params, state, images, image_size):
    """Finds nothing; reports a bound as exceeded on images wider than 64 px and empty canvases."""
    found, _ = nothing_found(params, state, images, image_size)
    wide, empty = image_size[:, 1] > 64, (images == images[:, :1, :1]).all((1, 2, 3))
    never = jnp.zeros(len(images), bool)
    return found, {"candidates_per_level": wide | empty, "max_detections": never}


class Sized(Renamed):
    """Shapes; the first `num_tall` are cropped to 128 x 40 px."""

    def __init__(self, ids, num_tall, broken=()):
        super().__init__(ids, broken)
        self._num_tall = num_tall

    def __getitem__(self, i):
        record = super().__getitem__(i)
        return {**record, "image": record["image"][:, : self.size(i)[1]]}

    def size(self, i):
        return (128, 40) if i < self._num_tall else (128, 128)


def test_exceeded_bounds_are_counted_on_images_alone_over_all_batches(tiny_config):
    """Two canvases, each with a last batch that is padded with empty images."""
    source = Sized(list("abcdefghijkl"), num_tall=5, broken=[10])
    overrides = {"eval.batch_size": "4", "data.canvases": "((128,64),(128,128))"}
    config = config_lib.load(tiny_config, overrides)
    config.data.eval_skip_broken = True
    predictions, bounds = evaluation.predict(
        reached_on_wide_images, {}, {}, source, config, sharding.make_mesh()
    )
    assert len(predictions) == 11
    key = "config.model.candidates_per_level"
    assert bounds == {key: {"keeps": 50, "exceeded_on": 6, "images": 11}}


def test_exceeded_bounds_are_told_once_with_the_key_and_the_number_of_images(
    evaluated, tiny_run, tiny_config, tmp_path, capsys
):
    sentence = (
        "On 200 of 200 images, more candidates passed the score threshold than"
        " config.model.candidates_per_level (50) keeps; the lowest-scoring ones were dropped before"
        " suppression."
    )
    output = (evaluated / "output.txt").read_text()
    assert output.count(sentence) == output.count("On ") == 1
    bounds = {"config.model.candidates_per_level": dict(keeps=50, exceeded_on=200, images=200)}
    for path in (evaluated / "figures.json", tiny_run / "eval.json"):
        assert json.loads(path.read_text())["bounds"] == bounds

    # Saved predictions have no bounds.
    figures = tmp_path / "figures.json"
    saved = ["--predictions", str(evaluated / "predictions.json"), "--json", str(figures)]
    eval_lib.main(["--config", tiny_config, *saved])
    assert "On " not in capsys.readouterr().out
    assert "bounds" not in json.loads(figures.read_text())


def test_bounds_that_were_not_exceeded_are_not_told(tmp_path, capsys, tiny_run, monkeypatch):
    def within(*arguments):
        found, flags = reached_on_wide_images(*arguments)
        return found, {name: flag & False for name, flag in flags.items()}

    within.compiled_in, within.compile_seconds = {}, 0.0
    monkeypatch.setattr(evaluation, "Predictor", lambda detector, mesh: within)
    figures = tmp_path / "figures.json"
    eval_lib.main(["--workdir", str(tiny_run), "--json", str(figures)])
    assert "On " not in capsys.readouterr().out
    assert "bounds" not in json.loads(figures.read_text())


def test_prediction_is_compiled_once_for_each_canvas():
    detector = python_types.SimpleNamespace(predict_with_bounds=nothing_found)
    mesh = sharding.make_mesh()
    predictor = evaluation.Predictor(detector, mesh)
    for canvas in ((8, 16), (16, 8), (8, 16)):
        images = np.zeros((mesh.size, *canvas, 3), np.uint8)
        size = np.full((mesh.size, 2), canvas, np.int32)
        found, _ = predictor({}, {}, *sharding.put_batch((images, size), mesh))
        assert found.valid.all()
    assert list(predictor.compiled_in) == [(8, 16), (16, 8)]
    assert predictor.compile_seconds == sum(predictor.compiled_in.values()) > 0


@pytest.mark.parametrize("canvas", [(128, 128), (64, 200), (300, 97)])
def test_boxes_come_back_to_the_original_image_exactly(canvas):
    record = shapes.Shapes("val", num_images=1)[0]
    moved = transforms.pad(transforms.resize_keep_ratio(record, *canvas), canvas, 0)
    back = batch_lib.to_original(moved["boxes"], moved["placement"], (128, 128))
    np.testing.assert_allclose(back, record["boxes"], atol=1e-3)


def test_a_perfect_prediction_scores_one_in_both_protocols():
    truth = evaluation.ground_truth(shapes.Shapes("val", num_images=20))
    result = evaluation.score(truth, perfect(truth), shapes.CLASS_NAMES)
    assert result["AP"] == result["mAP07"] == result["mAP12"] == pytest.approx(1.0)


def test_predictions_that_are_not_finite_are_refused_with_a_sentence():
    truth = evaluation.ground_truth(shapes.Shapes("val", num_images=1))
    predictions = perfect(truth)
    predictions[0]["scores"][0] = np.nan
    with pytest.raises(errors.UserError, match="cannot be scored: prediction of image 0: scores"):
        evaluation.score(truth, predictions, shapes.CLASS_NAMES)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda run, tiny: ["--workdir", "gone"], ["gone", "does not exist"]),
        (lambda run, tiny: ["--workdir", "."], ["holds no checkpoint"]),
        (lambda run, tiny: ["--workdir", run, "--checkpoint", "99"], ["'99'", "best, last"]),
        (
            lambda run, tiny: ["--workdir", run, "--config", tiny],
            ["--workdir and --config exclude each other"],
        ),
        (lambda run, tiny: [], ["give --workdir"]),
        (lambda run, tiny: ["--config", tiny], ["--checkpoint"]),
        (lambda run, tiny: ["--config", tiny, "--predictions", "gone.json"], ["gone.json"]),
        (lambda run, tiny: ["--config", tiny, "--predictions", tiny], ["not a predictions file"]),
        (lambda run, tiny: ["--config", tiny, "--predictions", "."], ["cannot read"]),
        (lambda run, tiny: ["--workdir", run, "--config.data.source=voc"], ["does not exist"]),
        (lambda run, tiny: ["--workdir", run, "--threshold", "30"], ["--threshold is 30"]),
        (lambda run, tiny: ["--workdir", run, "--draw_limit", "-1"], ["--draw_limit is -1"]),
        (lambda run, tiny: ["--workdir", run, "--draw", tiny], ["cannot write", "tiny.py"]),
        (lambda run, tiny: ["--workdir", run, "--json", "."], ["it is a folder"]),
        (lambda run, tiny: ["--workdir", run, "--json", f"{tiny}/x"], ["cannot write", "tiny.py"]),
        (lambda run, tiny: ["--workdir", run, "--predictions", run], ["it is a folder"]),
        (lambda run, tiny: ["--workdir", run, "--format", "coco"], ["name their file with --pred"]),
        (
            lambda run, tiny: ["--config", tiny, "--predictions", "a.json", "--format", "coco"],
            ["--format is that of the predictions to write", "are read in either format"],
        ),
    ],
)
def test_a_mistake_gets_one_sentence(make, words, tiny_run, tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "predict", None)  # every error comes before the long work
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


def test_results_of_coco_that_are_written_give_the_same_figures_when_read(
    tiny_run, tiny_config, tmp_path, monkeypatch, capsys
):
    def guess(params, state, images, image_size):
        rng = np.random.default_rng(0)
        corners = rng.uniform(0, 40, (len(images), 5, 2))
        found = types.Detections(
            boxes=jnp.array(np.concatenate([corners, corners + 20], axis=2), jnp.float32),
            scores=jnp.array(rng.random((len(images), 5)), jnp.float32),
            labels=jnp.array(rng.integers(0, 4, (len(images), 5)), jnp.int32),
            valid=image_size[:, :1] > jnp.zeros(5),
        )
        return found, {}

    guess.compiled_in, guess.compile_seconds = {}, 0.0
    monkeypatch.setattr(evaluation, "Predictor", lambda detector, mesh: guess)
    results, figures, again = (str(tmp_path / name) for name in ("r.json", "f.json", "g.json"))
    written = ["--predictions", results, "--format", "coco", "--json", figures]
    eval_lib.main(["--workdir", str(tiny_run), *written])
    rows = json.loads((tmp_path / "r.json").read_text())
    assert len(rows) == 1000 and list(rows[0]) == ["image_id", "category_id", "bbox", "score"]
    eval_lib.main(["--config", tiny_config, "--predictions", results, "--json", again])
    figures, again = (json.loads((tmp_path / name).read_text()) for name in ("f.json", "g.json"))
    assert again == figures and figures["AP50"] > 0


def saved(**changed):
    image = {"image_id": 0, "boxes": [[0, 0, 9, 9]], "scores": [0.5], "labels": [1]}
    return {"class_names": list(shapes.CLASS_NAMES), "images": [{**image, **changed}]}


@pytest.mark.parametrize(
    "content, words",
    [
        (saved(labels=[4]), "label 4 is outside 0..3"),
        (saved(labels=[2**40]), "not a predictions file"),
        (saved(image_id="gone"), "no such image"),
        (saved(image_id=[0]), "do not match"),
        (saved(scores=[0.5, 0.4]), "scores has the shape (2,), not (1,) with one entry per box"),
        (saved(scores=["high"]), "not a predictions file"),
        (saved(scores=[float("nan")]), "not finite"),
        (saved(boxes=[[0, 0, 9, float("nan")]]), "not finite"),
        (saved(boxes=[[0, 0, 9, 9, 0, 0, 9, 9]]), "not [n, 4]"),
        (saved() | {"images": saved()["images"] * 2}, "given twice"),
        (saved() | {"images": [5]}, "not a predictions file"),
        ([5], "entry 0 is 5, which is not a JSON object"),
        (b"\xff\xfe\x00", "not a predictions file"),
    ],
)
def test_saved_predictions_that_do_not_fit_get_one_sentence(content, words, tmp_path):
    path = tmp_path / "predictions.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    source = shapes.Shapes("val", num_images=1)
    with pytest.raises(errors.UserError) as error:
        saved = predictions_lib.load(path)
        predictions_lib.match(saved, source, evaluation.ground_truth(source))
    assert words in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)
