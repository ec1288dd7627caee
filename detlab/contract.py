"""The contract between detectors and programs: a NamedTuple of pure functions.

`build(config)` imports `detlab/detectors/<config.detector>.py` and fills in the fields of its
module class, `MODULE`.  The file name is the key; there is no registry.
"""

from __future__ import annotations

import difflib
import importlib
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from detlab import bounds, errors, types
from detlab import views as views_lib

if TYPE_CHECKING:  # a detector's functions work without the package
    from ml_collections import ConfigDict

# Fields that detectors no longer have -> what to set instead.
FORMER = {"flip_test": "config.eval.views=('image','mirror')"}


class Detector(NamedTuple):
    """All that the programs know of a detector.

    `params` is the differentiated collection; `state` holds all the others, and a function that
    changes it returns a new one.  `canvas` is the static (height, width), px, of the images that
    the maps were computed from.

    The metrics of a loss are scalars.  Those named `loss/*` add up to the loss.  `normaliser`, if
    present, is the float32 number that the terms were divided by, a sum over the images such as
    the number of positives; if the terms have different ones, it is that of the main term.
    Gradient accumulation weights the parts of a batch by it, or equally if there is none.  All
    other metrics are means over the images.
    """

    init: Callable  # (rng, images) -> (params, state)

    # The parts.  `maps` computes everything that depends on the images alone, and updates the
    # running statistics of live norms.  Networks with dropout take `rng` in training.
    maps: Callable  # (params, state, images, train, rng=None) -> (NamedTuple, new_state)
    # The targets, from the same assignment that the loss uses; reads the state, never changes it.
    targets_of_maps: Callable  # (params, state, batch, maps, rng) -> {name: Targets}
    # Differentiable with respect to params and maps; updates `loss_state`.
    loss_of_maps: Callable  # (params, state, batch, maps, rng) -> (scalar, (metrics, new_state))
    # The maps, and what prediction computes from them before decoding.
    outputs: Callable  # (params, state, maps, image_size, canvas) -> NamedTuple
    candidates: Callable  # (params, state, maps, image_size, canvas) -> Detections
    suppress: Callable  # Detections -> Detections
    views: tuple[views_lib.View, ...]  # prediction joins their candidates

    # The whole, composed of the parts.
    loss: Callable  # (params, state, batch, rng) -> (float32 scalar, (metrics, new_state))
    targets: Callable  # (params, state, batch, rng) -> {name: Targets}
    predict: Callable  # (params, state, images, image_size) -> Detections
    # Also returns, for each field that bounds the number of candidates, the images on which more
    # passed; see `detlab/bounds.py`.
    predict_with_bounds: Callable  # (the same) -> (Detections, {field: [B] bool})
    taps: Callable  # (params, state, images, pattern) -> {module path: array}
    frozen: tuple[str, ...]  # regexes of constant "params/..." and "batch_stats/..."


