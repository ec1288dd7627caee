"""Recorded cases of runs, folders, processes and output."""

import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from detlab import cli, data_sets, errors, evaluation, train
from detlab import config as config_lib
from detlab import predictions as predictions_lib
from detlab.converters import flags
from detlab.run import lock
from detlab.run import workdir as workdir_lib

SMALL = (
    *("model.depth=18", "model.backbone_width=8", "model.backbone_stages=(1,1,1,1)"),
    *("model.neck_width=16", "model.head_width=16", "model.head_convs=1"),
    *("model.backbone_norm=batch", "model.frozen_stages=0", "init_from=", "data.size_limits=()"),
    *("data.canvases=((64,64),)", "train.batch_size=1", "train.epochs=0", "train.steps=2"),
    *("optim.schedule=constant", "optim.warmup_steps=1", "eval.batch_size=1", "eval.pictures=1"),
)


def refusal(call, *arguments):
    with pytest.raises(errors.UserError) as error:
        call(*arguments)
    return str(error.value)


def run(program, *words, wait=120, **environment):
    """(status, stdout, stderr) of a program in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", program, *map(str, words)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=wait,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


# ------------------------------------------------------------------------------------------------
# ascii-terminal


def words_of_elephant(folder):
    return [
        "--config=retinanet_bccd",
        f"--config.data.root={folder}",
        "--config.data.class_names=('éléphant',)",
        "--config.data.train_splits=('train',)",
        "--config.data.eval_splits=('val',)",
        "--config.model.num_classes=1",
    ]


@pytest.mark.parametrize("encoding", ["ascii", "cp437", "koi8-r"])
def test_ascii_terminal_shows_the_class_as_escapes(encoding, case, monkeypatch):
    _, overrides = cli.parse(words_of_elephant(case("ascii-terminal")), cli.train("doc"))
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))

    def main(_):
        source = data_sets.open_source(config_lib.load("retinanet_bccd", overrides), "eval")
        truth = evaluation.ground_truth(source)
        print(predictions_lib.report(evaluation.score(truth, [], source.class_names)))

    errors.run_main(main)
    name = "éléphant".encode(encoding, "backslashreplace")
    assert any(line.startswith(name + b" ") for line in raw.getvalue().splitlines())


@pytest.mark.slow
def test_ascii_terminal_trains_to_the_end(case, tmp_path):
    words = words_of_elephant(case("ascii-terminal")) + [f"--config.{key}" for key in SMALL]
    status, output, said = run(
        "detlab.train", f"--workdir={tmp_path}", *words, PYTHONIOENCODING="ascii"
    )
    assert status == 0, said
    assert "\n\\xe9l\\xe9phant" in output
    figures = json.loads((tmp_path / "eval.json").read_text())
    assert figures["classes"][0]["name"] == "éléphant"


# ------------------------------------------------------------------------------------------------
# coco-windows-path


def words_of_cells(folder):
    return [
        "--config=retinanet_coco:scratch",
        f"--config.data.root={folder}",
        "--config.data.train_images=images",
        "--config.data.train_annotations=train.json",
        "--config.data.eval_images=images",
        "--config.data.eval_annotations=val.json",
        "--config.model.num_classes=1",
    ]


def test_coco_windows_path_is_found_missing_before_training_and_may_be_passed_over(
    case, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    shutil.copytree(case("coco-windows-path"), folder, copy_function=shutil.copyfile)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    (folder / "images" / "a" / "p0.jpg").unlink()
    for more in (["--dry_run"], []):
        text = refusal(train.main, [*words_of_cells(folder), *more])
        assert text.startswith(f"eval data: 1 of 4 image files do not exist: {folder}/images/a")
        assert text.endswith(
            "p0.jpg; put them there, or pass over them with --config.data.eval_skip_broken=True"
            f" (config.data.root is {folder})."
        )
        assert "train data: 1 of 4 image files do not exist: " in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()

    # A run that an image has ended goes on with the key that passes over it.
    _, overrides = cli.parse(words_of_cells(folder), cli.train("doc"))
    config = config_lib.load("retinanet_coco:scratch", overrides)
    workdir = workdir_lib.Workdir(tmp_path / "run")
    (workdir.path / "checkpoints" / "4").mkdir(parents=True)
    workdir.config.write_text(json.dumps(config_lib.to_json(config)))
    config.data.eval_skip_broken = True
    assert workdir.check(config) == {"data.eval_skip_broken": (False, True)}


# ------------------------------------------------------------------------------------------------
# double-ctrl-c


@pytest.mark.slow
def test_double_ctrl_c_ends_at_once_while_the_step_compiles(case, tmp_path):
    case("double-ctrl-c")
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla"), "JAX_LOG_COMPILES": "1"}
    command = [sys.executable, "-m", "detlab.train", "--config=retinanet_shapes"]
    output = tmp_path / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            [*command, f"--workdir={tmp_path}/run"], stdout=file, stderr=file, env=environment
        )
    try:
        while "module conversion jit(step)" not in output.read_text():
            assert process.poll() is None, output.read_text()
            time.sleep(0.1)
        time.sleep(1)  # now XLA compiles
        for pause in (0.4, 0):
            process.send_signal(signal.SIGINT)
            time.sleep(pause)
        status = process.wait(10)
    finally:
        process.kill()
    assert status == 130
    end = "\nended by a second signal, SIGINT; what was saved stays\n"
    assert output.read_text().endswith(end)
    with lock.held(tmp_path / "run"):  # free
        assert (tmp_path / "run" / "config.json").exists()


# ------------------------------------------------------------------------------------------------
# more-steps


@pytest.mark.parametrize(
    "keys", [{"train.steps": "1300"}, {"train.steps": "0", "train.epochs": "3"}]
)
def test_more_steps_prolong_a_finished_run(keys, case, tmp_path):
    case("more-steps")
    workdir = workdir_lib.Workdir(tmp_path)
    (tmp_path / "checkpoints" / "1200").mkdir(parents=True)
    config = config_lib.load("retinanet_shapes")
    workdir.config.write_text(json.dumps(config_lib.to_json(config)))
    longer = config_lib.load("retinanet_shapes", keys)
    assert f"--config.init_from={tmp_path}" in refusal(workdir.check, longer)  # not finished
    workdir.figures.write_text("{}")
    assert list(workdir.check(longer)) == sorted(keys)


# ------------------------------------------------------------------------------------------------
# no-gpu

NO_DEVICE = """
import sys
import jax

