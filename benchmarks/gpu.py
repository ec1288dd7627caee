"""detlab beside torchvision on one GPU: results as they come, at an end after nine minutes.

    python -m benchmarks.gpu --output benchmarks/results/gpu.json
    python -m benchmarks.gpu --tiny --output tiny.json      # tries the script, on a CPU too

Goals on an H200, in bfloat16:

- RetinaNet-50 trains 1.5 times as many images a second as torchvision's, 8 images of 800x1344;
- it predicts one such image in half of torchvision's time;
- its training reaches 40 % of the GPU's peak.

Each row runs in a process of its own, in the order of `ROWS`, so the most important come first and
a crash, or a compiler that takes too long, ends one row alone.  torchvision runs in both forms of
`peers.FORMS` for GPUs, and the faster one counts.  Operations run in each of `FORMS`: the programs
that `lax.platform_dependent` gives to a CPU and to an accelerator, both on this device.

It needs jax, flax, optax and NumPy, for the peers torch and torchvision, and no other package: it
imports no loader, no evaluator and no experiment, whose settings it therefore repeats (a test
compares them).

A training step has losses, gradients and the update of the experiment.  Prediction goes from
uint8 images on the device to detections.  Weights are made up, so about all of detlab's 1000
candidates a level pass and must be suppressed; torchvision's have the biases of the start of
training, and next to nothing to suppress.  Milliseconds are the median of the repeats, each of
which ends when its results are there, after a warm-up.  The operations (GFLOP) are what jax counts
in the program before it is compiled.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import types as python_types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest import mock

from benchmarks import flags
from detlab import cli

if __name__ == "__main__":
    cli.answer_first(flags.gpu(__doc__))  # --help needs no import below

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import command, made_up, peers, turns
from detlab import contract, errors, files, types
from detlab.detectors import faster_rcnn, retinanet, yolov5
from detlab.run import optim
from detlab.run import update as update_lib

PEAKS = {"H200": 989e12, "H100 80GB": 989e12}  # device -> operations/s, dense bfloat16 (NVIDIA)
LONGEST_S = 180  # of a row, so that one that hangs leaves time for the others
REPEATS, SECONDS = 20, 15  # at most so many, at most so long
_MARK = "row: "  # starts a line that holds the row so far

# Form -> keywords of `lax.platform_dependent`, the first of which a call has.
FORMS = {"accelerator": ("cuda", "default"), "cpu": ("cpu", "default")}

OPTIM = dict(  # `config.optim` of retinanet_coco
    name="sgd",
    lr=0.01,
    lr_batch_size=16,
    momentum=0.9,
    nesterov=False,
    weight_decay=1e-4,
    no_decay=(),
    freeze=(),
    clip_norm=0.0,
    schedule="step",
    milestones=(8, 11),
    milestone_factor=0.1,
    warmup_steps=500,
    warmup_factor=0.001,
    warmup_power=1.0,
    warmup_momentum=0.0,
    warmup_bias_lr=0.0,
    biases=("params/.*/bias",),
    final_factor=0.0,
    decay_from="warmup",
    ema_decay=0.0,
    ema_warmup=0,
)
YOLOV5_OPTIM = dict(  # what differs in yolov5_coco:l
    lr_batch_size=0,
    momentum=0.937,
    nesterov=True,
    weight_decay=5e-4,
    no_decay=("params/.*/norm/.*", "params/.*/bias"),
    clip_norm=10.0,
    schedule="linear",
    final_factor=0.1,
    decay_from="start",
    warmup_steps=5500,
    warmup_factor=0.0,
    warmup_momentum=0.8,
    warmup_bias_lr=0.1,
    ema_decay=0.9999,
    ema_warmup=2000,
)


class Model(NamedTuple):
    """A detector as its experiment builds it."""

    experiment: str
    module: type
    fields: dict[str, Any]  # that differ from the module's defaults, beside the dtype
    optim: dict[str, Any]  # that differ from `OPTIM`
    canvas: tuple[int, int]  # height, width px
    slots: int  # for objects
    tiny: dict[str, Any]  # fields of the tiny form


_RESNET = dict(depth=18, backbone_width=8, neck_width=16, backbone_stages=(1, 1, 1, 1))
_FEW = dict(train_proposals_per_level=16, train_proposals=16, box_samples=8, rpn_samples=16)
MODELS = {
    "retinanet": Model(
        "retinanet_coco",
        retinanet.RetinaNet,
        {},
        {},
        (800, 1344),
        100,
        _RESNET | dict(head_width=16, head_convs=1, candidates_per_level=20),
    ),
    "faster_rcnn": Model(
        "faster_rcnn_coco",
        faster_rcnn.FasterRCNN,
        dict(predict_sampling_ratio=0),
        dict(lr=0.02),
        (800, 1344),
        100,
        _RESNET | _FEW | dict(rpn_width=16, box_width=16),
    ),
    "yolov5l": Model(
        "yolov5_coco:l",
        yolov5.YOLOv5,
        dict(depth_multiple=1.0, width_multiple=1.0, class_gain=0.3, objectness_gain=0.7),
        YOLOV5_OPTIM,
        (640, 640),
        200,
        dict(depth_multiple=0.33, width_multiple=0.0625),
    ),
}
TINY_CANVAS, TINY_BATCH, TINY_SLOTS = (64, 64), 2, 8


class Row(NamedTuple):
    """What is measured."""

    kind: str  # of KINDS
    model: str  # of MODELS
    program: str  # train, predict, or an operation
    batch: int
    tiny: bool = False


ROWS = {
    "retinanet/train": Row("detlab", "retinanet", "train", 8),
    "retinanet/predict": Row("detlab", "retinanet", "predict", 1),
    "torchvision/train": Row("peer", "retinanet", "train", 8),
    "torchvision/predict": Row("peer", "retinanet", "predict", 1),
    "faster_rcnn/train": Row("detlab", "faster_rcnn", "train", 8),
    "yolov5l/train": Row("detlab", "yolov5l", "train", 32),
    "nms": Row("operation", "retinanet", "suppress", 8),
    "assignment": Row("operation", "retinanet", "targets", 8),
}


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for what a user can fix."""
    args, _ = cli.parse(arguments, flags.gpu(__doc__))
    if args.one:
        row = ROWS[args.one]
        if args.tiny:
            row = row._replace(tiny=True, batch=min(row.batch, TINY_BATCH))
        KINDS[row.kind](row)
        return
    end = time.monotonic() + 60 * args.minutes
    names = command.choose(args.only, ROWS, "row")
    if args.output:
        command.make_folder(args.output.parent)
    result = {"machine": {}, "tiny": args.tiny, "minutes": args.minutes, "rows": {}, "goals": {}}
    for name in names:
        row = measured(name, args.tiny, min(LONGEST_S, end - time.monotonic()))
        result["machine"] |= row.pop("machine", {})
        result["rows"][name] = row
        result["goals"] = goals(result["rows"])
        print(f"{name}: {sentence(row)}", flush=True)
        if args.output:
            files.write_json(args.output, result)
    for name, goal in result["goals"].items():
        value = goal["measured"]
        said = "not measured" if value is None else f"{value:.2f}"
        print(f"{name}: {said} (goal {goal['goal']})")


