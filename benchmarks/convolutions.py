"""Which form of a convolution is fastest on a CPU, for all shapes of our detectors.

    python -m benchmarks.convolutions --output benchmarks/results/convolutions_cpu.json

Lists the shapes of all spatial convolutions of the published networks (`benchmarks.models`) and of
the experiments on shapes, and measures each at several batch sizes: the result, the gradient of the
kernel and the gradient of the input, each as XLA's own convolution and as the product that
detlab/ops/conv.py may use instead.  Published networks are measured with one image only.

The last lines add up the times of XLA, of the form that `conv` chooses, and of the faster form: the
choice is good where the last two are close.

Of shapes whose numbers lie in the same half octaves, one is measured.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

from benchmarks import flags
from detlab import cli

if __name__ == "__main__":
    cli.answer_first(flags.convolutions(__doc__))  # --help needs no import below

import jax
import numpy as np

from benchmarks import command, machine, models, train_step
from detlab import config as config_lib
from detlab import contract, errors, files
from detlab.ops import conv as conv_lib

PARTS = ("result", "kernel_gradient", "input_gradient")


class Shape(NamedTuple):
    """A convolution of one image."""

    height: int
    width: int
    kernel: tuple[int, int, int, int]  # kh, kw, Cin, Cout
    stride: int
    padding: tuple[tuple[int, int], tuple[int, int]]

    @property
    def flops(self) -> float:
        """Floating-point operations of the result, of one image."""
        size = conv_lib._output_size(
            (self.height, self.width), self.kernel[:2], self.stride, self.padding
        )
        return 2.0 * math.prod(size) * math.prod(self.kernel)


def main(arguments) -> None:
    args = flags.convolutions(__doc__).parse_args(arguments)
    if min([args.repeats, *args.batch]) < 1:
        raise errors.UserError("--repeats and --batch must be at least 1.")
    if args.output:
        command.make_folder(args.output.parent)
    published, small = find()
    rows = []
    for batch in args.batch or (1, 2, 8):
        # A batch of eight images of published networks takes too long for a table of all.
        for shape in thinned(small + published if batch == 1 else small):
            if batch * shape.flops > args.gflop * 1e9:
                continue
            row = {"batch": batch, **shape._asdict(), **measure(shape, batch, args.repeats)}
            rows.append(row)
            print(line(row), flush=True)
            if args.output:
                result = {"machine": machine.describe(), "total_ms": totals(rows), "rows": rows}
                files.write_json(args.output, result)
    for batch, parts in totals(rows).items():
        for part, ms in parts.items():
            print(f"batch {batch}, {part}: " + ", ".join(f"{k} {v:.0f} ms" for k, v in ms.items()))


def find() -> tuple[list[Shape], list[Shape]]:
    """The shapes of published networks, and those of the experiments on shapes."""
    published = {}
    for model in models.MODELS.values():
        published |= shapes_of(config_lib.load(model.config), model.side)
    small = {}
    for name in config_lib.shipped():
        if name.endswith("_shapes"):
            config = config_lib.load(name)
            small |= shapes_of(config, config.data.canvases[0][0])
    return list(published), list(small)


def shapes_of(config, side: int) -> dict[Shape, None]:
    """The convolutions of a detector's prediction in the order of its layers, without 1x1."""
    found = {}
    original = conv_lib.conv

    def record(x, kernel, stride=1, padding=None, dilation=1):
        sides = conv_lib._sides(kernel, padding, dilation)
        if kernel.shape[:2] != (1, 1) and dilation == 1:  # dilated ones have one form
            found[Shape(*x.shape[1:3], tuple(kernel.shape), stride, sides)] = None
        return original(x, kernel, stride, padding, dilation)

    config.data.canvases = ((side, side),)
    config.train.update(batch_size=1)
    batch, detector = train_step.make_batch(config), contract.build(config)
    with mock.patch.object(conv_lib, "conv", record):
        weights = jax.eval_shape(detector.init, jax.random.key(0), batch.images)
        jax.eval_shape(detector.predict, *weights, batch.images, batch.image_size)
    return found


