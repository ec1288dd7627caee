"""Seconds that compilation takes, and seconds until a program works, with and without a cache.

    python -m benchmarks.compilation --output benchmarks/results/compilation_cpu.json
    python -m benchmarks.compilation --only retinanet/train --only "detlab.demo fcos_shapes"

A row MODEL/PROGRAM is a program of benchmarks.models: prediction or the whole training step of one
image at the published size.  It is traced and lowered, then compiled, in a process of its own with
no cache.

A row PROGRAM CONFIG is a program as users run it: `detlab.train` until the log has its first step,
`detlab.eval` until it has written the figures of two images, `detlab.demo` until it has written one
picture.  It is started twice with a new compilation cache: the first start fills it (cold), the
second uses it (warm).  Seconds count from the start of the process.  Experiments on COCO run at the
canvas of benchmarks.models with made-up images and a batch of one; weights are random.

Processor seconds depend less on other load than seconds do.  Rows that are already in the output
file stay, unless --only names them, so an interrupted run continues.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks import flags
from detlab import cli
from detlab import config as config_lib

if __name__ == "__main__":
    cli.answer_first(flags.compilation(__doc__))  # --help needs no import below

import jax
import numpy as np

from benchmarks import command, machine, made_up, models, turns
from detlab import contract, errors, files
from detlab.run import checkpoint
from detlab.run import state as state_lib

PUBLISHED = ("retinanet", "cornernet", "darknet_yolov4", "yolov5x")  # models that are also started
COMPILED = {
    f"{model}/{program}": (model, program) for model in models.MODELS for program in models.PROGRAMS
}


class Start(NamedTuple):
    """A program and the experiment it is started with."""

    program: str  # train, eval or demo
    config: str
    side: int | None  # px of the square canvas; None: as the experiment says


def starts() -> dict[str, Start]:
    """The rows of started programs: every <detector>_shapes, and the models of `PUBLISHED`."""
    configs = {name: None for name in config_lib.shipped() if name.endswith("_shapes")}
    for model in (models.MODELS[x] for x in PUBLISHED):
        configs[_without_weights(model.config)] = model.side
    return {
        f"detlab.{program} {config}": Start(program, config, side)
        for program in ("train", "eval", "demo")
        for config, side in configs.items()
    }


def _without_weights(config: str) -> str:
    """The variant that starts from random weights, where an experiment has it."""
    if ":" not in config and "scratch" in config_lib.variants(config):
        return f"{config}:scratch"
    return config


STARTS = starts()


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for what a user can fix."""
    args = flags.compilation(__doc__).parse_args(arguments)
    if args.one:
        print(json.dumps(compile_one(*COMPILED[args.one])))
        return
    found = command.rows_of(args.output)
    if args.output:
        command.make_folder(args.output.parent)
    known = [*COMPILED, *STARTS]
    wanted = command.choose(args.only, known, "row")
    for name in wanted if args.only else [name for name in known if name not in found]:
        found[name] = compiled(name) if name in COMPILED else started(STARTS[name])
        print(f"{name:40} {text(found[name])}", flush=True)
        if args.output:  # after each row: all of them take long
            rows = {name: found[name] for name in known if name in found}
            files.write_json(args.output, {"machine": machine.describe(), "rows": rows})


def text(row: dict[str, dict]) -> str:
    """The seconds of a row."""
    return ", ".join(f"{k} {x['s']:.1f} s ({x['cpu_s']:.1f} CPU)" for k, x in row.items())


