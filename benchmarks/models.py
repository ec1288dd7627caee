"""Compile time, speed and memory of every detector at its published size.

    python -m benchmarks.models --output benchmarks/results/models_cpu.json
    python -m benchmarks.models --only retinanet --only fcos --side 640 --batch 2

Each detector is built from its COCO experiment and measured in a process of its own, with an empty
compilation cache: seconds to compile prediction and training step, ms an image of both (the median
of the repeats, after one that warms up), and the peak memory of the process, or of the device where
it is an accelerator.  The canvas is 320 x 320 (CornerNet 256 x 256) on a CPU, else 800 x 1344.

Peers are measured in the same run where they are installed and otherwise named as absent:
torchvision's RetinaNet, FCOS and Faster R-CNN, and OpenCV's dnn module before version 5 for
darknet's networks.  --peer_python names another Python that has them.  Ratios are detlab / peer.
"""

import argparse
import difflib
import json
import math
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Callable, NamedTuple, Sequence

import jax
import numpy as np

from benchmarks import machine
from benchmarks import train_step
from detlab import config as config_lib
from detlab import detector as detector_lib
from detlab import errors


class Model(NamedTuple):
    """A row of the table."""

    config: str  # shipped experiment
    side: int = 320  # px of the canvas on a CPU
    peer: str = ""  # a model of benchmarks/peers.py


MODELS = {
    "retinanet": Model("retinanet_coco:scratch", peer="torchvision/retinanet_resnet50_fpn"),
    "fcos": Model("fcos_coco:scratch", peer="torchvision/fcos_resnet50_fpn"),
    "ghm": Model("ghm_coco:scratch"),
    "faster_rcnn": Model("faster_rcnn_coco:scratch", peer="torchvision/fasterrcnn_resnet50_fpn"),
    "yolov3": Model("yolov3_coco:scratch"),
    "reppoints": Model("reppoints_coco:scratch"),
    "cornernet": Model("cornernet_coco", side=256),
    "darknet_yolov3": Model("darknet_coco:yolov3", peer="opencv/yolov3"),
    "darknet_yolov3_tiny": Model("darknet_coco:yolov3_tiny", peer="opencv/yolov3-tiny"),
    "darknet_yolov4": Model("darknet_coco:yolov4", peer="opencv/yolov4"),
    "darknet_yolov4_tiny": Model("darknet_coco:yolov4_tiny", peer="opencv/yolov4-tiny"),
}
FIGURES = ("compile_predict_s", "compile_train_s", "predict_ms", "train_ms", "peak_mib")


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for whatever a user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", default=[], help="a name; may be repeated")
    parser.add_argument("--side", type=int, help="px of a square canvas instead of the default")
    parser.add_argument("--batch", type=int, default=1, help="images of a step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=pathlib.Path, help="JSON of the figures")
    parser.add_argument("--peer_python", default=sys.executable, help="that has the peers")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # a process of one model
    args, overrides = config_lib.parse(arguments, parser)
    if args.batch < 1 or args.repeats < 1:
        raise errors.UserError("--batch and --repeats must be at least 1.")
    if args.measure:
        print(json.dumps(measure(args.measure, args.side, args.batch, args.repeats, overrides)))
        return
    rows = {}
    print(header())
    for name in choose(args.only):
        rows[name] = in_process(name, args, overrides)
        peer = MODELS[name].peer
        rows[name]["peer"] = measure_peer(peer, rows[name], args) if peer else None
        print(line(name, rows[name]), flush=True)
        if args.output:  # after each, as all of them take long
            result = {"machine": machine.describe(), "batch": args.batch, "models": rows}
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(result, indent=1) + "\n")


def choose(wanted: Sequence[str]) -> list[str]:
    """The named models, or all where none is named."""
    for name in wanted:
        if name not in MODELS:
            close = difflib.get_close_matches(name, MODELS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(MODELS)}."
            raise errors.UserError(f"--only {name}: no such model; {hint}")
    return list(wanted) or list(MODELS)


