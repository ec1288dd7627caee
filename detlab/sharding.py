"""One mesh axis, `data`: every device holds all parameters and a part of the batch."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from detlab import errors

AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The devices, by default all, in a row.

    Axes are Auto: with jax's default, Explicit, models do not trace.
    """
    devices = jax.devices() if devices is None else devices
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=auto, devices=devices)


def check_batch_size(key: str, size: int, parts: int = 1) -> None:
    """Raises UserError unless a batch, or each of its parts, divides evenly over the devices."""
    devices = jax.device_count()
    if size % (devices * parts):
        times = f", times config.train.accumulate = {parts}" if parts > 1 else ""
        raise errors.UserError(
            f"config.{key} is {size}; it must be a multiple of the {devices} devices{times}."
        )


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The sharding of an array that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: Any, mesh: jax.sharding.Mesh) -> Any:
    """Puts a tree of host arrays, this process's rows of the global batch, onto the devices."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    # The only copy to devices that the train loop allows; see `jax.transfer_guard`.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
        )


def per_image(
    function: Callable[..., Any], mesh: jax.sharding.Mesh, constants: int
) -> Callable[..., Any]:
    """`function`, run on each device for that device's images.

    The first `constants` arguments are the same on all devices; in the others and in the result
    the first axis is the image.  A loop whose length depends on the data, such as suppression, then
    needs no communication between devices.
    """
    whole, part = PartitionSpec(), PartitionSpec(AXIS)

    def call(*arguments):
        specs = tuple(whole if i < constants else part for i in range(len(arguments)))
        # The check would reject every loop inside `function` whose carry starts as a constant.
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=part, check_vma=False)(
            *arguments
        )

    return call


def per_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, run on each device for that device's images, inside a larger program.

    Uses the mesh of `jax.set_mesh`.  Returns `function` itself if there is no mesh, or if each
    device already works alone.  In all arguments and results the first axis is the image.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if AXIS not in mesh.axis_names or AXIS in mesh.manual_axes:
        return function
    part = PartitionSpec(AXIS)
    return jax.shard_map(function, in_specs=part, out_specs=part, check_vma=False)
