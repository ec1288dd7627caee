"""Is a detlab detector, given the weights of a reference detector, that detector?

    python -m benchmarks.parity --case retinanet_r50_fpn
    python -m benchmarks.parity --all

A case is a recorded run of the reference (docs/parity.md).  Its weights are made by its rule and
converted by the table that users' files go through; the detector is built from the configuration
in the case.  One compiled program gives raw maps, targets, losses, gradients and detections, and
each quantity is a line: how far it is off and how far it may be.  Errors of maps are parts of the
largest value, of decisions and labels the number that differ, of boxes pixels, and otherwise
differences.

--quick compiles as the tests do, in a fraction of the time; a release is checked without it.

Without --case every case of the folder --fixtures that has a model is run and the others are
listed as missing.  Exit status 1 where a quantity misses its tolerance, or a case that was asked
for, by name or by --all, has no model.
"""

import importlib
import math
import os
import pathlib
import pkgutil
import re
import sys
import time
import types as python_types
from typing import Any, Callable, Mapping, NamedTuple

from benchmarks import flags
from detlab import cli

if __name__ == "__main__":
    cli.answer_first(flags.parity(__doc__))  # --help needs no import below

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import command
from benchmarks import fixture_weights
from benchmarks import machine
from benchmarks import parity_adapters
from benchmarks import parity_cases
from benchmarks import parity_checks
from benchmarks import parity_darknet
from benchmarks import parity_yolov5
from benchmarks.parity_adapters import adapter as adapter_lib
from detlab import contract
from detlab import errors
from detlab import types
from detlab.converters import mapping
from detlab.converters import target

_MODULES = (
    importlib.import_module(f"{parity_adapters.__name__}.{found.name}")
    for found in pkgutil.iter_modules(parity_adapters.__path__)
)
ADAPTERS = tuple(module.ADAPTER for module in _MODULES if hasattr(module, "ADAPTER"))

# Cases of other references than mmdet, each a module with `knows(info)` and `run`.
RUNNERS = (parity_darknet, parity_yolov5)

# Arrays that a case is run on, and its detections, which have lines of their own.
_NO_MAPS = re.compile(r"image|gt_.*|det_(boxes|scores|labels)_\d+")


class Converted(NamedTuple):
    """The weights of a case on both sides of its table."""

    tensors: Mapping[str, np.ndarray]  # in the reference's names and layouts
    table: mapping.Table
    params: Mapping
    state: Mapping
    left: tuple[str, ...]  # leaves that the table does not fill; they are as initialised


