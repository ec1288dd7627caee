"""Time and temporary memory of single operations, next to peers in the same process.

    python -m benchmarks.ops [--op nms --op roi_align] [--size full] [--repeats 5] [--output F]

Every case has several programs with the same inputs: detlab's program for this platform, detlab's
program for other platforms, what XLA makes of a plain formulation, and NumPy, OpenCV or, if it is
installed, PyTorch.  They take turns, so ratios do not depend on other load on the machine.
`difference` is the largest difference from detlab's result.

To add an operation, write a function that yields a `Case` per size and put it in `OPS`.
"""

import functools
import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from detlab import cli, errors, files, paths
from detlab.ops import deform_conv as deform_conv_lib
from detlab.ops import nms as nms_lib
from detlab.ops import roi_align as roi_align_lib

SIZES = ("full", "tiny")
STRIDES = (4, 8, 16, 32)


class Case(NamedTuple):
    """Programs that compute the same result; "detlab" comes first."""

    name: str
    arguments: tuple  # of NumPy arrays, or tuples of them
    compiled: dict[str, Callable]  # traced once by jax.jit
    hosts: dict[str, Callable]  # called as they are


def main(arguments) -> None:
    parser = cli.program("benchmarks.ops", __doc__)
    parser.add_argument("--op", action="append", choices=OPS, help="may be repeated; default: all")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=paths.path)
    args = parser.parse_args(arguments)
    result = {"machine": machine.describe(), "size": args.size, "cases": {}}
    for op in args.op or OPS:
        for case in OPS[op](args.size):
            figures = measure(case, args.repeats)
            result["cases"][case.name] = figures
            print(table(case.name, figures), flush=True)
    if args.output:
        files.write_json(args.output, result)


def measure(case: Case, repeats: int) -> dict[str, dict]:
    """Figures of every program: times, temporary memory, ratio to and difference from "detlab"."""
    arguments = jax.device_put(case.arguments)
    programs: dict[str, Callable[[], Any]] = {}
    memory = {}
    for name, function in case.compiled.items():
        program = jax.jit(function).lower(*arguments).compile()
        memory[name] = program.memory_analysis().temp_size_in_bytes / 2**20
        programs[name] = functools.partial(program, *arguments)
    for name, function in case.hosts.items():
        programs[name] = functools.partial(function, *case.arguments)

    outputs = {name: jax.block_until_ready(run()) for name, run in programs.items()}
    differences = {name: _difference(out, outputs["detlab"]) for name, out in outputs.items()}
    times = {name: [] for name in programs}
    for _ in range(repeats):
        for name, run in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(1000 * (time.perf_counter() - start))
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        name: {
            "median_ms": median[name],
            "min_ms": min(times[name]),
            "ratio_to_detlab": median[name] / median["detlab"],
            "temporary_mib": memory.get(name),
            "difference": differences[name],
        }
        for name in programs
    }


def table(name: str, figures: dict[str, dict]) -> str:
    lines = [f"{name}: ms median, minimum; ratio to detlab; temporary MiB; difference"]
    for program, row in figures.items():
        memory = "-" if row["temporary_mib"] is None else f"{row['temporary_mib']:.1f}"
        lines.append(
            f"  {program:28}{row['median_ms']:9.2f}{row['min_ms']:9.2f}"
            f"{row['ratio_to_detlab']:7.2f}{memory:>9}{row['difference']:10.1e}"
        )
    return "\n".join(lines)


def _difference(a, b) -> float:
    """Largest difference between two results, over all their arrays."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(
        float(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max(initial=0))
        for x, y in pairs
    )


def _with(function, module, name, value):
    """`function`, traced while `module.name` is `value`."""

    def call(*arguments):
        with mock.patch.object(module, name, value):
            return function(*arguments)

    return call


def _elsewhere(function):
    """`function` with the programs that accelerators run."""
    return _with(
        function,
        jax.lax,
        "platform_dependent",
        lambda *arguments, default, **_: default(*arguments),
    )


def _with_torch(function) -> dict[str, Callable]:
    """The peer that needs PyTorch, if it is installed."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return {}
    return {"PyTorch": functools.partial(function, torch)}


# NMS ------------------------------------------------------------------------------------------


