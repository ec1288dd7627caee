"""YOLOv5's files: how their network is found, and conversion to a weights folder and back."""

import json
import types

import jax
import numpy as np
import pytest
import tables

from detlab import config as config_lib
from detlab import contract, errors
from detlab.converters import convert, mapping, named, sources, target
from detlab.converters.families import yolov5 as family
from detlab.converters.readers import contents, torch_file
from detlab.converters.tables import yolov5
from detlab.run import checkpoint

NETWORK = ("block", "activation", "stem", "pool", "pool_size", "repeats", "neck_repeats")
SIZES = ("depth_multiple", "width_multiple", "anchor_sizes")
EVERY = (*NETWORK, *SIZES)


def state_dict(config):
    """Names and arrays, all zeros, that a file of the network would have."""
    shapes = target.shapes(config)
    leaves = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    return mapping.reverse(leaves, yolov5.table(config.model)) | yolov5.buffers(config.model)


def file_of(tensors, activation=None, **pooling):
    modules = {"model.1.act": {"class": f"torch.nn.modules.activation.{activation}"}}
    modules |= {path: {"kernel_size": size} for path, size in pooling.items()}
    return contents.Contents("made", tensors, None, {}, modules if activation else {})


def fields_of(config):
    return {name: contract.field(config, name) for name in EVERY}


VARIANTS = {  # variant of yolov5_coco -> class of its activation
    "n": "SiLU",
    "s_v3": "Hardswish",
    "s6_v5": "SiLU",
}


@pytest.fixture(scope="module")
def published():
    """Variant -> (config, tensors)."""
    configs = {v: config_lib.load(f"yolov5_coco:{v}") for v in VARIANTS}
    return {v: (config, state_dict(config)) for v, config in configs.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_network_is_found_from_names_and_shapes(published, variant):
    config, tensors = published[variant]
    found = yolov5.fields(file_of(tensors))
    assert {**found.certain, **found.assumed}.items() >= fields_of(config).items()
    assert set(found.assumed) - {"level_balance"} == {"activation", "pool_size"}
    assert found.num_classes == 80
    (source,) = sources.fitting(named.SOURCES, tensors)
    assert source.description.endswith("release 3" if variant == "s_v3" else "releases 4 to 7")


def test_activation_and_window_are_those_of_the_modules(published):
    """The git tag v3.0 has leaky ReLUs, but the names and shapes of release 3.0."""
    _, tensors = published["s_v3"]
    found = yolov5.fields(file_of(tensors, "LeakyReLU", **{"model.8.m.0": 5}))
    assert found.certain["activation"] == "leaky_relu" and found.certain["pool_size"] == 5
    assert not found.assumed
    _, tensors = published["n"]
    found = yolov5.fields(file_of(tensors, "SiLU", **{"model.9.m": 7}))
    assert found.certain["pool_size"] == 7 and not found.assumed


def test_a_size_of_its_own_is_found_block_by_block(published):
    config = config_lib.load("experiments/yolov5_coco.py:n")
    config.model.update(width_multiple=0.125, repeats=(1, 2, 4, 1), neck_repeats=2)
    config.model.update(depth_multiple=1.0, num_classes=2)
    config.model.anchor_sizes = (((4.5, 6.0),) * 2, ((20, 30),) * 2, ((70, 80),) * 2)
    found = yolov5.fields(file_of(state_dict(config), "SiLU"))
    expected = fields_of(config)
    assert {name: found.certain[name] for name in SIZES} == {n: expected[n] for n in SIZES}
    assert found.certain["repeats"] == (1, 2, 4, 1) and found.certain["neck_repeats"] == 2
    assert found.num_classes == 2, "with two anchors a cell"


def test_other_files_of_the_family_are_refused_with_a_reason(published):
    _, tensors = published["n"]

    def refused(match, activation=None, modules=(), **changes):
        file = file_of(
            {k: v for k, v in {**tensors, **changes}.items() if v is not None}, activation
        )
        file.modules.update(modules)
        with pytest.raises(errors.UserError, match=match):
            yolov5.fields(file)

    one = np.zeros(1, np.float32)
    refused("norms are fused", **{"model.1.conv.bias": one})
    refused("another task", **{"model.24.proto.cv1.conv.weight": one})
    refused("another task", **{"model.24.m.0.bias": None})
    refused("activation is Mish, but detlab supports only SiLU", "Mish")
    refused("epsilon 1e-05", "SiLU", {"model.1.bn": {"eps": 1e-5}})
    refused("64, 60, 256 channels", **{"model.5.conv.weight": np.zeros((60, 64, 3, 3), np.float32)})
    refused("blocks are not those", **{"model.13.m.0.cv1.conv.weight": None})


def test_tables_fill_every_leaf_and_run_backwards():
    """On a small network of each layout, with random values in all leaves."""
    three, four = config_lib.load("yolov5_coco:s_v3"), config_lib.load("yolov5_coco:s6_v5")
    late = config_lib.load("yolov5_coco")
    rng = np.random.default_rng(0)
    for config in (three, four, late):
        config.model.update(width_multiple=0.0625, neck_repeats=1)
        config.model.repeats = (1,) * (5 if config is four else 4)
        shapes = target.shapes(config)
        leaves = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
        table = yolov5.table(config.model)
        tensors = mapping.reverse(leaves, table) | yolov5.buffers(config.model)
        tree, report = mapping.convert(tensors, table, shapes)
        back = mapping.flatten(tree)
        assert back.keys() == leaves.keys()
        assert all((back[path] == leaves[path]).all() for path in leaves)
        dropped = {row.source.rpartition(".")[2] for row in report if row.status != "matched"}
        assert dropped == {"anchors"} | ({"anchor_grid"} if config is not late else set())
        tree, _ = mapping.convert(tensors, table, shapes, reset_classes=True)
        anew = leaves.keys() - mapping.flatten(tree).keys()
        assert {path.split("/")[2][:7] for path in anew} == {"predict"}


@pytest.fixture(scope="module")
def folder(shared_dir, tmp_path_factory):
    """The published YOLOv5n, converted with the config of size s."""
    folder = tmp_path_factory.mktemp("weights") / "yolov5n"
    convert.main(
        [
            *("--source", "yolov5", "--config", "experiments/yolov5_coco.py"),
            *("--input", str(shared_dir / "weights" / "yolov5n-v6.pt"), "--output", str(folder)),
        ]
    )
    return folder


def test_a_published_file_says_its_size_and_brings_its_classes(folder):
    weights = checkpoint.load_weights(folder)
    config = config_lib.from_json(weights.info["config"])
    assert fields_of(config) == fields_of(config_lib.load("experiments/yolov5_coco.py:n"))
    assert weights.info["class_names"][:2] == ["person", "bicycle"]
    report = json.loads((folder / "report.json").read_text())
    assert sum(row["status"] == "matched" for row in report["rows"]) == 291


def test_blood_cells_start_from_it_without_its_predictors(folder):
    """80 classes there and 3 here, in a network with the same anchors."""
    config = config_lib.load("yolov5_bccd")
    predictors = {p for p in target.shapes(config) if p.startswith("params/head/predict")}
    assert set(tables.start(folder, config).initialised) == predictors


def test_a_folder_goes_back_to_the_tensors_that_it_came_from(folder, shared_dir, tmp_path, capsys):
    path = tmp_path / "back.pt"
    convert.main(["--reverse", "--input", str(folder), "--output", str(path)])
    assert "292 tensors" in capsys.readouterr().out
    back = torch_file.read(path).tensors
    with np.load(shared_dir / "weights" / "yolov5n-v6.npz") as original:
        counters = {name for name in original if name.endswith("num_batches_tracked")}
        assert back.keys() == set(original) - counters
        for name in back:
            assert back[name].dtype == np.float32
            np.testing.assert_array_equal(back[name], original[name].astype(np.float32))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (("--config.model.num_classes=3",), "predicts 80 classes, but .*num_classes is 3; add"),
        (
            ("--config.model.width_multiple=0.5",),
            "width_multiple is 0.5, but .* has 0.25; remove the flag",
        ),
        (("--bgr",), "remove --bgr: a YOLOv5 of releases 4 to 7 takes RGB images"),
    ],
)
def test_a_contradiction_is_told(shared_dir, tmp_path, arguments, sentence):
    file = str(shared_dir / "weights" / "yolov5n-v6.npz")
    flags = ["--config", "yolov5_coco", "--input", file, "--output", str(tmp_path / "out")]
    with pytest.raises(errors.UserError, match=sentence):
        convert.main([*flags, *arguments])


