"""Four devices compute what one does: losses, gradients, detections and random numbers."""

import functools
from concurrent import futures

import numpy as np
import pytest
import tiny

pytestmark = pytest.mark.slow

PROGRAM = """
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from detlab import checks
from detlab import config as config_lib
from detlab import detector as detector_lib
from detlab import eval as eval_lib
from detlab import optim
from detlab import sharding
from detlab import step as step_lib
from detlab import train
from detlab.data import loader
from detlab.data import shapes

config = config_lib.load(sys.argv[1], {"train.batch_size": "8", "model.backbone_norm": "batch"})
checks.check_config(config)
mesh = sharding.make_mesh()
everywhere = sharding.replicated(mesh)
assert mesh.size == int(sys.argv[2])
stream = loader.train_batches(
    shapes.Shapes("train"), batch_size=8, canvases=((64, 64),), seed=0, max_boxes=8, pad_value=0,
    num_steps=2, flip_horizontal=0.5,
)
loaded = list(stream)
batch = sharding.put_batch(loaded[0].batch, mesh)
detector = detector_lib.build(config)
weights = jax.jit(detector.init)(jax.random.key(0), batch.images[:1])
params, state = jax.device_put(weights, everywhere)
found = {}

# Loss and gradients of the global batch, live BatchNorm statistics included.
value_and_grad = jax.jit(jax.value_and_grad(detector.loss, has_aux=True))
(loss, (metrics, new_state)), grads = value_and_grad(params, state, batch, jax.random.key(1))
found |= {f"metric {k}": v for k, v in metrics.items()} | {"metric loss": loss}
for name, tree in (("grad", grads), ("state", new_state)):
    for path, leaf in traverse_util.flatten_dict(tree, sep="/").items():
        found[f"{name} {path}"] = leaf

# Two steps of training, each in two parts.
config.train.accumulate = 2
config.optim.ema_decay = 0.5
optimizer = optim.build(config.optim, params, 10, 8, 1, detector.frozen)
train_state = train.initial_state(detector, optimizer, config, mesh)
step = step_lib.TrainStep(detector, optimizer, config, mesh)
for i, one in enumerate(loaded):
    train_state, values, notes = step(train_state, one, stop=i == 1)
    found |= {f"step {i} {k}": v for k, v in values.items()}
    assert int(notes.stop) == (i == 1)

# Detections, each device with its own images.
predictor = eval_lib.Predictor(detector, mesh)
images, size = batch.images, batch.image_size
detections = predictor(params, state, images, size)
found |= {f"detections {k}": v for k, v in detections._asdict().items()}


# A detector that samples: random numbers belong to the image, not to the device.
class Sampler(nn.Module):
    def setup(self):
        self.dense = nn.Dense(1)

    def forward(self, images, train):
        return self.dense(images.astype(jnp.float32).mean((1, 2)))

    def loss(self, batch):
        rng = self.make_rng("sample")
        numbers = jnp.arange(batch.images.shape[0])
        keys = jax.vmap(lambda i: jax.random.fold_in(rng, i))(numbers)
        drawn = jax.vmap(lambda key: jax.random.uniform(key, (100,)))(keys)
        return self.forward(batch.images, True).sum(), {"drawn": drawn}

    def frozen_paths(self):
        return ()

    targets = candidates = suppress = None


sampler = detector_lib.from_module(Sampler())
weights, _ = sampler.init(jax.random.key(0), images[:1])
_, (metrics, _) = jax.jit(sampler.loss)(
    jax.device_put(weights, everywhere), {}, batch, jax.random.key(2)
)
found["random"] = metrics["drawn"]
np.savez(sys.argv[3], **jax.device_get(found))
"""


@pytest.fixture(scope="module")
def results(tiny_config, tmp_path_factory, run_on_devices):
    """{1: arrays, 4: arrays} of the program on so many devices, which are fixed at start."""
    folder = tmp_path_factory.mktemp("devices")
    found = {}
    for count in (1, 4):
        file = folder / f"{count}.npz"
        run_on_devices(count, PROGRAM, tiny_config, count, file)
        with np.load(file) as arrays:
            found[count] = dict(arrays)
    return found


