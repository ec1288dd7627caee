"""Times a detector from the file to the boxes, stage by stage, on one device.

    detlab tools speed --workdir runs/retinanet_shapes --output shown
    detlab tools speed --config yolov5_bccd --config.data.root=BCCD --batch 1,4 --output shown

Stages: read (decoding the files), resize (and padding), to device, forward (the maps), candidates
(decoding the best boxes), suppress, to host, and to original (boxes in px of the file).  Each stage
of the device is a program of its own and waited for.  Times are of an image; in a batch, of the
batch divided by its size.  The time of suppression depends on the candidates: a network that is
untrained, or random images, give other times than real ones.

Compilation and the first call are apart.  FLOPs and memory are what XLA says of its program; FLOPs
count a multiplication and an addition as two.
"""

from detlab import cli
from detlab.tools import analysis_flags

if __name__ == "__main__":
    cli.answer_first(analysis_flags.speed(__doc__))  # --help needs no import below

import collections
import itertools
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from detlab import environment, errors, media
from detlab.data import augment, plan, records
from detlab.data import batch as batch_lib
from detlab.data import settings as settings_lib
from detlab.metrics import tables
from detlab.tools import frame

STAGES = ("read", "resize", "to device", "forward", "candidates", "suppress", "to host")
STAGES += ("to original",)
_ON_DEVICE = ("forward", "candidates", "suppress")
_IMAGES = 32  # by default


class Images(NamedTuple):
    """Images that are read again and again."""

    read: Callable[[int], np.ndarray]  # number -> [h, w, 3] uint8 RGB
    sizes: list  # (height, width) px of each
    data: str  # what they are


def main(arguments: list[str]) -> None:
    """Runs the tool."""
    args, overrides = frame.parse(arguments, analysis_flags.speed(__doc__))
    analysis_flags.check_speed(args)
    batch_sizes = analysis_flags.batch_sizes(args.batch)
    load_before = os.getloadavg()
    loaded = frame.load(args, overrides)
    config = loaded.config
    if len(loaded.detector.views) > 1:
        print("config.eval.views: only the image itself is timed, not its other views")
    settings = settings_lib.of(config.data, "eval", config.eval)._replace(rectangles=0)
    images = open_images(args, loaded, settings)
    canvas, chosen = of_one_canvas(images, settings)
    inputs = {"data": images.data, "images": len(chosen), "canvas": list(canvas)}
    output = frame.Output("speed", args, config, inputs)

    device = jax.devices()[0]
    params, state = jax.device_put((loaded.params, loaded.state), device)
    blocks = {}
    for size in batch_sizes:
        programs = compile_stages(loaded.detector, params, state, canvas, size, settings.dtype)
        given = itertools.cycle(chosen)
        times, counts = measure(
            programs, (params, state), images, given, canvas, size, settings, args.runs
        )
        blocks[str(size)] = block(programs, times, counts, size)
    leaves = jax.tree.leaves(loaded.params)
    results = {
        "canvas": list(canvas),
        "weights": loaded.weights,
        "dtype": config.model.get("dtype", "float32"),
        "parameters": int(sum(x.size for x in leaves)),
        "device": f"1 x {device.device_kind} ({device.platform})",
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "environment": environment.describe(config),
        "batches": blocks,
    }
    title = (
        f"{config.detector}, {results['parameters'] / 1e6:.2f} M parameters, canvas"
        f" {canvas[1]} x {canvas[0]} px, {results['dtype']}, {device.device_kind}"
    )
    output.figure(draw(blocks, f"{title}\n{images.data}, {args.runs} runs"), "speed")
    output.close(frame.rounded(results), f"{title}\n\n{_table(blocks)}")


def open_images(args: Any, loaded: frame.Loaded, settings: settings_lib.Settings) -> Images:
    """The images that --images names.

    Raises:
      UserError: they cannot be opened.
    """
    limit = args.limit or _IMAGES
    if args.images == "random":
        rng = np.random.default_rng(args.seed)
        shape = (*settings.canvases[0], 3)
        noise = [rng.integers(0, 256, shape, np.uint8) for _ in range(limit)]
        return Images(noise.__getitem__, [shape[:2]] * limit, "random images")
    if args.images == "data":
        source = frame.open_data(loaded.config, "eval", limit, loaded.class_names)
        sizes = [source.size(i) for i in range(len(source))]
        read = _refusing(lambda i: source[i]["image"])
        return Images(read, sizes, f"evaluation images of {loaded.config.data.source}")
    found = media.find_inputs(args.images, args.output, "--images").files
    files = [path for path in found if path.suffix.lower() not in media.VIDEOS][:limit]
    if not files:
        raise errors.UserError(f"--images {args.images} has no images; name another folder.")
    read = _refusing(lambda i: records.read_image(files[i]))
    sizes = [_refusing(records.read_image_size)(path) for path in files]
    return Images(read, sizes, f"images of {pathlib.Path(args.images).name}")