def from_module(
    module: nn.Module, views: tuple[views_lib.View, ...] = (views_lib.VIEWS["image"],)
) -> Detector:
    """A Detector from a Flax module that implements its parts.

    The module has `maps(images, train)`, `targets(batch, maps)`, `loss(batch, maps)` -> (scalar,
    metrics), `candidates(maps, image_size, canvas)`, `suppress(detections)`, `frozen_paths()`, and
    `outputs(maps, image_size, canvas)` if prediction computes more than the maps before decoding.
    Its `targets` draws random numbers from the stream "sample", once a step.  A module in
    `detectors/` also has `check()`, and `check_canvas(height, width)` if it does not accept every
    size; see `build`.
    """

    def apply(params, state, *arguments, **options):
        return module.apply({"params": params, **state}, *arguments, **options)

    def outputs_of(module: nn.Module, maps, image_size: jax.Array, canvas: tuple[int, int]):
        return module.outputs(maps, image_size, canvas) if hasattr(module, "outputs") else maps

    def everything(module: nn.Module, images: jax.Array):
        """The outputs for images that fill their canvas."""
        canvas = images.shape[1:3]
        image_size = jnp.tile(jnp.array(canvas), (len(images), 1))
        return outputs_of(module, module.maps(images, False), image_size, canvas)

    def init(rng: jax.Array, images: jax.Array):
        variables = dict(module.init(rng, images, method=everything))
        return variables.pop("params"), variables

    def maps(params, state, images: jax.Array, train: bool, rng: jax.Array | None = None):
        if not train:
            return apply(params, state, images, False, method="maps"), state
        rngs = {} if rng is None else {"sample": rng}
        found, new_state = apply(
            params, state, images, True, method="maps", mutable=list(state), rngs=rngs
        )
        return found, {**state, **new_state}

    def targets_of_maps(params, state, batch: types.Batch, maps, rng: jax.Array):
        return apply(params, state, batch, maps, method="targets", rngs={"sample": rng})

    def loss_of_maps(params, state, batch: types.Batch, maps, rng: jax.Array):
        (value, metrics), new_state = apply(
            *(params, state, batch, maps),
            method="loss",
            mutable=list(state),
            rngs={"sample": rng},
        )
        return value, (metrics, {**state, **new_state})

    def outputs(params, state, maps, image_size: jax.Array, canvas: tuple[int, int]):
        return apply(params, state, maps, image_size, canvas, method=outputs_of)

    def candidates_with_bounds(params, state, maps, image_size, canvas):
        found, noted = apply(
            *(params, state, maps, image_size, canvas),
            method="candidates",
            mutable=[bounds.COLLECTION],
        )
        return found, noted.get(bounds.COLLECTION, {})

    def candidates(params, state, maps, image_size: jax.Array, canvas: tuple[int, int]):
        return candidates_with_bounds(params, state, maps, image_size, canvas)[0]

    def suppress(detections: types.Detections) -> types.Detections:
        return module.suppress(detections)

    def loss(params, state, batch: types.Batch, rng: jax.Array):
        found, state = maps(params, state, batch.images, True, rng)
        return loss_of_maps(params, state, batch, found, rng)

    def targets(params, state, batch: types.Batch, rng: jax.Array):
        found, state = maps(params, state, batch.images, True, rng)
        return targets_of_maps(params, state, batch, found, rng)

    def predict_with_bounds(params, state, images: jax.Array, image_size: jax.Array):
        def find(images, image_size):
            found, _ = maps(params, state, images, False)
            canvas = images.shape[1:3]
            return candidates_with_bounds(params, state, found, image_size, canvas)

        joined, exceeded = views_lib.candidates(find, views, images, image_size)
        return suppress(joined), exceeded

    def predict(params, state, images: jax.Array, image_size: jax.Array):
        return predict_with_bounds(params, state, images, image_size)[0]

    def taps(params, state, images: jax.Array, pattern: str) -> dict[str, Any]:
        """Outputs of every submodule whose path, such as `backbone/stage2_block0`, matches.

        A module shared by all levels has one entry per call: `head/cls_conv0:0`, `:1`, ...
        """

        def keep(submodule: nn.Module, method: str) -> bool:
            return method == "__call__" and bool(re.fullmatch(pattern, "/".join(submodule.path)))

        _, captured = apply(
            *(params, state, images),
            method=everything,
            capture_intermediates=keep,
            mutable=["intermediates"],
        )
        flat = traverse_util.flatten_dict(captured.get("intermediates", {}), sep="/")
        found = {}
        for path, values in flat.items():
            path = path.removesuffix("/__call__")
            for call, value in enumerate(values):
                found[f"{path}:{call}" if len(values) > 1 else path] = value
        return found

    return Detector(
        init=jax.jit(init),  # so that shapes and initial values share one trace
        maps=maps,
        targets_of_maps=targets_of_maps,
        loss_of_maps=loss_of_maps,
        outputs=outputs,
        candidates=candidates,
        suppress=suppress,
        views=views,
        loss=loss,
        targets=targets,
        predict=predict,
        predict_with_bounds=predict_with_bounds,
        taps=taps,
        frozen=module.frozen_paths(),
    )