def thinned(shapes: list[Shape]) -> Iterator[Shape]:
    """One of all shapes that are nearly equal."""
    seen = set()
    for shape in shapes:
        numbers = (shape.height, shape.width, *shape.kernel[2:])
        key = tuple(round(2 * math.log2(n)) for n in numbers), shape.kernel[:2], shape.stride
        if key not in seen:
            seen.add(key)
            yield shape


def measure(shape: Shape, batch: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of XLA's own and of detlab's form of each part, and which one is chosen."""
    _, _, kernel_shape, stride, padding = shape
    rng = np.random.default_rng(0)
    size = (batch, shape.height, shape.width, kernel_shape[2])
    x = rng.standard_normal(size, np.float32)
    kernel = rng.standard_normal(kernel_shape, np.float32)
    native = functools.partial(conv_lib._native, stride, padding)
    forms = conv_lib._forms(x.shape, kernel_shape, stride, padding)
    other = conv_lib._with_fourth_channel if kernel_shape[2] == 3 else conv_lib._by_rows
    dy = jax.jit(native)(x, kernel)

    def xlas(argument):
        return lambda x, kernel, dy: jax.vjp(native, x, kernel)[1](dy)[argument]

    programs: dict[str, tuple[bool, Callable, Callable]] = {
        "result": (
            forms.rows or forms.fourth_channel,
            lambda x, kernel, dy: native(x, kernel),
            lambda x, kernel, dy: other(stride, padding, x, kernel),
        ),
        "kernel_gradient": (
            forms.kernel_gradient,
            xlas(1),
            lambda x, kernel, dy: conv_lib._kernel_gradient(kernel_shape, stride, padding, x, dy),
        ),
        "input_gradient": (
            forms.input_gradient,
            xlas(0),
            lambda x, kernel, dy: conv_lib._input_gradient(x.shape, stride, padding, kernel, dy),
        ),
    }
    if kernel_shape[2] == 3:
        del programs["input_gradient"]  # an image has no gradient
    arguments = jax.device_put((x, kernel, dy))
    return {
        part: {
            "xla_ms": fastest(jax.jit(xla), arguments, repeats),
            "detlab_ms": fastest(jax.jit(detlab), arguments, repeats),
            "chosen": "detlab" if chosen else "xla",
        }
        for part, (chosen, xla, detlab) in programs.items()
    }


def fastest(function: Callable, arguments: tuple, repeats: int) -> float:
    """Milliseconds of the fastest call after the first."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(1000 * (time.perf_counter() - start))
    return round(min(times[1:]), 3)


def totals(rows: list[dict]) -> dict:
    """Milliseconds of all rows: batch -> part -> XLA's, the chosen and the faster form."""
    result: dict = {}
    for row in rows:
        for part in PARTS:
            if part not in row:
                continue
            xla, detlab = row[part]["xla_ms"], row[part]["detlab_ms"]
            ms = {"xla": xla, "chosen": row[part][f"{row[part]['chosen']}_ms"]}
            ms["faster"] = min(xla, detlab)
            total = result.setdefault(row["batch"], {}).setdefault(part, dict.fromkeys(ms, 0.0))
            for key, value in ms.items():
                total[key] = round(total[key] + value, 3)
    return result


def line(row: dict) -> str:
    kh, kw, cin, cout = row["kernel"]
    text = f"{row['batch']}x{row['height']}x{row['width']}x{cin} -> {cout}, {kh}x{kw}"
    text = f"{text} / {row['stride']}"
    for part in PARTS:
        if part in row:
            xla, detlab, chosen = row[part].values()
            mark = "*" if chosen == "detlab" else " "
            text += f"  {part} {xla:.2f} {detlab:.2f}{mark}"
    return text


if __name__ == "__main__":
    errors.run_main(main)
