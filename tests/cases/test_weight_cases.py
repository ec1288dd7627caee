"""The recorded weight files (../shared/cases): darknet's, and YOLOv5 in 20 forms of file."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from detlab import errors
from detlab.converters import convert, inspect_file, named, unwrap
from detlab.converters.readers import torch_file
from detlab.darknet import cfg as darknet_cfg
from detlab.run import checkpoint


def run(*arguments):
    convert.main([*map(str, arguments)])


def refused(*arguments):
    with pytest.raises(errors.UserError) as info:
        run(*arguments)
    return str(info.value)


# ---- Darknet. ----


def darknet(folder, output, *more):
    config = ("--config", "experiments/darknet_coco.py")
    return (*config, "--input", folder / "my.weights", "--output", output, *more)


def test_the_first_value_of_a_doubled_key_counts_and_is_told_once(case, tmp_path, capsys):
    folder = case("darknet-cfg-batch-twice")
    cfg = folder / "my.cfg"
    run(*darknet(folder, tmp_path / "out", "--cfg", cfg))
    told = (
        f"{cfg} gives 2 values again; the first one counts, as in darknet: batch='1' of line 3,"
        " not '64' of line 6, subdivisions='1' of line 4, not '16' of line 7."
    )
    assert capsys.readouterr().out.count(told) == 1
    net = darknet_cfg.read(cfg).net
    assert (net.batch, net.subdivisions) == (1, 1)
    run("--reverse", "--input", tmp_path / "out", "--output", tmp_path / "back.weights")
    assert (tmp_path / "back.weights").read_bytes() == (folder / "my.weights").read_bytes()
    assert (tmp_path / "back.cfg").read_text() == cfg.read_text()
    text = inspect_file.describe(folder / "my.weights", darknet_cfg.read(cfg))
    assert told.removesuffix(".") in text


def test_a_byte_order_mark_is_no_part_of_the_first_class(case, tmp_path):
    folder = case("darknet-names-bom")
    more = ("--cfg", folder / "my.cfg", "--names", folder / "my.names")
    run(*darknet(folder, tmp_path / "out", *more))
    assert checkpoint.load_weights(tmp_path / "out").info["class_names"] == ["cat", "dog"]


def test_new_coords_are_converted_and_come_back_byte_for_byte(case, tmp_path):
    folder = case("darknet-new-coords")
    run(*darknet(folder, tmp_path / "out", "--cfg", folder / "my.cfg"))
    back = tmp_path / "back.weights"
    run("--reverse", "--input", tmp_path / "out", "--output", back)
    assert back.read_bytes() == (folder / "my.weights").read_bytes()
    assert back.with_suffix(".cfg").read_text() == (folder / "my.cfg").read_text()


def test_an_option_that_is_not_there_is_refused_and_not_promised(case, tmp_path, repository):
    folder, cfg = case("darknet-new-coords"), tmp_path / "my.cfg"
    text = (folder / "my.cfg").read_text()
    cfg.write_text(text.replace("new_coords=1", "embedding_layer=1"))
    assert refused(*darknet(folder, tmp_path / "out", "--cfg", cfg)) == (
        f"{cfg}, line 44: layer 3 [yolo] has embedding_layer='1', an option that is not"
        " implemented."
    )
    for page in ("README.md", "CHANGELOG.md", *repository.glob("docs/*.md")):
        words = (repository / page).read_text().lower()
        assert "any network of darknet" not in words and "any darknet cfg" not in words
        assert "any cfg" not in words


def test_weights_without_their_cfg_are_asked_for_it(case, tmp_path):
    folder = case("darknet-weights-without-cfg")
    assert refused(*darknet(folder, tmp_path / "out")) == (
        f"{folder / 'my.weights'} holds 1821 values, but yolov4 with 80 classes, the network of"
        " --config experiments/darknet_coco.py, has 64429405, 64427584 more; name the network of"
        " the file with --cfg FILE.cfg, or copy the file again if it is cut short."
    )
    text = inspect_file.describe(folder / "my.weights")
    assert "fits              no standard network of darknet\n" in text
    assert "values            1821 (add --cfg for names and shapes)" in text


# ---- PyTorch. ----


@pytest.fixture(scope="module")
def files(case, made_once):
    """The folder of the 20 files."""

    def make(folder):
        subprocess.run(
            [sys.executable, "make.py", str(folder)],
            cwd=case("torch-files"),
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            check=True,
            capture_output=True,
        )

    return made_once("torch_files", make)


@pytest.fixture(scope="module")
def expected(files):
    """Name -> array of the plain state dict."""
    return torch_file.read(files / "y_sd.pt").tensors


def read(path, entry=""):
    return unwrap.read(path, named.SOURCES, entry)


NAMES = ("cat", "dog")
FORMS = {  # file -> its class names, and what is told about it
    "y_sd": (None, ()),
    "y_half": (None, ()),
    "y_ddp": (None, ()),
    "y_compile": (None, ()),
    "y_ul": (None, ("the prefix model. of 292 tensors is taken off",)),
    "y_ul2": (None, ("the prefix model.model. of 292 tensors is taken off",)),
    "y_train": (None, ()),
    "y_emasd": (None, ("the weights of {path} are in its entry ema",)),
    "y_msd": (None, ("the weights of {path} are in its entry model_state_dict",)),
    "y_model": (NAMES, ()),
    "y_model_dict": (NAMES, ()),
    "y_model_dictstr": (NAMES, ()),
    "y_model_1based": (NAMES, ()),
    "y_model_int": (("0", "1"), ()),
    "y_model_raw": (NAMES, ()),
    "y_autoshape": (NAMES, ("the prefix model. of 292 tensors is taken off",)),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_file_has_the_same_tensors(files, expected, name):
    path, (class_names, notes) = files / f"{name}.pt", FORMS[name]
    file = read(path)
    assert file.class_names == class_names
    assert file.notes == tuple(note.format(path=path) for note in notes)
    assert file.tensors.keys() == expected.keys()
    for key, array in file.tensors.items():
        np.testing.assert_array_equal(array, expected[key].astype(array.dtype))
    text = inspect_file.describe(path)  # the same truth
    assert "network           a YOLOv5 of releases 4 to 7\n" in text
    words = f"{len(class_names)}: {', '.join(class_names)}" if class_names else "not in the file"
    assert f"classes           {words}\n" in text
    assert [line[18:] for line in text.split("\n") if line.startswith("note ")] == [*file.notes]
    if file.modules:
        assert file.modules["model.1.act"]["class"] == "torch.nn.modules.activation.SiLU"


def yolov5(file, output):
    return (
        *("--source", "yolov5", "--config", "experiments/yolov5_coco.py:n"),
        *("--config.model.num_classes=2", "--input", file, "--output", output),
    )


def test_a_wrapped_model_is_converted_with_its_classes(files, expected, tmp_path):
    run(*yolov5(files / "y_autoshape.pt", tmp_path / "out"))
    weights = checkpoint.load_weights(tmp_path / "out")
    assert weights.info["class_names"] == ["cat", "dog"]
    kernel = expected["model.0.conv.weight"].astype(np.float16).transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(weights.params["backbone"]["stem"]["conv"]["kernel"], kernel)
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert sum(row["status"] == "matched" for row in rows) == 291


REFUSALS = {
    "y_ch1": (
        ": its network takes grey images (1 channel), but the detector RGB (3 channels); in"
        " PyTorch, weight.repeat(1, 3, 1, 1) / 3 of this layer gives a network for RGB that"
        " computes the same for grey images (the layer is model.0.conv)."
    ),
    "ts": ": a TorchScript program; save its state_dict() with torch.save instead.",
    "v8": (
        " is not a YOLOv5 of release 3 or a YOLOv5 of releases 4 to 7; its names begin with"
        " model.0.conv.weight, model.1.conv.weight, model.2.cv1.conv.weight,"
        " model.2.m.0.cv1.conv.weight (the entries of the file: model (6 tensors), epoch, ema,"
        " train_args, version), so give another file, or the --source and --config that fit it."
    ),
    "y5u": (
        ": it is a YOLOv5 for another task or with another layout; convert a detector with three"
        " or four levels, whose head is model.24 or model.33."
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_converted_is_one_sentence(files, tmp_path, name):
    path = files / f"{name}.pt"
    assert refused(*yolov5(path, tmp_path / "out")) == f"{path}{REFUSALS[name]}"
    assert not (tmp_path / "out").exists()
