"""The weights of an mmdet case, made by its rule and converted by the table for users' files."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.parity import cases, fixture_weights
from benchmarks.parity.adapters import adapter as adapter_lib
from detlab import contract, errors
from detlab.converters import mapping, target


class Converted(NamedTuple):
    """The weights of a case on both sides of its table."""

    tensors: Mapping[str, np.ndarray]  # in the reference's names and layouts
    table: mapping.Table
    params: Mapping
    state: Mapping
    left: tuple[str, ...]  # leaves that the table does not fill; they are as initialised


def convert(case: cases.Case, adapter: adapter_lib.Adapter, config, seed: int = 0) -> Converted:
    """Makes the weights of a case by its rule and converts them by the real table and engine.

    Args:
      seed: of leaves that the table does not fill.
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
