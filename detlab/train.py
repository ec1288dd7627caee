"""Trains a detector.

    python -m detlab.train --config experiments/retinanet_shapes.py

Any value of the config can be set on the command line, as in `--config.optim.lr=0.005`.  The run
lives in its workdir; starting it again resumes it.  With --distributed this is one of several
processes that train as one.
"""

import contextlib
import json
import pathlib
import re
import time
from typing import NamedTuple, Sequence

from detlab import config as config_lib
from detlab import flags

if __name__ == "__main__":
    config_lib.answer_first(flags.train(__doc__))  # --help needs no import below

import jax
import tqdm

from detlab import checkpoint
from detlab import checks
from detlab import contract
from detlab import distributed
from detlab import errors
from detlab import eval as eval_lib
from detlab import optim
from detlab import programs
from detlab import run_log
from detlab import sharding
from detlab import step as step_lib
from detlab import types
from detlab import update as update_lib
from detlab.data import loader
from detlab.data import records
from detlab.viz import boxes as draw_lib
from detlab.viz import curves


def main(arguments: Sequence[str]) -> None:
    # Config and workdir.  A run in it must have the same config; one that is finished stays.
    args, overrides = config_lib.parse(arguments, flags.train(__doc__))
    distributed.join(args)
    if args.draw and not args.dry_run:
        raise errors.UserError("--draw goes with --dry_run; a run draws into its workdir.")
    config = config_lib.load(args.config, overrides)
    checks.check_config(config)
    workdir = pathlib.Path(args.workdir or pathlib.Path("runs") / config_lib.stem(args.config))
    resuming = not args.dry_run and check_workdir(workdir, config)
    distributed.check_same(
        config=config_lib.to_json(config),
        workdir=[checkpoint.latest_step(workdir), (workdir / FINISHED).exists()],
    )
    if (workdir / FINISHED).exists() and not args.dry_run:
        print(
            f"{workdir} is finished.  Look at it with `python -m detlab.eval --workdir {workdir}`,"
            " or start another with --workdir."
        )
        return
    if not resuming:
        check_init_from(config)
    programs.use_compilation_cache(config)

    # Data.
    train_source = programs.open_source(config, "train")
    eval_source = programs.open_source(config, "eval")
    programs.check_class_names(train_source.class_names, eval_source.class_names)
    programs.check_same_images(training_data=train_source, evaluation_data=eval_source)
    sizes = loader.source_sizes(train_source)
    per_epoch = loader.steps_per_epoch(sizes, config.train.batch_size, config.data.canvases)
    length = run_length(config, per_epoch)
    print(
        f"data: {len(train_source)} images to train on, {len(eval_source)} to evaluate,"
        f" {len(train_source.class_names)} classes, {per_epoch} steps an epoch"
    )

    # Devices, detector, optimizer.
    mesh = sharding.make_mesh()
    programs.check_batch_size(
        "train.batch_size", config.train.batch_size, parts=config.train.accumulate
    )
    programs.check_batch_size("eval.batch_size", config.eval.batch_size)
    detector = contract.build(config)
    shapes, _ = jax.eval_shape(detector.init, jax.random.key(0), programs.example_images(config))
    optimizer = optim.build(
        config.optim,
        shapes,
        total_steps=length.total,
        batch_size=config.train.batch_size,
        steps_per_unit=per_epoch if config.train.epochs else 1,
        frozen=detector.frozen,
    )
    describe(config, optimizer, shapes, len(train_source))

    # The state to start from: a checkpoint, else `init_from`, else random.
    if args.dry_run:
        state = initial_state(detector, optimizer, config, mesh)
        dry_run(detector, optimizer, state, train_source, eval_source, config, mesh, length)
        if args.draw and distributed.is_first():
            draw_batches(pathlib.Path(args.draw), train_source, config)
        return
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(distributed.StopSignals())
        open_workdir(workdir, config)
        # Closing waits for what is being written, also when an error ends the run.
        checkpoints = checkpoint.Checkpoints(workdir, config.train.keep_last)
        stack.callback(checkpoints.close)
        if resuming:
            state = checkpoints.restore(abstract_state(detector, optimizer, config, mesh))
            print(f"resuming {workdir} at step {int(state.step)} of {length.total}")
        else:
            state = initial_state(detector, optimizer, config, mesh)
        first = int(state.step)
        log = run_log.RunLog(
            workdir, first, records.counts(train_source), writes=distributed.is_first()
        )
        stack.callback(log.close)
        info = {
            "config": config_lib.to_json(config),
            "class_names": list(train_source.class_names),
        }

        # Training.
        batches = training_batches(train_source, config, length, first)
        step_function = step_lib.TrainStep(detector, optimizer, config, mesh, log)
        reader = step_lib.MetricReader(log, train_source, stop)
        evaluate = Evaluation(detector, eval_source, config, mesh, log, checkpoints, info)
        bar = programs.progress_bar(length.total, "train", "step", initial=first)
        stack.callback(bar.close)
        evaluated = None
        if length.evaluates(first) and (first == length.total or not log.has_evaluation(first)):
            evaluated = evaluate(state, stop, bar)  # what a kill took from us
        for step in range(first + 1, length.total + 1):
            if stop():
                break
            loaded = next(batches)
            programs.report_skipped(loaded.skipped)
            state, metrics, notes = step_function(state, loaded, stop.wanted)
            reader.push(step, metrics, notes, loaded.batch)
            saving = length.saves(step) or length.evaluates(step)
            if saving or step % config.train.log_every == 0:
                reader.flush()
                bar.set_postfix_str(log.write(step, config.train.batch_size))
            bar.update()
            if saving:
                checkpoints.save(state, info)
            if length.evaluates(step):
                evaluated = evaluate(state, stop, bar)
        step = int(state.step)
        if stop():
            reader.flush()
            log.write(step, config.train.batch_size)
            checkpoints.save(state, info)
            checkpoints.wait()
            bar.close()
            print(
                f"stopped by {stop.name} at step {step} of {length.total}; the same command"
                f" resumes from {workdir}"
            )
            return
        best = checkpoints.best_score()
    if not distributed.is_first():
        return

    # What there is to look at.
    result, predictions = evaluated
    print(eval_lib.report(result))
    eval_lib.write_predictions(workdir / "predictions.json", predictions, eval_source.class_names)
    try:
        curves.plot_run(run_log.read_rows(log.path), workdir / "curves.png")
    except OSError as error:
        raise errors.UserError(
            f"cannot write {workdir / 'curves.png'}: {error.strerror or error}."
        ) from error
    pictures = workdir / "pictures"
    if config.eval.pictures:
        eval_lib.draw(
            pictures,
            eval_source,
            evaluate.truth,
            predictions,
            config.eval.threshold,
            config.eval.pictures,
        )
    programs.write_text(workdir / FINISHED, json.dumps(result, indent=1))
    print(
        f"compilation:  {step_function.compile_seconds:.1f} s for training,"
        f" {evaluate.compile_seconds:.1f} s for prediction"
    )
    print(f"checkpoints:  {workdir / 'checkpoints'}")
    print(f"best:         {workdir / 'best'} ({config.eval.best_by} {best:.3f})")
    print(f"curves:       {workdir / 'curves.png'} (numbers in {log.path}, and tensorboard/)")
    print(f"figures:      {workdir / FINISHED}")
    print(f"predictions:  {workdir / 'predictions.json'}")
    if config.eval.pictures:
        print(f"pictures:     {pictures} (left what is there, right what was found)")


