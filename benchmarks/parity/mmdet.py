"""Parity with mmdet: an adapter builds the detector from the configuration in the case.

Adapters are the modules of `adapters` with an `ADAPTER`.
"""

import importlib
import pathlib
import pkgutil
import types as python_types
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

from benchmarks.parity import adapters, cases, runner, weights
from benchmarks.parity import lines as lines_lib
from benchmarks.parity.adapters import adapter as adapter_lib
from detlab import contract, errors, types

_MODULES = (
    importlib.import_module(f"{adapters.__name__}.{found.name}")
    for found in pkgutil.iter_modules(adapters.__path__)
)
ADAPTERS = tuple(module.ADAPTER for module in _MODULES if hasattr(module, "ADAPTER"))


class Plan(NamedTuple):
    """How to run a case."""

    adapter: adapter_lib.Adapter
    detector: contract.Detector
    config: python_types.SimpleNamespace  # `detector` and `model`, as of an experiment


def adapter_of(info: Mapping) -> adapter_lib.Adapter | None:
    """The one of ADAPTERS that knows a case; None if none does.

    Raises:
      UserError: more than one does.
    """
    known = [adapter for adapter in ADAPTERS if adapter.knows(info)]
    if len(known) > 1:
        names = " and ".join(adapter.detector for adapter in known)
        raise errors.UserError(
            f"case {info.get('name')} fits the adapters of {names}; add `parts` to one of them."
        )
    return known[0] if known else None


def knows(info: Mapping) -> bool:
    """Whether a case is of a detector that has an adapter."""
    return adapter_of(info) is not None


def plan(info: dict) -> Plan:
    """How to run a case that has an adapter.

    Raises:
      UserError: its configuration has something that detlab lacks.
    """
    adapter = adapter_of(info)
    config = python_types.SimpleNamespace(detector=adapter.detector, model=adapter.fields(info))
    return Plan(adapter, contract.build(config), config)


def run(
    fixtures: pathlib.Path, name: str, info: dict, settings: runner.Settings
) -> runner.Compared:
    """The lines of a case; see `runner.Runner`."""
    adapter, detector, config = plan(info)
    case = cases.read(fixtures, name, info)
    converted = weights.convert(case, adapter, config, settings.seed)
    results = run_program(case, detector, converted, settings.seed, settings.compiler_options)
    return lines_lib.compare(case, adapter, converted, results)


def run_program(
    case: cases.Case,
    detector: contract.Detector,
    converted: weights.Converted,
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
    with_prediction: bool = True,
) -> Callable:
    """Jitted (params, state, batch, rng) -> Results.

    The network is traced once in training and once in prediction; without the latter, its results
    are None.  The samplers of the cases take every candidate, so `rng` affects only their order.
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
        trained = adapter_lib.Results(
            None, targets, total_loss, metrics, new_state, gradients, detections=None
        )
        if not with_prediction:
            return trained
        maps, _ = detector.maps(params, state, batch.images, False)
        predicting = params, state, maps, batch.image_size, batch.images.shape[1:3]
        return trained._replace(
            outputs=detector.outputs(*predicting),
            detections=detector.suppress(detector.candidates(*predicting)),
        )

    return jax.jit(compute, compiler_options=compiler_options)


RUNNER = runner.Runner("mmdet", knows, run, check=plan)