from detlab import demo, errors, train
from detlab import eval as eval_lib
from detlab.converters import convert

PROGRAMS = {
    "train": (train.main, "--config=retinanet_shapes --workdir=run"),
    "eval": (eval_lib.main, "--workdir=run"),
    "demo": (demo.main, f"--workdir=run --input={sys.argv[1]} --output=out"),
    "convert": (convert.main, "--config=retinanet_shapes --input=x.pth --output=weights"),
    "reverse": (convert.main, "--reverse --input=run --output=x.pth"),
}
for platforms in sys.argv[2:]:
    jax.config.update("jax_platforms", platforms)
    for name, (main, words) in PROGRAMS.items():
        try:
            main(words.split())
        except errors.UserError as error:
            print(f"{platforms} {name}: {error}")
        if jax._src.xla_bridge._backends:
            sys.exit(f"{platforms} is here")
"""
FOUND_NO = {
    "cuda": "but jax finds no NVIDIA GPU here (no NVIDIA GPU is visible to this process); start on",
    "gpu": "but jax finds no GPU here (no NVIDIA GPU is visible to this process); start on",
    "rocm": "but jax finds no AMD GPU here (jax's plugin for it is not installed); start on",
    "cdua": "and jax knows no platform 'cdua' here; it may be unset, or one of cpu, gpu, cuda,",
    "GPU": "platforms are written small: gpu.",
    "gpus": "did you mean gpu?",
}


@pytest.fixture(scope="module")
def without_device(tmp_path_factory):
    """{(platforms, program): sentence} on a machine without these devices."""
    folder = tmp_path_factory.mktemp("no_gpu")
    (folder / "x.jpg").touch()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_PLAT", "CUDA_V"))}
    done = subprocess.run(
        [sys.executable, "-c", NO_DEVICE, str(folder / "x.jpg"), *FOUND_NO],
        cwd=folder,
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "is here" in done.stderr:
        pytest.skip(f"this machine has such a device: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert [p.name for p in folder.iterdir() if p.name not in ("x.jpg", "out")] == []
    lines = (line.partition(": ") for line in done.stdout.splitlines())
    return {tuple(start.split()): sentence for start, _, sentence in lines}


@pytest.mark.parametrize("program", ["train", "eval", "demo", "convert", "reverse"])
@pytest.mark.parametrize("platforms", FOUND_NO)
def test_no_gpu_is_said_by_every_program(platforms, program, case, without_device):
    case("no-gpu")
    sentence = without_device[platforms, program]
    assert (
        sentence.startswith(f"JAX_PLATFORMS is {platforms!r}") and FOUND_NO[platforms] in sentence
    )
    assert sentence.count(". ") == 0


# ------------------------------------------------------------------------------------------------
# tilde


def test_tilde_is_the_home_folder_in_every_program(case, tmp_path, monkeypatch):
    case("tilde")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    data = ["--config=retinanet_bccd", "--config.data.root=~/data", "--config.init_from="]
    text = refusal(train.main, [*data, "--workdir=~/run", "--config.model.num_classes=3"])
    assert text.startswith(f"train data: data folder {tmp_path}/data does not exist")
    assert not any(tmp_path.iterdir())
    args, _ = cli.parse(["--workdir=~/run", "--input=~/x", "--output=~/y"], cli.demo("doc"))
    assert (args.workdir, args.input, args.output) == tuple(
        f"{tmp_path}/{x}" for x in ("run", *"xy")
    )
    args, _ = cli.parse(["--input=~/x.pth", "--output=~/w"], flags.convert("doc"))
    assert (args.input, args.output) == (f"{tmp_path}/x.pth", pathlib.Path(tmp_path, "w"))


# ------------------------------------------------------------------------------------------------
# two-runs-one-workdir


def test_two_runs_in_one_workdir_are_refused_before_the_data_are_opened(
    case, tmp_path, monkeypatch, capsys
):
    case("two-runs-one-workdir")
    monkeypatch.setattr(lock, "WAIT_S", 0.0)
    words = ["--config=retinanet_shapes", f"--workdir={tmp_path}"]
    with lock.held(tmp_path):
        text = refusal(train.main, words)
    assert text.startswith(f"{tmp_path} is in use by process {os.getpid()} on ")
    assert text.endswith("; wait until that run ends, stop it, or give another --workdir.")
    assert capsys.readouterr().out == "" and not any(tmp_path.iterdir())
