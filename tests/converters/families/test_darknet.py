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


MIXED = """[net]
width=32
height=32
channels=3
[convolutional]
batch_normalize=1
filters=8
size=3
pad=1
activation=swish
[convolutional]
groups=4
filters=8
activation=linear
[shortcut]
from=0, -1
weights_type=per_channel
weights_normalization=relu
[avgpool]
[convolutional]
filters=8
activation=logistic
[scale_channels]
from=2
[convolutional]
filters=8
activation=leaky
[convolutional]
share_index=6
filters=8
activation=leaky
[shortcut]
from=1
weights_type=per_feature
[convolutional]
filters=21
activation=linear
[yolo]
anchors=4,4, 8,8, 16,16
num=3
classes=2
"""


def test_shared_and_weighted_layers_go_in_and_come_out_byte_for_byte(tmp_path, capsys):
    cfg, weights, back = (tmp_path / name for name in ("a.cfg", "a.weights", "b.weights"))
    cfg.write_text(MIXED)
    network = darknet_cfg.read(cfg)
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.uniform(0.1, 1, shape).astype(np.float32)
        for name, shape in reader.tensor_shapes(network).items()
    }
    reader.write(weights, network, reader.Weights(reader.Header(), tensors))
    folder = tmp_path / "folder"
    run("--input", weights, "--cfg", cfg, "--config", "darknet_coco", "--output", folder)
    assert "15 tensors of 7 layers" in capsys.readouterr().out
    layers = checkpoint.load_weights(folder).params["layers"]
    assert layers["layer2"]["weights"].shape == (3, 8) and "layer7" not in layers
    run("--reverse", "--input", folder, "--output", back)
    assert back.read_bytes() == weights.read_bytes()
    assert back.with_suffix(".cfg").read_text() == MIXED


@pytest.mark.parametrize("seen, counted", [(0, 0), (12345, 12345), (2**40, 12800)])
def test_a_region_goes_on_counting_where_the_file_ends(files, tmp_path, seen, counted):
    """Its loss is another one until 12800 images; the head of other classes starts from 0."""
    weights, cfg, _ = files
    cfg.write_text(
        CFG.partition("[yolo]")[0] + "[region]\nanchors=1,1, 2,2, 4,4\nnum=3\nclasses=2\n"
    )
    network = darknet_cfg.read(cfg)
    tensors = reader.read(weights, network).tensors
    reader.write(weights, network, reader.Weights(reader.Header(seen=seen), tensors))
    folder, other, back = tmp_path / "folder", tmp_path / "other", tmp_path / "back.weights"
    common = ("--input", weights, "--cfg", cfg, "--config", "darknet_coco")
    run(*common, "--output", folder)
    assert checkpoint.load_weights(folder).state["loss_state"]["seen"] == counted
    assert initialised(folder, cfg, 2) == []
    assert initialised(folder, cfg, 3) == [*PREDICTING, "loss_state/seen"]
    run("--reverse", "--input", folder, "--output", back)
    assert back.read_bytes() == weights.read_bytes()
    run(*common, "--output", other, "--reset_classes", "--config.model.num_classes=3")
    assert initialised(other, cfg, 3) == [*PREDICTING, "loss_state/seen"]


@pytest.mark.parametrize(
    "key, flags, resize",
    [
        ("letter_box=1", (), "letterbox"),
        ("letter_box=1", ("--config.data.resize=stretch",), "stretch"),
        ("letter_box=0", (), "stretch"),
        ("", (), "stretch"),
    ],
)
def test_images_are_letterboxed_if_the_cfg_says_so(files, tmp_path, capsys, key, flags, resize):
    weights, cfg, _ = files
    cfg.write_text(CFG.replace("channels=3", f"channels=3\n{key}"))
    config = ("--config", "darknet_coco", *flags)
    run("--input", weights, "--cfg", cfg, *config, "--output", tmp_path / "folder")
    data = checkpoint.load_weights(tmp_path / "folder").info["config"]["data"]
    assert data["resize"] == resize
    told = f"{cfg} has letter_box=1: training, evaluation and demo letterbox images"
    assert (told in capsys.readouterr().out) == (resize == "letterbox")
    assert data["rounding"] == data["demo_rounding"] == "whole"


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
        (dict(cfg=""), "values, but yolov4 with 80 classes, the network of --config darknet_coco,"),
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


