"""What devices exchange in a training step, counted in programs compiled for 8, 64 and 256 GPUs.

    PYTHONPATH=compilers python -m benchmarks.scale --output benchmarks/results/scale.json
    python -m benchmarks.pages

The GPUs (H200, eight a host) are not there, and nothing runs: benchmarks.accelerators says which
packages compile for them.  A row `DETECTOR/DEVICES` is the step of the published network and its
experiment, with an image of 64x64 px a device: gradients, batch statistics and sums over the batch,
which are what is exchanged, do not depend on the canvas.  The network computes in float32, as in
the experiment, or as the row says.  `rounds` is the longest chain of exchanges that wait for each
other.  `DETECTOR/image` has the operations of one image of the
published canvas in bfloat16, as jax counts them before the program is compiled, and the bytes that
evaluation gathers of an image.  `scoring` is the time of the metrics of 5000 images.

docs/scale_on_paper.md has the arithmetic (benchmarks/scale_tables.py).
"""

import json
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from benchmarks import flags
from detlab import cli
from detlab import config as config_lib

if __name__ == "__main__":
    cli.answer_first(flags.scale(__doc__))  # --help needs no import below

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import accelerators, command, hlo, machine, train_step, turns
from detlab import contract, errors, evaluation, files, sharding, types
from detlab.run import optim
from detlab.run import state as state_lib
from detlab.run import step as step_lib
from detlab.run import update as update_lib