def main(arguments: list[str]) -> None:
    """The command line; raises `UserError` for whatever a user can mend."""
    args = flags.parity(__doc__).parse_args(arguments)
    folders = case_folders(args)
    options = command.QUICK if args.quick else None
    chosen = parity_cases.choose(parity_cases.find(args.fixtures), args.case)
    # What cannot be mapped is found before the first program is compiled.
    lacking = {name: lacks(args.fixtures, name, info) for name, info in chosen.items()}
    plans = {name: plan(info) for name, info in chosen.items() if not lacking[name]}

    rows = []
    for name, info in chosen.items():
        if lacking[name]:
            reason = lacking[name] + _weights_there(info, folders)
            print(f"missing  {name}: {reason}")
            rows.append({"case": name, "status": "missing", "reason": reason})
            continue
        if any(row["status"] != "missing" for row in rows):
            jax.clear_caches()  # of the case before: its programs are large, and of no use now
        start = time.perf_counter()
        if plans[name] in RUNNERS:
            print(f"case {name}: {info.get('reference') or info['weights']}")
            lines, not_compared = plans[name].run(args.fixtures, name, info, folders, options)
        else:
            adapter, detector, config = plans[name]
            print(
                f"case {name}: {info['source']}, seed {info['seed']}, input {info['input_shape']}"
            )
            case = parity_cases.read(args.fixtures, name, info, folders)
            converted = convert_weights(case, adapter, config, args.seed)
            results = run(case, detector, converted, args.seed, options)
            lines, not_compared = compare(case, adapter, converted, results)
        rows.append(_report(name, lines, not_compared, time.perf_counter() - start))

    counts = {s: sum(r["status"] == s for r in rows) for s in ("passed", "failed", "missing")}
    print(f"{len(rows)} cases: " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    if args.json:
        result = {"machine": machine.describe(), "cases": rows}
        command.write_json(args.json, result)
    if counts["failed"] or (counts["missing"] and (args.all or args.case)):
        sys.exit(1)


def convert_weights(
    case: parity_cases.Case, adapter: adapter_lib.Adapter, config, seed: int = 0
) -> Converted:
    """The case's own weights, made by its rule, by the real table and engine.

    Args:
      seed: of what the table leaves as initialised.
    Raises:
      UserError: the weights are not those recorded, or do not fit the detector.
    """
    tensors = fixture_weights.state_dict(case.info)
    table = adapter.table(case.bgr)
    shapes = target.shapes(config)
    try:
        tree, _ = mapping.convert(tensors, table, shapes)
    except mapping.ConversionError as error:
        raise errors.UserError(f"case {case.name}: {error}") from error
    filled = mapping.flatten(tree)
    left = tuple(path for path in shapes if path not in filled)
    if left:
        tree = mapping.nest(filled | _initial(contract.build(config), left, seed))
    return Converted(tensors, table, tree.pop("params"), tree, left)


def _initial(
    detector: contract.Detector, paths: tuple[str, ...], seed: int
) -> dict[str, jax.Array]:
    """Path -> value of some leaves of a new model."""

    def compute():
        images = jnp.zeros((1, 64, 64, 3), jnp.uint8)
        params, state = detector.init(jax.random.key(seed), images)
        leaves = mapping.flatten({"params": params, **state})
        return {path: leaves[path] for path in paths}

    return jax.device_get(jax.jit(compute)())


def run(
    case: parity_cases.Case,
    detector: contract.Detector,
    converted: Converted,
    seed: int = 0,
    compiler_options: Mapping | None = None,
) -> adapter_lib.Results:
    """Everything that the lines need, from one compiled program.

    Args:
      seed: of the samples that the detector draws.
    """
    compute = program(detector, bool(case.info["grad_norms"]), compiler_options)
    rng = jax.random.key(seed)
    return jax.device_get(compute(converted.params, converted.state, case.batch(), rng))


def program(
    detector: contract.Detector,
    with_gradients: bool,
    compiler_options: Mapping | None = None,
) -> Callable:
    """Jitted (params, state, batch, rng) -> Results.

    The network is traced once in training and once in prediction.  The samplers of the cases take
    every candidate, so `rng` decides about their order alone.
    """

    def compute(params, state, batch: types.Batch, rng: jax.Array) -> adapter_lib.Results:
        def step(params):
            maps, advanced = detector.maps(params, state, batch.images, True, rng)
            given = params, advanced, batch, maps, rng
            value, (metrics, new_state) = detector.loss_of_maps(*given)
            return value, (metrics, new_state, detector.targets_of_maps(*given))

        if with_gradients:
            (total_loss, found), gradients = jax.value_and_grad(step, has_aux=True)(params)
        else:
            (total_loss, found), gradients = step(params), None
        metrics, new_state, targets = found
        maps, _ = detector.maps(params, state, batch.images, False)
        predicting = params, state, maps, batch.image_size, batch.images.shape[1:3]
        return adapter_lib.Results(
            outputs=detector.outputs(*predicting),
            targets=targets,
            total_loss=total_loss,
            metrics=metrics,
            state=new_state,
            gradients=gradients,
            detections=detector.suppress(detector.candidates(*predicting)),
        )

    return jax.jit(compute, compiler_options=compiler_options)


def compare(
    case: parity_cases.Case,
    adapter: adapter_lib.Adapter,
    converted: Converted,
    results: adapter_lib.Results,
) -> tuple[list[parity_checks.Line], list[str]]:
    """The line of every recorded quantity, and the arrays that no line has to be about."""
    lines = [
        parity_checks.Line(f"weights {path}", math.inf, 0.0, "left as initialised by the table")
        for path in converted.left
        if path.startswith("params/")  # state may be detlab's own
    ]
    arrays = adapter.arrays(case, results)
    absent, predicted = adapter.not_compared, adapter.predicted
    array_lines, not_compared = _array_lines(
        case, arrays, absent, predicted, adapter.readable(case)
    )
    lines += array_lines
    lines += _loss_lines(case, adapter.losses, results)
    if results.gradients is not None:
        lines += _gradient_lines(case, converted, results.gradients)
    lines += _buffer_lines(case, converted.table, results.state)
    mine, theirs = _detections(case, results.detections)
    lines += parity_checks.detections(mine, theirs, case.info["drift"]["detections"])
    return lines, not_compared


def _array_lines(
    case,
    mine: Mapping[str, np.ndarray],
    may_be_absent: tuple[str, ...],
    predicted: tuple[str, ...] = (),
    readable: Mapping[str, np.ndarray] = python_types.MappingProxyType({}),
) -> tuple[list[parity_checks.Line], list[str]]:
    # `outputs` are those of prediction; with live norms training has other maps, which show in the
    # losses alone.
    live_norms = case.info["batch_norm_in_train"]["batch_statistics"]
    lines, not_compared = [], []
    for name, theirs in case.arrays.items():
        if _NO_MAPS.fullmatch(name):
            continue
        other_map = live_norms and name.startswith("train_") and name.removeprefix("train_") in mine
        permitted = other_map or any(re.fullmatch(pattern, name) for pattern in may_be_absent)
        if name not in mine and permitted:
            not_compared.append(name)
            continue
        kind = "assignment" if name.startswith("train_assign.") else "map"
        is_map = any(re.fullmatch(pattern, name) for pattern in predicted)
        kind = "targets" if name.startswith("train_targets.") and not is_map else kind
        kind = "neck" if re.match(r"(train_|image\d+_)?fpn_", name) else kind
        quantity = f"{kind} {name}"
        if name not in mine:
            note = "the adapter gives nothing to compare with"
            lines.append(parity_checks.Line(quantity, math.inf, 0.0, note))
            continue
        try:
            values = case.as_stored(name, np.asarray(mine[name]))
        except ValueError as error:
            lines.append(parity_checks.Line(quantity, math.inf, 0.0, str(error)))
            continue
        if name in readable:
            values, theirs = (np.where(readable[name], x, 0) for x in (values, theirs))
        if np.issubdtype(theirs.dtype, np.integer):
            lines.append(parity_checks.decision(quantity, values, theirs))
        elif kind == "targets":
            lines.append(parity_checks.target(quantity, values, theirs))
        else:
            lines.append(parity_checks.array_map(quantity, values, theirs))
    return lines, not_compared


def _loss_lines(case, names: Mapping[str, str], results) -> list[parity_checks.Line]:
    drift = case.info["drift"]["losses"]
    lines = []
    for name, theirs in case.info["losses"].items():
        mine = results.metrics.get(names.get(name), math.nan)
        lines.append(parity_checks.loss(f"loss {name}", mine, theirs, drift.get(name, 0.0)))
    # What else is recorded with them, such as `acc`, is not in the total.
    worst = max((value for name, value in drift.items() if "loss" in name), default=0.0)
    theirs = case.info["total_loss"]
    return [*lines, parity_checks.loss("loss total", results.total_loss, theirs, worst)]


def _gradient_lines(case, converted: Converted, gradients) -> list[parity_checks.Line]:
    named = mapping.reverse({"params": gradients}, converted.table)
    norms, dots, drift = (case.info[key] for key in ("grad_norms", "grad_dots", "grad_drift"))
    largest, lines = max(norms.values(), default=0.0), []
    for key, norm in norms.items():
        mine = named.get(key, np.full_like(converted.tensors[key], np.nan))
        drifts = (drift[of][key] for of in ("norms", "dots", "vectors"))
        recorded = parity_checks.Gradient(norm, dots[key], *drifts)
        lines += parity_checks.gradient(key, mine, converted.tensors[key], recorded, largest)
    for group in ("frozen", "unused"):
        moved = [key for key in case.info[group] if key in named and named[key].any()]
        note = f"with a gradient: {', '.join(moved)}" if moved else ""
        lines.append(parity_checks.Line(f"gradient of {group}", float(len(moved)), 0.0, note))
    return lines


def _buffer_lines(case, table: mapping.Table, state) -> list[parity_checks.Line]:
    """Norms of what the step changed besides parameters."""
    norms = case.info["buffers_after_train"]
    named = mapping.reverse(state, table) if norms else {}
    return [
        parity_checks.figure(f"buffer {key}", np.linalg.norm(named.get(key, np.nan)), norm)
        for key, norm in norms.items()
    ]


def _detections(case, found) -> tuple[list[types.Detections], list[types.Detections]]:
    """Of each image, mine and theirs, without empty rows."""
    mine, theirs = [], []
    for i, valid in enumerate(found.valid):
        mine.append(types.Detections(*(values[i][valid] for values in found)))
        boxes, scores, labels = (case.arrays[f"det_{x}_{i}"] for x in ("boxes", "scores", "labels"))
        theirs.append(types.Detections(boxes, scores, labels, np.ones(len(scores), bool)))
    return mine, theirs


def lacks(fixtures: pathlib.Path, name: str, info: Mapping) -> str:
    """What detlab does not have that a case needs, in words; "" where it can run."""
    kind = _kind(info)
    if kind in RUNNERS:
        return kind.lacks(fixtures, name, info)
    source = info.get("source") or info.get("reference") or "published weights"
    return "" if kind else f"no model for {source}"


def _kind(info: Mapping) -> Any:
    """The one of RUNNERS or of ADAPTERS that knows a case; None where none does."""
    known = [kind for kind in (*RUNNERS, *ADAPTERS) if kind.knows(info)]
    if len(known) > 1:
        names = " and ".join(getattr(kind, "detector", "a runner") for kind in known)
        raise errors.UserError(
            f"case {info.get('name')} is known to the adapters of {names}; give one more `parts`."
        )
    return known[0] if known else None


def plan(info: dict) -> Any:
    """(adapter, detector, config) of a case of mmdet, or one of RUNNERS."""
    kind = _kind(info)
    if kind in RUNNERS:
        return kind
    config = python_types.SimpleNamespace(detector=kind.detector, model=kind.fields(info))
    return kind, contract.build(config), config


def _weights_there(info: dict, folders: parity_cases.Folders) -> str:
    """Of a case with published weights, whether they are there."""
    if not isinstance(info.get("weights"), str):
        return ""
    there = (folders.weights / info["weights"]).exists()
    return f"; {info['weights']} is {'' if there else 'not '}in {folders.weights}"


def case_folders(args) -> parity_cases.Folders:
    """The given folders, which must exist, or those beside the folder `parity`."""
    fixtures = args.fixtures.resolve()
    above = (folder for folder in (fixtures, *fixtures.parents) if folder.name == "parity")
    beside = pathlib.Path(os.path.relpath(next(above, fixtures).parent))
    found = {}
    for name in parity_cases.Folders._fields:
        given = getattr(args, name)
        if given is not None and not given.is_dir():
            raise errors.UserError(f"--{name} {given} is not a folder.")
        found[name] = given or beside / name
    return parity_cases.Folders(**found)


def _report(name: str, lines: list, not_compared: list[str], seconds: float) -> dict:
    """Prints the lines of a case; returns its row of the JSON."""
    width = max(len(line.quantity) for line in lines)
    for line in lines:
        print(
            f"{'ok' if line.passed else 'MISS':4}  {line.quantity:{width}}"
            f"  error {line.error:.2e}  tolerance {line.tolerance:.2e}  {line.note}".rstrip()
        )
    missed = [line.quantity for line in lines if not line.passed]
    if not_compared:
        print(f"not compared: {', '.join(not_compared)}")
    verdict = f"{len(missed)} missed" if missed else "all within tolerance"
    print(f"{name}: {len(lines)} quantities, {verdict} ({seconds:.0f} s)")
    return {
        "case": name,
        "status": "failed" if missed else "passed",
        "missed": missed,
        "not_compared": not_compared,
        "seconds": seconds,
        "lines": [
            # JSON has no infinity and no NaN.
            {**line._asdict(), "error": line.error if math.isfinite(line.error) else None}
            for line in lines
        ],
    }


if __name__ == "__main__":
    errors.run_main(main)
