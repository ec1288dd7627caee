"""What a resumed run may change, and what is refused."""

import json

import pytest

from detlab import config as config_lib
from detlab import errors
from detlab.data import shapes, wrappers
from detlab.run import workdir as workdir_lib

OTHER = {  # a value that differs from the shipped one, for each key that may change
    "compilation_cache": "False",
    "data.demo_rounding": "down",
    "data.eval_annotations": "b.json",
    "data.eval_images": "b",
    "data.eval_shrink": "area",
    "data.eval_skip_broken": "True",
    "data.eval_splits": "('b',)",
    "data.read_threads": "7",
    "data.root": "/elsewhere",
    "data.skip_broken": "False",
    "data.train_annotations": "a.json",
    "data.train_images": "a",
    "data.workers": "1",
    "eval.batch_size": "3",
    "eval.best_by": "AP75",
    "eval.pictures": "1",
    "eval.rectangles": "64",
    "eval.threshold": "0.7",
    "eval.views": "image,mirror",
    "init_from": "weights/moved",
    "init_help": "x",
    "init_skip": "('params/head/.*',)",
    "model.candidates_per_level": "7",
    "model.max_detections": "7",
    "model.nms_iou": "0.7",
    "model.remat": "True",
    "model.score_threshold": "0.7",
    "train.checkpoint_every": "7",
    "train.eval_every": "7",
    "train.keep_last": "7",
    "train.log_every": "7",
}


OTHER_DETECTORS = {  # such fields of other detectors
    "cornernet": {
        "max_corners": "50",
        "max_tag_distance": "0.3",
        "min_score": "0.1",
        "peak_kernel": "5",
        "soft_nms_sigma": "0.3",
    },
    "darknet": {"class_agnostic": "True", "nms_kind": "diounms", "multi_label": "False"},
    "yolov3": {"objectness_threshold": "0.1", "num_candidates": "7"},
    "yolov5": {"class_agnostic": "True", "multi_label": "False", "num_candidates": "7"},
}


def run_of(folder, config, steps=(), finished=False):
    """A workdir of a run of this config with checkpoints of these steps."""
    (folder / "config.json").write_text(json.dumps(config_lib.to_json(config)))
    for step in steps:
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
    if finished:
        (folder / "eval.json").write_text('{"AP": 0.5}')
    return workdir_lib.Workdir(folder)


def changed(config, **overrides):
    other = config.copy_and_resolve_references()
    for key, text in overrides.items():
        config_lib.override(other, key, text)
    return other


@pytest.fixture(scope="module")
def config():
    return config_lib.load("retinanet_shapes", {"optim.schedule": "cosine"})


def refusal(call, *arguments, **named):
    with pytest.raises(errors.UserError) as error:
        call(*arguments, **named)
    return str(error.value)


def test_every_key_without_effect_is_tried():
    of_others = {f"model.{field}" for fields in OTHER_DETECTORS.values() for field in fields}
    tried = set(OTHER) | of_others
    assert tried == {*workdir_lib.WITHOUT_EFFECT, "init_from"}


@pytest.mark.parametrize("name", OTHER_DETECTORS)
def test_fields_for_predictions_alone_may_change_in_every_detector(name, tmp_path):
    config = config_lib.load(f"{name}_shapes")
    fields = {f"model.{key}": text for key, text in OTHER_DETECTORS[name].items()}
    now = changed(config, **fields)
    assert set(run_of(tmp_path, config, steps=[4]).check(now)) == set(fields)


def test_keys_that_change_nothing_learned_may_change_and_are_told_once(config, tmp_path, capsys):
    workdir = run_of(tmp_path, config, steps=[4])
    now = changed(config, **OTHER)
    found = workdir.check(now)
    assert set(found) == set(OTHER)
    workdir.open(now, {key: found[key] for key in ("data.root", "train.log_every")})
    assert capsys.readouterr().out == (
        "changed since the last start: data.root 'data' -> '/elsewhere', train.log_every"
        f" {config.train.log_every} -> 7\n"
    )
    assert workdir_lib.Workdir(tmp_path).check(now) == {}
    workdir.open(now, {})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "key, text",
    [
        ("seed", "1"),
        ("optim.lr", "0.5"),
        ("optim.clip_norm", "5.0"),
        ("train.batch_size", "4"),
        ("train.accumulate", "2"),
        ("data.canvases", "((64, 64),)"),
        ("data.max_boxes", "3"),
        ("data.flip_horizontal", "0.0"),
        ("data.train_splits", "('b',)"),
        ("data.class_names", "a,b"),
        ("model.depth", "50"),
        ("model.loss_box", "giou"),
    ],
)
def test_a_key_that_changes_what_is_learned_is_refused_with_the_way_on(key, text, config, tmp_path):
    workdir = run_of(tmp_path, config, steps=[4])
    if key == "model.loss_box":
        key, text = "model.octave_base_scale", "5.0"
    now = changed(config, **{key: text})
    text = refusal(workdir.check, now)
    assert text.startswith(f"{tmp_path} holds a run whose config differs in {key} (")
    assert text.endswith(
        " now); give the same config to resume it, or another --workdir, with"
        f" --config.init_from={tmp_path} to begin with its weights."
    )


def test_weights_to_begin_with_are_fixed_until_the_first_checkpoint(config, tmp_path):
    workdir = run_of(tmp_path, config)
    now = changed(config, init_from="weights/x")
    assert refusal(workdir.check, now) == (
        f"{tmp_path} holds a run whose config differs in init_from ('' there, 'weights/x' now);"
        " give the same config to resume it, or another --workdir."
    )


