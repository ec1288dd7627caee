"""Fixtures: a writer of PyTorch files, and files of a tiny RetinaNet."""

import conversions
import numpy as np
import pth_writer
import pytest

from detlab.converters import target
from detlab.converters.tables import mmdet_retinanet, torchvision_resnet


@pytest.fixture
def pth():
    return pth_writer.Pth()


@pytest.fixture(scope="session")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(conversions.CONFIG)
    return path


@pytest.fixture(scope="session")
def shapes(config_file):
    return target.shapes(conversions.ml_config(config_file))


@pytest.fixture
def torchvision_file(shapes, pth, tmp_path):
    extra = {
        "fc.weight": np.zeros((10, 64), np.float32),
        "fc.bias": np.zeros(10, np.float32),
        "bn1.num_batches_tracked": np.array(5),
    }
    tensors = conversions.source_tensors(shapes, torchvision_resnet.table(), extra)
    return pth.write_state_dict(tmp_path / "resnet18.pth", tensors), tensors


@pytest.fixture
def mmdet_file(shapes, pth, tmp_path):
    extra = {"backbone.bn1.num_batches_tracked": np.array(5)}
    tensors = conversions.source_tensors(shapes, mmdet_retinanet.table(), extra)
    meta = {"CLASSES": ("cat", "dog")}
    return pth.write_state_dict(tmp_path / "retinanet.pth", tensors, meta=meta), tensors