# ------------------------------------------------------------------------------------------------
# Before the first step

# Keys that change no number of a run, so that it may be resumed with others.
WITHOUT_EFFECT = (
    "compilation_cache",
    "data.demo_rounding",
    "data.read_threads",
    "data.workers",
    "eval.pictures",
    "eval.threshold",
    "init_help",
    "init_skip",  # a resumed run has all its leaves
    "train.keep_last",
)
FINISHED = "eval.json"  # the figures of the last step; written last, so it ends a run


class Length(NamedTuple):
    """Steps of the run, and between evaluations and checkpoints."""

    total: int
    eval_every: int
    checkpoint_every: int

    def evaluates(self, step: int) -> bool:
        return step > 0 and (step % self.eval_every == 0 or step == self.total)

    def saves(self, step: int) -> bool:
        return step % self.checkpoint_every == 0


def run_length(config, per_epoch: int) -> Length:
    """`epochs`, or `steps` where there are none; both kinds of interval default to an epoch."""
    train = config.train
    total = train.epochs * per_epoch if train.epochs else train.steps
    return Length(total, train.eval_every or per_epoch, train.checkpoint_every or per_epoch)


def check_init_from(config) -> None:
    """Whether the weights to start from are there: asked first, as data may take long to open."""
    if config.init_from and not pathlib.Path(config.init_from).exists():
        remedy = f": {config.init_help}" if config.init_help else ""
        raise errors.UserError(
            f"config.init_from names {config.init_from}, which does not exist{remedy}."
        )


def initial_state(detector, optimizer: optim.Optimizer, config, mesh) -> types.TrainState:
    """The state of step 0, on every device."""
    params, state = initial_weights(detector, config)
    new = jax.jit(lambda p, s: update_lib.initial(p, s, optimizer, config))(params, state)
    return jax.device_put(new, sharding.replicated(mesh))


