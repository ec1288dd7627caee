"""The command line, from a file to a weights folder that a detector starts from."""

import json
import re
import subprocess
import sys

import ml_collections
import numpy as np
import pytest
import tables

from detlab import config as config_lib
from detlab import contract
from detlab import errors
from detlab.converters import convert
from detlab.converters import download
from detlab.converters import families
from detlab.converters import mapping
from detlab.converters import named
from detlab.converters import target
from detlab.converters.readers import files
from detlab.converters.tables import mmdet_retinanet
from detlab.converters.tables import torchvision_resnet
from detlab.run import checkpoint
from detlab.run import state as state_lib

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


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def shapes(config_file):
    return target.shapes(ml_config(config_file))


def source_tensors(shapes, table, extra):
    """A state dict that fits: random leaves, taken backwards through the table."""
    rng = np.random.default_rng(0)
    leaves = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    return {**mapping.reverse(leaves, table), **extra}


@pytest.fixture
def torchvision_file(shapes, pth, tmp_path):
    extra = {
        "fc.weight": np.zeros((10, 64), np.float32),
        "fc.bias": np.zeros(10, np.float32),
        "bn1.num_batches_tracked": np.array(5),
    }
    tensors = source_tensors(shapes, torchvision_resnet.table(), extra)
    return pth.write_state_dict(tmp_path / "resnet18.pth", tensors), tensors


@pytest.fixture
def mmdet_file(shapes, pth, tmp_path):
    extra = {"backbone.bn1.num_batches_tracked": np.array(5)}
    tensors = source_tensors(shapes, mmdet_retinanet.table(), extra)
    meta = {"CLASSES": ("cat", "dog")}
    return pth.write_state_dict(tmp_path / "retinanet.pth", tensors, meta=meta), tensors


def run(config_file, file, output, *more):
    convert.main(
        ["--config", str(config_file), "--input", str(file), "--output", str(output), *more]
    )


