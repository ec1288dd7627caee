"""One mesh axis, `data`: parameters on every device, each device a part of the batch."""

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from detlab import errors

AXIS = "data"


def make_mesh() -> jax.sharding.Mesh:
    """All devices in a row.  Auto axes: with Explicit ones, jax's default, models do not trace."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def check_batch_size(key: str, size: int, parts: int = 1) -> None:
    """Every device takes the same number of images of a batch, or of each of its parts."""
    devices = jax.device_count()
    if size % (devices * parts):
        times = f", times config.train.accumulate = {parts}" if parts > 1 else ""
        raise errors.UserError(
            f"config.{key} is {size}; it must be a multiple of the {devices} devices{times}."
        )


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: Any, mesh: jax.sharding.Mesh) -> Any:
    """A tree of host arrays, this process's rows of the global batch, onto the devices."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    # The copy that is meant: the train loop allows no other, see `jax.transfer_guard`.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
        )


def per_image(function, mesh: jax.sharding.Mesh, constants: int):
    """`function` with each device working on its own images.

    Its first `constants` arguments are the same everywhere, the others and the result have the
    image as their first axis.  A loop whose length depends on data, such as suppression, then needs
    no talk between devices.
    """
    whole, part = PartitionSpec(), PartitionSpec(AXIS)

    def call(*arguments):
        specs = tuple(whole if i < constants else part for i in range(len(arguments)))
        # The check would refuse every loop inside `function` whose carry starts as a constant.
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=part, check_vma=False)(
            *arguments
        )

    return call


def per_device(function):
    """`function` of arrays of images with each device working on its own, inside a larger program.

    It finds the mesh of `jax.set_mesh`, and is `function` itself where there is none, or where each
    device already works alone.  All arguments and results have the image as their first axis.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if AXIS not in mesh.axis_names or AXIS in mesh.manual_axes:
        return function
    part = PartitionSpec(AXIS)
    return jax.shard_map(function, in_specs=part, out_specs=part, check_vma=False)
