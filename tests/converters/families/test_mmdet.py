"""Networks trained on BGR images, as mmdet's caffe-style networks are."""

import conversions
import numpy as np
import pytest

from detlab.converters import mapping
from detlab.converters.readers import files
from detlab.converters.tables import mmdet_retinanet
from detlab.run import checkpoint


def test_bgr_flag_flips_the_stem_only(config_file, torchvision_file, tmp_path):
    path, _ = torchvision_file
    for name, flags in (("rgb", []), ("bgr", ["--bgr", "--config.model.style=caffe"])):
        conversions.run(config_file, path, tmp_path / name, *flags)
    rgb, bgr = (
        mapping.flatten(checkpoint.load_weights(tmp_path / name).params) for name in ("rgb", "bgr")
    )
    different = [p for p in rgb if not np.array_equal(rgb[p], bgr[p])]
    assert different == ["backbone/stem/conv/kernel"]
    np.testing.assert_array_equal(bgr[different[0]], rgb[different[0]][:, :, ::-1])


def test_a_bgr_network_goes_back_as_one_without_being_told(config_file, mmdet_file, tmp_path):
    path, tensors = mmdet_file
    caffe = "--config.model.style=caffe"
    conversions.run(config_file, path, tmp_path / "weights", "--bgr", caffe)
    conversions.back(tmp_path / "weights", tmp_path / "x.pth")
    found = files.read(tmp_path / "x.pth").tensors
    np.testing.assert_array_equal(found["backbone.conv1.weight"], tensors["backbone.conv1.weight"])
    assert "so add --bgr" in conversions.refused(config_file, path, tmp_path / "w", caffe)
    assert "so remove --bgr" in conversions.refused(config_file, path, tmp_path / "w", "--bgr")


@pytest.mark.parametrize("key", ["config", "cfg"])
def test_bgr_checkpoint_without_the_flag_is_refused(config_file, shapes, pth, tmp_path, key):
    tensors = conversions.source_tensors(shapes, mmdet_retinanet.table(), {})
    meta = {key: "img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], to_rgb = False)"}
    path = pth.write_state_dict(tmp_path / "caffe.pth", tensors, meta=meta)
    assert "convert it with --bgr" in conversions.refused(config_file, path, tmp_path / "weights")
    conversions.run(config_file, path, tmp_path / "weights", "--bgr", "--config.model.style=caffe")
