"""Checks that parity notices deliberate errors: each must make at least one line miss.

    python -m benchmarks.parity.errors
    python -m benchmarks.parity.errors --case retinanet_r50_fpn_small --kernels 0

Every mmdet case with a model in the folder --fixtures runs unchanged, which must pass, and with one
error at a time, which must not: two input channels of a convolution swapped, its kernel flipped,
the channels or the columns of the input reversed, one loss 2 % heavier, the epsilon of all norms or
of the first a hundred times as large, and the `stop_gradient` of one file missing.  Errors of a
convolution are tried on --kernels convolutions of each part of the network, from first to last.  If
no number changes (a `stop_gradient` before constants), the verdict is `no effect`.  Programs are
compiled quickly, as by `benchmarks.parity --quick`.

Exit status 1 if an error is not noticed, or a case does not pass unchanged.
"""

import contextlib
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple
from unittest import mock

from benchmarks import flags
from detlab import cli

if __name__ == "__main__":
    cli.answer_first(flags.parity_errors(__doc__))  # --help needs no import below

import jax
import numpy as np

from benchmarks import command, machine
from benchmarks.parity import cases, mmdet, references, weights
from benchmarks.parity import lines as lines_lib
from detlab import contract, errors, files, layers, types
from detlab.converters import mapping

HEAVIER = 1.02  # the factor of one loss
EPSILON = 100  # the factor of a norm's epsilon
_FACTORS = "loss_factors"  # a collection of the state, next to the detector's own
_PACKAGE = pathlib.Path(layers.__file__).parent


class Run(NamedTuple):
    """One run of a case."""

    error: str  # "" for the unchanged case
    missed: list[str]  # quantities
    verdict: str  # passed, noticed, not noticed, no effect


