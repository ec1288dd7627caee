"""A dry run: two steps, one prediction, and a sheet of the first images."""

import pathlib
import time
from typing import Any

import jax
from ml_collections import config_dict

from detlab import data_sets, distributed, evaluation, files, sharding
from detlab.run import setup as setup_lib
from detlab.run import state as state_lib
from detlab.run import step as step_lib
from detlab.viz import boxes as draw_lib
from detlab.viz import letters


def run(setup: setup_lib.Setup, draw: str | None) -> None:
    """Does everything that a run does once or twice; writes only the sheet, into folder `draw`."""
    config, mesh, detector, optimizer = setup.config, setup.mesh, setup.detector, setup.optimizer
    train_source, eval_source = setup.train_source, setup.eval_source
    state = state_lib.initial(detector, optimizer, config, mesh)
    train_step = step_lib.TrainStep(detector, optimizer, config, mesh)
    batches = data_sets.training_batches(train_source, config, num_steps=2)
    for step, loaded in enumerate(batches, start=1):
        start = time.time() - train_step.compile_seconds
        state, metrics, _ = train_step(state, loaded)
        values = step_lib.check_finite(step, metrics, loaded.batch, train_source)
        seconds = time.time() - train_step.compile_seconds - start
        terms = ", ".join(f"{k} {v:.4g}" for k, v in values.items())
        print(f"step {step} in {seconds:.2f} s: {terms}")
    predictor = evaluation.Predictor(detector, mesh)
    inputs = sharding.put_batch((loaded.batch.images, loaded.batch.image_size), mesh)
    jax.block_until_ready(predictor(*state_lib.evaluated(state), *inputs))
    data_sets.read_some(train_source, config, "train")
    data_sets.read_some(eval_source, config, "eval")
    truth = evaluation.ground_truth(eval_source)
    evaluation.report_no_objects(truth)
    evaluation.score(truth, [], eval_source.class_names)
    print(
        f"dry run: all is well; the run would take {setup.length.total} steps; no run was written"
    )
    if draw and distributed.is_first():
        draw_batches(pathlib.Path(draw), train_source, config)


def draw_batches(
    folder: pathlib.Path, source: Any, config: config_dict.ConfigDict, limit: int = 16
) -> None:
    """Draws the first training images and their objects, after augmentation, on one sheet."""
    if sentence := letters.sentence(source.class_names):
        print(sentence)
    pictures = []
    for loaded in data_sets.training_batches(source, config, num_steps=limit):
        batch = loaded.batch
        for row in range(len(batch.images)):
            shown = batch.valid[row] | batch.ignore[row]
            pictures.append(
                draw_lib.draw(
                    batch.images[row],
                    batch.boxes[row][shown],
                    batch.labels[row][shown],
                    source.class_names,
                    ignored=batch.ignore[row][shown],
                )
            )
        if len(pictures) >= limit:
            break
    path = folder / "batches.png"
    files.save_picture(path, draw_lib.contact_sheet(pictures[:limit]))
    print(f"pictures:     {path} (the first training images, as the detector sees them)")