def test_additional_data_may_move_but_not_change(config, tmp_path):
    before = config.copy_and_resolve_references()
    before.data.train_also = ({"root": "a", "train_repeat": 2},)
    workdir = run_of(tmp_path, before, steps=[4])
    now = before.copy_and_resolve_references()
    now.data.train_also = ({"root": "b", "train_repeat": 2},)
    assert list(workdir.check(now)) == ["data.train_also"]
    now.data.train_also = ({"root": "a", "train_repeat": 3},)
    assert "differs in data.train_also" in refusal(workdir.check, now)


# ------------------------------------------------------------------------------------------------
# Longer and shorter runs

STEPS = config_lib.load("retinanet_shapes").train.steps


@pytest.mark.parametrize(
    "schedule, finished, length, goes_on",
    [
        ("constant", False, {"train.steps": "9000"}, True),
        ("constant", True, {"train.steps": "9000"}, True),
        ("constant", True, {"train.steps": "0", "train.epochs": "9"}, True),
        ("step", False, {"train.steps": "9000"}, True),
        ("step", True, {"train.steps": "9000"}, True),
        ("step", True, {"train.steps": "0", "train.epochs": "9"}, False),
        ("cosine", False, {"train.steps": "9000"}, False),
        ("cosine", True, {"train.steps": "9000"}, True),
        ("linear", False, {"train.steps": "0", "train.epochs": "9"}, False),
        ("linear", True, {"train.steps": "9000"}, True),
    ],
)
def test_a_longer_run_goes_on_where_its_learning_rates_can(
    schedule, finished, length, goes_on, config, tmp_path
):
    before = changed(config, **{"optim.schedule": schedule})
    workdir = run_of(tmp_path, before, [4], finished)
    now = changed(before, **length)
    if goes_on:
        found = workdir.check(now)
        assert list(found) == sorted(length) and workdir_lib.has_other_length(found)
    else:
        text = refusal(workdir.check, now)
        assert "and its milestones count" in text or f"rates of its {schedule} schedule" in text
        assert f"--config.init_from={tmp_path}" in text


def test_an_unfinished_cosine_names_the_way_with_its_weights(config, tmp_path):
    workdir = run_of(tmp_path, config, [4])
    assert refusal(workdir.check, changed(config, **{"train.steps": "9000"})) == (
        f"{tmp_path} holds a run whose config differs in train.steps ({STEPS} there, 9000 now), and"
        " the learning rates of its cosine schedule depend on the length; give the same config to"
        f" resume it, or another --workdir, with --config.init_from={tmp_path} to begin with its"
        " weights."
    )


def test_a_run_that_is_longer_than_asked_is_refused(config, tmp_path):
    workdir = run_of(tmp_path, config, [4, 6])
    workdir.check_length(6)
    assert refusal(workdir.check_length, 5) == (
        f"{tmp_path} has taken 6 steps, more than the 5 of this config; give a larger"
        " config.train.steps or config.train.epochs, or another --workdir."
    )


def test_the_figures_of_a_prolonged_run_are_kept(config, tmp_path, capsys):
    workdir = run_of(tmp_path, config, [6], finished=True)
    now = changed(config, **{"train.steps": "9000"})
    workdir.open(now, workdir.check(now))
    assert not workdir.finished
    assert (tmp_path / "eval_6.json").read_text() == '{"AP": 0.5}'
    assert capsys.readouterr().out == (
        f"changed since the last start: train.steps {STEPS} -> 9000\n"
        f"the run goes on from step 6; its figures so far: {tmp_path}/eval_6.json\n"
    )


# ------------------------------------------------------------------------------------------------
# Data that were moved


def pictures(count, first=0):
    return wrappers.Filtered(shapes.Shapes("val", num_images=9), range(first, first + count))


@pytest.mark.parametrize(
    "now, others",
    [(pictures(5), "4 images before, 5 now"), (pictures(4, 1), "4 images, with other names or")],
)
def test_other_training_images_at_a_changed_path_are_refused(now, others, config, tmp_path, capsys):
    workdir = run_of(tmp_path, config, steps=[4])
    workdir.check_images({}, training=pictures(4), evaluation=pictures(2))
    moved = {"data.root": ("a", "b")}
    workdir.check_images(moved, training=pictures(4), evaluation=pictures(2))
    assert capsys.readouterr().out == ""
    text = refusal(workdir.check_images, moved, training=now, evaluation=pictures(2))
    start = f"the training data are not those that the run in {tmp_path} has learned from: {others}"
    assert text.startswith(start)
    assert "give those with config.data.root" in text
    assert f"--config.init_from={tmp_path}" in text


def test_images_that_changed_in_place_and_other_evaluation_images_are_told_once(
    config, tmp_path, capsys
):
    workdir = run_of(tmp_path, config, steps=[4])
    workdir.check_images({}, training=pictures(4), evaluation=pictures(2))
    for _ in range(2):
        workdir.check_images({}, training=pictures(5), evaluation=pictures(3))
    assert capsys.readouterr().out == (
        "the training data have changed since the last start: 4 images before, 5 now\n"
        "the evaluation data have changed since the last start: 2 images before, 3 now\n"
    )


def test_a_run_without_a_checkpoint_has_learned_from_no_images(config, tmp_path, capsys):
    workdir = run_of(tmp_path, config)
    for count in (4, 5):
        workdir.check_images(
            {"data.root": ("a", "b")}, training=pictures(count), evaluation=pictures(2)
        )
    assert capsys.readouterr().out == ""
