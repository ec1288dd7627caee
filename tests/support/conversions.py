"""A tiny RetinaNet to convert, and runs of the converter's command line."""

import numpy as np
import pytest

from detlab import config as config_lib
from detlab import errors
from detlab.converters import convert, mapping

CONFIG = """
from ml_collections import ConfigDict

from detlab.experiments import common


def get_config():
    config = common.base("retinanet")
    config.model = ConfigDict(
        dict(num_classes=2, depth=18, backbone_width=8, neck_width=16, head_width=16)
    )
    config.train.steps = 2
    return config
"""


def ml_config(config_file, overrides=None):
    return config_lib.load(str(config_file), overrides)


def source_tensors(shapes, table, extra):
    """A state dict that fits: random leaves, mapped backwards through the table."""
    rng = np.random.default_rng(0)
    leaves = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    return {**mapping.reverse(leaves, table), **extra}


def run(config_file, file, output, *more):
    convert.main(
        ["--config", str(config_file), "--input", str(file), "--output", str(output), *more]
    )


def back(weights, output, *more):
    convert.main(["--reverse", "--input", str(weights), "--output", str(output), *more])


def refused(*arguments):
    with pytest.raises(errors.UserError) as info:
        run(*arguments)
    return str(info.value)