def measured(name: str, tiny: bool, seconds: float) -> dict:
    """A row, from a process that has `seconds`; "missing" says why figures are not there."""
    if seconds <= 0:
        return {"missing": "the time was over"}
    words = [sys.executable, "-m", "benchmarks.gpu", "--one", name, *(["--tiny"] if tiny else [])]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            words, env=turns.environment(), stdout=output, stderr=said, start_new_session=True
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            ended = process.poll()
            if ended is None:  # with the processes that compile for it
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        lines, errors_said = (_lines(file) for file in (output, said))
    found = [line for line in lines if line.startswith(_MARK)]
    row = json.loads(found[-1].removeprefix(_MARK)) if found else {}
    if ended is None:
        row["missing"] = f"it was not through after {seconds:.0f} s"
    elif ended:
        last = errors_said[-1][:300] if errors_said else ""
        row["missing"] = last or f"it ended with status {ended}"
    return row


def _lines(file) -> list[str]:
    file.seek(0)
    return file.read().decode(errors="replace").strip().splitlines()


def goals(rows: dict[str, dict]) -> dict[str, dict]:
    """The goals, each with what was measured; None where a figure is missing."""
    train, predict = rows.get("retinanet/train", {}), rows.get("retinanet/predict", {})
    their = {name: rows.get(f"torchvision/{name}", {}) for name in ("train", "predict")}

    def faster(own, other):
        return other["ms"] / own["ms"] if "ms" in own and "ms" in other else None

    return {
        "training beside torchvision's": {"goal": 1.5, "measured": faster(train, their["train"])},
        "prediction beside torchvision's": {
            "goal": 2.0,
            "measured": faster(predict, their["predict"]),
        },
        "share of the peak in training": {"goal": 0.4, "measured": train.get("share_of_peak")},
    }


