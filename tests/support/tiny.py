"""Every detector built tiny, with weights, batches and programs that the tests share.

The tiny forms are the variants `tiny` of experiments/<name>_shapes.py.  A new detector is found
there, and `tests/detectors/test_contract.py` tests it like every other.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import command
from detlab import config as config_lib
from detlab import contract, types

NUM_CLASSES = 3
WITHOUT_STATE = {"ssd", "pisa_ssd"}  # their VGG16 is older than norms


class Tiny(NamedTuple):
    """A detector that compiles in seconds."""

    detector: str
    fields: dict
    canvas: tuple[int, int]  # height, width px


def _load(experiment: str) -> Tiny:
    config = config_lib.load(f"{experiment}:tiny")
    return Tiny(config.detector, config.model.to_dict(), config.data.canvases[0])


TINY = {
    name.removesuffix("_shapes"): _load(name)
    for name in config_lib.shipped()
    if "tiny" in config_lib.variants(name)
}


def make_batch(
    canvas: tuple[int, int] = (64, 96),
    objects: tuple[int, ...] = (3, 3),
    slots: int = 4,
    num_classes: int = NUM_CLASSES,
    seed: int = 0,
) -> types.Batch:
    """Noise with boxes of 16 to 40 px, `objects[i]` of them on image i."""
    rng = np.random.default_rng(seed)
    images = len(objects)
    corner = rng.uniform(0, (canvas[1] - 40, canvas[0] - 40), (images, slots, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(16, 40, corner.shape)], -1)
    valid = np.arange(slots) < np.array(objects)[:, None]
    return types.Batch(
        images=rng.integers(0, 256, (images, *canvas, 3), np.uint8),
        boxes=np.float32(boxes * valid[..., None]),
        labels=rng.integers(0, num_classes, (images, slots), np.int32),
        valid=valid,
        ignore=np.zeros_like(valid),
        image_size=np.tile(np.int32(canvas), (images, 1)),
        placement=np.tile(np.float32([1, 1, 0, 0]), (images, 1)),
        index=np.arange(images, dtype=np.int32),
        real=np.ones(images, bool),
    )


def with_more_slots(batch: types.Batch, more: int) -> types.Batch:
    """The same objects, followed by `more` further empty slots."""
    return batch._replace(
        boxes=np.pad(batch.boxes, ((0, 0), (0, more), (0, 0))),
        labels=np.pad(batch.labels, ((0, 0), (0, more))),
        valid=np.pad(batch.valid, ((0, 0), (0, more))),
        ignore=np.pad(batch.ignore, ((0, 0), (0, more))),
    )


def jit(function, **options):
    """`jax.jit` for programs that run a few times."""
    return jax.jit(function, compiler_options=command.QUICK, **options)


# The opposite of the options of `jit` and of `tests/conftest.py`.
_WELL = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
_WELL |= {name: not value for name, value in command.QUICK.items() if name not in _WELL}


def jit_loop(function):
    """`jax.jit` for programs that take hundreds of steps: compiled as users compile."""
    return jax.jit(function, compiler_options=_WELL)


def weights(detector: contract.Detector, canvas: tuple[int, int] = (64, 96)):
    """(params, state) with random kernels, without `init`, which takes long to compile.

    Kernels keep activations of order one; scales and variances are 1, all else is 0.
    """
    rng = np.random.default_rng(0)

    def value(path, leaf):
        if len(leaf.shape) > 1:
            made = rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape)
        else:
            made = np.full(leaf.shape, path[-1].key.startswith(("scale", "var")))
        return made.astype(leaf.dtype)

    images = jax.ShapeDtypeStruct((1, *canvas, 3), jnp.uint8)
    shapes = jax.eval_shape(detector.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(value, shapes)


def maps_of(detector: contract.Detector):
    """(params, state, images) -> the maps of prediction."""
    return lambda params, state, images: detector.maps(params, state, images, False)[0]


def candidates_of(detector: contract.Detector):
    """(params, state, images, image_size) -> Detections before suppression."""

    def candidates(params, state, images, image_size):
        maps, _ = detector.maps(params, state, images, False)
        return detector.candidates(params, state, maps, image_size, images.shape[1:3])

    return candidates


class Subject:
    """One detector with its weights and its compiled programs, each made on first use."""

    def __init__(self, name: str):
        self.entry = TINY[name]
        self.detector = self.build()
        self.batch = make_batch(self.entry.canvas, objects=(4, 0))  # all slots; no object
        self.loss = jit(jax.value_and_grad(self.detector.loss, has_aux=True))
        self.maps = jit(maps_of(self.detector))
        self.targets = jit(self.detector.targets)
        self.candidates = jit(candidates_of(self.detector))
        self.predict = jit(self.detector.predict)

    def build(self, **fields) -> contract.Detector:
        config = ConfigDict(dict(detector=self.entry.detector, model=self.entry.fields | fields))
        return contract.build(config)

    @functools.cached_property
    def variables(self):
        """Weights as `weights` makes them."""
        return weights(self.detector, self.entry.canvas)

    @functools.cached_property
    def initial(self):
        """Weights as the detector makes them."""
        return jit(self.detector.init)(jax.random.key(0), self.batch.images[:1])

    @functools.cached_property
    def step(self):
        """((loss, (metrics, state)), gradients) of `batch`."""
        return jax.device_get(self.loss(*self.variables, self.batch, jax.random.key(0)))

    @functools.cached_property
    def initial_step(self):
        """The same with the initial weights, which are less sensitive to rounding."""
        return jax.device_get(self.loss(*self.initial, self.batch, jax.random.key(0)))
