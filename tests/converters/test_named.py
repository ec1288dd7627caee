"""Files whose tensors have names: which table reads them, and the errors if none does."""

import json

import conversions
import numpy as np
import pytest

from detlab import errors
from detlab.converters import named
from detlab.converters.tables import mmdet_retinanet


@pytest.mark.parametrize("kind", ["torchvision", "mmdet"])
def test_auto_picks_the_table_by_the_names(kind, request, config_file, tmp_path):
    path, _ = request.getfixturevalue(f"{kind}_file")
    conversions.run(config_file, path, tmp_path / "weights")
    report = json.loads((tmp_path / "weights" / "report.json").read_text())
    assert report["table"].startswith(kind)


def test_resetting_a_backbone_is_refused(config_file, torchvision_file, tmp_path):
    text = conversions.refused(config_file, torchvision_file[0], tmp_path / "w", "--reset_classes")
    assert "remove --reset_classes" in text and "class layers are always dropped" in text


def test_no_table_for_a_detector_is_a_sentence(config_file, mmdet_file, tmp_path, monkeypatch):
    conversions.run(config_file, mmdet_file[0], tmp_path / "weights")
    sources = [source for source in named.SOURCES if source.detector != "retinanet"]
    monkeypatch.setattr(named, "SOURCES", sources)
    with pytest.raises(errors.UserError, match="--source mmdet has no table for detector retina"):
        conversions.back(tmp_path / "weights", tmp_path / "x.pth", "--source", "mmdet")


def test_file_of_another_family_is_named(config_file, torchvision_file, mmdet_file, pth, tmp_path):
    output = tmp_path / "weights"
    text = conversions.refused(config_file, torchvision_file[0], output, "--source", "mmdet")
    assert "is not an mmdet RetinaNet" in text and "it looks like a torchvision ResNet" in text
    text = conversions.refused(config_file, mmdet_file[0], output, "--source", "torchvision")
    assert "is not a torchvision ResNet; it looks like an mmdet RetinaNet" in text
    pth.storages.clear()
    other = pth.write_state_dict(tmp_path / "other.pth", {"encoder.weight": np.ones(2, np.float32)})
    text = conversions.refused(config_file, other, output)
    assert "is not a torchvision ResNet or an mmdet RetinaNet; its names" in text
    assert "its names begin with encoder.weight" in text
    assert not output.exists()


def test_a_file_that_two_tables_know_alike_needs_the_family(
    config_file, mmdet_file, tmp_path, monkeypatch
):
    (twin,) = mmdet_retinanet.SOURCES
    twin = twin._replace(family="yolov5", description="its twin")
    monkeypatch.setattr(named, "SOURCES", (*named.SOURCES, twin))
    text = conversions.refused(config_file, mmdet_file[0], tmp_path / "w")
    assert "may be an mmdet RetinaNet or its twin; choose with --source" in text
    conversions.run(config_file, mmdet_file[0], tmp_path / "w", "--source", "mmdet")


def test_the_counts_of_ghm_tell_its_files_from_those_of_retinanet(
    config_file, mmdet_file, tmp_path, pth
):
    pth.storages.clear()
    tensors = {**mmdet_file[1], "bbox_head.loss_cls.acc_sum": np.ones(30, np.float32)}
    file = pth.write_state_dict(tmp_path / "ghm.pth", tensors)
    text = conversions.refused(config_file, file, tmp_path / "w")
    assert "is an mmdet RetinaNet with the losses of GHM for detector ghm, but" in text


def test_number_of_classes_of_the_file_is_told(config_file, mmdet_file, tmp_path):
    text = conversions.refused(
        config_file, mmdet_file[0], tmp_path / "weights", "--config.model.num_classes=5"
    )
    assert "has 2 class names, but config.model.num_classes is 5" in text