# ---- Files without their cfg, and with a wrong one. ----


@pytest.fixture
def standard(monkeypatch):
    """The small network is the standard one of the name yolov3-tiny, with 80 classes."""
    text = CFG.replace("filters=21", "filters=255").replace("classes=2", "classes=80")
    monkeypatch.setitem(darknet_networks.STANDARD, "yolov3-tiny", lambda: text)


def refused(*arguments):
    with pytest.raises(errors.UserError) as info:
        run(*arguments)
    return str(info.value)


def test_a_standard_network_is_guessed_where_the_values_fit(files, standard, tmp_path, capsys):
    weights, _, names = files
    folder = tmp_path / "folder"
    common = ("--input", weights, "--config", "darknet_coco", "--output", folder)
    run(*common, "--names", names)
    assert (
        f"assumed, as there is no --cfg: {weights} is yolov3-tiny with 2 classes, which has exactly"
        " its 765 values, and has the published anchors and input of 64x32 px; add --cfg FILE.cfg"
        " if its own differ.\n"
    ) in capsys.readouterr().out
    info = checkpoint.load_weights(folder).info
    assert info["class_names"] == ["cat", "dog"]
    model = info["config"]["model"]
    assert (model["cfg"], model["num_classes"]) == ("yolov3-tiny", 2)
    assert info["config"]["data"]["canvases"] == [[32, 64]]
    run("--reverse", "--input", folder, "--output", tmp_path / "back.weights")
    assert (tmp_path / "back.weights").read_bytes() == weights.read_bytes()


def test_a_guess_never_contradicts_the_command_line(files, standard, tmp_path):
    weights, _, _ = files
    folder = tmp_path / "folder"
    common = ("--input", weights, "--config", "darknet_coco", "--output", folder)
    assert refused(*common, "--config.model.num_classes=3") == (
        f"{weights} fits yolov3-tiny with 2 classes, but --config.model.num_classes is 3; remove"
        " the flag, or add --reset_classes to train on other classes."
    )
    text = refused(*common, "--config.model.cfg=yolov4-tiny")
    assert f"{weights} holds 765 values, but yolov4-tiny with 80 classes, the network of" in text
    assert (
        "fewer" not in text and "more, and darknet's yolov3-tiny with 2 classes has exactly" in text
    )
    assert text.endswith("as many; name the network of the file with --cfg FILE.cfg.")
    run(*common, "--config.model.num_classes=3", "--reset_classes")
    loaded = checkpoint.load_weights(folder)
    assert set(loaded.params["layers"]) == {"layer0", "layer1"}
    model = loaded.info["config"]["model"]
    assert (model["cfg"], model["num_classes"]) == ("yolov3-tiny", 3)


def test_a_cut_off_file_says_its_layers_and_a_network_is_guessed(files, standard, tmp_path):
    weights, cfg, _ = files
    network = darknet_cfg.read(cfg)
    part = tmp_path / "small.conv.2"
    reader.write(part, network, reader.read(weights, network), 2)
    folder = tmp_path / "folder"
    run("--input", part, "--config", "darknet_coco", "--output", folder)
    loaded = checkpoint.load_weights(folder)
    assert set(loaded.params["layers"]) == {"layer0", "layer1"}
    assert loaded.info["config"]["model"]["cfg"] == "yolov3-tiny"