def _refusing(read: Callable) -> Callable:
    """`read`, whose faults are the user's to repair."""

    def call(what):
        try:
            return read(what)
        except records.DataError as error:
            raise errors.UserError(f"{str(error).removesuffix('.')}.") from error

    return call


def of_one_canvas(
    images: Images, settings: settings_lib.Settings
) -> tuple[tuple[int, int], list[int]]:
    """The canvas that suits most of the images, and their numbers."""
    canvases = [plan.canvas_of(size, settings) for size in images.sizes]
    canvas, _ = collections.Counter(canvases).most_common(1)[0]
    return canvas, [i for i, other in enumerate(canvases) if other == canvas]


class Program(NamedTuple):
    """A compiled stage."""

    run: Callable
    compile_s: float  # tracing and compilation, or reading them from the cache
    flops: float | None
    peak_bytes: int  # of arguments, results and temporary arrays

    @classmethod
    def of(cls, function: Callable, *arguments: Any) -> "Program":
        """Compiles a function of arrays."""
        start = time.perf_counter()
        run = jax.jit(function).lower(*arguments).compile()
        seconds = time.perf_counter() - start
        cost, memory = run.cost_analysis() or {}, run.memory_analysis()
        sizes = ("argument", "output", "temp")
        peak = sum(getattr(memory, f"{size}_size_in_bytes", 0) for size in sizes)
        peak -= getattr(memory, "alias_size_in_bytes", 0)
        return cls(run, seconds, cost.get("flops"), int(peak))


def compile_stages(
    detector: Any, params: Any, state: Any, canvas: tuple[int, int], size: int, dtype: Any
) -> dict[str, Program]:
    """The programs of the stages on the device, for batches of `size` images."""
    images = jax.ShapeDtypeStruct((size, *canvas, 3), dtype)
    content = jax.ShapeDtypeStruct((size, 2), np.int32)

    def forward(params, state, images):
        return detector.maps(params, state, images, False)[0]

    def candidates(params, state, maps, image_size):
        return detector.candidates(params, state, maps, image_size, canvas)

    maps = jax.eval_shape(forward, params, state, images)
    found = jax.eval_shape(candidates, params, state, maps, content)
    return {
        "forward": Program.of(forward, params, state, images),
        "candidates": Program.of(candidates, params, state, maps, content),
        "suppress": Program.of(detector.suppress, found),
    }