def build(config: ConfigDict) -> Detector:
    """The detector that `config.detector` names, with `config.model` as its fields.

    The value of a field must have the type of its default.  The module checks the rest: its
    `check()` builds nothing and raises a ValueError that starts with the field's name, such as
    "depth is 20; it must be one of 18, 34, 50, 101".  Its `check_canvas(height, width)`, if it has
    one, raises a ValueError for a canvas of `config.data` that the network cannot take.

    Raises:
      UserError: an unknown detector, field or view, an invalid value, or a canvas that the network
        cannot take.
    """
    module_type = module_class(config)
    fields = _defaults(module_type)
    blocks = {"config.model": config.model}
    if hasattr(config, "predict"):
        blocks["config.predict.model"] = config.predict.model
    for block, values in blocks.items():
        for key, value in values.items():
            if key not in fields:
                close = difflib.get_close_matches(key, fields, n=1)
                hint = f" Did you mean '{close[0]}'?" if close else ""
                hint = f" Set {FORMER[key]} instead." if key in FORMER else hint
                raise errors.UserError(
                    f"{block}.{key}: detector {config.detector} has no such field.{hint}"
                )
            if not _fits(value, fields[key]):
                kind = type(fields[key]).__name__
                raise errors.UserError(f"{block}.{key} is {value!r}; it must be of type {kind}.")
    module = module_type(**config.model)
    for block, values in blocks.items():
        if block != "config.model" and not values:
            continue
        try:
            module_type(**{**config.model, **values}).check()
        except ValueError as error:
            raise errors.UserError(f"{block}.{error}.") from error
    if hasattr(module, "check_canvas"):
        for key, canvas in _canvases(config):
            try:
                module.check_canvas(*canvas)
            except (ValueError, errors.UserError) as error:  # the latter from a darknet cfg
                text = str(error).removesuffix(".")
                raise errors.UserError(f"{key}: {text}.") from error
    return from_module(module, _views(config))


def field(config: ConfigDict, name: str) -> Any:
    """The value of a detector's field in the config, else its default; None if no such field.

    Raises:
      UserError: unknown detector.
    """
    return config.model.get(name, getattr(module_class(config), name, None))


def with_defaults(config: ConfigDict) -> ConfigDict:
    """A copy of the config whose `model` has every field of the detector.

    Raises:
      UserError: unknown detector.
    """
    copy = config.copy_and_resolve_references()
    defaults = _defaults(module_class(config))
    with copy.unlocked():
        copy.model = {**defaults, **config.model}
    return copy


def num_classes(config: ConfigDict) -> int:
    """The detector's number of classes."""
    return field(config, "num_classes")


def _defaults(module_type: type[nn.Module]) -> dict[str, Any]:
    """The detector's fields and their defaults."""
    fields = module_type.__dataclass_fields__
    return {name: fields[name].default for name in fields if name not in ("parent", "name")}


def module_class(config: ConfigDict) -> type[nn.Module]:
    """The Flax module of `config.detector`.

    Raises:
      UserError: unknown detector.
    """
    names = sorted(
        p.stem
        for p in (pathlib.Path(__file__).parent / "detectors").glob("*.py")
        if p.stem != "__init__"
    )
    if config.detector not in names:
        raise errors.UserError(
            f"config.detector is {config.detector!r}; it must be one of {', '.join(names)}."
        )
    return importlib.import_module(f"detlab.detectors.{config.detector}").MODULE


def _views(config) -> tuple[views_lib.View, ...]:
    """The views that `config.eval.views` names; the image alone if the config has no `eval`."""
    names = config.eval.views if hasattr(config, "eval") else ("image",)
    if not names or not set(names) <= views_lib.VIEWS.keys():
        known = ", ".join(views_lib.VIEWS)
        raise errors.UserError(
            f"config.eval.views is {names!r}; it must be one or more of {known}."
        )
    return tuple(views_lib.VIEWS[name] for name in names)


def _canvases(config) -> Iterator[tuple[str, tuple[int, int]]]:
    """(where it is, (height, width)) of each canvas; none if the config has no `data`."""
    data = getattr(config, "data", None)
    if data is None:
        return
    for canvas in data.canvases:
        yield f"config.data.canvases contains {canvas}", canvas
    for name in ("eval", "predict"):
        side = getattr(getattr(config, name, None), "rectangles", 0)
        if side:
            yield f"config.{name}.rectangles is {side}", (side, side)
    for canvases in data.multiscale_canvases:
        for canvas in canvases:
            yield f"config.data.multiscale_canvases contains {canvas}", canvas


def _fits(value: Any, default: Any) -> bool:
    """Whether a config's value has the type of the field's default; None accepts anything."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) == isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    if isinstance(default, (int, str, tuple)):
        return isinstance(value, type(default))
    return True