def sentence(row: dict) -> str:
    """The figures of a row."""
    parts = []
    if "ms" in row:
        parts.append(f"{row['ms']:.2f} ms")
    if "images_s" in row:
        parts.append(f"{row['images_s']:.1f} images/s")
    if row.get("share_of_peak"):
        parts.append(f"{100 * row['share_of_peak']:.1f} % of the peak")
    if "compile_s" in row:
        parts.append(f"compiled in {row['compile_s']:.1f} s")
    parts += [f"{form}: {figures['ms']:.2f} ms" for form, figures in row.get("forms", {}).items()]
    return ", ".join(parts + [row[key] for key in ("note", "missing") if key in row])


# ------------------------------------------------------------------------------------------------
# In the process of a row


def tell(row: dict) -> None:
    """Prints the row so far; if the process is ended, the last one counts."""
    print(f"{_MARK}{json.dumps(row, allow_nan=False)}", flush=True)


def repeated(run: Callable[[], None], images: int, tiny: bool) -> dict:
    """Figures of a program that returns when its results are there."""
    warm = [_milliseconds(run) for _ in range(1 if tiny else 3)]
    times, end = [], time.perf_counter() + SECONDS
    while len(times) < (2 if tiny else REPEATS) and (len(times) < 2 or time.perf_counter() < end):
        times.append(_milliseconds(run))
    median = statistics.median(times)
    return {
        "ms": median,
        "images_s": 1000 * images / median,
        "shortest_ms": min(times),
        "longest_ms": max(times),
        "repeats": len(times),
        "warm_up_ms": warm,
    }


def _milliseconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def detlab_row(row: Row) -> None:
    """Training or prediction of one of detlab's detectors."""
    detector, batch, settings = built(row)
    shapes = jax.eval_shape(detector.init, jax.random.key(0), batch.images[:1])
    params, state = made_up.weights(shapes)
    batch = jax.device_put(batch)
    if row.program == "predict":
        function, inputs = (
            jax.jit(detector.predict),
            (params, state, batch.images, batch.image_size),
        )
    else:
        function, inputs = training(detector, settings, params, state, batch)
    facts = described(row) | {"machine": device()}
    lowered, facts["lower_s"] = timed(lambda: function.lower(*inputs))
    facts["gflop"] = gflop(lowered)
    compiled, facts["compile_s"] = timed(lowered.compile)
    facts |= {"gflop_compiled": gflop(compiled), "temporary_mib": temporary(compiled)}
    tell(facts)
    run = step_of(compiled, inputs) if row.program == "train" else blocked(compiled, inputs)
    figures = repeated(run, row.batch, row.tiny)
    tell(facts | figures | share(facts["gflop"], figures["ms"]) | {"peak_mib": peak_mib()})