def in_process(name: str, args, overrides) -> dict:
    """`measure` in a process whose memory and compilations are the model's alone."""
    command = [sys.executable, "-m", "benchmarks.models", "--measure", name]
    command += ["--batch", str(args.batch), "--repeats", str(args.repeats)]
    command += ["--side", str(args.side)] if args.side else []
    command += [f"--config.{key}={value}" for key, value in overrides.items()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise errors.UserError(f"measuring {name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, side: int | None, batch: int, repeats: int, overrides) -> dict:
    """The figures of one model, in this process."""
    jax.config.update("jax_enable_compilation_cache", False)
    model = MODELS[name]
    config = config_lib.load(model.config, overrides)
    on_cpu = jax.default_backend() == "cpu"
    square = side or (model.side if on_cpu else None)
    config.data.canvases = ((square, square) if square else (800, 1344),)
    config.train.batch_size = batch
    inputs = train_step.make_batch(config)
    detector = detector_lib.build(config)
    key = jax.random.key(0)
    params, state = made_up(jax.eval_shape(detector.init, key, inputs.images[:1]))

    def step(params, state, inputs):
        return jax.value_and_grad(detector.loss, has_aux=True)(params, state, inputs, key)

    predict = jax.jit(detector.predict).lower(params, state, inputs.images, inputs.image_size)
    predict, predict_seconds = timed(predict.compile)
    train, train_seconds = timed(jax.jit(step).lower(params, state, inputs).compile)
    images = jax.device_put(inputs.images), jax.device_put(inputs.image_size)
    inputs = jax.device_put(inputs)
    return {
        "canvas": list(config.data.canvases[0]),
        "parameters_m": round(sum(x.size for x in jax.tree.leaves(params)) / 1e6, 2),
        "compile_predict_s": round(predict_seconds, 1),
        "compile_train_s": round(train_seconds, 1),
        "predict_ms": milliseconds(lambda: predict(params, state, *images), repeats) / batch,
        "train_ms": milliseconds(lambda: train(params, state, inputs), repeats) / batch,
        "peak_mib": peak_mib(),
    }


def made_up(shapes):
    """Leaves that keep activations of order one; drawing initial values takes long to compile."""
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if len(leaf.shape) > 1:
            std = 1 / np.sqrt(np.prod(leaf.shape[:-1]))
            return rng.normal(0, std, leaf.shape).astype(leaf.dtype)
        is_factor = path[-1].key in ("scale", "var") or path[-1].key.startswith("scale")
        return np.full(leaf.shape, float(is_factor), leaf.dtype)

    return jax.device_put(jax.tree_util.tree_map_with_path(fill, shapes))


def timed(function: Callable):
    """(what it gives, seconds)."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def milliseconds(function: Callable, repeats: int) -> float:
    """The median of the repeats after one that warms up."""
    jax.block_until_ready(function())
    seconds = [timed(lambda: jax.block_until_ready(function()))[1] for _ in range(repeats)]
    return round(1000 * statistics.median(seconds), 1)


def peak_mib() -> float:
    """Of the device's allocator, else of this process."""
    memory = jax.local_devices()[0].memory_stats()
    if memory and "peak_bytes_in_use" in memory:
        return round(memory["peak_bytes_in_use"] / 2**20, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1)  # KiB on Linux


def measure_peer(peer: str, row: dict, args) -> dict:
    """Figures of a peer on the same canvas, or {"absent": why}."""
    script = pathlib.Path(__file__).with_name("peers.py")
    with tempfile.TemporaryDirectory(prefix="peer") as folder:
        if peer.startswith("opencv/"):
            write_darknet(peer.partition("/")[2], pathlib.Path(folder))
        command = [args.peer_python, str(script), peer, *map(str, row["canvas"])]
        command += [str(args.batch), str(args.repeats), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"absent": (done.stderr.strip().splitlines() or ["it failed"])[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def write_darknet(name: str, folder: pathlib.Path) -> None:
    """A standard network with random weights, as the files that OpenCV reads."""
    from converters.readers import darknet
    from detlab import darknet_cfg
    from detlab import darknet_networks

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
        f" {'peak':>9}  ratio to the peer: predict, train"
    )


def line(name: str, row: dict) -> str:
    """One line of the table."""
    canvas = "x".join(map(str, row["canvas"]))
    compiled = f"{row['compile_predict_s']:.0f} + {row['compile_train_s']:.0f}"
    text = (
        f"{name:20} {canvas:>9} {row['parameters_m']:7.1f} {compiled:>13}"
        f" {row['predict_ms']:7.0f} ms {row['train_ms']:7.0f} ms {row['peak_mib']:5.0f} MiB"
    )
    peer = row.get("peer")
    if not peer:
        return text
    if "absent" in peer:
        return f"{text}  {MODELS[name].peer}: {peer['absent']}"
    ratios = [
        f"{row[key] / peer[key]:.2f}" if peer.get(key) and math.isfinite(peer[key]) else "-"
        for key in ("predict_ms", "train_ms")
    ]
    return f"{text}  {MODELS[name].peer} {', '.join(ratios)}"


if __name__ == "__main__":
    errors.run_main(main)