def test_the_activation_of_a_state_dict_is_assumed_unless_it_is_said(shared_dir, capsys):
    config = config_lib.load("yolov5_coco")
    file = contents.Contents("npz", {}, None, {})
    with np.load(shared_dir / "weights" / "yolov5n-v6.npz") as arrays:
        file = file._replace(tensors=dict(arrays))
    flags = types.SimpleNamespace(reset_classes=False, follow_classes=False)
    family.fill_in("a.npz", file, config, flags, {})
    assert "assumed, as a.npz does not contain it: activation 'silu', pool_size 5" in (
        capsys.readouterr().out
    )
    config.model.activation = "hard_swish"
    family.fill_in("a.npz", file, config, flags, {"model.activation": "hard_swish"})
    assert config.model.activation == "hard_swish" and config.model.width_multiple == 0.25


@pytest.mark.parametrize(
    "fields, overrides, expected",
    [
        ({}, {}, (32, 32)),
        (dict(block="csp"), {}, (32, 64)),  # release 3.0
        (dict(repeats=(3, 6, 9, 3, 3)), {}, (64, 64)),
        (dict(repeats=(3, 6, 9, 3, 3)), {"predict.rectangles": "128"}, (64, 128)),
        ({}, {"eval.rectangles": "0"}, (0, 32)),
        (dict(block="csp"), {"eval.rectangles": "0", "predict.rectangles": "0"}, (0, 0)),
    ],
)
def test_letterboxes_are_those_of_the_network_in_the_file(fields, overrides, expected):
    config = config_lib.load("yolov5_coco", overrides)
    config.model.update(fields)
    family._set_rectangles(config, overrides)
    assert (config.eval.rectangles, config.predict.rectangles) == expected


def test_modules_of_a_pickled_model_are_told(shared_dir):
    modules = torch_file.read(shared_dir / "weights" / "yolov5n-v6.pt").modules
    assert modules["model.1.act"]["class"] == "torch.nn.modules.activation.SiLU"
    assert modules["model.9.m"]["kernel_size"] == 5 and modules["model.1.bn"]["eps"] == 1e-3
    assert json.loads(json.dumps(modules)) == modules, "JSON-compatible, without tensors"
    assert jax.tree.leaves(modules["model.24"])