@pytest.mark.parametrize(
    "change, fits",
    [
        (("classes=2", "classes=3"), "; {cfg} with 2 classes has exactly 765."),
        (("channels=3", "channels=1"), "; {cfg} with channels=3 has exactly 765."),
        (("filters=8", "filters=16"), ""),
    ],
)
def test_a_wrong_cfg_says_by_how_many_values_and_what_would_fit(files, tmp_path, change, fits):
    weights, cfg, _ = files
    text = CFG.replace(*change)
    if change[0] == "classes=2":
        text = text.replace("filters=21", "filters=24")
    elif change[0] == "filters=8":
        text = text.replace("groups=8", "groups=16")
    cfg.write_text(text)
    expected = reader.num_floats(darknet_cfg.read(cfg))
    message = refused(
        *("--input", weights, "--cfg", cfg, "--config", "darknet_coco", "--output", tmp_path / "f")
    )
    differs = f"{765 - expected} are left over, so it"
    if expected > 765:
        differs = f"{expected - 765} are missing, so it is cut short or"
    start = (
        f"{weights}: the first 4 of 4 layers of {cfg} have {expected} values, but the file holds"
        f" 765: {differs} belongs to another cfg"
    )
    assert message == start + (fits.format(cfg=cfg) or ".")


@pytest.mark.parametrize("name", ["yolov3", "yolov3-tiny", "yolov4", "yolov4-tiny"])
@pytest.mark.parametrize("classes", [1, 2, 20, 80])
def test_the_number_of_values_tells_a_standard_network_and_its_classes(name, classes):
    network = darknet_networks.resolve(name)
    count = reader.num_floats(darknet_networks.with_classes(network, classes))
    assert reader.standard_that_fit(count) == {name: classes}
    assert reader.standard_that_fit(count + 1) == {}


@pytest.mark.parametrize("name, layers", [("yolov3", 74), ("yolov4", 137), ("yolov4-tiny", 29)])
def test_a_cut_off_standard_file_is_told_by_its_values(name, layers):
    count = reader.num_floats(darknet_networks.resolve(name), layers)
    assert name in reader.standard_that_fit(count, layers)


def test_a_network_of_one_channel_comes_back_byte_for_byte(files, tmp_path):
    weights, cfg, _ = files
    cfg.write_text(CFG.replace("channels=3", "channels=1"))
    network = darknet_cfg.read(cfg)
    tensors = {
        name: np.full(shape, 0.5, np.float32)
        for name, shape in reader.tensor_shapes(network).items()
    }
    reader.write(weights, network, reader.Weights(reader.Header(), tensors))
    folder = tmp_path / "folder"
    config = ("--config", "darknet_coco")
    run("--input", weights, "--cfg", cfg, *config, "--output", folder)
    assert checkpoint.load_weights(folder).params["layers"]["layer0"]["kernel"].shape == (
        3,
        3,
        1,
        8,
    )
    run("--reverse", "--input", folder, "--output", tmp_path / "back.weights")
    assert (tmp_path / "back.weights").read_bytes() == weights.read_bytes()
    cfg.write_text(CFG.replace("channels=3", "channels=4"))
    text = refused("--input", weights, "--cfg", cfg, *config, "--output", tmp_path / "other")
    assert text.startswith(f"{cfg}: [net] has channels=4, but images have 3 channels (RGB), or 1")


@pytest.mark.parametrize(
    "override, sentence",
    [
        (
            "model.num_classes=3",
            "--config.model.num_classes is 3, but {cfg} has classes=2; remove the flag, or add"
            " --reset_classes to train on other classes.",
        ),
        (
            "model.cfg=yolov3",
            "--cfg and --config.model.cfg both name a network; remove one.",
        ),
    ],
)
def test_the_command_line_never_contradicts_the_cfg_silently(files, tmp_path, override, sentence):
    weights, cfg, _ = files
    text = refused(
        *("--input", weights, "--cfg", cfg, "--config", "darknet_coco", f"--config.{override}"),
        *("--output", tmp_path / "folder"),
    )
    assert text == sentence.format(cfg=cfg)


def test_entries_are_for_files_that_have_them(files, tmp_path):
    weights, cfg, _ = files
    common = ("--input", weights, "--cfg", cfg, "--config", "darknet_coco")
    text = refused(*common, "--entry", "ema", "--output", tmp_path / "folder")
    assert text == f"{weights} is not a file with names; remove --entry."