def compiled(name: str) -> dict[str, dict]:
    """A row of `COMPILED`, measured in a process of its own."""
    words = python("-m", "benchmarks.compilation", "--one", name)
    done = subprocess.run(
        words, env=turns.environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise errors.UserError(f"compiling {name} failed: {last_line(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def compile_one(model: str, program: str) -> dict[str, dict]:
    """Seconds to trace and lower, and to compile, in this process."""
    jax.config.update("jax_enable_compilation_cache", False)
    function, inputs, _ = models.uncompiled(models.Task(model, program, None, 1), {})
    lowered, lower = clocked(lambda: function.lower(*inputs))
    _, compile_ = clocked(lowered.compile)
    return {"lower": lower, "compile": compile_}


def clocked(function: Callable) -> tuple[Any, dict[str, float]]:
    """(result, its seconds and processor seconds)."""
    start, before = time.perf_counter(), turns.processor_seconds()
    result = function()
    seconds = time.perf_counter() - start
    return result, figures(seconds, turns.processor_seconds() - before)


def figures(seconds: float, processor: float) -> dict[str, float]:
    return {"s": round(seconds, 2), "cpu_s": round(processor, 2)}


def started(start: Start) -> dict[str, dict]:
    """A row of `STARTS`: the same command twice, with an empty and then with a filled cache."""
    with tempfile.TemporaryDirectory(prefix="compilation") as name:
        folder = pathlib.Path(name)
        config = config_lib.load(start.config)
        made_up_data(folder, contract.num_classes(config))
        if start.program != "train":
            made_up_weights(folder / "weights", start)
        return {
            kind: seconds_until(*command_of(start, folder, folder / kind), folder / "cache")
            for kind in ("cold", "warm")
        }


def seconds_until(words: Sequence[str], mark: pathlib.Path, cache: pathlib.Path) -> dict:
    """Runs a command until the file `mark` has content, then ends it; returns the seconds."""
    variables = turns.environment() | {"XDG_CACHE_HOME": str(cache)}
    variables.pop("JAX_COMPILATION_CACHE_DIR", None)
    with tempfile.TemporaryFile("w+") as said:
        begin, before = time.perf_counter(), turns.processor_seconds()
        process = subprocess.Popen(
            words,
            env=variables,
            stdout=said,
            stderr=said,
            start_new_session=True,  # its workers end with it
        )
        try:
            while not (mark.exists() and mark.stat().st_size):
                if process.poll() is not None:
                    said.seek(0)
                    raise errors.UserError(f"{' '.join(words[1:4])}: {last_line(said.read())}")
                time.sleep(0.02)
            seconds = time.perf_counter() - begin
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return figures(seconds, turns.processor_seconds() - before)


def command_of(
    start: Start, folder: pathlib.Path, output: pathlib.Path
) -> tuple[list[str], pathlib.Path]:
    """(the command, the file that it writes first)."""
    words = python("-m", f"detlab.{start.program}", "--config", start.config)
    values = overrides(start)
    if start.side or start.program == "eval":
        values |= {
            "data.source": "coco",
            "data.root": folder,
            "data.train_images": "images",
            "data.train_annotations": "boxes.json",
            "data.eval_images": "images",
            "data.eval_annotations": "boxes.json",
        }
    if start.program == "train":
        values |= {"train.steps": 10, "train.epochs": 0, "train.log_every": 1}
        values |= {"optim.warmup_steps": 1}  # must be shorter than the run
        words += ["--workdir", str(output)]
        mark = output / "metrics.jsonl"
    elif start.program == "eval":
        mark = output / "figures.json"
        words += ["--checkpoint", str(folder / "weights"), "--json", str(mark)]
    else:
        image = folder / "images" / "0.png"
        words += ["--checkpoint", str(folder / "weights"), "--input", str(image)]
        words += ["--output", str(output)]
        mark = output / "detections.json"
    return [*words, *(f"--config.{key}={value}" for key, value in values.items())], mark


def overrides(start: Start) -> dict[str, Any]:
    """Values of the config for a canvas and a batch that a CPU computes in seconds."""
    if not start.side:
        return {}
    return {
        "data.canvases": ((start.side, start.side),),
        "data.multiscale_canvases": (),
        "data.multiscale_limits": (),
        "data.size_limits": (),
        "train.batch_size": 1,
        "train.accumulate": 1,
        "eval.batch_size": 1,
    }


def made_up_data(folder: pathlib.Path, num_classes: int) -> None:
    """Writes two images with one object each, in the form of COCO."""
    size = 320
    rows = [{"id": i, "file_name": f"{i}.png", "height": size, "width": size} for i in range(2)]
    boxes = [
        {"id": i, "image_id": i, "category_id": 0, "bbox": [40, 40, 160, 160], "area": 25600.0}
        for i in range(2)
    ]
    files.write_json(
        folder / "boxes.json",
        {
            "images": rows,
            "annotations": [{"iscrowd": 0, **box} for box in boxes],
            "categories": [{"id": i, "name": f"class {i}"} for i in range(num_classes)],
        },
    )
    rng = np.random.default_rng(0)
    for row in rows:
        image = rng.integers(0, 256, (size, size, 3), np.uint8)
        files.save_picture(folder / "images" / row["file_name"], image)


def made_up_weights(folder: pathlib.Path, start: Start) -> None:
    """Writes random weights of the detector."""
    config = config_lib.load(start.config, {k: str(v) for k, v in overrides(start).items()})
    detector = contract.build(config)
    images = state_lib.example_images(config)
    shapes = jax.eval_shape(detector.init, jax.random.key(0), images)
    names = [f"class {i}" for i in range(contract.num_classes(config))]
    checkpoint.save_weights(folder, *made_up.weights(shapes), {"class_names": names})


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def last_line(output: str) -> str:
    return (output.strip().splitlines() or ["it said nothing"])[-1].removeprefix("error: ")


if __name__ == "__main__":
    errors.run_main(main)