def built(row: Row):
    """(detector, batch on the host, `config` with what an update reads) of a row."""
    model = MODELS[row.model]
    fields = model.fields | {"dtype": "bfloat16"} | (model.tiny if row.tiny else {})
    canvas, slots = (TINY_CANVAS, TINY_SLOTS) if row.tiny else (model.canvas, model.slots)
    detector = contract.from_module(model.module(**fields))
    settings = python_types.SimpleNamespace(
        seed=0,
        train=python_types.SimpleNamespace(accumulate=1),
        optim=python_types.SimpleNamespace(**OPTIM | model.optim),
    )
    return detector, make_batch(row.batch, canvas, slots), settings


def make_batch(size: int, canvas: tuple[int, int], slots: int) -> types.Batch:
    """The images and objects that the peers get too."""
    images, boxes, labels = peers.images_and_boxes(peers.Task("", "", canvas, size))
    empty = slots - boxes.shape[1]
    valid = np.broadcast_to(np.arange(slots) < boxes.shape[1], (size, slots))
    return types.Batch(
        images=images,
        boxes=np.pad(boxes, ((0, 0), (0, empty), (0, 0))),
        labels=np.pad(labels, ((0, 0), (0, empty))).astype(np.int32),
        valid=valid,
        ignore=np.zeros_like(valid),
        image_size=np.tile(np.int32(canvas), (size, 1)),
        placement=np.tile(np.float32([1, 1, 0, 0]), (size, 1)),
        index=np.arange(size, dtype=np.int32),
        real=np.ones(size, bool),
    )


def training(detector: contract.Detector, settings, params, state, batch: types.Batch):
    """(the update as jit takes it, its inputs)."""
    optimizer = optim.build(settings.optim, params, 100_000, len(batch.images), 1, detector.frozen)
    ema = None
    if settings.optim.ema_decay:
        ema = jax.tree.map(jnp.copy, {"params": params, "state": state})
    first = types.TrainState(
        jnp.zeros((), jnp.int32), params, state, optimizer.transform.init(params), ema
    )
    update = update_lib.of(detector, optimizer, settings)
    return jax.jit(update, donate_argnums=0), (first, batch)


def step_of(compiled: Callable, inputs: tuple) -> Callable[[], None]:
    """A function that does one step and waits for its metrics and its state."""
    state, batch = inputs

    def run():
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))

    return run


def blocked(compiled: Callable, inputs: tuple) -> Callable[[], None]:
    """A function that runs a program and waits for its results."""

    def run():
        jax.block_until_ready(compiled(*inputs))

    return run


def operation_row(row: Row) -> None:
    """Suppression or assignment as RetinaNet calls it, in the form of each platform."""
    function, inputs = OPERATIONS[row.program](row)
    facts = described(row) | {"machine": device(), "forms": {}}
    texts = {}
    for form, keywords in FORMS.items():
        jax.clear_caches()  # of functions traced in the other form
        lowered = jax.jit(in_form(function, keywords)).lower(*inputs)
        texts[form] = lowered.as_text()
        if len(set(texts.values())) < len(texts):
            facts["note"] = "all platforms have the same form"
            break
        compiled, seconds = timed(lowered.compile)
        figures = repeated(blocked(compiled, inputs), row.batch, row.tiny)
        figures |= {"compile_s": seconds, "temporary_mib": temporary(compiled)}
        facts["forms"][form] = figures
        tell(facts)
    tell(facts)


def in_form(function: Callable, keywords: Sequence[str]) -> Callable:
    """`function`, traced with the form of a platform; see `FORMS`."""

    def choose(*arguments, **branches):
        return next(branches[x] for x in keywords if x in branches)(*arguments)

    def call(*arguments):
        with mock.patch.object(jax.lax, "platform_dependent", choose):
            return function(*arguments)

    return call


