"""The maps inside a detector, and gradients with respect to them.

A map is a leaf [B, H, W, D] of what `Detector.taps` gives.  Its name is the path of the module and
the place of the leaf in its output: `neck.0` is the finest level of a pyramid.
"""

import collections
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from detlab import contract, errors

Maps = Mapping[str, Any]  # name -> [B, H, W, D]


def maps(detector: contract.Detector, params: Any, state: Any, images, pattern: str) -> Maps:
    """The maps of the modules whose path matches.

    Args:
      detector: see `contract.Detector`.
      params, state: its variables.
      images: [B, H, W, 3].
      pattern: a regular expression for the whole path, such as `neck|head`.
    Returns:
      {name: [B, H, W, D]}; outputs of another form are left out.
    """
    found = detector.taps(params, state, images, pattern)
    return {
        f"{tap}{place}": leaf
        for tap, value in found.items()
        for place, leaf in _leaves(value)
        if leaf.ndim == 4
    }


def listing(detector: contract.Detector, params: Any, state: Any, images) -> dict[str, tuple]:
    """{name: shape} of all maps of `images` [B, H, W, 3]; nothing is computed."""
    shapes = jax.eval_shape(lambda p, s, x: maps(detector, p, s, x, ".*"), params, state, images)
    return {name: leaf.shape for name, leaf in in_order(shapes).items()}


def choose(
    known: Mapping[str, tuple], pattern: str | None, defaults: Sequence[str] = ("neck", "backbone")
) -> str:
    """The pattern of the modules to look at; by default one whose outputs are levels.

    Args:
      known: of `listing`.
      pattern: what the user asks for, or None.
      defaults: modules to take without a pattern, the first that there is; else the last of all.
    Raises:
      UserError: no module with a map matches.
    """
    paths = list(dict.fromkeys(_split(name)[0] for name in known))
    if pattern is None:
        tops = [path for path in paths if "/" not in path]
        return re.escape(next((top for top in defaults if top in tops), tops[-1]))
    try:
        matches = [path for path in paths if re.fullmatch(pattern, path)]
    except re.error as error:
        raise errors.UserError(
            f"--taps {pattern} is no regular expression: {error}; --list prints the paths."
        ) from error
    if not matches:
        some = ", ".join(path for path in paths if "/" not in path)
        raise errors.UserError(
            f"--taps {pattern} matches no module with maps; --list prints them all ({some}, ...)."
        )
    return pattern


def gradients(
    detector: contract.Detector,
    params: Any,
    state: Any,
    images,
    image_size,
    found: Maps,
    candidate,
) -> Maps:
    """The gradients of a candidate's score with respect to maps, of the same shapes.

    Zeros are added to the outputs of the modules, and the score is differentiated by them.

    Args:
      detector: see `contract.Detector`.
      params, state: its variables.
      images: [1, H, W, 3].
      image_size: [1, 2] int32 height, width px.
      found: maps of the image, from `maps`.
      candidate: [] int, its position before suppression.
    """

    def score(added):
        with nn.intercept_methods(_adding(added)):
            return candidates(detector, params, state, images, image_size).scores[0, candidate]

    zeros = {name: jnp.zeros(x.shape, x.dtype) for name, x in found.items()}
    return jax.grad(score)(zeros)


def candidates(detector: contract.Detector, params: Any, state: Any, images, image_size) -> Any:
    """Detections before suppression of the images alone, whatever the views of the config.

    Args:
      detector: see `contract.Detector`.
      params, state: its variables.
      images: [B, H, W, 3].
      image_size: [B, 2] int32 height, width px.
    """
    outputs, _ = detector.maps(params, state, images, False)
    return detector.candidates(params, state, outputs, image_size, images.shape[1:3])


def _adding(added: Maps) -> Callable[..., Any]:
    """An interceptor of Flax that adds arrays to the maps of these names."""
    calls: dict[str, int] = collections.Counter()

    def intercept(next_function, arguments, options, context):
        output = next_function(*arguments, **options)
        path = "/".join(context.module.path)
        if context.method_name != "__call__" or not any(n.startswith(path) for n in added):
            return output
        call, calls[path] = calls[path], calls[path] + 1
        # A module that is called once has no number in its name.
        taps = (f"{path}:{call}", path) if call == 0 else (f"{path}:{call}",)
        places = dict(_leaves(output))
        more = {p: added[t + p] for t in taps for p in places if t + p in added}
        leaves, tree = jax.tree.flatten(output)
        joined = [x + more[p] if p in more else x for p, x in zip(places, leaves, strict=True)]
        return jax.tree.unflatten(tree, joined)

    return intercept


def _leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """(place, leaf) of the leaves of a tree: "" if it is a leaf, else ".0", ".cls_logits.1" ..."""
    for path, leaf in jax.tree_util.tree_flatten_with_path(value)[0]:
        yield "".join(f".{jax.tree_util.keystr((key,), simple=True)}" for key in path), leaf


def in_order(found: Maps) -> Maps:
    """The same maps in the order of their names, in which level 2 is before level 10."""

    def key(name):
        return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", name)]

    return {name: found[name] for name in sorted(found, key=key)}


def _split(name: str) -> tuple[str, str]:
    """(path of the module, the rest) of the name of a map."""
    path = re.match(r"[^.:]*", name)[0]
    return path, name[len(path) :]