def nms_cases(size) -> Iterator[Case]:
    """Clusters of boxes in 8 images at IoU 0.5; all survivors are kept."""
    images = 8 if size == "full" else 2
    for count in (1000, 2000, 5000) if size == "full" else (40,):
        rng = np.random.default_rng(0)
        centers = rng.uniform(0, 1000, (images, count // 10, 2))[
            :, np.arange(count) % (count // 10)
        ]
        low = centers + rng.normal(0, 12, (images, count, 2))
        side = rng.uniform(40, 90, (images, count, 2))
        boxes = np.concatenate([low, low + side], -1).astype(np.float32)
        scores = rng.permuted(np.tile(np.linspace(0.1, 0.9, count), (images, 1)), axis=1)
        scores = scores.astype(np.float32)

        def ours(boxes, scores):
            valid = jnp.ones(scores.shape[1], bool)
            run = jax.vmap(lambda b, s: nms_lib.nms(b, s, valid, 0.5, len(valid)))
            indices, keep = run(boxes, scores)
            return jnp.where(keep, indices, -1)

        def filled(kept, count=count):
            return np.stack([np.pad(k, (0, count - len(k)), constant_values=-1) for k in kept])

        def opencv(boxes, scores):
            return filled([_opencv_nms(*image) for image in zip(boxes, scores, strict=True)])

        def numpy(boxes, scores):
            return filled([_numpy_nms(*image) for image in zip(boxes, scores, strict=True)])

        yield Case(
            f"nms {images}x{count} boxes",
            (boxes, scores),
            {"detlab": ours, "detlab elsewhere": _elsewhere(ours)},
            {"OpenCV": opencv, "NumPy": numpy},
        )


def _opencv_nms(boxes, scores):
    sizes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], -1)
    return np.asarray(cv2.dnn.NMSBoxes(sizes, scores, 0.0, 0.5), np.int64).ravel()


def _numpy_nms(boxes, scores):
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order, kept = np.argsort(-scores, kind="stable"), []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[order, :2])
        high = np.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = np.maximum(high - low, 0).prod(-1)
        order = order[shared / (area[best] + area[order] - shared) <= 0.5]
    return np.array(kept)


# RoIAlign ---------------------------------------------------------------------------------------


