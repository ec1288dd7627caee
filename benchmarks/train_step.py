"""Compares the training step with detlab's convolution to the step with XLA's own gradients.

    python -m benchmarks.train_step --config experiments/retinanet_shapes.py --output result.json

Both programs take turns in one process, so the ratio does not depend on other load on the machine.
Reports the median and the minimum of the times.
"""

import statistics
import time
from unittest import mock

from benchmarks import flags
from detlab import cli
from detlab import config as config_lib

if __name__ == "__main__":
    cli.answer_first(flags.train_step(__doc__))  # --help needs no import below

import jax
import numpy as np

from benchmarks import machine
from detlab import contract, errors, files, types
from detlab.ops import conv as conv_lib


def main(arguments) -> None:
    args, overrides = cli.parse(arguments, flags.train_step(__doc__))
    config = config_lib.load(args.config, overrides)
    batch = make_batch(config)
    detector = contract.build(config)
    params, state = jax.jit(detector.init)(jax.random.key(0), batch.images)

    def compiled(name):
        start = time.perf_counter()

        def step(params, state, batch):  # a new function, which jit must trace again
            return jax.value_and_grad(detector.loss, has_aux=True)(
                params, state, batch, jax.random.key(0)
            )

        program = jax.jit(step).lower(params, state, batch).compile()
        memory = program.memory_analysis().temp_size_in_bytes / 2**20
        print(
            f"{name}: compiled in {time.perf_counter() - start:.1f} s, {memory:.0f} MiB temporary"
        )
        return program, memory

    own = compiled("detlab")
    with mock.patch.object(conv_lib, "conv", native_conv):
        native = compiled("native")

    programs = {"detlab": own, "native": native}
    times = {name: [] for name in programs}
    for _ in range(args.repeats + 1):
        for name, (program, _) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(params, state, batch))
            times[name].append(time.perf_counter() - start)
    result = {"machine": machine.describe(), "config": args.config, "batch": len(batch.images)}
    result["canvas"] = list(batch.images.shape[1:3])
    for name, values in times.items():
        values = values[1:]  # the first is a warm-up
        result[name] = {
            "median_s": statistics.median(values),
            "min_s": min(values),
            "temporary_mib": programs[name][1],
        }
        print(f"{name}: median {statistics.median(values):.3f} s, minimum {min(values):.3f} s")
    for kind in ("median_s", "min_s"):
        result[f"ratio_{kind}"] = result["detlab"][kind] / result["native"][kind]
    print(f"ratio detlab / native: {result['ratio_median_s']:.2f} by median")
    if args.output:
        files.write_json(args.output, result)


def native_conv(x, kernel, stride=1, padding=None, dilation=1):
    """XLA's convolution with XLA's gradients."""
    padding = conv_lib._sides(kernel, padding, dilation)
    return conv_lib._native(stride, padding, x, kernel, dilation)


def make_batch(config) -> types.Batch:
    """Random images with eight objects each."""
    rng = np.random.default_rng(0)
    count, slots = config.train.batch_size, config.data.max_boxes
    height, width = config.data.canvases[0]
    corner = rng.uniform(0, 0.6, (count, slots, 2)) * (width, height)
    size = rng.uniform(0.1, 0.4, (count, slots, 2)) * (width, height)
    valid = np.broadcast_to(np.arange(slots) < 8, (count, slots))
    return types.Batch(
        images=rng.integers(0, 256, (count, height, width, 3), np.uint8),
        boxes=np.concatenate([corner, corner + size], -1).astype(np.float32),
        labels=rng.integers(0, contract.num_classes(config), (count, slots), np.int32),
        valid=valid,
        ignore=np.zeros_like(valid),
        image_size=np.tile(np.int32([height, width]), (count, 1)),
        placement=np.tile(np.float32([1, 1, 0, 0]), (count, 1)),
        index=np.arange(count, dtype=np.int32),
        real=np.ones(count, bool),
    )


if __name__ == "__main__":
    errors.run_main(main)