EXPERIMENTS = {
    "retinanet": "retinanet_coco",
    "faster_rcnn": "faster_rcnn_coco",
    "yolov5l": "yolov5_coco:l",
}
MESHES = (8, 64, 256)
SIDE = 64  # px of the compiled canvas
IMAGES, OBJECTS, DETECTIONS, CLASSES = 5000, 7, 100, 80  # of COCO's val2017, about, in `scoring`
_PARTS = ("image", *MESHES, f"{MESHES[0]}/bfloat16")
ROWS = [f"{name}/{part}" for name in EXPERIMENTS for part in _PARTS] + ["scoring"]


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for what a user can fix."""
    args, overrides = cli.parse(arguments, flags.scale(__doc__))
    jax.config.update("jax_platforms", "cpu")  # other devices are described, never started
    if args.one:
        print(json.dumps(row(args.one, overrides)))
        return
    rows = command.rows_of(args.output)
    for name in command.choose(args.only, ROWS, "row"):
        if not args.only and name in rows:
            continue
        rows[name] = in_process(name, [f"--config.{k}={v}" for k, v in overrides.items()])
        print(f"{name}: {rows[name]}", flush=True)
        if args.output:
            files.write_json(args.output, {"machine": machine.describe(), "rows": rows})


def in_process(name: str, overrides: Sequence[str]) -> dict:
    """A row, from a process of its own: compilers of GPUs keep much memory."""
    words = [sys.executable, "-m", "benchmarks.scale", "--one", name, *overrides]
    done = subprocess.run(
        words, env=turns.environment(), stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise errors.UserError(f"the row {name} failed; see its error above.")
    return json.loads(done.stdout.splitlines()[-1])


def row(name: str, overrides: dict[str, str]) -> dict:
    """Makes a row of `ROWS` in this process."""
    if name == "scoring":
        return scoring()
    detector, part, *dtype = name.split("/")
    config = config_lib.load(EXPERIMENTS[detector], overrides)
    config.model.update({"dtype": dtype[0]} if dtype else {})
    return image(config) if part == "image" else step(config, int(part))


def step(config, devices: int) -> dict:
    """What `devices` exchange in a step with an image each."""
    accelerators.check_packages("cuda")
    config.data.canvases = ((SIDE, SIDE),)
    mesh = sharding.make_mesh(accelerators.devices_of("cuda", devices))
    made = parts(config, mesh, devices)
    notes = np.zeros((devices, len(step_lib.Notes._fields)), np.int32)
    spread = NamedSharding(mesh, PartitionSpec(sharding.AXIS))
    batch, notes = accelerators.placed((made.batch, notes), spread)
    one = step_lib.TrainStep(made.detector, made.optimizer, config, mesh)
    options = {"xla_gpu_autotune_level": 0}  # it needs the device
    compiled = one.lower(made.state, batch, notes).compile(compiler_options=options)
    program = hlo.parse(compiled.as_text())
    found = hlo.exchanges(program)
    params, labels = map(jax.tree.leaves, (made.state.params, made.optimizer.labels))
    trained = [x for x, label in zip(params, labels, strict=True) if label == "train"]
    return {
        "devices": devices,
        "trained_bytes": _bytes(trained),
        "averaged_bytes": _bytes(made.state.ema),
        "exchanges": found,
        "rounds": rounds(program, program.entry, found),
    }


def rounds(program: hlo.Program, computation: str, kinds: Collection[str]) -> int:
    """The longest chain of exchanges of these kinds, each waiting for the one before, in a part."""
    after: dict[str, int] = {}  # instruction -> exchanges up to it; operands stand before it
    for name, instruction in program.computations.get(computation, {}).items():
        own = instruction.opcode.removesuffix("-start") in kinds
        within = [rounds(program, part, kinds) for part in hlo.called(instruction)]
        before = max((after[x] for x in instruction.operands if x in after), default=0)
        after[name] = before + max([own, *within])
    return max(after.values(), default=0)


class Parts(NamedTuple):
    """What a step is made of."""

    detector: contract.Detector
    optimizer: optim.Optimizer
    state: types.TrainState  # shapes, the same on all devices
    batch: types.Batch  # made up, on the host


def parts(config, mesh: jax.sharding.Mesh, size: int) -> Parts:
    """The parts of a step of `size` images of the config's first canvas."""
    config.train.batch_size = size
    detector = contract.build(config)
    example = state_lib.example_images(config)
    params, _ = jax.eval_shape(detector.init, jax.random.key(0), example)
    optimizer = optim.build(config.optim, params, 100_000, size, 1000, detector.frozen)
    state = state_lib.abstract(detector, optimizer, config, mesh)
    return Parts(detector, optimizer, state, train_step.make_batch(config))


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def image(config) -> dict:
    """Operations of one image in training, and the bytes that evaluation gathers of one."""
    config.model.dtype = "bfloat16"
    made = parts(config, sharding.make_mesh(), 1)
    state, batch = accelerators.placed((made.state, made.batch), None)
    update = jax.jit(update_lib.of(made.detector, made.optimizer, config))
    # The form of a GPU: the convolutions of a CPU have other operations.
    lowered = update.trace(state, batch).lower(lowering_platforms=("cuda",))
    predict = made.detector.predict_with_bounds
    detections = jax.eval_shape(predict, state.params, state.state, batch.images, batch.image_size)
    # The number of skipped images is an int32 of each row.
    rows = evaluation._Rows(batch.index, batch.placement, batch.real, batch.index, batch.real)
    return {
        "canvas": config.data.canvases[0],
        "flop": lowered.cost_analysis()["flops"],
        "gathered_bytes": _bytes((detections, rows)),
    }


def scoring() -> dict:
    """Processor seconds of both metrics for made-up detections of as many images as val2017."""
    rng = np.random.default_rng(0)

    def boxes(count):
        corner = rng.uniform(0, 500, (count, 2))
        return np.concatenate([corner, corner + rng.uniform(10, 100, (count, 2))], -1)

    truth, predictions = [], []
    for i in range(IMAGES):
        of_objects = boxes(OBJECTS)
        truth.append(
            {
                "image_id": i,
                "height": 600,
                "width": 600,
                "boxes": of_objects,
                "labels": rng.integers(0, CLASSES, OBJECTS),
                "ignore": np.zeros(OBJECTS, bool),
                "area": (of_objects[:, 2:] - of_objects[:, :2]).prod(-1),
            }
        )
        predictions.append(
            {
                "image_id": i,
                "boxes": boxes(DETECTIONS).astype(np.float32),
                "scores": np.sort(rng.random(DETECTIONS, np.float32))[::-1],
                "labels": rng.integers(0, CLASSES, DETECTIONS),
            }
        )
    start = time.process_time()
    evaluation.score(truth, predictions, [str(x) for x in range(CLASSES)])
    return {
        "images": IMAGES,
        "detections": DETECTIONS,
        "cpu_s": round(time.process_time() - start, 1),
    }


if __name__ == "__main__":
    errors.run_main(main)
