"""Step time on 1, 2 and 4 devices of one machine, with the same global batch.

    python -m benchmarks.devices --config experiments/retinanet_shapes.py --output F.json

The devices are virtual: parts of the same processor.  Their times show the cost of dividing the
work, not the gain of more hardware.
"""

import json
import os
import statistics
import subprocess
import sys
import time

from benchmarks import flags
from detlab import cli
from detlab import config as config_lib

if __name__ == "__main__":
    cli.answer_first(flags.devices(__doc__))  # --help needs no import below

import jax

from benchmarks import machine
from detlab import checks, contract, data_sets, errors, evaluation, files, sharding
from detlab.run import optim
from detlab.run import state as state_lib
from detlab.run import step as step_lib


def main(arguments: list[str]) -> None:
    args, overrides = cli.parse(arguments, flags.devices(__doc__))
    config = config_lib.load(args.config, overrides)
    checks.check_config(config)
    if args.one:
        print(json.dumps(measure(config, args.steps)))
        return
    results = []
    for count in args.devices:
        xla_flags = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
        )
        words = [sys.executable, "-m", "benchmarks.devices", *arguments, "--one"]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags}
        run = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True)
        if run.returncode:
            raise errors.UserError(f"the run on {count} devices failed; see its error above.")
        results.append(json.loads(run.stdout.splitlines()[-1]))
    first = results[0]
    print("devices   step, median s   ratio   prediction, median s   ratio     MiB/device")
    for row in results:
        row["step_ratio"] = row["step_s"] / first["step_s"]
        row["predict_ratio"] = row["predict_s"] / first["predict_s"]
        print(
            f"{row['devices']:7d}   {row['step_s']:14.3f}   {row['step_ratio']:5.2f}"
            f"   {row['predict_s']:20.3f}   {row['predict_ratio']:5.2f}"
            f"   {row['temporary_mib']:12.0f}"
        )
    if args.output:
        result = {"machine": machine.describe(), "config": args.config, "rows": results}
        files.write_json(args.output, result)


def measure(config, steps: int) -> dict:
    """Medians of `steps` training steps, and of as many predictions of the first batch."""
    sharding.check_batch_size("train.batch_size", config.train.batch_size)
    mesh = sharding.make_mesh()
    detector = contract.build(config)
    shapes, _ = jax.eval_shape(detector.init, jax.random.key(0), state_lib.example_images(config))
    optimizer = optim.build(config.optim, shapes, 1000, config.train.batch_size, 1, detector.frozen)
    state = state_lib.initial(detector, optimizer, config, mesh)
    step = step_lib.TrainStep(detector, optimizer, config, mesh)
    source = data_sets.open_source(config, "train")
    loaded = list(data_sets.training_batches(source, config, num_steps=steps + 1))
    step_times = []
    for one in loaded:
        start = time.perf_counter()
        state, metrics, _ = step(state, one)
        jax.block_until_ready(metrics)
        step_times.append(time.perf_counter() - start)
    predictor = evaluation.Predictor(detector, mesh)
    batch = loaded[0].batch
    images, size = sharding.put_batch((batch.images, batch.image_size), mesh)
    predict_times = []
    for _ in loaded:
        start = time.perf_counter()
        jax.block_until_ready(predictor(state.params, state.state, images, size))
        predict_times.append(time.perf_counter() - start)
    compiled = step.compiled.values()
    temporary = max(p.memory_analysis().temp_size_in_bytes for p in compiled)
    return {
        "devices": mesh.size,
        "batch": config.train.batch_size,
        "step_s": statistics.median(step_times[1:]),  # the first step compiles
        "step_min_s": min(step_times[1:]),
        "predict_s": statistics.median(predict_times[1:]),
        "temporary_mib": temporary / 2**20,
    }


if __name__ == "__main__":
    errors.run_main(main)
