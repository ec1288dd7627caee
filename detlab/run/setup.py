"""The parts of a run: data, devices, detector, optimizer, and length."""

from typing import Any, NamedTuple

import jax
from ml_collections import config_dict

from detlab import contract, data_sets, sharding
from detlab.data import plan
from detlab.run import length as length_lib
from detlab.run import optim
from detlab.run import state as state_lib


class Setup(NamedTuple):
    """The parts that `build` makes."""

    config: config_dict.ConfigDict
    train_source: Any
    eval_source: Any
    length: length_lib.Length
    mesh: jax.sharding.Mesh
    detector: contract.Detector
    optimizer: optim.Optimizer


def build(config: config_dict.ConfigDict) -> Setup:
    """Builds all parts, checks them against each other, and prints their sizes.

    Raises:
      UserError: data that cannot be opened, or parts that do not match.
    """
    train_source = data_sets.open_source(config, "train")
    eval_source = data_sets.open_source(config, "eval", train_source.class_names)
    data_sets.check_same_images(training_data=train_source, evaluation_data=eval_source)
    batch_size = config.train.batch_size
    sizes = plan.source_sizes(train_source)
    per_epoch = plan.steps_per_epoch(sizes, batch_size, config.data.canvases)
    length = length_lib.of(config.train, per_epoch)
    print(
        f"data: {len(train_source)} training images, {len(eval_source)} evaluation images,"
        f" {len(train_source.class_names)} classes, {per_epoch} steps per epoch"
    )
    data_sets.report_shortage(train_source, config)

    mesh = sharding.make_mesh()
    sharding.check_batch_size("train.batch_size", batch_size, parts=config.train.accumulate)
    sharding.check_batch_size("eval.batch_size", config.eval.batch_size)
    detector = contract.build(config)
    images = state_lib.example_images(config)
    shapes, _ = jax.eval_shape(detector.init, jax.random.key(0), images)
    optimizer = optim.build(
        config.optim,
        shapes,
        total_steps=length.total,
        batch_size=batch_size,
        steps_per_unit=per_epoch if config.train.epochs else 1,
        frozen=detector.frozen,
    )
    _describe(config, optimizer, shapes, len(train_source))
    return Setup(config, train_source, eval_source, length, mesh, detector, optimizer)


def _describe(config, optimizer: optim.Optimizer, params, num_images: int) -> None:
    """Prints the size of the model, the learning rate and the devices."""
    labels = jax.tree.leaves(optimizer.labels)
    sizes = [x.size for x in jax.tree.leaves(params)]
    trained = sum(n for n, label in zip(sizes, labels, strict=True) if label == "train")
    print(f"{config.detector}: {sum(sizes) / 1e6:.2f} M parameters, {trained / 1e6:.2f} M trained")
    reference = config.optim.lr_batch_size
    if reference and reference != config.train.batch_size:
        scaled = config.optim.lr * config.train.batch_size / reference
        print(
            f"learning rate: {scaled:g} for {config.train.batch_size} images per step, scaled from"
            f" {config.optim.lr:g} for {reference}"
        )
    if config.train.batch_size > num_images:
        print(f"a batch of {config.train.batch_size} repeats some of the {num_images} images")
    device, processes = jax.devices()[0], jax.process_count()
    where = f" in {processes} processes" if processes > 1 else ""
    print(f"devices: {jax.device_count()} x {device.device_kind} ({device.platform}){where}")