def pairs(results, kind):
    one, four = results[1], results[4]
    assert one.keys() == four.keys()
    names = [name for name in one if name.startswith(kind)]
    assert names
    return [(name, one[name], four[name]) for name in names]


def test_losses_and_metrics_are_equal(results):
    for name, one, four in pairs(results, "metric"):
        np.testing.assert_allclose(four, one, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["grad", "state"])
def test_every_gradient_and_batch_statistic_is_equal(results, kind):
    """Relative to the size of the leaf: sums over images are added up in another order."""
    for name, one, four in pairs(results, kind):
        assert np.linalg.norm(one - four) <= 1e-5 * np.linalg.norm(one) + 1e-9, name


def test_steps_in_parts_are_equal_and_the_stop_is_told(results):
    for name, one, four in pairs(results, "step"):
        np.testing.assert_allclose(four, one, rtol=1e-5, err_msg=name)


def test_detections_are_equal(results):
    for name, one, four in pairs(results, "detections"):
        np.testing.assert_allclose(four, one, rtol=1e-5, atol=1e-5, err_msg=name)
    assert results[1]["detections valid"].any()


def test_random_numbers_are_equal_bit_by_bit(results):
    ((_, one, four),) = pairs(results, "random")
    np.testing.assert_array_equal(one, four)
    assert len(np.unique(one)) > 0.99 * one.size


EVERY_DETECTOR = """
import sys

import jax
import numpy as np
import tiny
from flax import traverse_util
from ml_collections import ConfigDict

from detlab import detector as detector_lib
from detlab import eval as eval_lib
from detlab import optim
from detlab import sharding
from detlab import step as step_lib
from detlab import train
from detlab.data import loader
from experiments import common

mesh = sharding.make_mesh()
assert mesh.size == int(sys.argv[1])
entry = tiny.TINY[sys.argv[3]]
config = common.base(entry.detector)
config.model = ConfigDict(entry.fields)
config.data.canvases = (entry.canvas,)
config.optim.update(name="sgd", lr=1e-4, lr_batch_size=0, schedule="constant", warmup_steps=0)
detector = detector_lib.build(config)
batch = tiny.make_batch(entry.canvas, objects=(4, 0, 2, 3))
params, state = tiny.jit(detector.init)(jax.random.key(0), batch.images[:1])
predictor = eval_lib.Predictor(detector, mesh)
whole = jax.device_put((params, state), sharding.replicated(mesh))
detections = predictor(*whole, *sharding.put_batch((batch.images, batch.image_size), mesh))
found = {f"detections {k}": v for k, v in detections._asdict().items()}
optimizer = optim.build(config.optim, params, 10, 4, 1, detector.frozen)
train_state = train.initial_state(detector, optimizer, config, mesh)
step = step_lib.TrainStep(detector, optimizer, config, mesh)
after, metrics, _ = step(train_state, loader.Loaded(batch, 0, ()))
found |= {f"metric {k}": v for k, v in metrics.items()}
for kind, tree in (("params", after.params), ("state", after.state)):
    for path, leaf in traverse_util.flatten_dict(tree, sep="/").items():
        found[f"{kind} {path}"] = leaf
np.savez(sys.argv[2], **jax.device_get(found))
"""


@pytest.mark.parametrize("name", tiny.TINY)
def test_a_step_and_the_detections_of_every_detector_are_equal(name, tmp_path, run_on_devices):
    files = {count: tmp_path / f"{count}.npz" for count in (1, 4)}
    with futures.ThreadPoolExecutor() as pool:
        run = functools.partial(run_on_devices, quick=True)
        list(pool.map(lambda n: run(n, EVERY_DETECTOR, n, files[n], name), files))
    results = {}
    for count, file in files.items():
        with np.load(file) as arrays:
            results[count] = dict(arrays)
    for quantity, one, four in pairs(results, "metric "):
        np.testing.assert_allclose(four, one, rtol=1e-4, atol=1e-6, err_msg=quantity)
    for kind in ("params", "state"):
        for quantity, one, four in pairs(results, f"{kind} "):
            error = np.linalg.norm(one - four)
            assert error <= 1e-5 * np.linalg.norm(one) + 1e-6, quantity
    for quantity, one, four in pairs(results, "detections "):
        np.testing.assert_allclose(four, one, rtol=1e-4, atol=1e-3, err_msg=quantity)
