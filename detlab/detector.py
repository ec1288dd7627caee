"""The contract between detectors and programs: a NamedTuple of pure functions.

`build(config)` imports `detlab/detectors/<config.detector>.py` and fills the fields of the module
class that the file calls `MODULE`.  The file name is the key; there is no registry.
"""

import difflib
import importlib
import pathlib
import re
from typing import Any, Callable, Iterator, NamedTuple

import jax
from flax import linen as nn
from flax import traverse_util

from detlab import bounds
from detlab import errors
from detlab import types


class Detector(NamedTuple):
    """The only thing that the programs know of a detector.

    `params` is what is differentiated; `state` holds every other Flax collection, passed in and
    returned new.

    The metrics of `loss` are scalars.  Those called `loss/*` add up to the loss.  `normaliser`,
    where there is one, is what the terms were divided by: float32, and a sum over the images, such
    as the number of positives.  A detector whose terms have several reports that of its main term.
    Accumulation of gradients weighs the parts of a batch by it, and equally where there is none.
    All other metrics are means over the images.

    `predict_with_bounds` also tells, for each field that bounds the number of candidates, on which
    images more passed than it keeps, see `detlab/bounds.py`.
    """

    init: Callable  # (rng, images) -> (params, state)
    forward: Callable  # (params, state, images) -> NamedTuple: features and raw maps of each level
    loss: Callable  # (params, state, batch, rng) -> (float32 scalar, (metrics, new_state))
    targets: Callable  # (params, state, batch, rng) -> {name: Targets}; what loss itself calls
    candidates: Callable  # (params, state, images, image_size) -> Detections before suppression
    suppress: Callable  # Detections -> Detections
    predict: Callable  # (params, state, images, image_size) -> Detections
    predict_with_bounds: Callable  # (the same) -> (Detections, {field: [B] bool})
    taps: Callable  # (params, state, images, pattern) -> {module path: array}
    frozen: tuple[str, ...]  # regexes of "params/..." and "batch_stats/..." that never change


def from_module(module: nn.Module) -> Detector:
    """A Detector from a Flax module with the methods of the same names.

    The module has `forward(images, train)`, `loss(batch)` -> (scalar, metrics),
    `targets(batch)`, `candidates(images, image_size)`, `suppress(detections)`, and
    `frozen_paths()`.  Its `loss` draws random numbers from the stream "sample".  A module in
    `detectors/` also has `check()`, and `check_canvas(height, width)` where not every size suits
    it, see `build`.
    """

    def init(rng: jax.Array, images: jax.Array):
        variables = dict(module.init(rng, images, False, method="forward"))
        return variables.pop("params"), variables

    def forward(params, state, images: jax.Array):
        return module.apply({"params": params, **state}, images, False, method="forward")

    def loss(params, state, batch: types.Batch, rng: jax.Array):
        (value, metrics), new_state = module.apply(
            {"params": params, **state},
            batch,
            method="loss",
            mutable=list(state),
            rngs={"sample": rng},
        )
        return value, (metrics, {**state, **new_state})

    def targets(params, state, batch: types.Batch, rng: jax.Array):
        # Where they depend on the network, its live norms update what `loss` returns as new state.
        found, _ = module.apply(
            {"params": params, **state},
            batch,
            method="targets",
            mutable=list(state),
            rngs={"sample": rng},
        )
        return found

    def candidates(params, state, images: jax.Array, image_size: jax.Array):
        return module.apply({"params": params, **state}, images, image_size, method="candidates")

    def suppress(detections: types.Detections) -> types.Detections:
        return module.suppress(detections)

    def predict(params, state, images: jax.Array, image_size: jax.Array):
        return suppress(candidates(params, state, images, image_size))

    def predict_with_bounds(params, state, images: jax.Array, image_size: jax.Array):
        found, noted = module.apply(
            {"params": params, **state},
            images,
            image_size,
            method="candidates",
            mutable=[bounds.COLLECTION],
        )
        return suppress(found), noted.get(bounds.COLLECTION, {})

    def taps(params, state, images: jax.Array, pattern: str) -> dict[str, Any]:
        """Outputs of every submodule whose path, such as `backbone/stage2_block0`, matches.

        A module that all levels share has one entry a call: `head/cls_conv0:0`, `:1`, ...
        """

        def keep(submodule: nn.Module, method: str) -> bool:
            return method == "__call__" and bool(re.fullmatch(pattern, "/".join(submodule.path)))

        _, captured = module.apply(
            {"params": params, **state},
            images,
            False,
            method="forward",
            capture_intermediates=keep,
            mutable=["intermediates"],
        )
        flat = traverse_util.flatten_dict(captured.get("intermediates", {}), sep="/")
        outputs = {}
        for path, values in flat.items():
            path = path.removesuffix("/__call__")
            for call, value in enumerate(values):
                outputs[f"{path}:{call}" if len(values) > 1 else path] = value
        return outputs

    return Detector(
        init,
        forward,
        loss,
        targets,
        candidates,
        suppress,
        predict,
        predict_with_bounds,
        taps,
        module.frozen_paths(),
    )


def build(config) -> Detector:
    """The detector that `config.detector` names, with `config.model` as its fields.

    The types of the fields are those of their defaults.  What else they must hold, the module says:
    its `check()` builds nothing and raises a ValueError that starts with the field's name, such as
    "depth is 20; it must be one of 18, 34, 50, 101".  Its `check_canvas(height, width)`, where it
    has one, raises a ValueError for a canvas of `config.data` that the network cannot take.

    Raises:
      UserError: no such detector, a field that it does not have, a value that cannot be, or a
        canvas that does not suit the network.
    """
    module_class = _module_class(config)
    fields = {
        name: field.default
        for name, field in module_class.__dataclass_fields__.items()
        if name not in ("parent", "name")
    }
    for key, value in config.model.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
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
    return from_module(module)


def field(config, name: str) -> Any:
    """A field of the detector: the config's value, else its default; None where there is none.

    Raises:
      UserError: no such detector.
    """
    return config.model.get(name, getattr(_module_class(config), name, None))


def num_classes(config) -> int:
    """The number of classes of the detector."""
    return field(config, "num_classes")


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
