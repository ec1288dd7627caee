"""Memory of the training step of every shipped experiment, as its compiled program reports it.

    python -m benchmarks.step_memory --output benchmarks/results/step_memory_cpu.json
    python -m benchmarks.step_memory --only fcos_voc --only darknet_voc:yolov4_tiny

Counts state, batch and temporary arrays of one update on the largest canvas and the whole batch of
the experiment.  Nothing runs and no data are needed, so a machine with 4 GB can report that 80 GB
are needed.  The figures are what this machine's compiler plans; other compilers use other forms of
some operations.  Rows that are already in the output file stay, unless --only names them.  The
`Expected:` lines of the experiments' docstrings quote these figures.
"""

import math
import time

from benchmarks import flags
from detlab import cli
from detlab import config as config_lib

if __name__ == "__main__":
    cli.answer_first(flags.step_memory(__doc__))  # --help needs no import below

import jax

from benchmarks import command, machine, train_step
from detlab import contract, errors, files, sharding, types
from detlab.run import optim
from detlab.run import state as state_lib
from detlab.run import update as update_lib


def main(arguments) -> None:
    args, overrides = cli.parse(arguments, flags.step_memory(__doc__))
    found = command.rows_of(args.output, "experiments")
    names = args.only or [name for name in config_lib.shipped() if name not in found]
    print(f"{'experiment':24}  images  canvas       GB  state  temporary  seconds")
    for name in names:
        start = time.time()
        row = found[name] = measure(config_lib.load(name, overrides), quick=not args.optimised)
        height, width = row["canvas"]
        print(
            f"{name:24}  {row['images']:6}  {f'{height}x{width}':9}  {row['gb']:5.1f}"
            f"  {row['state_gb']:5.2f}  {row['temporary_gb']:9.2f}  {time.time() - start:7.0f}",
            flush=True,
        )
        if args.output:  # after each row: all of them take long
            result = {"machine": machine.describe(), "experiments": dict(sorted(found.items()))}
            files.write_json(args.output, result)


def measure(config, quick: bool = True) -> dict:
    """Memory of one update in GB (10^9 bytes): the total, the state and the temporary arrays."""
    program, batch = compiled(config, quick)
    memory = program.memory_analysis()
    state = memory.alias_size_in_bytes  # its buffers become those of the new state
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes - state
    total += memory.temp_size_in_bytes
    images, height, width, _ = batch.images.shape
    return {
        "images": images,
        "canvas": [height, width],
        "gb": round(total / 1e9, 3),
        "state_gb": round(state / 1e9, 3),
        "temporary_gb": round(memory.temp_size_in_bytes / 1e9, 3),
    }


def compiled(config, quick: bool = True):
    """(the compiled update of the config's batch on its largest canvas, the abstract batch)."""
    detector, mesh = contract.build(config), sharding.make_mesh()
    batch = abstract_batch(config)
    params, _ = jax.eval_shape(detector.init, jax.random.key(0), batch.images)
    optimizer = optim.build(
        config.optim,
        params,
        total_steps=1_000_000,
        batch_size=config.train.batch_size,
        steps_per_unit=1000,
        frozen=detector.frozen,
    )
    state = state_lib.abstract(detector, optimizer, config, mesh)
    update = update_lib.of(detector, optimizer, config)
    step = jax.jit(update, donate_argnums=0, out_shardings=sharding.replicated(mesh))
    with jax.set_mesh(mesh):
        lowered = step.lower(state, batch)
        return lowered.compile(compiler_options=command.QUICK if quick else None), batch


def abstract_batch(config) -> types.Batch:
    """Shapes of a training batch on the largest canvas that a step may draw."""
    data = config.data
    canvases = [c for group in data.multiscale_canvases for c in group] or data.canvases
    images = config.train.batch_size
    one = config.copy_and_resolve_references()
    with one.unlocked():
        one.train.batch_size = 1
        one.data.canvases = (max(canvases, key=math.prod),)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((images, *x.shape[1:]), x.dtype), train_step.make_batch(one)
    )


if __name__ == "__main__":
    errors.run_main(main)
