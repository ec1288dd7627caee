"""Trains a detector.

    python -m detlab.train --config experiments/retinanet_shapes.py

Any value of the config can be set on the command line, such as `--config.optim.lr=0.005`.  The run
is kept in its workdir; the same command resumes it.  --distributed trains on several processes.
"""

import argparse
import contextlib
from collections.abc import Sequence

from detlab import cli

if __name__ == "__main__":
    cli.answer_first(cli.train(__doc__))  # --help needs no import below

import jax
from ml_collections import config_dict

from detlab import checks, data_sets, distributed, environment, predictions, progress
from detlab import config as config_lib
from detlab.data import records
from detlab.metrics import tables
from detlab.run import checkpoint, dry_run, profile
from detlab.run import evaluate as evaluate_lib
from detlab.run import log as log_lib
from detlab.run import setup as setup_lib
from detlab.run import state as state_lib
from detlab.run import step as step_lib
from detlab.run import workdir as workdir_lib


def main(arguments: Sequence[str]) -> None:
    """Runs the program."""
    args, overrides = cli.parse(arguments, cli.train(__doc__))
    cli.check_train(args)
    distributed.join(args)
    config = config_lib.load(args.config, overrides)
    checks.check_config(config)
    environment.check_devices()
    workdir = workdir_lib.Workdir(args.workdir or f"runs/{config_lib.stem(args.config)}")
    with contextlib.nullcontext() if args.dry_run else workdir.lock():
        run(args, config, workdir)


def run(
    args: argparse.Namespace, config: config_dict.ConfigDict, workdir: workdir_lib.Workdir
) -> None:
    """Starts or resumes a run in a workdir that no other process uses, or tries it (--dry_run)."""
    # A run already there must have the same config; a finished one is kept or prolonged.
    changed = {} if args.dry_run else workdir.check(config)
    reached = None if args.dry_run else workdir.latest_step
    config_json = config_lib.to_json(config)
    distributed.check_same(config=config_json, workdir=[reached, workdir.finished])
    prolonged = workdir.finished and workdir_lib.has_other_length(changed)
    if workdir.finished and not prolonged and not args.dry_run:
        print(
            f"{workdir.path} is finished; evaluate it with `python -m detlab.eval --workdir"
            f" {workdir.path}`, prolong it with a larger config.train.steps or epochs, or start"
            " another run with --workdir"
        )
        return
    if reached is None:
        state_lib.check_init_from(config)
    environment.use_compilation_cache(config)

    # Data, devices, detector, optimizer.
    setup = setup_lib.build(config)
    length, mesh, detector, optimizer = setup.length, setup.mesh, setup.detector, setup.optimizer
    if args.dry_run:
        dry_run.run(setup, args.draw)
        return
    workdir.check_length(length.total)
    workdir.check_images(changed, training=setup.train_source, evaluation=setup.eval_source)

    with contextlib.ExitStack() as stack:
        # The state to start from: a checkpoint, else `init_from`, else random.
        stop = stack.enter_context(distributed.StopSignals())
        if prolonged:
            setup_lib.describe_prolonged(setup, reached)
        workdir.open(config, changed)
        # Closing waits for pending writes, even when an error ends the run.
        checkpoints = checkpoint.Checkpoints(workdir.path, config.train.keep_last)
        stack.callback(checkpoints.close)
        shapes = state_lib.abstract(detector, optimizer, config, mesh)
        if reached is None:
            first, initial = 0, state_lib.begin(detector, optimizer, config, mesh)
        else:
            state = checkpoints.restore(shapes)
            first = int(state.step)
            print(f"resuming {workdir.path} at step {first} of {length.total}")

        # What the loop uses.
        counts = records.counts(setup.train_source)
        log = log_lib.RunLog(workdir.path, first, counts, writes=distributed.is_first())
        stack.callback(log.close)
        info = {"config": config_json, "class_names": list(setup.train_source.class_names)}
        batches = data_sets.training_batches(setup.train_source, config, length.total, first)
        train_step = step_lib.TrainStep(detector, optimizer, config, mesh, log.not_training)
        reader = step_lib.MetricReader(log, setup.train_source, stop)
        evaluate = evaluate_lib.Evaluation(setup, log, checkpoints, info)
        profiler = stack.enter_context(profile.Profiler(workdir.profile, args.profile, first))
        bar = stack.enter_context(progress.bar(length.total, "train", "step", initial=first))
        batches = train_step.prepared(batches, shapes)
        if reached is None:
            with log.not_training():
                state = initial()
        outcome = None
        if length.evaluates(first) and (first == length.total or not log.has_evaluation(first)):
            outcome = evaluate(state, stop, bar)  # an evaluation that was interrupted

        # Training.
        for step in range(first + 1, length.total + 1):
            if stop():
                break
            profiler.step(step, state)
            # An implicit copy between host and devices, or between devices, is an error.
            with jax.transfer_guard("disallow"):
                loaded = next(batches)
                progress.report_skipped(loaded.skipped)
                state, metrics, notes = train_step(state, loaded, stop.wanted)
                reader.push(step, metrics, notes, loaded.batch)
            if length.saves(step) or step % config.train.log_every == 0:
                reader.flush()
                bar.set_postfix_str(log.write(step, config.train.batch_size))
            bar.update()
            if length.saves(step):
                checkpoints.save(state, info)
            if length.evaluates(step):
                outcome = evaluate(state, stop, bar)

        # The end of the run, or of this start.
        step = int(state.step)
        if stop():
            reader.flush()
            log.write(step, config.train.batch_size)
            checkpoints.save(state, info)
            checkpoints.wait()
            bar.close()
            print(
                f"stopped by {stop.name} at step {step} of {length.total}; the same command"
                f" resumes from {workdir.path}"
            )
            return
        best = checkpoints.best_score()
    if not distributed.is_first():
        return
    print(predictions.report(outcome.figures))
    print(
        f"compilation:  {train_step.compile_seconds:.1f} s for training,"
        f" {evaluate.compile_seconds:.1f} s for prediction"
    )
    print(f"checkpoints:  {workdir.path / 'checkpoints'}")
    score = tables.number(best)
    print(f"best:         {workdir.path / 'best'} ({config.eval.best_by} {score})")
    evaluate_lib.write_results(workdir, outcome, evaluate.truth, setup.eval_source, config)


if __name__ == "__main__":
    distributed.run_main(main)
