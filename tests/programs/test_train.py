"""`python -m detlab.train`: files, resuming, signals, errors."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import types as python_types

import jax
import numpy as np
import pytest
import tfds_writer
from flax import traverse_util

from detlab import cli, contract, data_sets, demo, distributed, errors, train, trained
from detlab import config as config_lib
from detlab import eval as eval_lib
from detlab.data import voc
from detlab.run import checkpoint, dry_run, lock, optim
from detlab.run import length as length_lib
from detlab.run import log as log_lib
from detlab.run import setup as setup_lib
from detlab.run import state as state_lib
from detlab.run import step as step_lib
from detlab.run import workdir as workdir_lib


def leaves(weights):
    return jax.tree.leaves((weights.params, weights.state))


def message(call, *arguments) -> str:
    with pytest.raises(errors.UserError) as error:
        call(*arguments)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_run_leaves_figures_checkpoints_curves_and_pictures(tiny_run):
    rows = log_lib.read_rows(tiny_run / "metrics.jsonl")
    train_rows = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in train_rows] == [2, 3, 4, 6]  # every 2, and at each save
    for row in train_rows:
        parts = row["train/loss/cls"] + row["train/loss/box"]
        assert row["train/loss"] == pytest.approx(parts, rel=1e-5)
        for name in ("dropped_boxes", "no_slot_boxes", "skipped_records", "skipped_images"):
            assert row[f"data/{name}"] == 0
    eval_rows = [row for row in rows if "eval/AP" in row]
    assert [row["step"] for row in eval_rows] == [3, 6]
    assert {"eval/AP50", "eval/AP_small", "eval/AR100", "eval/mAP07", "eval/mAP12"} <= set(
        eval_rows[0]
    )
    assert checkpoint.find(tiny_run, "last").name == "6"
    assert (tiny_run / "curves.png").stat().st_size > 1000
    pictures = sorted(p.name for p in (tiny_run / "pictures").iterdir())
    assert pictures == ["0.png", "1.png", "contact_sheet.png"]
    assert list((tiny_run / "tensorboard").iterdir())
    assert json.loads((tiny_run / "eval.json").read_text())["AP"] == eval_rows[-1]["eval/AP"]
    environment = json.loads((tiny_run / "env.json").read_text())
    assert environment["packages"]["jax"] == jax.__version__ and environment["config_hash"]
    info = checkpoint.load_weights(tiny_run).info
    assert info["class_names"] == ["rectangle", "ellipse", "triangle", "cross"]


def test_a_hidden_copy_to_the_device_ends_a_run(tiny_config, tmp_path, monkeypatch):
    """Such as the implicit copy of a NumPy array that is passed to a jitted call."""
    monkeypatch.setattr(step_lib.sharding, "put_batch", lambda batch, mesh: batch)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train.main(["--config", tiny_config, "--workdir", str(tmp_path)])


@pytest.mark.slow
def test_a_profile_of_some_steps_is_written_and_the_run_is_the_same(
    tiny_run, tiny_config, tmp_path, capsys
):
    train.main(["--config", tiny_config, "--workdir", str(tmp_path), "--profile", "2"])
    assert f"profile:      {tmp_path / 'profile'}" in capsys.readouterr().out
    assert list((tmp_path / "profile").rglob("*.trace.json.gz"))
    assert (tmp_path / "eval.json").read_text() == (tiny_run / "eval.json").read_text()


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--profile", "-1"], "--profile is -1"),
        (["--profile", "2", "--dry_run"], "--profile and --dry_run exclude each other"),
        (["--draw", "look"], "--draw needs --dry_run"),
    ],
)
def test_flags_that_cannot_be_are_refused(words, sentence, tiny_config):
    assert sentence in message(train.main, ["--config", tiny_config, *words])


def test_a_finished_run_says_so(tiny_run, tiny_config, capsys):
    train.main(["--config", tiny_config, "--workdir", str(tiny_run)])
    output = capsys.readouterr().out
    assert "is finished" in output and "data:" not in output, "reported before data are opened"
    assert "prolong it with a larger config.train.steps or epochs" in output


def test_a_workdir_of_another_config_is_refused_with_the_keys(tiny_run, tiny_config):
    arguments = ["--config", tiny_config, "--workdir", str(tiny_run), "--config.optim.lr=0.5"]
    text = message(train.main, arguments)
    assert "optim.lr (0.001 there, 0.5 now)" in text and str(tiny_run) in text


def test_a_workdir_older_than_a_key_is_resumed_with_what_was_done_then(tiny_config, tmp_path):
    config = config_lib.load(tiny_config)
    values = config_lib.to_json(config)
    for key in config_lib.LATER["data"]:
        del values["data"][key]
    (tmp_path / "config.json").write_text(json.dumps(values))
    workdir = workdir_lib.Workdir(tmp_path)
    workdir.check(config)  # no difference
    assert workdir.latest_step is None
    config.data.demo_rounding = "half_even"  # has no effect on training
    workdir_lib.Workdir(tmp_path).check(config)
    config.data.rounding = "down"
    words = r"differs in data.rounding \('half_up' there, 'down' now\); give"
    with pytest.raises(errors.UserError, match=words):
        workdir_lib.Workdir(tmp_path).check(config)


def test_a_field_at_its_default_may_be_named_or_not(tiny_config, tmp_path):
    config = config_lib.load(tiny_config)
    values = config_lib.to_json(config)
    values["model"] |= dict(dtype="float32", strides=[8, 16, 32, 64, 128])
    values["init_skip"] = ["params/head/.*"]  # only matters before the first step
    (tmp_path / "config.json").write_text(json.dumps(values))
    workdir_lib.Workdir(tmp_path).check(config)
    values["model"]["strides"] = [8, 16, 32]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(errors.UserError, match=r"differs in model.strides \(\[8, 16, 32\] there"):
        workdir_lib.Workdir(tmp_path).check(config)


def test_a_workdir_of_a_detector_that_is_not_there_is_named(tiny_config, tmp_path):
    config = config_lib.load(tiny_config)
    values = {**config_lib.to_json(config), "detector": "retinaface"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    sentence = r"config.json cannot be read \(config.detector is 'retinaface'; .*\); give another"
    with pytest.raises(errors.UserError, match=sentence):
        workdir_lib.Workdir(tmp_path).check(config)


def test_sigterm_saves_and_exits_0_and_the_resumed_run_is_bit_equal(
    tiny_run, tiny_config, tmp_path
):
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "detlab.train", "--config", tiny_config]
    command += ["--workdir", str(workdir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while not any(row["step"] >= 2 for row in log_lib.read_rows(workdir / "metrics.jsonl")):
            assert process.poll() is None, "the run ended before its second step"
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    stopped = int(checkpoint.find(workdir, "last").name)
    if stopped < 6:  # a fast machine may have finished the last step
        assert f"stopped by SIGTERM at step {stopped} of 6" in output
    train.main(command[3:])
    whole = checkpoint.load_weights(tiny_run, "last")
    resumed = checkpoint.load_weights(workdir, "last")
    for a, b in zip(leaves(whole), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    losses = [
        [row["train/loss"] for row in log_lib.read_rows(w / "metrics.jsonl") if "train/loss" in row]
        for w in (tiny_run, workdir)
    ]
    assert losses[0][-1] == losses[1][-1]


def test_a_signal_at_any_place_of_the_loop_saves_the_step_that_was_reached(
    tiny_config, tmp_path, monkeypatch, capsys
):
    write = log_lib.RunLog.write

    def interrupted(self, step, batch_size):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return write(self, step, batch_size)

    monkeypatch.setattr(log_lib.RunLog, "write", interrupted)
    arguments = ["--config", tiny_config, "--workdir", str(tmp_path), "--config.train.log_every=1"]
    arguments += ["--config.train.checkpoint_every=6", "--config.train.eval_every=6"]
    train.main(arguments)
    assert "stopped by SIGTERM at step 3 of 6" in capsys.readouterr().out
    assert checkpoint.latest_step(tmp_path) == 3
    assert [row["step"] for row in log_lib.read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.slow
def test_a_resumed_run_does_not_need_the_weights_that_it_began_with(
    tiny_run, tiny_config, tmp_path, monkeypatch
):
    begun = tmp_path / "begun"
    shutil.copytree(tiny_run, begun)
    workdir = tmp_path / "run"
    arguments = ["--config", tiny_config, "--workdir", str(workdir), f"--config.init_from={begun}"]
    monkeypatch.setattr(distributed, "StopSignals", lambda: StopAfter(workdir, 2))
    train.main(arguments)
    assert checkpoint.latest_step(workdir) < 6
    monkeypatch.undo()
    shutil.rmtree(begun)
    train.main(arguments)
    assert checkpoint.latest_step(workdir) == 6


class StopAfter(distributed.StopSignals):
    """Replaces signals: stops once the log has reached a step."""

    def __init__(self, workdir, step):
        super().__init__()
        self.name, self._workdir, self._step = "test", workdir, step

    @property
    def wanted(self):
        rows = log_lib.read_rows(self._workdir / "metrics.jsonl")
        return any(row["step"] >= self._step for row in rows)


def test_an_evaluation_that_a_kill_took_is_made_up_on_resume(tiny_run, tiny_config, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    (workdir / "eval.json").unlink()
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    (workdir / "metrics.jsonl").write_text("\n".join(rows[:-1]) + "\n" + rows[-1][:20])
    train.main(["--config", tiny_config, "--workdir", str(workdir)])
    before = log_lib.read_rows(tiny_run / "metrics.jsonl")[-1]
    after = log_lib.read_rows(workdir / "metrics.jsonl")[-1]
    assert after == before
    assert (workdir / "eval.json").exists()


@pytest.mark.slow
def test_a_prolonged_run_is_the_longer_run(tiny_config, tmp_path, capsys):
    """Learning rates that do not depend on the length, and a short run that has finished."""
    arguments = ["--config", tiny_config, "--config.optim.schedule=constant"]
    arguments += ["--config.train.eval_every=4", "--config.optim.warmup_steps=1", "--workdir"]
    long, prolonged = tmp_path / "long", tmp_path / "prolonged"
    train.main([*arguments, str(long), "--config.train.steps=4"])
    train.main([*arguments, str(prolonged), "--config.train.steps=2"])
    capsys.readouterr()
    train.main([*arguments, str(prolonged), "--config.train.steps=4", "--config.train.log_every=1"])
    output = capsys.readouterr().out
    assert (
        output.count("changed since the last start: train.log_every 2 -> 1, train.steps 2 -> 4\n")
        == 1
    )
    assert f"resuming {prolonged} at step 2 of 4" in output and "learning rate" not in output
    assert f"its figures so far: {prolonged / 'eval_2.json'}" in output
    whole, both = (checkpoint.load_weights(w, "last") for w in (long, prolonged))
    for a, b in zip(leaves(whole), leaves(both), strict=True):
        np.testing.assert_array_equal(a, b)
    figures = [json.loads((w / "eval.json").read_text()) for w in (long, prolonged)]
    assert figures[0] == figures[1] and (prolonged / "eval_2.json").exists()


@pytest.mark.parametrize(
    "schedule, rates",
    [
        # From step 2 to 6, and to 8: 1e-3 / 2 * (1 + cos(pi * progress)), 1e-3 * (1 - progress).
        ("cosine", "0.000146 at step 6, 0.00025 at step 7"),
        ("linear", "0.00025 at step 6, 0.000333 at step 7"),
        ("constant", ""),
    ],
)
def test_a_prolonged_schedule_says_how_its_learning_rate_goes_on(
    schedule, rates, tiny_config, capsys
):
    config = config_lib.load(tiny_config, {"optim.schedule": schedule})
    longer = python_types.SimpleNamespace(
        config=config,
        length=length_lib.Length(8, 3, 3),
        optimizer=python_types.SimpleNamespace(
            schedule=optim.learning_rate(config.optim, 8, batch_size=4, steps_per_unit=1)
        ),
    )
    setup_lib.describe_prolonged(longer, reached=6)
    end = f"the {schedule} schedule now ends at step 8\n"
    assert capsys.readouterr().out == (f"learning rate: {rates}: {end}" if rates else "")


def test_a_run_may_be_evaluated_while_it_trains(tiny_run, tiny_config, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    args, _ = cli.parse(["--workdir", str(workdir)], cli.evaluation("doc"))
    with lock.held(workdir):
        _, weights = trained.load(args, {})
        config = config_lib.load(tiny_config, {"init_from": str(workdir)})
        state_lib.initial_weights(contract.build(config), config)
    for a, b in zip(leaves(weights), leaves(checkpoint.load_weights(tiny_run)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_loss_that_is_not_finite_stops_with_step_terms_and_images(tiny_config, tmp_path):
    arguments = ["--config", tiny_config, "--workdir", str(tmp_path / "run")]
    arguments += ["--config.optim.lr=1e30", "--config.optim.warmup_steps=0"]
    text = message(train.main, arguments)
    assert "gave non-finite values" in text and "loss/cls" in text and "on images" in text
    assert checkpoint.latest_step(tmp_path / "run") is None


def test_an_error_waits_for_the_checkpoint_that_is_being_written(
    tiny_config, tmp_path, monkeypatch
):
    """The run diverges after the first save, whose checkpoint is complete and finite."""
    arguments = ["--config", tiny_config, "--workdir", str(tmp_path)]
    arguments += ["--config.train.checkpoint_every=1", "--config.optim.schedule=step"]
    arguments += ["--config.optim.milestones=(1,)", "--config.optim.milestone_factor=1e35"]
    arguments += ["--config.optim.warmup_steps=0"]
    text = message(train.main, arguments)
    assert "step 2 gave non-finite values" in text
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert all(np.isfinite(x).all() for x in leaves(checkpoint.load_weights(tmp_path, "last")))


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("config.json", "[1]", ["config.json", "--workdir"]),
        ("config.json", "{", ["config.json", "cannot be read"]),
        ("metrics.jsonl", "5\n5\n", ["metrics.jsonl", "line 1"]),
    ],
)
def test_a_broken_file_of_the_run_is_named(name, content, words, tiny_run, tiny_config, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    (workdir / "eval.json").unlink()
    (workdir / name).write_text(content)
    text = message(train.main, ["--config", tiny_config, "--workdir", str(workdir)])
    for word in words:
        assert word in text


def test_a_workdir_that_is_a_file_is_refused(tiny_config, tmp_path):
    (tmp_path / "run").write_text("")
    text = message(train.main, ["--config", tiny_config, "--workdir", str(tmp_path / "run")])
    assert "is a file" in text


def test_a_dry_run_takes_two_steps_and_writes_only_the_images_as_the_detector_gets_them(
    tiny_config, tmp_path, capsys
):
    look = tmp_path / "look"
    arguments = ["--config", tiny_config, "--workdir", str(tmp_path / "run"), "--dry_run"]
    train.main([*arguments, "--draw", str(look), "--config.data.flip_horizontal=1.0"])
    output = capsys.readouterr().out
    assert "step 1 in" in output and "step 2 in" in output and "no run was written" in output
    for part in ("train", "eval"):
        assert f"{part} data: 8 of 8 images tried are read\n" in output
    path = look / "batches.png"
    assert str(path) in output
    assert list(tmp_path.iterdir()) == [look] and list(look.iterdir()) == [path]
    flipped = path.read_bytes()
    config = config_lib.load(tiny_config, {"data.flip_horizontal": "0.0"})
    dry_run.draw_batches(look, data_sets.open_source(config, "train"), config)
    assert path.read_bytes() != flipped


@pytest.mark.slow
def test_the_learning_rate_is_scaled_by_the_batch_and_the_log_says_so(tiny_config, capsys):
    train.main(["--config", tiny_config, "--dry_run", "--config.optim.lr_batch_size=16"])
    assert "learning rate: 0.00025 for 4 images per step, scaled from 0.001 for 16" in (
        capsys.readouterr().out
    )


def test_missing_weights_stop_with_the_file_the_command_and_the_way_without():
    text = message(train.main, ["--config", "experiments/retinanet_voc.py"])
    assert "weights/resnet50_torchvision" in text
    assert "resnet50-0676ba61.pth" in text
    assert "detlab convert --source torchvision" in text
    assert "--config experiments/retinanet_voc.py:scratch" in text


@pytest.fixture(scope="module")
def small_voc_config():
    """The VOC config at a width that initialises in a second, with the published frozen layers."""
    overrides = {
        "model.backbone_width": "8",
        "model.backbone_stages": "(1,1,1,1)",
        "model.neck_width": "16",
        "model.head_width": "16",
        "data.canvases": "((64,64),)",
    }
    return config_lib.load("retinanet_voc", overrides)


@pytest.fixture(scope="module")
def backbone_weights(small_voc_config, tmp_path_factory):
    """A weights folder as the converter writes it, with a backbone of random values."""
    detector = contract.build(small_voc_config)
    images = np.zeros((1, 64, 64, 3), np.uint8)
    shapes = jax.eval_shape(detector.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)
    params, state = jax.tree.map(lambda s: rng.random(s.shape, np.float32) + 0.5, shapes)
    folder = tmp_path_factory.mktemp("weights") / "backbone"
    backbone_state = {"batch_stats": {"backbone": state["batch_stats"]["backbone"]}}
    info = {"subtrees": ["params/backbone", "batch_stats/backbone"]}
    checkpoint.save_weights(folder, {"backbone": params["backbone"]}, backbone_state, info)
    return folder


@pytest.mark.slow
def test_no_frozen_leaf_or_used_statistic_keeps_its_initial_value(
    small_voc_config, backbone_weights
):
    config = small_voc_config.copy_and_resolve_references()
    config.init_from = str(backbone_weights)
    detector = contract.build(config)
    params, state, _ = state_lib.initial_weights(detector, config)
    fresh = jax.jit(detector.init)(jax.random.key(config.seed), np.zeros((1, 64, 64, 3), np.uint8))
    flat = traverse_util.flatten_dict({"params": params, **state}, sep="/")
    initial = traverse_util.flatten_dict({"params": fresh[0], **fresh[1]}, sep="/")
    frozen = [p for p in flat if any(re.fullmatch(f, p) for f in detector.frozen)]
    assert any("stem" in p for p in frozen) and any(p.startswith("batch_stats") for p in frozen)
    assert all(p.startswith("batch_stats") or "stem" in p or "stage1" in p for p in frozen)
    for path in frozen:
        assert (np.asarray(flat[path]) != np.asarray(initial[path])).any(), path


def test_a_frozen_random_backbone_is_refused(small_voc_config):
    config = small_voc_config.copy_and_resolve_references()
    config.init_from = ""
    text = message(state_lib.initial_weights, contract.build(config), config)
    assert "frozen leaves would keep their initial values" in text and "config.init_from" in text


def test_weights_without_the_statistics_are_refused(small_voc_config, backbone_weights, tmp_path):
    weights = checkpoint.load_weights(backbone_weights)
    checkpoint.save_weights(tmp_path / "part", weights.params, {}, weights.info)
    config = small_voc_config.copy_and_resolve_references()
    config.init_from = str(tmp_path / "part")
    text = message(state_lib.initial_weights, contract.build(config), config)
    assert "not in the file" in text and "batch_stats/backbone" in text


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--config", "nothing.py"], ["nothing.py", "retinanet_shapes"]),
        (["--config", "retinanet_shape"], ["Did you mean retinanet_shapes?"]),
        (["--config", "retinanet_bccd:big"], ["has no variants"]),
        (["--config", "retinanet_voc:big"], ["'big'", "'scratch'"]),
        (["--config", "retinanet_shapes", "--config.optim.lrr=1"], ["optim.lrr", "'lr'"]),
        (["--config", "retinanet_shapes", "--config.optim.lr=fast"], ["optim.lr", "'fast'"]),
        (["--config", "retinanet_shapes", "--config.optim.lr"], ["needs a value"]),
        (["--config", "retinanet_shapes", "--config.model.dept=34"], ["model.dept", "'depth'"]),
        (["--config", "retinanet_shapes", "--config.model.depth=fifty"], ["model.depth", "int"]),
        (["--config", "retinanet_shapes", "--config.model.num_classes=7"], ["num_classes", "4"]),
        (["--config", "retinanet_shapes", "--config.detector=retina"], ["'retina'", "retinanet"]),
        (["--config", "retinanet_shapes", "--config.data.source=cocoa"], ["'cocoa'", "voc"]),
        (["--config", "retinanet_shapes", "--config.train.steps=0"], ["train.steps"]),
        (["--config", "retinanet_shapes", "--config.train.batch_size=0"], ["train.batch_size"]),
        (["--config", "retinanet_shapes", "--config.optim.name=lion"], ["optim.name", "adamw"]),
        (["--config", "retinanet_shapes", "--config.optim.warmup_steps=1200"], ["warmup_steps"]),
        (["--config", "retinanet_shapes", "--config.eval.best_by=ap"], ["eval.best_by", "AP50"]),
        (["--config", "retinanet_shapes", "--config.init_from=gone"], ["gone"]),
        (["--config", "retinanet_bccd", "--config.data.root=gone"], ["gone", "config.data.root"]),
        (["--config", "retinanet_coco:scratch", "--config.data.root=gone"], ["gone"]),
        (["--config", "retinanet_shapes", "--config.data.canvases=((0,128),)"], ["canvases"]),
        (["--config", "retinanet_shapes", "--config.data.resize=crop"], ["data.resize", "fit"]),
    ],
)
def test_a_mistake_gets_one_sentence(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = message(train.main, [*arguments, "--config.compilation_cache=False", "--dry_run"])
    for word in words:
        assert word in text
    assert not any(tmp_path.iterdir()), "a refused run must leave nothing behind"


def test_an_error_ends_the_program_with_status_2_and_no_traceback():
    command = [sys.executable, "-m", "detlab.train", "--config", "nothing.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("voc_mini", "coco_mini", "bccd", "wider_mini", "tfds")
    ],
)
def test_two_steps_evaluation_and_demo_on_real_pictures(name, shared_dir, tmp_path):
    root = tmp_path / "tfds" if name == "tfds" else shared_dir / "data" / name
    small = ["depth=18", "backbone_width=8", "backbone_stages=(1,1,1,1)", "neck_width=16"]
    small += ["head_width=16", "head_convs=1"]
    arguments = [f"--config.model.{field}" for field in small] + [
        f"--config.data.root={root}",
        "--config.data.canvases=((96,128),)",
        "--config.data.size_limits=()",
        "--config.train.batch_size=2",
        "--config.train.epochs=0",
        "--config.train.steps=2",
        "--config.optim.warmup_steps=1",
        "--config.eval.batch_size=8",
    ]
    if name == "voc_mini":
        config, images = "retinanet_voc:scratch", root / "VOC2007" / "JPEGImages"
    elif name == "coco_mini":
        config, images = "retinanet_coco:scratch", root / "val2017"
        arguments += [
            "--config.data.train_images=val2017",
            "--config.data.train_annotations=annotations/instances_val2017.json",
            "--config.model.num_classes=80",
        ]
    elif name == "bccd":
        config, images = "retinanet_bccd", root / "JPEGImages" / "BloodImage_0000*.jpg"
    elif name == "wider_mini":
        config, images = "retinanet_wider:scratch", root / "WIDER_val" / "images" / "*" / "*.jpg"
    else:
        config, images = "retinanet_voc:scratch", shared_dir / "data/voc_mini/VOC2007/JPEGImages"
        prepare_tfds(root, shared_dir / "data" / "voc_mini")
        arguments += [
            "--config.data.source=tfds",
            "--config.data.tfds_name=small_voc",
            "--config.data.train_splits=('train',)",
            "--config.data.eval_splits=('test',)",
        ]
    workdir = tmp_path / "run"
    train.main(["--config", config, "--workdir", str(workdir), *arguments])
    assert checkpoint.find(workdir, "last").name == "2"
    eval_lib.main(["--workdir", str(workdir), "--json", str(tmp_path / "eval.json")])
    figures = json.loads((tmp_path / "eval.json").read_text())
    assert 0 <= figures["AP"] <= 1 and sum(c["num_objects"] for c in figures["classes"]) > 0
    demo.main(
        ["--workdir", str(workdir), "--input", str(images), "--output", str(tmp_path / "found")]
        + ["--threshold", "0.01", "--top_k", "3"]
    )
    rows = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert len(rows) >= 4 and all(pathlib.Path(row["picture"]).exists() for row in rows)


def prepare_tfds(folder, devkit):
    """Writes a TFDS data set with the pictures and objects of a VOC devkit."""
    label = tfds_writer.features_lib.ClassLabel(names=voc.CLASS_NAMES)
    features = {
        "image": tfds_writer.features_lib.Image(encoding_format="jpeg"),
        "objects": tfds_writer.features_lib.Sequence(
            {"bbox": tfds_writer.features_lib.BBoxFeature(), "label": label}
        ),
    }

    def examples(split):
        source = voc.Voc(devkit, (split,))
        for i in range(len(source)):
            height, width = source.size(i)
            objects = source.annotation(i)
            boxes = objects["boxes"] / [width, height, width, height]
            yield {
                "image": source.name(i),
                "objects": [
                    {
                        "bbox": tfds_writer.features_lib.BBox(xmin=x1, ymin=y1, xmax=x2, ymax=y2),
                        "label": int(k),
                    }
                    for (x1, y1, x2, y2), k in zip(boxes, objects["labels"])
                ],
            }

    splits = {"train": list(examples("2012_trainval")), "test": list(examples("2007_test"))}
    tfds_writer.prepare(folder, "small_voc", features, splits)
