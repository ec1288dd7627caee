r"""Compiles every detector for a GPU or a TPU that is not there, and reports what XLA made of it.

    python -m benchmarks.accelerators --platform cuda --output benchmarks/results
    python -m benchmarks.accelerators --platform tpu --only retinanet/train --minutes 30
    python -m benchmarks.accelerators --platform cuda --only yolov5s/train --dtype bfloat16 \
        --devices 1 --batch 400          # does this batch fit?

XLA compiles for an NVIDIA H200 (benchmarks/h200.txtpb) and for TPU v5e chips without them.  The
programs are those of `detlab.train` and `detlab.eval`, sharded over a mesh as there: `train`, the
update of the shipped experiment without accumulation; `accumulate`, the same batch in two parts
with averaged weights (some detectors); `predict`.  Sizes and batches are those of `SIZES`; for a
TPU, two images on the small canvas of benchmarks.models, because compilation takes minutes there.
Each program is compiled in its own process, in the time limit, in bfloat16 and float32, for one
device and a mesh of four.  Training on one device is also compiled with half the batch: memory is
affine in the batch, and two points give the largest batch that fits.

A row has the seconds to trace and compile, the memory of arguments and temporary arrays, and what
benchmarks.hlo counts in the program.  Nothing runs, so nothing is said about time, and convolutions
are not tuned, which needs the device: another algorithm may take more scratch memory.

Rows are written to accelerators_PLATFORM_jaxVERSION.json in the output folder as they come.  Rows
that are already there stay, unless --only names them, so an interrupted run continues, and several
can run beside each other.
"""

import contextlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import flags
from detlab import cli
from detlab import config as config_lib

if __name__ == "__main__":
    cli.answer_first(flags.accelerators(__doc__))  # --help needs no import below

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import accelerator_tables as tables
from benchmarks import command, compilation, hlo, machine, models, step_memory, turns
from detlab import contract, environment, errors, evaluation, files, sharding
from detlab.run import optim
from detlab.run import state as state_lib
from detlab.run import step as step_lib

GIB = 2**30
H200 = pathlib.Path(__file__).with_name("h200.txtpb")


class Size(NamedTuple):
    """The canvas of a detector, and a usual batch."""

    canvas: tuple[int, int]  # height, width, px
    images: int  # on each device


_RESNET = Size((800, 1344), 8)  # all that are not listed
SIZES = {
    "ssd": Size((300, 300), 32),
    "pisa_ssd": Size((300, 300), 32),
    "cornernet": Size((511, 511), 8),
    "centripetalnet": Size((511, 511), 8),
    "yolov3": Size((608, 608), 8),
    "darknet_yolov3": Size((608, 608), 8),
    "darknet_yolov4": Size((608, 608), 8),
    "darknet_yolov3_tiny": Size((416, 416), 32),
    "darknet_yolov4_tiny": Size((416, 416), 32),
    **{name: Size((640, 640), 32) for name in models.NETWORKS["yolov5"]},
}
_TPU_IMAGES = 2
PROGRAMS = ("train", "predict", "accumulate")
# `accumulate` compiles for as long as `train`, so it stands for each family here.
ACCUMULATED = ("retinanet", "faster_rcnn", "reppoints", "cornernet", "yolov5s", "darknet_yolov4")
DTYPES, DEVICES = ("bfloat16", "float32"), (1, 4)

# What compiles for a GPU: packages of jax's version, and libraries of any version.
_PLUGINS = ("jax-cuda13-plugin", "jax-cuda13-pjrt")
_LIBRARIES = (
    *("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-nvjitlink"),
    *("nvidia-cuda-runtime", "nvidia-cuda-cupti", "nvidia-cusparse", "nvidia-cusolver"),
    *("nvidia-cufft", "nvidia-cuda-nvrtc", "nvidia-nccl-cu13", "nvidia-nvshmem-cu13"),
)
_TPU_VARIABLES = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
_TPU_SLICES = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_GPUS_OF_A_HOST = 8


