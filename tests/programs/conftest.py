"""A tiny run on shapes, shared by the tests of all programs."""

import pathlib

import pytest

from detlab import train

TINY_CONFIG = """
from ml_collections import ConfigDict

from detlab.experiments import common


def get_config():
    config = common.base("retinanet")
    config.model = ConfigDict(
        dict(
            num_classes=4,
            depth=18,
            backbone_width=8,
            backbone_stages=(1, 1, 1, 1),
            neck_width=16,
            head_width=16,
            head_convs=1,
            octave_base_scale=3.0,
            score_threshold=0.0,  # after six steps no score reaches 0.05
            candidates_per_level=50,  # unoptimised suppression of 1000 takes seconds per batch
            max_detections=20,  # scoring 100 per image takes longer than all else
        )
    )
    common.from_scratch(config)
    config.data.update(source="shapes", canvases=((64, 64),), max_boxes=8)
    config.train.update(batch_size=4, steps=6, log_every=2, eval_every=3, checkpoint_every=2)
    config.optim.update(name="adamw", lr=1e-3, lr_batch_size=4, schedule="cosine", warmup_steps=2)
    config.eval.update(batch_size=64, pictures=2)  # the last batch of 200 is partial
    return config
"""


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("configs") / "tiny.py"
    path.write_text(TINY_CONFIG)
    return str(path)


@pytest.fixture(scope="session")
def tiny_run(tiny_config, made_once) -> pathlib.Path:
    """The workdir of a finished run of six steps; read only."""
    return made_once(
        "tiny_run",
        lambda folder: train.main(["--config", tiny_config, "--workdir", str(folder)]),
    )