def measure(
    programs: Mapping[str, Program],
    variables: tuple[Any, Any],
    images: Images,
    numbers: Any,
    canvas: tuple[int, int],
    size: int,
    settings: settings_lib.Settings,
    runs: int,
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Runs all stages; the first run is apart.

    Args:
      programs: from `compile_stages`.
      variables: params and state, on the device.
      images: to read.
      numbers: an endless iterator of those to use.
      canvas: (height, width) px.
      size: of a batch.
      settings: of the data.
      runs: number of batches, at least 2.
    Returns:
      Seconds of each stage, [runs + 1] each, the first run first; and numbers of boxes.
    """
    resize = augment.resizer(settings)
    clock, counts = Clock(STAGES), collections.Counter()
    device = jax.devices()[0]
    for _ in range(runs + 1):
        chosen = list(itertools.islice(numbers, size))
        clock.start()
        read = [images.read(i) for i in chosen]
        clock.stop("read")
        rows = [resize(records.without_objects(image), *canvas) for image in read]
        batch = batch_lib.to_batch(rows, canvas, 1, settings.pad_value, settings.dtype)
        clock.stop("resize")
        given = jax.block_until_ready(jax.device_put((batch.images, batch.image_size), device))
        clock.stop("to device")
        maps = jax.block_until_ready(programs["forward"].run(*variables, given[0]))
        clock.stop("forward")
        found = jax.block_until_ready(programs["candidates"].run(*variables, maps, given[1]))
        clock.stop("candidates")
        kept = jax.block_until_ready(programs["suppress"].run(found))
        clock.stop("suppress")
        kept = jax.device_get(kept)
        clock.stop("to host")
        for row, image in enumerate(read):
            boxes = kept.boxes[row][kept.valid[row]]
            batch_lib.to_original(boxes, batch.placement[row], image.shape[:2])
        clock.stop("to original")
        counts["candidates"] += int(np.asarray(found.valid).sum())
        counts["detections"] += int(kept.valid.sum())
    total = size * (runs + 1)
    return clock.seconds(), {name: count / total for name, count in counts.items()}


class Clock:
    """Seconds of stages that follow each other."""

    def __init__(self, stages: Sequence[str]):
        self._times = {stage: [] for stage in stages}
        self._since = 0.0

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self, stage: str) -> None:
        """Ends a stage; the next one begins when this returns."""
        self._times[stage].append(time.perf_counter() - self._since)
        self.start()

    def seconds(self) -> dict[str, np.ndarray]:
        """Those of each stage [runs]."""
        return {stage: np.array(times) for stage, times in self._times.items()}


def block(
    programs: Mapping[str, Program],
    times: Mapping[str, np.ndarray],
    counts: Mapping[str, float],
    size: int,
) -> dict[str, Any]:
    """The figures of a batch size.

    Args:
      programs: of the stages on the device.
      times: s of each stage, [runs + 1] each, the first run first.
      counts: of boxes of an image.
      size: of a batch.
    """
    later = {stage: 1000 * values[1:] / size for stage, values in times.items()}  # ms an image
    total = sum(later.values())
    on_device = sum(later[stage] for stage in _ON_DEVICE)
    whole = sum(float(np.median(values)) for values in later.values())
    stages = {}
    for stage, values in {**later, "all": total}.items():
        median, p90, p99 = np.percentile(values, (50, 90, 99))
        share = median / whole if stage != "all" else 1.0
        stages[stage] = {"median_ms": median, "p90_ms": p90, "p99_ms": p99, "share": share}
    return {
        "stages": stages,
        "images_per_second": 1000 / float(np.median(total)),
        "images_per_second_of_device_stages": 1000 / float(np.median(on_device)),
        "first_run_s": {stage: float(values[0]) for stage, values in times.items()},
        "compile_s": {stage: program.compile_s for stage, program in programs.items()},
        "gflops_per_image": {
            stage: None if program.flops is None else program.flops / size / 1e9
            for stage, program in programs.items()
        },
        "peak_mib": {stage: program.peak_bytes / 2**20 for stage, program in programs.items()},
        "candidates_per_image": counts["candidates"],
        "detections_per_image": counts["detections"],
    }


def draw(blocks: Mapping[str, dict[str, Any]], title: str) -> Any:
    """A matplotlib Figure: a stacked bar of the stages' medians for each batch size."""
    from matplotlib import figure as figure_lib

    figure = figure_lib.Figure(figsize=(10, 1.8 + 0.8 * len(blocks)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(blocks))
    names = [f"batch of {size}" for size in blocks]
    whole = max(sum(s["median_ms"] for s in b["stages"].values()) / 2 for b in blocks.values())
    for i, stage in enumerate(STAGES):
        widths = np.array([b["stages"][stage]["median_ms"] for b in blocks.values()])
        axes.barh(names, widths, left=left, label=stage, color=f"C{i}")
        for row, (start, width) in enumerate(zip(left, widths, strict=True)):
            if width > 0.06 * whole:
                middle = start + width / 2
                axes.text(middle, row, f"{width:.3g}", ha="center", va="center", fontsize=8)
        left = left + widths
    for row, found in enumerate(blocks.values()):
        text = f" {found['images_per_second']:.3g} images/s"
        axes.text(left[row], row, text, va="center", fontsize=8)
    axes.set_xlim(0, 1.18 * left.max())
    axes.invert_yaxis()
    axes.set_xlabel("median time of an image, ms")
    axes.set_title(title, fontsize=9)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=8, fontsize=8
    )
    return figure


def _table(blocks):
    parts = []
    for size, found in blocks.items():
        rows = [
            [
                stage,
                *(f"{row[key]:.3f}" for key in ("median_ms", "p90_ms", "p99_ms")),
                f"{100 * row['share']:.1f}",
            ]
            for stage, row in found["stages"].items()
        ]
        head = (f"batch of {size}: ms an image", "median", "p90", "p99", "share, %")
        flops = [x for x in found["gflops_per_image"].values() if x is not None]
        parts.append(
            f"{tables.text_table(head, rows)}\n"
            f"{found['images_per_second']:.4g} images/s from file to boxes,"
            f" {found['images_per_second_of_device_stages']:.4g} images/s in forward, candidates"
            " and suppress\n"
            f"compiled in {sum(found['compile_s'].values()):.1f} s, first batch"
            f" {sum(found['first_run_s'].values()):.2f} s, {sum(flops):.3g} GFLOP an image, peak"
            f" {max(found['peak_mib'].values()):.0f} MiB;"
            f" {found['candidates_per_image']:.4g} candidates and"
            f" {found['detections_per_image']:.4g} boxes an image"
        )
    return "\n\n".join(parts)


if __name__ == "__main__":
    errors.run_main(main)
