"""Conversion tables on detectors with random values in every leaf."""

import functools
import types as python_types
from collections.abc import Mapping

import numpy as np

from detlab import contract
from detlab.converters import mapping, target
from detlab.run import checkpoint


@functools.cache
def _shapes(detector: str, model: tuple) -> dict[str, tuple[int, ...]]:
    config = python_types.SimpleNamespace(detector=detector, model=dict(model))
    return target.shapes(config)


def shapes(detector: str, fields: Mapping) -> dict[str, tuple[int, ...]]:
    """Path -> shape of all leaves."""
    return _shapes(detector, tuple(sorted(fields.items())))


def there_and_back(table: mapping.Table, detector: str, fields: Mapping):
    """(leaves of the table's subtrees, tensors of their file), checked to convert back equal."""
    rng = np.random.default_rng(0)
    wanted = shapes(detector, fields)
    leaves = {
        path: rng.normal(size=shape).astype(np.float32)
        for path, shape in wanted.items()
        if mapping.inside(path, table.subtrees)
    }
    tensors = mapping.reverse(mapping.nest(leaves), table)
    tree, _ = mapping.convert(tensors, table, wanted)
    back = mapping.flatten(tree)
    assert back.keys() == leaves.keys() and len(tensors) == len(leaves)
    for path, value in leaves.items():
        np.testing.assert_array_equal(back[path], value)
    return leaves, tensors


def start(folder, config) -> checkpoint.Merged:
    """Which leaves training would take from a folder, without `config.init_skip`."""
    wanted = shapes(config.detector, config.model.to_dict())
    tree = mapping.nest({p: np.broadcast_to(np.float32(0), s) for p, s in wanted.items()})
    weights = checkpoint.load_weights(folder)
    reasons = checkpoint.may_differ(weights, contract.num_classes(config))
    return checkpoint.merge(tree.pop("params"), tree, weights, sum(reasons.values(), ()))