class Inputs(NamedTuple):
    """Inputs of a case's program; an error in numbers changes a part of them."""

    params: Mapping
    state: Mapping
    batch: types.Batch
    rng: jax.Array


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for what a user can fix."""
    args = flags.parity_errors(__doc__).parse_args(arguments)
    if args.kernels < 0:
        raise errors.UserError(f"--kernels is {args.kernels}; it must be at least 0 (0 means all).")
    cases.folders(args)  # refuses what is not a folder
    chosen = cases.choose(cases.find(args.fixtures), args.case)
    rows = []
    for name, info in chosen.items():
        reason = references.lacks(args.fixtures, name, info)
        if not reason and references.of(info) is not mmdet.RUNNER:
            reason = "its reference is not mmdet"
        if reason:
            print(f"skipped  {name}: {reason}")
            continue
        plan = mmdet.plan(info)
        case = cases.read(args.fixtures, name, info)
        for seed in args.seed or [0]:
            start = time.perf_counter()
            print(f"case {name}, seed {seed}")
            for run in try_errors(case, plan, seed, args.kernels):
                rows.append({"case": name, "seed": seed, **run._asdict()})
                some = f", such as {run.missed[0]}" if run.missed else ""
                what = run.error or "unchanged"
                print(f"{run.verdict:12} {what}: {len(run.missed)} lines miss{some}", flush=True)
            print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    bad = [row for row in rows if row["verdict"] in ("failed", "not noticed")]
    print(f"{len(rows)} runs, {len(bad)} with an unexpected verdict")
    for row in bad:
        print(f"{row['verdict']}: {row['case']}, {row['error'] or 'unchanged'}")
    if args.json:
        files.write_json(args.json, {"machine": machine.describe(), "runs": rows})
    if bad or not rows:
        sys.exit(1)


def try_errors(case: cases.Case, plan: mmdet.Plan, seed: int, count: int) -> Iterator[Run]:
    """Runs a case unchanged and with every error.

    Args:
      seed: of the numbers that the check draws.
      count: convolutions of each part of the network; 0 for all.
    """
    adapter, detector, config = plan
    converted = weights.convert(case, adapter, config, seed)
    weighted = _weighted(detector)

    def judge(error: str, results) -> Run:
        own = results._replace(state={k: v for k, v in results.state.items() if k != _FACTORS})
        lines, _ = lines_lib.compare(case, adapter, converted, own)
        missed = [line.quantity for line in lines if not line.passed]
        if not error:
            return Run("", missed, "failed" if missed else "passed")
        if results.gradients is not None and _same(results, as_it_is):
            return Run(error, missed, "no effect")
        return Run(error, missed, "noticed" if missed else "not noticed")

    def lower(with_gradients: bool = True, with_prediction: bool = True):
        jax.clear_caches()  # functions were traced without the error, or with another
        program = mmdet.program(weighted, with_gradients, command.QUICK, with_prediction)
        return program.lower(*inputs)

    inputs = Inputs(converted.params, converted.state, case.batch(), jax.random.key(seed))
    _, (metrics, _) = jax.eval_shape(detector.loss, *inputs)
    ones = {name: np.float32(1) for name in metrics if name.startswith("loss/")}
    inputs = inputs._replace(state={**inputs.state, _FACTORS: ones})
    compute = lower().compile()
    as_it_is = jax.device_get(compute(*inputs))
    yield judge("", as_it_is)
    norms, callers = used(detector, inputs)
    wrong_norms = list(errors_of_norms(norms, inputs))
    in_numbers = [(error, changed) for error, changed, _ in wrong_norms if changed is not None]
    for error, changed in (*errors_in_numbers(inputs, count), *in_numbers):
        yield judge(error, jax.device_get(compute(*changed)))
    for error, changed, paths in wrong_norms:
        if changed is None:
            with _epsilon(paths):
                wrong = lower(with_gradients=False)
            yield judge(error, jax.device_get(wrong.compile()(*inputs)))
    # A `stop_gradient` moves no prediction.
    right = lower(with_prediction=False).as_text()
    for caller in callers:
        error = f"stop_gradient missing in {pathlib.Path(caller).relative_to(_PACKAGE)}"
        with stop_gradient(caller.__ne__):
            wrong = lower(with_prediction=False)
        if wrong.as_text() == right:
            yield Run(error, [], "no effect")  # not even compiled
            continue
        found = jax.device_get(wrong.compile()(*inputs))
        found = found._replace(outputs=as_it_is.outputs, detections=as_it_is.detections)
        yield judge(error, found)
    jax.clear_caches()


def _weighted(detector: contract.Detector) -> contract.Detector:
    """The detector with every loss multiplied by its factor in the state."""

    def loss_of_maps(params, state, batch, maps, rng):
        state = dict(state)
        factors = state.pop(_FACTORS)
        value, (metrics, state) = detector.loss_of_maps(params, state, batch, maps, rng)
        for name, factor in factors.items():
            value = value + (factor - 1) * metrics[name]
            metrics = {**metrics, name: factor * metrics[name]}
        return value, (metrics, {**state, _FACTORS: factors})

    return detector._replace(loss_of_maps=loss_of_maps)


def errors_in_numbers(inputs: Inputs, count: int) -> Iterator[tuple[str, Inputs]]:
    """(error, inputs of the program) of each error that needs no other program."""
    batch, factors = inputs.batch, inputs.state[_FACTORS]
    for name, axis in (("channels", 3), ("columns", 2)):
        images = np.flip(batch.images, axis)
        yield f"{name} of the input reversed", inputs._replace(batch=batch._replace(images=images))
    for name in factors:
        heavier = {**factors, name: np.float32(HEAVIER)}
        yield f"{name} 2 % heavier", inputs._replace(state={**inputs.state, _FACTORS: heavier})
    leaves = mapping.flatten(inputs.params)
    for path in _kernels(leaves, count):
        kernel = leaves[path]
        changes = {"channels swapped in": kernel[:, :, [1, 0, *range(2, kernel.shape[2])]]}
        if kernel.shape[0] > 1:
            changes["flipped"] = kernel[::-1, ::-1]
        for error, value in changes.items():
            params = mapping.nest({**leaves, path: value})
            yield f"{error} {path}", inputs._replace(params=params)


def _kernels(leaves: Mapping[str, np.ndarray], count: int) -> list[str]:
    """`count` convolutions of each part of the network, evenly spaced; 0 for all."""
    parts = {}
    for path, leaf in leaves.items():
        if leaf.ndim == 4 and leaf.shape[2] > 1:
            parts.setdefault(path.split("/")[0], []).append(path)
    chosen = []
    for paths in parts.values():
        most = min(count or len(paths), len(paths))
        chosen += [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, most).astype(int))]
    return chosen


def used(
    detector: contract.Detector, inputs: Inputs
) -> tuple[dict[tuple[str, ...], layers.Norm], list[str]]:
    """(path of each norm of a training step -> norm, files that call `stop_gradient`)."""
    norms, callers = {}, []

    def list_norm(call, args, keywords, context):
        if isinstance(context.module, layers.Norm):
            norms.setdefault(context.module.path, context.module)
        return call(*args, **keywords)

    def list_caller(file: str) -> bool:
        callers.append(file)
        return True

    state = {name: value for name, value in inputs.state.items() if name != _FACTORS}
    jax.clear_caches()
    with layers.nn.intercept_methods(list_norm), stop_gradient(list_caller):
        jax.eval_shape(detector.loss, inputs.params, state, inputs.batch, inputs.rng)
    return norms, list(dict.fromkeys(callers))


def errors_of_norms(
    norms: Mapping[tuple[str, ...], layers.Norm], inputs: Inputs
) -> Iterator[tuple[str, Inputs | None, list[tuple[str, ...]]]]:
    """(error, inputs of the program or None, paths of the norms with another epsilon).

    Norms with constant statistics need no other program: their variances are larger instead.
    """
    if not norms:
        return
    # The first norm affects everything.  One in a side branch may move no number by more than
    # float32 does.
    first = next(iter(norms))
    for name, paths in (("all norms", list(norms)), ("/".join(first), [first])):
        error, changed = f"epsilon of {name} times {EPSILON}", None
        if all(norms[path].mode in ("stored", "frozen") for path in paths):
            statistics = mapping.flatten(inputs.state["batch_stats"])
            for path in paths:
                variance = "/".join((*path, "var"))
                more = (EPSILON - 1) * norms[path].epsilon
                statistics[variance] = statistics[variance] + np.float32(more)
            state = {**inputs.state, "batch_stats": mapping.nest(statistics)}
            changed = inputs._replace(state=state)
        yield error, changed, paths


def _epsilon(paths: Sequence[tuple[str, ...]]):
    """Gives the norms at these paths another epsilon."""

    def change(call, args, keywords, context):
        module = context.module
        if isinstance(module, layers.Norm) and module.path in paths:
            # Flax's modules are frozen; this one lives for this call only.
            object.__setattr__(module, "epsilon", EPSILON * module.epsilon)
        return call(*args, **keywords)

    return layers.nn.intercept_methods(change)


@contextlib.contextmanager
def stop_gradient(keep: Callable[[str], bool]):
    """Makes `stop_gradient` do nothing in files of detlab where `keep(file)` is false."""
    real = jax.lax.stop_gradient

    def stop(x):
        file = sys._getframe(1).f_code.co_filename
        ours = _PACKAGE in pathlib.Path(file).parents
        return real(x) if not ours or keep(file) else x

    with mock.patch.object(jax.lax, "stop_gradient", stop):
        yield


def _same(results, reference) -> bool:
    """Whether the losses and gradients are the same to within rounding."""
    pairs = zip(
        jax.tree.leaves((results.gradients, results.metrics)),
        jax.tree.leaves((reference.gradients, reference.metrics)),
        strict=True,
    )
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(reference.gradients))
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-6 * largest) for a, b in pairs)


if __name__ == "__main__":
    errors.run_main(main)
