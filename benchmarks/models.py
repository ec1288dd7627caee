"""Compile time, speed and memory of every detector at its published size.

    python -m benchmarks.models --output benchmarks/results/models_cpu.json
    python -m benchmarks.models --only retinanet --only fcos --side 640 --batch 2

Each detector is built from its COCO experiment.  Prediction (with suppression) and training step
(losses, gradients, update by the config's optimizer; no averaged weights) each run in their own
process, which compiles with an empty cache.  It reports the seconds to compile, the ms per image
(median of the repeats, after one warm-up), and the peak memory since the warm-up: of the device if
that is an accelerator, else of the process.  The canvas is 320 x 320 (CornerNet 256 x 256, SSD
300 x 300) on a CPU, else 800 x 1344.

Peers are measured in the same run if they are installed and are listed as absent if not:
torchvision's RetinaNet, FCOS, Faster R-CNN and SSD300, the PyTorch package yolov5, and for
darknet's networks OpenCV's dnn module before version 5.  --peer_python names another Python that
has them.  Peer and detlab take turns, so other load on the machine affects both; ratios are
detlab / peer.
"""

import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import flags
from detlab import cli
from detlab import config as config_lib

if __name__ == "__main__":
    cli.answer_first(flags.models(__doc__))  # --help needs no import below

import jax
import numpy as np

from benchmarks import command, machine, made_up, peers, train_step, turns
from detlab import contract, errors, files
from detlab.converters.readers import darknet
from detlab.darknet import cfg as darknet_cfg
from detlab.darknet import networks as darknet_networks
from detlab.run import optim
from detlab.run import state as state_lib
from detlab.run import update as update_lib


class Model(NamedTuple):
    """A row of the table."""

    config: str  # shipped experiment
    side: int  # px of the canvas on a CPU
    peer: str  # a model of benchmarks/peers.py; "" for none


# Detectors with several networks: name of a row -> variant of <detector>_coco.
NETWORKS = {
    "darknet": {f"darknet_{x}": x for x in ("yolov3", "yolov3_tiny", "yolov4", "yolov4_tiny")},
    "yolov5": {f"yolov5{size}": size for size in "nsmlx"},
    "sabl_rcnn": {"sabl_rcnn": "", "sabl_rcnn_cascade": "cascade"},
}
SIDES = {"cornernet": 256, "centripetalnet": 256, "ssd": 300, "pisa_ssd": 300}
PEERS = {
    "retinanet": "torchvision/retinanet_resnet50_fpn",
    "fcos": "torchvision/fcos_resnet50_fpn",
    "faster_rcnn": "torchvision/fasterrcnn_resnet50_fpn",
    "ssd": "torchvision/ssd300_vgg16",
    **{row: f"opencv/{x.replace('_', '-')}" for row, x in NETWORKS["darknet"].items()},
    **{row: f"yolov5/{row}" for row in NETWORKS["yolov5"]},
}


def find() -> dict[str, Model]:
    """The rows: every shipped <detector>_coco, and the networks above.

    Weights are made up, yet a ResNet trains as from published ones: its stem and first stage are
    frozen and its norms use running statistics, as in the peers.
    """
    models = {}
    for name in config_lib.shipped():
        if not name.endswith("_coco"):
            continue
        detector = name.removesuffix("_coco")
        for row, variant in NETWORKS.get(detector, {detector: ""}).items():
            config = f"{name}:{variant}".removesuffix(":")
            models[row] = Model(config, SIDES.get(row, 320), PEERS.get(row, ""))
    return models


MODELS = find()
PROGRAMS = ("predict", "train")


class Task(NamedTuple):
    """What a process started with `--serve` measures."""

    model: str  # of MODELS
    program: str  # of PROGRAMS
    side: int | None
    batch: int


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for what a user can fix."""
    args, overrides = cli.parse(arguments, flags.models(__doc__))
    if args.batch < 1 or args.repeats < 1:
        raise errors.UserError("--batch and --repeats must be at least 1.")
    if args.serve:
        turns.serve(*program(Task(**json.loads(args.serve)), overrides))
        return
    names = command.choose(args.only, MODELS, "model")
    if args.output:
        command.make_folder(args.output.parent)
    rows = {}
    print(header())
    for name in names:
        rows[name] = measure(name, args, overrides)
        print(line(name, rows[name]), flush=True)
        if args.output:  # after each row: all of them take long
            result = {"machine": machine.describe(), "batch": args.batch, "models": rows}
            files.write_json(args.output, result)


def measure(name: str, args, overrides: Mapping[str, Any]) -> dict:
    """A row of the table: facts about the model, and the figures of each program."""
    row: dict[str, Any] = {"peer": MODELS[name].peer or None}
    for kind in PROGRAMS:
        task = Task(name, kind, args.side, args.batch)
        words = [sys.executable, "-m", "benchmarks.models", "--serve", json.dumps(task._asdict())]
        words += [f"--config.{key}={value}" for key, value in overrides.items()]
        try:
            with turns.Worker(words) as own, tempfile.TemporaryDirectory() as folder:
                ready = own.ready
                row |= {key: ready.pop(key) for key in ("canvas", "parameters_m")}
                peer = start_peer(name, task, row["canvas"], args.peer_python, pathlib.Path(folder))
                row[kind] = ready | in_turns(own, peer, args.repeats, args.batch)
        except turns.Failed as error:
            raise errors.UserError(f"measuring {name} failed: {error}") from None
    return row


def start_peer(
    name: str, task: Task, canvas: Sequence[int], python: str, folder: pathlib.Path
) -> turns.Worker | dict | None:
    """The peer's process, {"absent": why}, or None if there is no such peer."""
    peer = MODELS[name].peer
    package, _, network = peer.partition("/")
    if not peer or task.program not in peers.PEERS[package].programs:
        return None
    if package == "opencv":
        write_darknet(network, folder)
    asked = peers.Task(peer, task.program, canvas, task.batch, str(folder))
    return command.start_peer(python, "benchmarks.peers", asked, peers.PEERS[package].install)


