"""Darknet's weights to a weights folder and back: complete, cut off, and for other classes."""

import json

import numpy as np
import pytest
import tables

from detlab import config as config_lib
from detlab import errors
from detlab.converters import convert
from detlab.converters.readers import darknet as reader
from detlab.darknet import cfg as darknet_cfg
from detlab.darknet import networks as darknet_networks
from detlab.run import checkpoint

CFG = """[net]
width=64
height=32
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

[convolutional]
filters=16
size=3
groups=8
pad=1
activation=mish

[convolutional]
filters=21
size=1
activation=linear

[yolo]
mask=0,1,2
anchors=4,4, 8,8, 16,16
num=3
classes=2
"""
PREDICTING = ["params/layers/layer2/bias", "params/layers/layer2/kernel"]


@pytest.fixture
def files(tmp_path):
    """(weights, cfg, names) of a small network with random values."""
    cfg, weights, names = (tmp_path / f"small.{kind}" for kind in ("cfg", "weights", "names"))
    cfg.write_text(CFG)
    names.write_text("cat\ndog\n")
    network = darknet_cfg.read(cfg)
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.uniform(0.1, 1, shape).astype(np.float32)
        for name, shape in reader.tensor_shapes(network).items()
    }
    reader.write(weights, network, reader.Weights(reader.Header(0, 2, 5, 12345), tensors))
    return weights, cfg, names


def run(*arguments):
    convert.main([*map(str, arguments)])


def test_a_file_goes_in_and_comes_out_byte_for_byte(files, tmp_path, capsys):
    weights, cfg, names = files
    folder, back = tmp_path / "folder", tmp_path / "back.weights"
    config = ("--config", "darknet_coco")
    run("--input", weights, "--cfg", cfg, "--names", names, *config, "--output", folder)
    assert "9 tensors of 3 layers" in capsys.readouterr().out
    info = checkpoint.load_weights(folder).info
    assert info["class_names"] == ["cat", "dog"]
    assert info["config"]["model"]["num_classes"] == 2
    assert info["config"]["data"]["canvases"] == [[32, 64]], "the network's own size"
    run("--reverse", "--input", folder, "--output", back)
    assert back.read_bytes() == weights.read_bytes()
    assert initialised(folder, cfg, 2) == [] and initialised(folder, cfg, 3) == PREDICTING
    assert back.with_suffix(".cfg").read_text() == CFG


def test_a_cut_off_file_fills_its_layers_alone(files, tmp_path):
    weights, cfg, _ = files
    network = darknet_cfg.read(cfg)
    tensors = reader.read(weights, network).tensors
    part = tmp_path / "small.conv.2"
    reader.write(part, network, reader.Weights(reader.Header(), tensors), 2)
    folder = tmp_path / "folder"
    run("--input", part, "--cfg", cfg, "--config", "darknet_coco", "--output", folder)
    assert set(checkpoint.load_weights(folder).params["layers"]) == {"layer0", "layer1"}
    assert initialised(folder, cfg, 2) == PREDICTING


def initialised(folder, cfg, num_classes):
    """Leaves that training would not take from a folder, for a network with `num_classes`."""
    config = config_lib.load("darknet_coco")
    config.model.update(cfg=cfg.read_text(), num_classes=num_classes)
    return list(tables.start(folder, config).initialised)


def test_for_other_classes_the_predicting_layers_stay_out(files, tmp_path):
    weights, cfg, _ = files
    folder = tmp_path / "folder"
    common = ("--input", weights, "--cfg", cfg, "--config", "darknet_coco", "--output", folder)
    run(*common, "--reset_classes", "--config.model.num_classes=5")
    loaded = checkpoint.load_weights(folder)
    assert set(loaded.params["layers"]) == {"layer0", "layer1"}
    assert loaded.info["anew"] == PREDICTING == initialised(folder, cfg, 5)
    assert loaded.info["config"]["model"]["num_classes"] == 5


@pytest.mark.parametrize(
    "change, sentence",
    [
        (dict(config="retinanet_coco"), "is a darknet .weights file, but --config retinanet_coco"),
        (dict(names="missing"), "--names .*missing cannot be read"),
        (dict(cfg=""), "the first 162 of 162 layers of yolov4 have"),
    ],
)
def test_what_does_not_fit_is_one_sentence(files, tmp_path, change, sentence):
    weights, cfg, names = files
    given = {"config": "darknet_coco", "names": names, "cfg": cfg, **change}
    if given["names"] == "missing":
        given["names"] = tmp_path / "missing"
    flags = [x for key, value in given.items() if value for x in (f"--{key}", value)]
    with pytest.raises(errors.UserError, match=sentence):
        run("--input", weights, *flags, "--output", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_names_of_another_number_are_refused(files, tmp_path):
    weights, cfg, names = files
    names.write_text("cat\n")
    with pytest.raises(errors.UserError, match="has 1 names, but the network has 2 classes"):
        run(
            *("--input", weights, "--cfg", cfg, "--names", names),
            *("--config", "darknet_coco", "--output", tmp_path / "folder"),
        )


def test_only_darknets_detector_is_written_as_darknet(files, tmp_path):
    weights, cfg, _ = files
    folder = tmp_path / "folder"
    run("--input", weights, "--cfg", cfg, "--config", "darknet_coco", "--output", folder)
    with pytest.raises(errors.UserError, match="is written as .weights with its .cfg beside it"):
        run("--reverse", "--input", folder, "--output", tmp_path / "out.pth")
    (tmp_path / "taken.cfg").write_text("")
    with pytest.raises(errors.UserError, match="taken.cfg already exists"):
        run("--reverse", "--input", folder, "--output", tmp_path / "taken.weights")
    assert not (tmp_path / "taken.weights").exists()
    assert json.loads((folder / "report.json").read_text())["header"]["seen"] == 12345
    assert darknet_networks.resolve(CFG).net.width == 64