class Task(NamedTuple):
    """A program to compile."""

    platform: str  # cuda or tpu
    model: str  # of models.MODELS
    program: str  # of PROGRAMS
    canvas: tuple[int, int]  # height, width, px
    dtype: str
    devices: int
    images: int  # on each device
    batch: str  # usual, half or given: where `images` is from

    @property
    def name(self) -> str:
        height, width = self.canvas
        size = f"{height}x{width} {self.dtype}"
        return f"{self.model}/{self.program} {size} {self.devices}x{self.images}"


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for what a user can fix."""
    args = flags.accelerators(__doc__).parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")  # other devices are described, never started
    if args.one:
        print(json.dumps(compile_one(Task(**json.loads(args.one)), args.hlo)))
        return
    wanted = list(tasks(args))
    check_packages(args.platform)
    path = None
    if args.output:
        command.make_folder(args.output)
        version = importlib.metadata.version("jax")
        path = args.output / f"accelerators_{args.platform}_jax{version}.json"
    for task in wanted:
        if not args.only and task.name in command.rows_of(path):
            continue
        row = compiled(task, args.minutes, args.hlo)
        print(f"{task.name:58} {tables.line(row)}", flush=True)
        if path:  # read again: another run may have added rows
            rows = command.rows_of(path) | {task.name: row}
            result = {"machine": machine.describe(), "rows": dict(sorted(rows.items()))}
            files.write_json(path, result)


def tasks(args) -> Iterator[Task]:
    """The programs that the flags ask for, the most useful first.

    Raises:
      UserError: an unknown name, or a number below one.
    """
    if min([1, *args.devices, *args.batch, args.side or 1]) < 1 or args.minutes <= 0:
        raise errors.UserError("--devices, --batch, --side and --minutes must be positive.")
    if args.platform == "tpu" and max([1, *args.devices]) > max(_TPU_SLICES):
        raise errors.UserError(f"--devices: a v5e slice has at most {max(_TPU_SLICES)} chips.")
    known = [f"{model}/{program}" for model in models.MODELS for program in PROGRAMS]
    only = command.choose(args.only, [*models.MODELS, *known], "model or program")
    settings = list(itertools.product(args.dtype or DTYPES, args.devices or DEVICES))
    for dtype, devices in settings:
        for model, program in itertools.product(models.MODELS, PROGRAMS):
            name = f"{model}/{program}"
            by_default = program != "accumulate" or model in ACCUMULATED
            if name in args.only or (model in only and by_default):
                size = size_of(args.platform, model, args.side)
                base = Task(args.platform, model, program, size.canvas, dtype, devices, 0, "given")
                for images in args.batch:
                    yield base._replace(images=images)
                if not args.batch:
                    batch = "given" if args.side else "usual"
                    yield base._replace(images=size.images, batch=batch)
                fits = program == "train" and devices == 1 and args.platform == "cuda"
                if fits and not (args.batch or args.side) and dtype == DTYPES[0]:
                    yield base._replace(images=size.images // 2, batch="half")


def size_of(platform: str, model: str, side: int | None = None) -> Size:
    """The canvas and batch of a model; `side` replaces the canvas by a square."""
    size = SIZES.get(model, _RESNET)
    if platform == "tpu":
        size = Size((models.MODELS[model].side,) * 2, _TPU_IMAGES)
    return size._replace(canvas=(side, side)) if side else size


def check_packages(platform: str) -> None:
    """Raises a `UserError` that names the packages that are missing and the command for them."""
    version = importlib.metadata.version("jax")
    if platform == "cuda":
        needed = {**{name: version for name in _PLUGINS}, **dict.fromkeys(_LIBRARIES)}
    else:
        needed = {"libtpu": _libtpu_of_jax()}
    missing = [
        f"{name}=={wanted}" if wanted else name
        for name, wanted in needed.items()
        if not _installed(name, wanted)
    ]
    if missing:
        raise errors.UserError(
            f"--platform {platform} needs packages that are not here (no dependency of detlab, and"
            f" best kept out of its environment): pip install --no-deps --target compilers"
            f" {' '.join(missing)}; then start this command with PYTHONPATH=compilers."
        )


def _libtpu_of_jax() -> str | None:
    """The version of libtpu that jax's extra `tpu` names, such as 0.0.42.*."""
    for line in importlib.metadata.requires("jax") or ():
        if found := re.match(r"libtpu *== *([\w.*]+)", line):
            return found[1]
    return None


def _installed(name: str, wanted: str | None) -> bool:
    """Whether a package is here, in the version wanted if there is one; `1.2.*` is any 1.2."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    if wanted and wanted.endswith(".*"):
        return f"{version}.".startswith(wanted.removesuffix("*"))
    return wanted in (None, version)


# ------------------------------------------------------------------------------------------------
# One program


def compiled(task: Task, minutes: float, text_folder: pathlib.Path | None = None) -> dict[str, Any]:
    """A row: the program compiled in a process of its own, or why it was not."""
    words = [sys.executable, "-m", "benchmarks.accelerators", "--platform", task.platform]
    words += ["--one", json.dumps(task._asdict())]
    words += ["--hlo", str(text_folder)] if text_folder else []
    variables = turns.environment() | {"JAX_TRACEBACK_FILTERING": "off"}  # see `reason`
    variables |= _TPU_VARIABLES if task.platform == "tpu" else {}
    return task._asdict() | {"canvas": list(task.canvas)} | outcome(words, variables, minutes)


def outcome(words: Sequence[str], variables: Mapping[str, str], minutes: float) -> dict[str, Any]:
    """What a process prints as JSON on its last line, with its status; it has so many minutes."""
    before = turns.processor_seconds()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complained:
        process = subprocess.Popen(
            words,
            env=variables,
            stdout=said,
            stderr=complained,
            start_new_session=True,  # the compiler's own processes end with it
        )
        try:
            process.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            used = turns.processor_seconds() - before
            return {"status": f"not through in {minutes:g} minutes", "cpu_s": round(used, 1)}
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        complained.seek(0)
        if process.returncode:
            return {"status": "failed", "reason": reason(process.returncode, complained)}
        return {"status": "compiled"} | json.loads(said.read().splitlines()[-1])


def reason(code: int, complaints: Iterable[str]) -> str:
    """Why a process failed: the line of XLA's check that ended it, else of the last exception."""
    lines = [line.strip() for line in complaints if line.strip()]
    checks = [line for line in lines if re.match(r"F\d{4} ", line)]
    raised = [line for line in lines if re.match(r"(\w+\.)*\w*(Error|Exception|error): ", line)]
    told = [*checks[:1], *raised[-1:], *lines[-1:], "it said nothing"][0]
    told = re.sub(r"^F\d{4} \S+ +\d+ ", "", told).removeprefix("error: ")
    how = f"ended by {signal.Signals(-code).name}: " if code < 0 else ""
    return environment.anonymous(f"{how}{told}")[:400]