def abstract_state(detector, optimizer: optim.Optimizer, config, mesh) -> types.TrainState:
    """Shapes and places of a state that is to be restored; nothing is computed."""

    def make(images):
        params, state = detector.init(jax.random.key(0), images)
        return update_lib.initial(params, state, optimizer, config)

    everywhere = sharding.replicated(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        jax.eval_shape(make, programs.example_images(config)),
    )


def initial_weights(detector: contract.Detector, config):
    """(params, state) to start from: those of `init_from`, the rest as the modules initialise.

    Raises:
      UserError: leaves that training never changes would keep their random values.
    """
    key, images = jax.random.key(config.seed), programs.example_images(config)
    params, state = jax.eval_shape(detector.init, key, images)
    random = checkpoint.flat_paths(params, state)
    if config.init_from:
        weights = checkpoint.load_weights(config.init_from)
        reasons = checkpoint.may_differ(weights, contract.num_classes(config))
        reasons["named by config.init_skip"] = config.init_skip
        merged = checkpoint.merge(params, state, weights, sum(reasons.values(), ()))
        params, state, random = merged.params, merged.state, merged.initialised
        print(f"{len(merged.loaded)} leaves from {weights.path}, {len(random)} stay as initialised")
        untold = list(random)
        for reason, regexes in reasons.items():
            paths = [p for p in untold if any(re.fullmatch(r, p) for r in regexes)]
            untold = [p for p in untold if p not in paths]
            if paths:
                print(f"as initialised, {reason}: {checkpoint.listed(paths)}")
    constant = [p for p in random if any(re.fullmatch(f, p) for f in detector.frozen)]
    if constant:
        raise errors.UserError(
            f"{len(constant)} leaves are never trained but would keep their initial values, such as"
            f" {constant[0]}: name weights in config.init_from, or train everything with"
            " --config.model.backbone_norm=batch --config.model.frozen_stages=0."
        )
    start = time.time()
    drawn = jax.block_until_ready(initial_leaves(detector, key, images, random))
    print(f"initialised in {time.time() - start:.1f} s")
    return checkpoint.replaced(params, state, drawn)


def initial_leaves(detector: contract.Detector, key, images, paths: Sequence[str]):
    """{path: value} of some leaves as the modules initialise them; no other is computed."""

    def compute(key):
        leaves = checkpoint.flat_leaves(*detector.init(key, images))
        return {path: leaves[path] for path in paths}

    return jax.jit(compute)(key)


def describe(config, optimizer: optim.Optimizer, params, num_images: int) -> None:
    """Prints the size of the model, the learning rate and the devices."""
    labels = jax.tree.leaves(optimizer.labels)
    sizes = [x.size for x in jax.tree.leaves(params)]
    trained = sum(n for n, label in zip(sizes, labels) if label == "train")
    print(f"{config.detector}: {sum(sizes) / 1e6:.2f} M parameters, {trained / 1e6:.2f} M trained")
    reference = config.optim.lr_batch_size
    if reference and reference != config.train.batch_size:
        scaled = config.optim.lr * config.train.batch_size / reference
        print(
            f"learning rate {config.optim.lr:g} is for {reference} images a step; with"
            f" {config.train.batch_size} it is {scaled:g}"
        )
    if config.train.batch_size > num_images:
        print(f"a batch of {config.train.batch_size} shows some of the {num_images} images twice")
    device, processes = jax.devices()[0], jax.process_count()
    where = f" in {processes} processes" if processes > 1 else ""
    print(f"devices: {jax.device_count()} x {device.device_kind} ({device.platform}){where}")


def check_workdir(workdir: pathlib.Path, config) -> bool:
    """Whether the workdir holds a checkpoint to resume; writes nothing.

    Raises:
      UserError: it holds a run with another config, or is not a folder.
    """
    if workdir.exists() and not workdir.is_dir():
        raise errors.UserError(f"--workdir {workdir} is a file; name a folder.")
    path = workdir / "config.json"
    if path.exists():
        try:
            there = config_lib.from_json(json.loads(path.read_text()))
            both = (config_lib.to_json(contract.with_defaults(x)) for x in (there, config))
            different = config_lib.differences(*both, but=WITHOUT_EFFECT)
        except (OSError, ValueError, AttributeError, TypeError, errors.UserError) as error:
            text = str(error).removesuffix(".")
            raise errors.UserError(
                f"{path} cannot be read ({text}); choose another --workdir."
            ) from error
        if different:
            raise errors.UserError(
                f"{workdir} holds a run with another config, differing in {', '.join(different)};"
                " give the same config to resume it, or another --workdir."
            )
    return checkpoint.latest_step(workdir) is not None


def open_workdir(workdir: pathlib.Path, config) -> None:
    """Makes the workdir, with the config of its run."""
    if distributed.is_first():
        programs.write_text(
            workdir / "config.json", json.dumps(config_lib.to_json(config), indent=1)
        )