def in_turns(own: turns.Worker, peer: turns.Worker | dict | None, repeats: int, batch: int):
    """Figures of detlab's program, those of the peer as "peer", and their ratio."""
    if not isinstance(peer, turns.Worker):
        return figures(own, [own.run() for _ in range(repeats)], batch) | {"peer": peer}
    with peer:
        pairs = [(own.run(), peer.run()) for _ in range(repeats)]
        mine, theirs = zip(*pairs, strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        other = peer.ready | figures(peer, theirs, batch)
        return figures(own, mine, batch) | {"peer": other, "ratio": round(ratio, 3)}


def figures(worker: turns.Worker, milliseconds: Sequence[float], batch: int) -> dict:
    """Figures of a program after its last turn."""
    last = worker.close()
    peak = last.get("device_peak_mib") or last["peak_mib"]
    median = statistics.median(milliseconds) / batch
    return {"ms": round(median, 1), "peak_mib": peak and round(peak, 1)}


def program(task: Task, overrides: Mapping[str, Any]):
    """Arguments of `turns.serve` for one of detlab's programs, compiled, with inputs on device."""
    jax.config.update("jax_enable_compilation_cache", False)
    function, inputs, facts = uncompiled(task, overrides)
    compiled, seconds = timed(function.lower(*inputs).compile)
    ready = facts | {"compile_s": round(seconds, 1)}
    if task.program == "predict":
        inputs = jax.device_put(inputs)

        def run():
            jax.block_until_ready(compiled(*inputs))

        return run, ready, device_memory
    train_state, batch = inputs[0], jax.device_put(inputs[1])

    def step():
        nonlocal train_state
        train_state, metrics = compiled(train_state, batch)
        jax.block_until_ready((train_state, metrics))

    return step, ready, device_memory


def uncompiled(task: Task, overrides: Mapping[str, Any]):
    """(the function as jit takes it, its inputs, facts about the model)."""
    model = MODELS[task.model]
    config = config_lib.load(model.config, overrides)
    on_cpu = jax.default_backend() == "cpu"
    square = task.side or (model.side if on_cpu else None)
    config.data.canvases = ((square, square) if square else (800, 1344),)
    config.train.update(batch_size=task.batch, accumulate=1)
    config.optim.ema_decay = 0.0
    batch = train_step.make_batch(config)
    detector = contract.build(config)
    shapes = jax.eval_shape(detector.init, jax.random.key(0), batch.images[:1])
    params, state = made_up.weights(shapes)
    if task.program == "predict":
        function = jax.jit(detector.predict)
        inputs = params, state, batch.images, batch.image_size
    else:
        optimizer = optim.build(config.optim, params, 100_000, task.batch, 1, detector.frozen)
        function = jax.jit(update_lib.of(detector, optimizer, config), donate_argnums=0)
        inputs = state_lib.of_weights(params, state, optimizer, config), batch
    parameters = sum(x.size for x in jax.tree.leaves(shapes[0]))
    canvas = list(config.data.canvases[0])
    return function, inputs, {"canvas": canvas, "parameters_m": round(parameters / 1e6, 2)}


def timed(function: Callable):
    """(result, seconds)."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def device_memory() -> dict:
    """The peak memory of an accelerator; {} on a CPU."""
    memory = jax.local_devices()[0].memory_stats()
    if not memory or "peak_bytes_in_use" not in memory:
        return {}
    return {"device_peak_mib": memory["peak_bytes_in_use"] / 2**20}


def write_darknet(name: str, folder: pathlib.Path) -> None:
    """Writes a standard network with random weights to the files that OpenCV reads."""
    network = darknet_networks.resolve(name)
    rng = np.random.default_rng(0)
    shapes = darknet.tensor_shapes(network)
    # Activations of order one: values that overflow or vanish would change the speed.
    tensors = {
        key: np.ones(shape, np.float32)
        if key.endswith((".scale", ".var"))
        else rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)
        for key, shape in shapes.items()
    }
    header = darknet.Header()
    darknet.write(folder / "net.weights", network, darknet.Weights(header, tensors))
    (folder / "net.cfg").write_text(darknet_cfg.format(network))


def header() -> str:
    return (
        f"{'model':20} {'canvas':>9} {'M par.':>7} {'compile s':>13} {'predict':>10} {'train':>10}"
        f" {'peak MiB':>13}  ratio to the peer: predict, train"
    )


def line(name: str, row: Mapping[str, Any]) -> str:
    """One line of the table."""
    canvas = "x".join(map(str, row["canvas"]))
    of = [row[kind] for kind in PROGRAMS]
    compiled, peak = (
        " + ".join(f"{x[key] or 0:.0f}" for x in of) for key in ("compile_s", "peak_mib")
    )
    text = (
        f"{name:20} {canvas:>9} {row['parameters_m']:7.1f} {compiled:>13}"
        f" {of[0]['ms']:7.0f} ms {of[1]['ms']:7.0f} ms {peak:>13}"
    )
    if not row["peer"]:
        return text
    absent = [x["peer"]["absent"] for x in of if x["peer"] and "absent" in x["peer"]]
    if absent:
        return f"{text}  {row['peer']}: {absent[0]}"
    ratios = [f"{x['ratio']:.2f}" if "ratio" in x else "-" for x in of]
    return f"{text}  {row['peer']} {', '.join(ratios)}"


if __name__ == "__main__":
    errors.run_main(main)