def suppression(row: Row):
    """(RetinaNet's suppression, 1000 candidates a level of each image, in clusters of ten)."""
    detector, _, _ = built(row)
    count = 50 if row.tiny else 5000
    rng = np.random.default_rng(0)
    clusters = rng.uniform(0, 1000, (row.batch, count // 10, 2))
    low = np.repeat(clusters, 10, axis=1) + rng.normal(0, 12, (row.batch, count, 2))
    boxes = np.concatenate([low, low + rng.uniform(40, 90, low.shape)], -1).astype(np.float32)
    candidates = types.Detections(
        boxes=boxes,
        scores=rng.uniform(0.05, 1, (row.batch, count)).astype(np.float32),
        labels=np.repeat(rng.integers(0, 80, (row.batch, count // 10), np.int32), 10, axis=1),
        valid=np.ones((row.batch, count), bool),
    )
    return detector.suppress, (jax.device_put(candidates),)


def assignment(row: Row):
    """(RetinaNet's targets, images with eight objects in 100 slots)."""
    detector, batch, _ = built(row)

    def targets(batch):  # of anchors, which need neither weights nor maps
        return detector.targets_of_maps({}, {}, batch, None, jax.random.key(0))

    return targets, (jax.device_put(batch),)


OPERATIONS = {"suppress": suppression, "targets": assignment}


def peer_row(row: Row) -> None:
    """RetinaNet of torchvision in each form; the fastest is the row's figure."""
    canvas = TINY_CANVAS if row.tiny else MODELS[row.model].canvas
    facts, best = described(row) | {"forms": {}}, {}
    for form in peers.FORMS:
        if not form:  # float32
            continue
        task = peers.Task("torchvision/retinanet", row.program, canvas, row.batch, form=form)
        run, ready, last = peers.torchvision(task, "retinanet_resnet50_fpn")
        figures, seconds = timed(lambda run=run: repeated(run, row.batch, row.tiny))
        facts["forms"][peers.FORMS[form]] = figures | last() | {"seconds": seconds}
        best = min(best or figures, figures, key=lambda x: x["ms"])
        tell(facts | ready | best)


KINDS = {"detlab": detlab_row, "operation": operation_row, "peer": peer_row}


def described(row: Row) -> dict:
    """What was measured."""
    canvas = TINY_CANVAS if row.tiny else MODELS[row.model].canvas
    return {"program": row.program, "batch": row.batch, "canvas": canvas, "dtype": "bfloat16"}


def device() -> dict:
    """The device and the versions."""
    there = jax.devices()[0]
    return {"device": there.device_kind, "jax": jax.__version__}


def timed(function: Callable) -> tuple[Any, float]:
    """(result, seconds)."""
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def gflop(program: Any) -> float | None:
    """The operations that jax counts in a lowered or a compiled program, 1e9; None if it cannot."""
    try:
        found = program.cost_analysis()
    except (NotImplementedError, RuntimeError):  # not on every device
        return None
    found = found[0] if isinstance(found, list) and found else found
    return found["flops"] / 1e9 if found and found.get("flops", 0) > 0 else None


def share(operations: float | None, milliseconds: float) -> dict:
    """{"share_of_peak": ...} if the operations and the peak of the device are known."""
    kind = jax.devices()[0].device_kind
    peak = next((value for name, value in PEAKS.items() if name in kind), None)
    if operations is None or peak is None:
        return {}
    return {"share_of_peak": operations * 1e9 / (milliseconds / 1000) / peak}


def temporary(compiled: Any) -> float:
    """MiB of temporary memory."""
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


def peak_mib() -> float | None:
    """The device's peak memory; None on a CPU."""
    memory = jax.devices()[0].memory_stats() or {}
    peak = memory.get("peak_bytes_in_use")
    return peak and peak / 2**20


if __name__ == "__main__":
    errors.run_main(main)