def roi_align_cases(size) -> Iterator[Case]:
    """7x7 bins on P2 to P5 of one image, RoIs of all sizes; forward, and with the gradient."""
    canvas, depth, counts = (
        ((800, 1344), 256, (512, 1000)) if size == "full" else ((64, 96), 8, (6,))
    )
    for count in counts:
        rng = np.random.default_rng(0)
        features = tuple(
            rng.standard_normal((canvas[0] // s, canvas[1] // s, depth), np.float32)
            for s in STRIDES
        )
        side = np.exp(rng.uniform(np.log(16), np.log(canvas[0]), (count, 1)))
        aspect = np.exp(rng.normal(0, 0.4, (count, 1)))
        extent = np.minimum(np.concatenate([side * aspect, side / aspect], -1), canvas[::-1])
        low = rng.uniform(0, 1, (count, 2)) * (np.array(canvas[::-1]) - extent)
        rois = np.concatenate([low, low + extent], -1).astype(np.float32)
        dy = rng.standard_normal((count, 7, 7, depth), np.float32)

        def forward(features, rois, _, ratio=2):
            valid = jnp.ones(len(rois), bool)
            return roi_align_lib.multilevel(features, rois, valid, STRIDES, 7, ratio)

        def both(features, rois, dy):
            out, vjp = jax.vjp(lambda f: forward(f, rois, dy), features)
            return out, vjp(dy)[0]

        batch = (features, rois, dy)
        torch = _with_torch(_torch_roi_align)
        yield Case(
            f"roi_align {count} RoIs, forward",
            batch,
            {"detlab": forward, "detlab elsewhere": _elsewhere(forward)},
            {"NumPy": _numpy_roi_align} | torch,
        )
        yield Case(
            f"roi_align {count} RoIs, forward and backward",
            batch,
            {
                "detlab": both,
                "detlab elsewhere": _elsewhere(both),
                "XLA's own gradient": _with(
                    both, roi_align_lib, "_pool", roi_align_lib._forward_whole
                ),
            },
            {name: functools.partial(run, gradient=True) for name, run in torch.items()},
        )
        adaptive = functools.partial(forward, ratio=0)
        yield Case(
            f"roi_align {count} RoIs, adaptive, forward",
            batch,
            {"detlab": adaptive, "detlab elsewhere": _elsewhere(adaptive)},
            {},
        )


def _numpy_roi_align(features, rois, _):
    levels = np.asarray(roi_align_lib.levels(rois, len(features)))
    out = np.zeros((len(rois), 7, 7, features[0].shape[-1]), np.float32)
    for r, (roi, level) in enumerate(zip(rois, levels, strict=True)):
        maps = features[level]
        x1, y1, x2, y2 = roi / STRIDES[level] - 0.5
        steps = (np.arange(14) + 0.5) / 14
        (top, down), (left, right) = (
            np.modf(np.clip(start + steps * (end - start), 0, length - 1))[::-1]
            for start, end, length in ((y1, y2, maps.shape[0]), (x1, x2, maps.shape[1]))
        )
        rows = np.minimum(top[None] + [[0], [1]], maps.shape[0] - 1).astype(int)
        columns = np.minimum(left[None] + [[0], [1]], maps.shape[1] - 1).astype(int)
        weights = np.stack([1 - down, down]), np.stack([1 - right, right])
        samples = sum(
            maps[rows[i][:, None], columns[j]] * np.outer(weights[0][i], weights[1][j])[..., None]
            for i, j in np.ndindex(2, 2)
        )
        out[r] = samples.reshape(7, 2, 7, 2, -1).mean((1, 3))
    return out


def _torch_roi_align(torch, features, rois, dy, gradient=False):
    """`grid_sample` on each level: all samples, then their means."""
    levels = np.asarray(roi_align_lib.levels(rois, len(features)))
    maps = [torch.tensor(f.transpose(2, 0, 1)[None], requires_grad=gradient) for f in features]
    out = torch.zeros((len(rois), maps[0].shape[1], 7, 7))
    steps = (torch.arange(14) + 0.5) / 14
    for level, one in enumerate(maps):
        mine = np.flatnonzero(levels == level)
        low, high = torch.from_numpy(rois[mine] / STRIDES[level]).reshape(-1, 2, 2).unbind(1)
        grid = low[:, None] + steps[:, None] * (high - low)[:, None]  # [R, 14, 2] x, y
        grid = grid / torch.tensor(one.shape[:1:-1]) * 2 - 1  # the map's edges are -1 and 1
        x, y = (v.expand(-1, 14, 14) for v in (grid[:, None, :, 0], grid[:, :, None, 1]))
        grid = torch.stack([x, y], -1).reshape(1, -1, 14, 2)
        samples = torch.nn.functional.grid_sample(
            one, grid, padding_mode="border", align_corners=False
        )
        samples = samples[0].reshape(one.shape[1], -1, 7, 2, 7, 2).mean((3, 5))
        out = out.index_copy(0, torch.from_numpy(mine), samples.transpose(0, 1))
    result = out.detach().numpy().transpose(0, 2, 3, 1)
    if not gradient:
        return result
    out.backward(torch.from_numpy(dy.transpose(0, 3, 1, 2)))
    return result, tuple(m.grad[0].numpy().transpose(1, 2, 0) for m in maps)


# Deformable convolution ------------------------------------------------------------------------


def deform_conv_cases(size) -> Iterator[Case]:
    """3x3 with masks (v2) on one map, offsets of about two cells; forward, and with gradients."""
    height, width, depth = (100, 168, 256) if size == "full" else (6, 8, 8)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((height, width, depth), np.float32)
    offsets = 2 * rng.standard_normal((height, width, 18), np.float32)
    kernel = rng.standard_normal((3, 3, depth, depth), np.float32) / np.float32(3 * depth**0.5)
    mask = rng.uniform(0, 1, (height, width, 9)).astype(np.float32)
    dy = rng.standard_normal((height, width, depth), np.float32)

    def forward(x, offsets, kernel, mask, _):
        return deform_conv_lib.deform_conv(x, offsets, kernel, mask)

    def both(x, offsets, kernel, mask, dy):
        out, vjp = jax.vjp(lambda *a: forward(*a, dy), x, offsets, kernel, mask)
        return out, vjp(dy)

    def im2col(_, cells, index, weight, kernel):
        columns = deform_conv_lib._columns(cells, index, weight, kernel)
        return columns[0] @ deform_conv_lib._matrix(kernel)[0]

    torch = _with_torch(_torch_deform_conv)
    for name, function, gradient in (
        ("forward", forward, False),
        ("forward and backward", both, True),
    ):
        yield Case(
            f"deform_conv {height}x{width}x{depth}, {name}",
            (x, offsets, kernel, mask, dy),
            {
                "detlab": function,
                "detlab elsewhere": _elsewhere(function),
                "im2col, XLA's own gradient": _with(function, deform_conv_lib, "_convolve", im2col),
                "convolution without offsets": _convolution(gradient),
            },
            {n: functools.partial(run, gradient=gradient) for n, run in torch.items()}
            | ({} if gradient else {"NumPy": _numpy_deform_conv}),
        )


def _convolution(gradient):
    """The same layer without offsets, to compare the cost; its result differs."""

    def run(x, offsets, kernel, mask, dy):
        def conv(x, kernel):
            dimensions = ("NHWC", "HWIO", "NHWC")
            padding = ((1, 1), (1, 1))
            return jax.lax.conv_general_dilated(
                x[None], kernel, (1, 1), padding, dimension_numbers=dimensions
            )[0]

        if not gradient:
            return conv(x, kernel)
        out, vjp = jax.vjp(conv, x, kernel)
        d_x, d_kernel = vjp(dy)
        return out, (d_x, offsets, d_kernel, mask)

    return run


def _numpy_deform_conv(x, offsets, kernel, mask, _):
    height, width, depth = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    out = np.zeros((height * width, kernel.shape[3]), np.float32)
    rows, columns = np.indices((height, width))
    for tap, (i, j) in enumerate(np.ndindex(3, 3)):
        # Clipped to the ring of zeros, samples outside the map are 0.
        y = np.clip(rows + i + offsets[..., 2 * tap], 0, height + 1).ravel()
        z = np.clip(columns + j + offsets[..., 2 * tap + 1], 0, width + 1).ravel()
        (down, top), (right, left) = np.modf(y), np.modf(z)
        samples = np.zeros((height * width, depth), np.float32)
        for below, beside in np.ndindex(2, 2):
            weight = (down if below else 1 - down) * (right if beside else 1 - right)
            row = np.minimum(top + below, height + 1).astype(int)
            column = np.minimum(left + beside, width + 1).astype(int)
            samples += padded[row, column] * (weight * mask[..., tap].ravel())[:, None]
        out += samples @ kernel[i, j]
    return out.reshape(height, width, -1)


def _torch_deform_conv(torch, x, offsets, kernel, mask, dy, gradient):
    """`grid_sample` and a matrix product for each tap."""

    def tensor(values):
        return torch.tensor(values, requires_grad=gradient)

    height, width, depth = x.shape
    inputs = x, offsets, kernel, mask = [tensor(v) for v in (x, offsets, kernel, mask)]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    out = 0
    for tap, (i, j) in enumerate(np.ndindex(3, 3)):
        y, z = rows + i - 1 + offsets[..., 2 * tap], columns + j - 1 + offsets[..., 2 * tap + 1]
        # The edges of the map, half a cell outside the first and last cells, are -1 and 1.
        grid = torch.stack([(2 * z + 1) / width - 1, (2 * y + 1) / height - 1], -1)
        samples = torch.nn.functional.grid_sample(
            x.permute(2, 0, 1)[None], grid[None], align_corners=False
        )
        samples = samples[0].permute(1, 2, 0) * mask[..., tap, None]
        out = out + samples.reshape(-1, depth) @ kernel[i, j]
    out = out.reshape(height, width, -1)
    result = out.detach().numpy()
    if not gradient:
        return result
    out.backward(torch.from_numpy(dy))
    return result, tuple(v.grad.numpy() for v in inputs)


OPS = {"nms": nms_cases, "roi_align": roi_align_cases, "deform_conv": deform_conv_cases}

if __name__ == "__main__":
    errors.run_main(main)