# ------------------------------------------------------------------------------------------------
# The parts of the loop


class Evaluation:
    """Evaluates a state during a run: logs the figures, and keeps the best checkpoint."""

    def __init__(self, detector, source, config, mesh, log, checkpoints, info):
        self.truth = eval_lib.ground_truth(source)
        self._predictor = eval_lib.Predictor(detector, mesh)
        self._source, self._config, self._mesh = source, config, mesh
        self._log, self._checkpoints, self._info = log, checkpoints, info

    @property
    def compile_seconds(self) -> float:
        return self._predictor.compile_seconds

    def __call__(self, state: types.TrainState, stop: distributed.StopSignals, bar: tqdm.tqdm):
        """(result, predictions), see `detlab.eval.score`; None where `stop()` came before."""
        start = time.time()
        params, model_state = update_lib.evaluated(state)
        predictions, bounds = eval_lib.predict(
            self._predictor, params, model_state, self._source, self._config, self._mesh, stop
        )
        if stop():
            return None
        result = eval_lib.score(self.truth, predictions, self._source.class_names, bounds)
        figures = eval_lib.scalars(result)
        score = figures[self._config.eval.best_by]
        best = self._checkpoints.best_score()
        if best is None or score > best:
            self._checkpoints.save_best(state, {**self._info, "metrics": figures}, score)
        step = int(state.step)
        self._log.evaluation(step, figures)
        bar.write(f"step {step}: {summary(figures)}")
        self._log.exclude(time.time() - start)
        return result, predictions


def training_batches(source, config, length: Length, first: int):
    """Batches of steps first + 1, first + 2, ...; a function of the seed and the step alone."""
    data = config.data
    return programs.user_errors(
        loader.train_batches(
            source,
            batch_size=config.train.batch_size,
            canvases=data.canvases,
            seed=config.seed,
            max_boxes=data.max_boxes,
            pad_value=data.pad_value,
            num_steps=length.total,
            start_step=first,
            **programs.resize_rule(data, "train"),
            multiscale=loader.MultiScale(
                data.multiscale_canvases, data.multiscale_limits, data.multiscale
            ),
            augment=loader.Augment(**data.augment),
            flip_horizontal=data.flip_horizontal,
            flip_vertical=data.flip_vertical,
            skip_broken=data.skip_broken,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            read_threads=data.read_threads,
            workers=data.workers,
        )
    )


def dry_run(detector, optimizer, state, train_source, eval_source, config, mesh, length) -> None:
    """Two steps and one prediction, and nothing written."""
    step_function = step_lib.TrainStep(detector, optimizer, config, mesh)
    batches = training_batches(train_source, config, Length(2, 2, 2), 0)
    for step, loaded in enumerate(batches, start=1):
        start = time.time() - step_function.compile_seconds
        state, metrics, _ = step_function(state, loaded)
        values = step_lib.check_finite(step, metrics, loaded.batch, train_source)
        seconds = time.time() - step_function.compile_seconds - start
        terms = ", ".join(f"{k} {v:.4g}" for k, v in values.items())
        print(f"step {step} in {seconds:.2f} s: {terms}")
    predictor = eval_lib.Predictor(detector, mesh)
    inputs = sharding.put_batch((loaded.batch.images, loaded.batch.image_size), mesh)
    jax.block_until_ready(predictor(*update_lib.evaluated(state), *inputs))
    eval_lib.score(eval_lib.ground_truth(eval_source), [], eval_source.class_names)
    print(f"dry run: all is well; the run would have {length.total} steps.  No run was written.")


def draw_batches(folder: pathlib.Path, source, config, limit: int = 16) -> None:
    """Draws the first images as the detector gets them, with their objects, on one sheet."""
    pictures = []
    for loaded in training_batches(source, config, Length(limit, limit, limit), 0):
        batch = loaded.batch
        for row in range(len(batch.images)):
            shown = batch.valid[row] | batch.ignore[row]
            pictures.append(
                draw_lib.draw(
                    batch.images[row],
                    batch.boxes[row][shown],
                    batch.labels[row][shown],
                    source.class_names,
                    ignored=batch.ignore[row][shown],
                )
            )
        if len(pictures) >= limit:
            break
    path = folder / "batches.png"
    eval_lib.save_picture(path, draw_lib.contact_sheet(pictures[:limit]))
    print(f"pictures:     {path} (the first training images, as the detector gets them)")


def summary(figures: dict[str, float]) -> str:
    keys = ("AP", "AP50", "AP75", "mAP07", "mAP12")
    return "  ".join(f"{k} {figures[k]:.3f}" for k in keys)


if __name__ == "__main__":
    distributed.run_main(main)