def test_torchvision_file_fills_the_backbone_and_nothing_else(
    config_file, torchvision_file, shapes, tmp_path, capsys
):
    path, tensors = torchvision_file
    run(config_file, path, tmp_path / "out" / "weights", "--source", "torchvision")
    weights = checkpoint.load_weights(tmp_path / "out" / "weights")
    leaves = mapping.flatten({"params": weights.params, **weights.state})
    assert leaves.keys() == {p for p in shapes if p.split("/")[1] == "backbone"}
    np.testing.assert_array_equal(
        leaves["params/backbone/stem/conv/kernel"], tensors["conv1.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        leaves["batch_stats/backbone/stem/norm/var"], tensors["bn1.running_var"]
    )
    report = json.loads((tmp_path / "out" / "weights" / "report.json").read_text())
    status = {row["source"] or row["target"]: row["status"] for row in report["rows"]}
    assert status["conv1.weight"] == "matched"
    assert status["fc.bias"] == "dropped: ImageNet classifier"
    assert status["params/head/cls_logits/bias"] == "left initialised"
    printed = capsys.readouterr().out
    assert re.search(
        r"conv1\.weight +params/backbone/stem/conv/kernel +7x7x3x8 .* matched", printed
    )


def test_mmdet_file_fills_the_detector_and_brings_its_class_names(
    config_file, mmdet_file, shapes, tmp_path
):
    path, tensors = mmdet_file
    run(config_file, path, tmp_path / "weights", "--source", "mmdet")
    weights = checkpoint.load_weights(tmp_path / "weights")
    leaves = mapping.flatten({"params": weights.params, **weights.state})
    assert {p: x.shape for p, x in leaves.items()} == shapes
    np.testing.assert_array_equal(
        leaves["params/head/box_deltas/kernel"],
        tensors["bbox_head.retina_reg.weight"].transpose(2, 3, 1, 0),
    )
    assert weights.info["class_names"] == ["cat", "dog"]
    assert weights.info["config"]["model"]["num_classes"] == 2
    assert weights.info["converted_from"] == {
        "file": "retinanet.pth",
        "table": "mmdet RetinaNet",
        "bgr": False,
    }


def test_detector_starts_from_the_folder(config_file, mmdet_file, shapes, tmp_path):
    run(config_file, mmdet_file[0], tmp_path / "weights")
    zeros = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    tree = mapping.nest(zeros)
    merged = checkpoint.merge(
        tree.pop("params"), tree, checkpoint.load_weights(tmp_path / "weights"), skip=()
    )
    assert set(merged.loaded) == set(shapes) and not merged.initialised


@pytest.mark.parametrize("kind", ["torchvision", "mmdet"])
def test_auto_picks_the_table_by_the_names(kind, request, config_file, tmp_path):
    path, _ = request.getfixturevalue(f"{kind}_file")
    run(config_file, path, tmp_path / "weights")
    report = json.loads((tmp_path / "weights" / "report.json").read_text())
    assert report["table"].startswith(kind)


def test_bgr_flag_flips_the_stem_only(config_file, torchvision_file, tmp_path):
    path, _ = torchvision_file
    for name, flags in (("rgb", []), ("bgr", ["--bgr", "--config.model.style=caffe"])):
        run(config_file, path, tmp_path / name, *flags)
    rgb, bgr = (
        mapping.flatten(checkpoint.load_weights(tmp_path / name).params) for name in ("rgb", "bgr")
    )
    different = [p for p in rgb if not np.array_equal(rgb[p], bgr[p])]
    assert different == ["backbone/stem/conv/kernel"]
    np.testing.assert_array_equal(bgr[different[0]], rgb[different[0]][:, :, ::-1])


def test_published_retinanet_fits_the_detector_with_its_default_fields(shared_dir):
    case = json.loads((shared_dir / "parity" / "retinanet_r50_fpn.json").read_text())
    model = {"num_classes": case["num_classes"]}
    config = ml_collections.ConfigDict({"detector": "retinanet", "model": model})
    # Zeros that take no memory, as only names and shapes count here.
    tensors = {n: np.broadcast_to(np.float32(0), s) for n, s, _ in case["state_dict"]}
    _, report = mapping.convert(tensors, mmdet_retinanet.table(), target.shapes(config))
    assert {row.status.split(":")[0] for row in report} == {"matched", "dropped"}


# ---- Other classes


def test_class_layers_of_other_classes_are_left_out_only_when_asked_for(
    config_file, mmdet_file, shapes, tmp_path, capsys
):
    path, tensors = mmdet_file
    five = "--config.model.num_classes=5"
    run(config_file, path, tmp_path / "weights", five, "--reset_classes")
    printed = capsys.readouterr().out
    assert re.search(r"bbox_head.retina_cls.weight .* dropped: of other classes", printed)
    assert re.search(r"params/head/cls_logits/kernel .* initialised anew", printed)
    weights = checkpoint.load_weights(tmp_path / "weights")
    left_out = {"params/head/cls_logits/kernel", "params/head/cls_logits/bias"}
    leaves = mapping.flatten({"params": weights.params, **weights.state})
    assert set(leaves) == set(shapes) - left_out
    assert set(weights.info["anew"]) == left_out and "class_names" not in weights.info


@pytest.mark.parametrize(
    "flags, reason",
    [
        (["--reset_classes"], "left out with --reset_classes"),
        ([], "of 2 classes in the weights and 5 in the model"),
    ],
)
def test_training_starts_with_other_classes_and_says_what_is_initialised(
    config_file, mmdet_file, tmp_path, capsys, flags, reason
):
    run(config_file, mmdet_file[0], tmp_path / "weights", *flags)
    five = ml_config(config_file, {"model.num_classes": "5"})
    five.init_from = str(tmp_path / "weights")
    detector = contract.build(five)
    params, _ = state_lib.initial_weights(detector, five)
    assert params["head"]["cls_logits"]["bias"].shape == (5 * 9,)
    printed = capsys.readouterr().out
    assert "2 stay as initialised" in printed
    assert f"as initialised, {reason}: params/head/cls_logits/" in printed


def test_a_backbone_is_complete_and_the_rest_of_the_detector_stays(
    config_file, torchvision_file, shapes, tmp_path
):
    run(config_file, torchvision_file[0], tmp_path / "weights")
    merged = tables.start(tmp_path / "weights", ml_config(config_file))
    assert set(merged.loaded) == {path for path in shapes if path.split("/")[1] == "backbone"}
    with pytest.raises(errors.UserError, match="not in the file: params/backbone/stage1_block2/"):
        tables.start(tmp_path / "weights", ml_config(config_file, {"model.depth": "34"}))


def test_ghm_starts_from_a_whole_retinanet_with_counts_of_its_own(
    config_file, mmdet_file, shapes, tmp_path
):
    run(config_file, mmdet_file[0], tmp_path / "weights")
    config = ml_config(config_file)
    config.detector = "ghm"
    merged = tables.start(tmp_path / "weights", config)
    assert set(merged.loaded) == set(shapes)
    assert set(merged.initialised) == {"loss_state/cls_counts", "loss_state/box_counts"}
    config.detector, config.model.norm_groups = "fcos", 4
    with pytest.raises(
        errors.UserError, match="25 not in the file: params/box_scales.*; 10 not in the model"
    ):
        tables.start(tmp_path / "weights", config)


def test_resetting_a_backbone_is_refused(config_file, torchvision_file, tmp_path):
    text = refused(config_file, torchvision_file[0], tmp_path / "w", "--reset_classes")
    assert "--reset_classes does nothing here" in text


# ---- Other formats, and back


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_there_and_back_gives_the_same_tensors(config_file, mmdet_file, tmp_path, suffix, capsys):
    path, tensors = mmdet_file
    run(config_file, path, tmp_path / "weights")
    output = tmp_path / "back" / f"retinanet{suffix}"
    back(tmp_path / "weights", output)
    assert f"are in {output}, as mmdet RetinaNet" in capsys.readouterr().out
    found = files.read(output)
    counters = {name for name in tensors if name.endswith("num_batches_tracked")}
    assert set(found.tensors) == set(tensors) - counters
    for name, tensor in found.tensors.items():
        np.testing.assert_array_equal(tensor, tensors[name])
    assert found.class_names == (("cat", "dog") if suffix == ".safetensors" else None)
    # A file of our own is read like any other.
    run(config_file, output, tmp_path / "again")
    one, two = (checkpoint.load_weights(tmp_path / name) for name in ("weights", "again"))
    for a, b in zip(mapping.flatten(one.params).values(), mapping.flatten(two.params).values()):
        np.testing.assert_array_equal(a, b)


def test_the_backbone_alone_goes_back_to_torchvisions_names(config_file, mmdet_file, tmp_path):
    path, tensors = mmdet_file
    run(config_file, path, tmp_path / "weights")
    back(tmp_path / "weights", tmp_path / "resnet.pth", "--source", "torchvision")
    found = files.read(tmp_path / "resnet.pth").tensors
    assert set(found) == {
        name.removeprefix("backbone.")
        for name in tensors
        if name.startswith("backbone.") and not name.endswith("num_batches_tracked")
    }
    np.testing.assert_array_equal(found["conv1.weight"], tensors["backbone.conv1.weight"])


def test_npz_files_are_taken_too(config_file, mmdet_file, shapes, tmp_path):
    np.savez(tmp_path / "weights.npz", **mmdet_file[1])
    run(config_file, tmp_path / "weights.npz", tmp_path / "weights")
    weights = checkpoint.load_weights(tmp_path / "weights")
    assert set(mapping.flatten({"params": weights.params, **weights.state})) == set(shapes)


def test_a_url_is_fetched_first(config_file, mmdet_file, shapes, tmp_path, monkeypatch):
    asked = []

    def fetch(url, sha256):
        asked.append((url, sha256))
        return mmdet_file[0]

    monkeypatch.setattr(download, "fetch", fetch)
    url = "https://127.0.0.1/retinanet.pth"
    run(config_file, url, tmp_path / "weights", "--sha256", "0" * 8)
    assert asked == [(url, "0" * 8)]
    text = refused(config_file, mmdet_file[0], tmp_path / "other", "--sha256", "0" * 8)
    assert "--sha256 goes with a URL" in text


def test_inspect_prints_what_a_file_holds(mmdet_file, capsys):
    convert.main(["--inspect", str(mmdet_file[0])])
    printed = capsys.readouterr().out
    assert re.search(r"classes +2: cat, dog", printed)
    assert re.search(r"backbone.conv1.weight +float32 +8 x 3 x 7 x 7", printed)


def test_incomplete_weights_are_not_written_as_if_they_were_whole(
    config_file, mmdet_file, torchvision_file, tmp_path
):
    run(config_file, mmdet_file[0], tmp_path / "anew", "--reset_classes")
    run(config_file, torchvision_file[0], tmp_path / "backbone")
    with pytest.raises(errors.UserError, match="is no complete mmdet RetinaNet: 2 leaves"):
        back(tmp_path / "anew", tmp_path / "x.pth", "--source", "mmdet")
    back(tmp_path / "backbone", tmp_path / "resnet.pth")  # as what it is
    assert "conv1.weight" in files.read(tmp_path / "resnet.pth").tensors


def test_a_file_that_exists_is_not_replaced(config_file, mmdet_file, tmp_path):
    run(config_file, mmdet_file[0], tmp_path / "weights")
    (tmp_path / "x.pth").write_text("precious")
    with pytest.raises(errors.UserError, match="exists already; name a new file"):
        back(tmp_path / "weights", tmp_path / "x.pth")


def test_a_bgr_network_goes_back_as_one_without_being_told(config_file, mmdet_file, tmp_path):
    path, tensors = mmdet_file
    caffe = "--config.model.style=caffe"
    run(config_file, path, tmp_path / "weights", "--bgr", caffe)
    back(tmp_path / "weights", tmp_path / "x.pth")
    found = files.read(tmp_path / "x.pth").tensors
    np.testing.assert_array_equal(found["backbone.conv1.weight"], tensors["backbone.conv1.weight"])
    assert "which goes with --bgr" in refused(config_file, path, tmp_path / "w", caffe)
    assert "which does not go with --bgr" in refused(config_file, path, tmp_path / "w", "--bgr")


def test_no_table_for_a_detector_is_a_sentence(config_file, mmdet_file, tmp_path, monkeypatch):
    run(config_file, mmdet_file[0], tmp_path / "weights")
    sources = [source for source in named.SOURCES if source.detector != "retinanet"]
    monkeypatch.setattr(named, "SOURCES", sources)
    with pytest.raises(errors.UserError, match="--source mmdet has no table for detector retina"):
        back(tmp_path / "weights", tmp_path / "x.pth", "--source", "mmdet")


def back(weights, output, *more):
    convert.main(["--reverse", "--input", str(weights), "--output", str(output), *more])


# ---- What a user can do wrong: one sentence, exit code 2, no traceback, nothing written. ----


def refused(*arguments):
    with pytest.raises(errors.UserError) as info:
        run(*arguments)
    return str(info.value)


def test_file_of_another_family_is_named(config_file, torchvision_file, mmdet_file, pth, tmp_path):
    output = tmp_path / "weights"
    text = refused(config_file, torchvision_file[0], output, "--source", "mmdet")
    assert "is not an mmdet RetinaNet" in text and "it looks like a torchvision ResNet" in text
    text = refused(config_file, mmdet_file[0], output, "--source", "torchvision")
    assert "is not a torchvision ResNet; it looks like an mmdet RetinaNet" in text
    pth.storages.clear()
    other = pth.write_state_dict(tmp_path / "other.pth", {"encoder.weight": np.ones(2, np.float32)})
    text = refused(config_file, other, output)
    assert "is not a torchvision ResNet or an mmdet RetinaNet; its names" in text
    assert "its names begin with encoder.weight" in text
    assert not output.exists()


def test_a_file_that_two_tables_know_alike_needs_the_family(
    config_file, mmdet_file, tmp_path, monkeypatch
):
    (twin,) = mmdet_retinanet.SOURCES
    twin = twin._replace(family="yolov5", description="its twin")
    monkeypatch.setattr(named, "SOURCES", (*named.SOURCES, twin))
    text = refused(config_file, mmdet_file[0], tmp_path / "w")
    assert "may be an mmdet RetinaNet or its twin; say which with --source" in text
    run(config_file, mmdet_file[0], tmp_path / "w", "--source", "mmdet")


def test_the_counts_of_ghm_tell_its_files_from_those_of_retinanet(
    config_file, mmdet_file, tmp_path, pth
):
    pth.storages.clear()
    tensors = {**mmdet_file[1], "bbox_head.loss_cls.acc_sum": np.ones(30, np.float32)}
    file = pth.write_state_dict(tmp_path / "ghm.pth", tensors)
    text = refused(config_file, file, tmp_path / "w")
    assert "an mmdet RetinaNet with the losses of GHM fits detector ghm only" in text


def test_names_that_could_steer_a_terminal_are_escaped(config_file, shapes, pth, tmp_path, capsys):
    extra = {"\x1b]0;x\x07.num_batches_tracked": np.zeros((), np.int64)}
    tensors = source_tensors(shapes, mmdet_retinanet.table(), extra)
    run(config_file, pth.write_state_dict(tmp_path / "a.pth", tensors), tmp_path / "weights")
    assert "\x1b" not in capsys.readouterr().out
    pth.storages.clear()
    path = pth.write_state_dict(tmp_path / "b.pth", {**tensors, "\x1b[2J": np.ones(2, np.float32)})
    assert "\\x1b[2J of the file has no place" in refused(config_file, path, tmp_path / "other")


def test_missing_or_wrong_input_is_named(config_file, tmp_path):
    text = refused(config_file, tmp_path / "absent.pth", tmp_path / "weights")
    assert "absent.pth: cannot be read: No such file" in text
    text = refused(config_file, config_file, tmp_path / "weights")
    assert "tiny.py: no weights of a known kind, it looks like a text file" in text


def test_output_that_exists_or_cannot_be_made_is_refused_before_the_work(config_file, tmp_path):
    assert "exists already" in refused(config_file, tmp_path / "absent.pth", tmp_path)
    blocked = config_file / "weights"  # below a file
    assert "cannot be made" in refused(config_file, tmp_path / "absent.pth", blocked)


def test_weights_of_another_depth_list_the_differences(config_file, torchvision_file, tmp_path):
    text = refused(
        config_file, torchvision_file[0], tmp_path / "weights", "--config.model.depth=34"
    )
    assert "resnet18.pth and" in text and "tiny.py: the file does not fit the detector" in text
    assert "layer1.2.conv1.weight of the detector's torchvision ResNet weights is not in" in text


def test_number_of_classes_of_the_file_is_told(config_file, mmdet_file, tmp_path):
    text = refused(config_file, mmdet_file[0], tmp_path / "weights", "--config.model.num_classes=5")
    assert "knows 2 classes and config.model.num_classes is 5" in text


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--input", "a.pth"], "--output is missing: give --input FILE"),
        (["--input", "a.pth", "--output", "b"], "--config is missing"),
        (["--reverse", "--input", "a", "--output", "b.onnx"], "must end with .pth, .pt or"),
        (["--reverse", "--input", "absent", "--output", "b.pth"], "absent does not exist"),
        (
            ["--reverse", "--reset_classes", "--input", "a", "--output", "b.pth"],
            "--reset_classes does not go with --reverse",
        ),
        (["--inspect", "a", "--input", "b"], "--input does not go with --inspect"),
        (
            ["--reverse", "--input", "a", "--output", "b.pth", "--config.seed=1"],
            "--config.seed needs --config",
        ),
        (["--inspect", "absent.pth"], "absent.pth: cannot be read: No such file"),
        (["--inspect", "a.weights", "--cfg", "absent.cfg"], "absent.cfg"),
    ],
)
def test_flags_that_do_not_go_together_get_a_sentence(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.UserError, match=re.escape(words)):
        convert.main(arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["config", "cfg"])
def test_bgr_checkpoint_without_the_flag_is_refused(config_file, shapes, pth, tmp_path, key):
    tensors = source_tensors(shapes, mmdet_retinanet.table(), {})
    meta = {key: "img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], to_rgb = False)"}
    path = pth.write_state_dict(tmp_path / "caffe.pth", tensors, meta=meta)
    assert "convert it with --bgr" in refused(config_file, path, tmp_path / "weights")
    run(config_file, path, tmp_path / "weights", "--bgr", "--config.model.style=caffe")


def test_command_line_prints_one_sentence_and_exits_with_2(config_file, repository, tmp_path):
    command = [sys.executable, "-m", "converters.convert", "--config", str(config_file)]
    command += ["--input", str(tmp_path / "absent.pth"), "--output", str(tmp_path / "weights")]
    for more in ([], ["--source", "keras"]):
        done = subprocess.run(
            [*command, *more], cwd=repository, check=False, capture_output=True, text=True
        )
        assert done.returncode == 2 and not done.stdout and "Traceback" not in done.stderr
        assert ("invalid choice: 'keras'" if more else "error: ") in done.stderr


def test_source_can_name_the_family_of_every_source():
    assert {source.family for source in named.SOURCES} | {"darknet"} == {*families.NAMES}