def compile_one(task: Task, text_folder: pathlib.Path | None = None) -> dict[str, Any]:
    """The figures of a program, compiled in this process."""
    jax.config.update("jax_enable_compilation_cache", False)
    task = task._replace(canvas=tuple(task.canvas))
    (program, params), lower = compilation.clocked(lambda: lowered(task))
    # Choosing the fastest algorithm of each convolution needs the device.
    options = {"xla_gpu_autotune_level": 0} if task.platform == "cuda" else None
    executable, compile_ = compilation.clocked(lambda: program.compile(compiler_options=options))
    text = executable.as_text()
    if text_folder:
        files.write_text(text_folder / f"{re.sub(r'[/ ]', '_', task.name)}.txt", text)
    memory = executable.memory_analysis()
    leaves = jax.tree.leaves(params)
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes
    total += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    return {
        "lower": lower,
        "compile": compile_,
        "argument_gib": round(memory.argument_size_in_bytes / GIB, 3),
        "temporary_gib": round(memory.temp_size_in_bytes / GIB, 3),
        "total_gib": round(total / GIB, 3),  # the state's new buffers are the old ones
        "parameter_bytes": sum(x.size * x.dtype.itemsize for x in leaves),
        **hlo.report(text, [x.shape for x in leaves]),
    }


def lowered(task: Task) -> tuple[jax.stages.Lowered, Any]:
    """(the program, traced and lowered for its devices; the shapes of the parameters)."""
    config = config_of(task)
    mesh = sharding.make_mesh(devices_of(task.platform, task.devices))
    whole, parted = sharding.replicated(mesh), NamedSharding(mesh, PartitionSpec(sharding.AXIS))
    detector = contract.build(config)
    batch = placed(step_memory.abstract_batch(config), parted)
    params, state = placed(
        jax.eval_shape(detector.init, jax.random.key(0), state_lib.example_images(config)), whole
    )
    if task.program == "predict":
        predictor = evaluation.Predictor(detector, mesh)
        return predictor.lower(params, state, batch.images, batch.image_size), params
    optimizer = optim.build(
        config.optim,
        params,
        total_steps=1_000_000,
        batch_size=config.train.batch_size,
        steps_per_unit=1000,
        frozen=detector.frozen,
    )
    train_state = state_lib.abstract(detector, optimizer, config, mesh)
    step = step_lib.TrainStep(detector, optimizer, config, mesh)
    notes = np.zeros((config.train.batch_size, len(step_lib.Notes._fields)), np.int32)
    return step.lower(train_state, batch, placed(notes, parted)), params


def placed(tree: Any, place: NamedSharding) -> Any:
    """The shapes of a tree of arrays, on devices."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def config_of(task: Task):
    """The shipped experiment at the size, batch and type of a task."""
    config = config_lib.load(models.MODELS[task.model].config, {"model.dtype": task.dtype})
    config.data.update(canvases=(task.canvas,), multiscale_canvases=())
    parts = 2 if task.program == "accumulate" else 1
    config.train.update(batch_size=task.devices * task.images, accumulate=parts)
    if parts > 1 and not config.optim.ema_decay:
        config.optim.ema_decay = 0.999
    return config


def devices_of(platform: str, count: int) -> Sequence[Any]:
    """Devices to compile for, which need not be there."""
    if platform == "tpu":
        chips = min(n for n in _TPU_SLICES if n >= count)
        return topologies.get_topology_desc(f"v5e:{_TPU_SLICES[chips]}", "tpu").devices[:count]
    hosts = -(-count // _GPUS_OF_A_HOST)
    name = f"1x{hosts}x{-(-count // hosts)}"
    found = topologies.get_topology_desc(
        name, "cuda", target_config=H200.read_text(), topology=name
    )
    return found.devices[:count]


if __name__ == "__main__":
    errors.run_main(main)
