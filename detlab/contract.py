"""The contract between detectors and programs: a NamedTuple of pure functions.

`build(config)` imports `detlab/detectors/<config.detector>.py` and fills the fields of the module
class that the file calls `MODULE`.  The file name is the key; there is no registry.
"""

import difflib
import importlib
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from detlab import bounds, errors, types
from detlab import views as views_lib

# Fields that detectors once had -> what to set instead.
FORMER = {"flip_test": "config.eval.views=('image','mirror')"}


class Detector(NamedTuple):
    """The only thing that the programs know of a detector.

    `params` is what is differentiated; `state` holds every other Flax collection, passed in and
    returned new.  `canvas` is static, the (height, width) px of the images that maps are of.

    The metrics of a loss are scalars.  Those called `loss/*` add up to the loss.  `normaliser`,
    where there is one, is what the terms were divided by: float32, and a sum over the images, such
    as the number of positives.  A detector whose terms have several reports that of its main term.
    Accumulation of gradients weighs the parts of a batch by it, and equally where there is none.
    All other metrics are means over the images.
    """

    init: Callable  # (rng, images) -> (params, state)

    # The parts.  `maps` is all that images alone decide; live norms update there.  Networks that
    # drop activations at random take `rng` in training.
    maps: Callable  # (params, state, images, train, rng=None) -> (NamedTuple, new_state)
    # What the loss learns, or what both are made of; reads and never advances the state.
    targets_of_maps: Callable  # (params, state, batch, maps, rng) -> {name: Targets}
    # Differentiable in params and maps; `loss_state` advances here.
    loss_of_maps: Callable  # (params, state, batch, maps, rng) -> (scalar, (metrics, new_state))
    # The maps, and what prediction computes of them before any decoding.
    outputs: Callable  # (params, state, maps, image_size, canvas) -> NamedTuple
    candidates: Callable  # (params, state, maps, image_size, canvas) -> Detections
    suppress: Callable  # Detections -> Detections
    views: tuple[views_lib.View, ...]  # prediction joins their candidates

    # The whole, made of the parts.
    loss: Callable  # (params, state, batch, rng) -> (float32 scalar, (metrics, new_state))
    targets: Callable  # (params, state, batch, rng) -> {name: Targets}
    predict: Callable  # (params, state, images, image_size) -> Detections
    # Also tells, for each field that bounds the number of candidates, on which images more passed
    # than it keeps, see `detlab/bounds.py`.
    predict_with_bounds: Callable  # (the same) -> (Detections, {field: [B] bool})
    taps: Callable  # (params, state, images, pattern) -> {module path: array}
    frozen: tuple[str, ...]  # regexes of "params/..." and "batch_stats/..." that never change


def from_module(
    module: nn.Module, views: tuple[views_lib.View, ...] = (views_lib.VIEWS["image"],)
) -> Detector:
    """A Detector from a Flax module that has its parts.

    The module has `maps(images, train)`, `targets(batch, maps)`, `loss(batch, maps)` -> (scalar,
    metrics), `candidates(maps, image_size, canvas)`, `suppress(detections)`, `frozen_paths()`, and
    `outputs(maps, image_size, canvas)` where prediction computes more than maps before it decodes.
    Its `targets` draws random numbers from the stream "sample", once a step.  A module in
    `detectors/` also has `check()`, and `check_canvas(height, width)` where not every size suits
    it, see `build`.
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

        A module that all levels share has one entry a call: `head/cls_conv0:0`, `:1`, ...
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
        init=init,
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


def build(config) -> Detector:
    """The detector that `config.detector` names, with `config.model` as its fields.

    The types of the fields are those of their defaults.  The module says what else they must hold:
    its `check()` builds nothing and raises a ValueError that starts with the field's name, such as
    "depth is 20; it must be one of 18, 34, 50, 101".  Its `check_canvas(height, width)`, where it
    has one, raises a ValueError for a canvas of `config.data` that the network cannot take.

    Raises:
      UserError: no such detector, a field that it does not have, a value that cannot be, a canvas
        that does not suit the network, or no such view.
    """
    module_class = _module_class(config)
    fields = _defaults(module_class)
    for key, value in config.model.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            hint = f" It is {FORMER[key]} now." if key in FORMER else hint
            raise errors.UserError(
                f"config.model.{key}: detector {config.detector} has no such field.{hint}"
            )
        if not _fits(value, fields[key]):
            kind = type(fields[key]).__name__
            raise errors.UserError(f"config.model.{key} is {value!r}; it must be of type {kind}.")
    module = module_class(**config.model)
    try:
        module.check()
    except ValueError as error:
        raise errors.UserError(f"config.model.{error}.") from error
    if hasattr(module, "check_canvas"):
        for key, canvas in _canvases(config):
            try:
                module.check_canvas(*canvas)
            except (ValueError, errors.UserError) as error:  # the latter of a darknet cfg
                text = str(error).removesuffix(".")
                raise errors.UserError(f"{key} has {canvas}: {text}.") from error
    return from_module(module, _views(config))


def field(config, name: str) -> Any:
    """A field of the detector: the config's value, else its default; None where there is none.

    Raises:
      UserError: no such detector.
    """
    return config.model.get(name, getattr(_module_class(config), name, None))


def with_defaults(config):
    """A copy of the config whose `model` has every field of the detector.

    Raises:
      UserError: no such detector.
    """
    copy = config.copy_and_resolve_references()
    defaults = _defaults(_module_class(config))
    with copy.unlocked():
        copy.model = {**defaults, **config.model}
    return copy


def num_classes(config) -> int:
    """The number of classes of the detector."""
    return field(config, "num_classes")


def _defaults(module_class: type[nn.Module]) -> dict[str, Any]:
    """Field -> default of a detector."""
    fields = module_class.__dataclass_fields__
    return {name: fields[name].default for name in fields if name not in ("parent", "name")}


def _module_class(config) -> type[nn.Module]:
    names = sorted(
        p.stem
        for p in (pathlib.Path(__file__).parent / "detectors").glob("*.py")
        if p.stem != "__init__"
    )
    if config.detector not in names:
        raise errors.UserError(
            f"config.detector is {config.detector!r}, and there are: {', '.join(names)}."
        )
    return importlib.import_module(f"detlab.detectors.{config.detector}").MODULE


def _views(config) -> tuple[views_lib.View, ...]:
    """Those that `config.eval.views` names; the image itself for a config of a model alone."""
    names = config.eval.views if hasattr(config, "eval") else ("image",)
    if not names or not set(names) <= views_lib.VIEWS.keys():
        known = ", ".join(views_lib.VIEWS)
        raise errors.UserError(
            f"config.eval.views is {names!r}; it must be one or more of {known}."
        )
    return tuple(views_lib.VIEWS[name] for name in names)


def _canvases(config) -> Iterator[tuple[str, tuple[int, int]]]:
    """(key, (height, width)) of each canvas; none where the config is of a model alone."""
    data = getattr(config, "data", None)
    if data is None:
        return
    for canvas in data.canvases:
        yield "config.data.canvases", canvas
    for canvases in data.multiscale_canvases:
        for canvas in canvases:
            yield "config.data.multiscale_canvases", canvas


def _fits(value: Any, default: Any) -> bool:
    """Whether a config's value has the type of the field's default; None takes anything."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) == isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    if isinstance(default, (int, str, tuple)):
        return isinstance(value, type(default))
    return True
