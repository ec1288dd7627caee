"""Loops over the object slots of an image, some slots at a time.

An assignment compares N anchors with G objects.  The matrix of 200k anchors and 100 objects takes
80 MB, and more in a batch, so no platform holds it at once.

How many slots a step takes depends on the platform.  A CPU takes one, whose N values stay in the
cache.  For an accelerator every step is several launches, so it takes as many slots as make
`_PAIRS` pairs of an anchor and an object: up to 100 slots of 83k anchors are a single step without
a loop.  A step is one function for any number of slots, and its result must not depend on how the
slots are divided; then all platforms compute the same assignment.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = Any

_PAIRS = 2**23  # 32 MiB for a float32 array of them, in each image
_MAPPED_ON_CPU = 8  # slots; more would need more memory, fewer more steps


def scan(step: Callable[..., Any], start, objects, anchors: int):
    """What `step` makes of `start` and of all object slots, from the first to the last.

    Args:
      step: (carry, part of `objects`) -> carry.  The part has B slots, in order.  Slots of zeros
        may follow the last one, so the slots need a flag whose False makes a slot do nothing.
      start: the first carry, arrays [...].
      objects: arrays [G, ...].
      anchors: N, static: the step computes arrays [B, N].
    Returns:
      The last carry, arrays [...] as `start`.
    """
    count = len(jax.tree.leaves(objects)[0])

    def run(start, objects, at_once):
        parts = jax.tree.map(functools.partial(_divide, at_once=at_once), objects)
        if at_once >= count:
            return step(start, jax.tree.map(lambda x: x[0], parts)) if count else start
        return lax.scan(lambda carry, part: (step(carry, part), None), start, parts)[0]

    return lax.platform_dependent(
        start,
        objects,
        cpu=functools.partial(run, at_once=1),
        default=functools.partial(run, at_once=_at_once(count, anchors)),
    )


def each(function: Callable[..., Any], objects, anchors: int):
    """`function` of every object slot alone.

    Args:
      function: of one slot of `objects`; it computes arrays [N].
      objects: arrays [G, ...].
      anchors: N, static.
    Returns:
      Its results with a leading axis [G].
    """

    def run(objects, at_once):
        return lax.map(function, objects, batch_size=at_once)

    count = len(jax.tree.leaves(objects)[0])
    return lax.platform_dependent(
        objects,
        cpu=functools.partial(run, at_once=_MAPPED_ON_CPU),
        default=functools.partial(run, at_once=_at_once(count, anchors)),
    )


def first_largest(values, slot):
    """The largest value of each anchor, and the first of the slots that have it.

    Args:
      values: [B, N], one array: computed again for the comparison with the maximum, the same
        formula may round differently (`lax.optimization_barrier`).
      slot: [B] int32, increasing.
    Returns:
      ([N], [N] int32).
    """
    largest = values.max(0)
    return largest, jnp.where(values == largest, slot[:, None], jnp.iinfo(jnp.int32).max).min(0)


def _at_once(count: int, anchors: int) -> int:
    """Slots of a step on accelerators: as few steps as `_PAIRS` allows, of equal size."""
    steps = max(-(-count * anchors // _PAIRS), 1)
    return max(-(-count // steps), 1)


def _divide(values, at_once):
    """[G, ...] as [steps, at_once, ...], padded with zeros."""
    padding = [(0, -len(values) % at_once)] + [(0, 0)] * (values.ndim - 1)
    return jnp.pad(values, padding).reshape(-1, at_once, *values.shape[1:])
