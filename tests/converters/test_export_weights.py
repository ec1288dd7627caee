"""Weights folders are converted back to files of other code bases."""

import conversions
import numpy as np
import pytest

from detlab import errors
from detlab.converters import mapping
from detlab.converters.readers import files
from detlab.run import checkpoint


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_there_and_back_gives_the_same_tensors(config_file, mmdet_file, tmp_path, suffix, capsys):
    path, tensors = mmdet_file
    conversions.run(config_file, path, tmp_path / "weights")
    output = tmp_path / "back" / f"retinanet{suffix}"
    conversions.back(tmp_path / "weights", output)
    assert f"to {output} as mmdet RetinaNet" in capsys.readouterr().out
    found = files.read(output)
    counters = {name for name in tensors if name.endswith("num_batches_tracked")}
    assert set(found.tensors) == set(tensors) - counters
    for name, tensor in found.tensors.items():
        np.testing.assert_array_equal(tensor, tensors[name])
    assert found.class_names == (("cat", "dog") if suffix == ".safetensors" else None)
    # The written file is read like any other.
    conversions.run(config_file, output, tmp_path / "again")
    one, two = (checkpoint.load_weights(tmp_path / name) for name in ("weights", "again"))
    for a, b in zip(mapping.flatten(one.params).values(), mapping.flatten(two.params).values()):
        np.testing.assert_array_equal(a, b)


def test_the_backbone_alone_goes_back_to_torchvisions_names(config_file, mmdet_file, tmp_path):
    path, tensors = mmdet_file
    conversions.run(config_file, path, tmp_path / "weights")
    conversions.back(tmp_path / "weights", tmp_path / "resnet.pth", "--source", "torchvision")
    found = files.read(tmp_path / "resnet.pth").tensors
    assert set(found) == {
        name.removeprefix("backbone.")
        for name in tensors
        if name.startswith("backbone.") and not name.endswith("num_batches_tracked")
    }
    np.testing.assert_array_equal(found["conv1.weight"], tensors["backbone.conv1.weight"])


def test_incomplete_weights_are_not_written_as_if_they_were_whole(
    config_file, mmdet_file, torchvision_file, tmp_path
):
    conversions.run(config_file, mmdet_file[0], tmp_path / "anew", "--reset_classes")
    conversions.run(config_file, torchvision_file[0], tmp_path / "backbone")
    with pytest.raises(errors.UserError, match="is not a complete mmdet RetinaNet: 2 leaves"):
        conversions.back(tmp_path / "anew", tmp_path / "x.pth", "--source", "mmdet")
    conversions.back(tmp_path / "backbone", tmp_path / "resnet.pth")  # as a backbone
    assert "conv1.weight" in files.read(tmp_path / "resnet.pth").tensors


def test_a_file_that_exists_is_not_replaced(config_file, mmdet_file, tmp_path):
    conversions.run(config_file, mmdet_file[0], tmp_path / "weights")
    (tmp_path / "x.pth").write_text("precious")
    with pytest.raises(errors.UserError, match="already exists; choose another name"):
        conversions.back(tmp_path / "weights", tmp_path / "x.pth")
