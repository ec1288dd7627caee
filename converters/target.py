"""The leaves that a conversion fills: those of a config's detector."""

import jax
import jax.numpy as jnp
from ml_collections import config_dict

from detlab import contract
from detlab.converters import mapping


def shapes(config: config_dict.ConfigDict) -> dict[str, tuple[int, ...]]:
    """Path -> shape of all leaves of the configured detector, without running it."""
    detector = contract.build(config)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    params, state = jax.eval_shape(lambda x: detector.init(jax.random.key(0), x), images)
    return {path: leaf.shape for path, leaf in mapping.flatten({"params": params, **state}).items()}
