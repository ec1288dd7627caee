"""Runs on COUNT devices: `main(COUNT, FOLDER, CONFIG, *NAMES)` in a process with that many.

For each named run of `RUNS` it writes the results to FOLDER/NAME.npz, or the traceback of an error
to FOLDER/NAME.txt.
"""

import functools
import pathlib
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from flax import linen as nn
from flax import traverse_util
from ml_collections import ConfigDict

from detlab import checks, contract, evaluation, sharding
from detlab import config as config_lib
from detlab.data import batch as batch_lib
from detlab.data import loader, settings, shapes
from detlab.experiments import common
from detlab.run import optim
from detlab.run import state as state_lib
from detlab.run import step as step_lib


def main(count: str, folder: str, config: str, *names: str) -> None:
    mesh = sharding.make_mesh()
    assert mesh.size == int(count)
    for name in names:
        path = pathlib.Path(folder) / name
        try:
            found = jax.device_get(RUNS[name](config, mesh))
        except Exception:
            path.with_suffix(".txt").write_text(traceback.format_exc())
        else:
            np.savez(path.with_suffix(".npz"), **found)


def leaves(kind: str, tree) -> dict:
    return {f"{kind} {k}": v for k, v in traverse_util.flatten_dict(tree, sep="/").items()}


def training(path: str, mesh) -> dict:
    """Loss, gradients, two steps in two parts each, and detections of a config on shapes images."""
    config = config_lib.load(path, {"train.batch_size": "8", "model.backbone_norm": "batch"})
    checks.check_config(config)
    stream = loader.train_batches(
        shapes.Shapes("train"),
        settings.Settings(canvases=((64, 64),), max_boxes=8, pad_value=0),
        batch_size=8,
        seed=0,
        num_steps=2,
    )
    loaded = list(stream)
    batch = sharding.put_batch(loaded[0].batch, mesh)
    detector = contract.build(config)
    weights = tiny.jit(detector.init)(jax.random.key(0), batch.images[:1])
    params, state = jax.device_put(weights, sharding.replicated(mesh))
    found = {}

    # Loss and gradients of the global batch, live BatchNorm statistics included.
    value_and_grad = tiny.jit(jax.value_and_grad(detector.loss, has_aux=True))
    (loss, (metrics, new_state)), grads = value_and_grad(params, state, batch, jax.random.key(1))
    found |= {f"metric {k}": v for k, v in metrics.items()} | {"metric loss": loss}
    found |= leaves("grad", grads) | leaves("state", new_state)

    # Two steps of training, each in two parts.
    config.train.accumulate = 2
    config.optim.ema_decay = 0.5
    optimizer = optim.build(config.optim, params, 10, 8, 1, detector.frozen)
    train_state = state_lib.initial(detector, optimizer, config, mesh)
    step = step_lib.TrainStep(detector, optimizer, config, mesh)
    for i, one in enumerate(loaded):
        train_state, values, notes = step(train_state, one, stop=i == 1)
        found |= {f"step {i} {k}": v for k, v in values.items()}
        assert int(notes.stop) == (i == 1)

    # Detections, each device with its own images.
    predictor = evaluation.Predictor(detector, mesh)
    detections, bounds = predictor(params, state, batch.images, batch.image_size)
    found |= {f"bounds {k}": v for k, v in bounds.items()}
    return found | {f"detections {k}": v for k, v in detections._asdict().items()}


class Sampler(nn.Module):
    """A detector that samples: random numbers belong to the image, not to the device."""

    def setup(self):
        self.dense = nn.Dense(1)

    def maps(self, images, train):
        return self.dense(images.astype(jnp.float32).mean((1, 2)))

    def loss(self, batch, maps):
        rng = self.make_rng("sample")
        numbers = jnp.arange(batch.images.shape[0])
        keys = jax.vmap(lambda i: jax.random.fold_in(rng, i))(numbers)
        drawn = jax.vmap(lambda key: jax.random.uniform(key, (100,)))(keys)
        return maps.sum(), {"drawn": drawn}

    def frozen_paths(self):
        return ()

    targets = candidates = suppress = None


def sampling(path: str, mesh) -> dict:
    batch = sharding.put_batch(tiny.make_batch(objects=(3,) * 8), mesh)
    sampler = contract.from_module(Sampler())
    weights, _ = sampler.init(jax.random.key(0), batch.images[:1])
    weights = jax.device_put(weights, sharding.replicated(mesh))
    _, (metrics, _) = jax.jit(sampler.loss)(weights, {}, batch, jax.random.key(2))
    return {"random": metrics["drawn"]}


def detector(name: str, path: str, mesh) -> dict:
    """A step of training and the detections of a tiny detector."""
    entry = tiny.TINY[name]
    config = common.base(entry.detector)
    config.model = ConfigDict(entry.fields)
    config.data.canvases = (entry.canvas,)
    config.optim.update(name="sgd", lr=1e-4, lr_batch_size=0, schedule="constant", warmup_steps=0)
    built = contract.build(config)
    batch = tiny.make_batch(entry.canvas, objects=(4, 0, 2, 3))
    params, state = tiny.jit(built.init)(jax.random.key(0), batch.images[:1])
    predictor = evaluation.Predictor(built, mesh)
    whole = jax.device_put((params, state), sharding.replicated(mesh))
    detections, bounds = predictor(
        *whole, *sharding.put_batch((batch.images, batch.image_size), mesh)
    )
    optimizer = optim.build(config.optim, params, 10, 4, 1, built.frozen)
    train_state = state_lib.initial(built, optimizer, config, mesh)
    step = step_lib.TrainStep(built, optimizer, config, mesh)
    after, metrics, _ = step(train_state, batch_lib.Loaded(batch, 0, ()))
    found = {f"detections {k}": v for k, v in detections._asdict().items()}
    found |= {f"bounds {k}": v for k, v in bounds.items()}
    found |= {f"metric {k}": v for k, v in metrics.items()}
    return found | leaves("params", after.params) | leaves("state", after.state)


RUNS = {"training": training, "sampling": sampling}
RUNS |= {name: functools.partial(detector, name) for name in tiny.TINY}
