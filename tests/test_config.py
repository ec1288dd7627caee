"""Config files, overrides from the command line, and the error sentences for mistakes."""

import os
import sys

import ml_collections
import pytest

from detlab import config as config_lib
from detlab import errors
from detlab.experiments import common


def example():
    return ml_collections.ConfigDict(
        dict(
            detector="retinanet",
            resume=False,
            optim=dict(lr=0.01, steps=100, milestones=(8, 11), name="sgd"),
            data=dict(
                canvases=((128, 128),),
                class_names=(),
                train_splits=("train",),
                size_limits=(),
                limit=None,
            ),
        )
    )


def write(path, text):
    path.write_text(text)
    return str(path)


# Overrides


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("optim.lr", "0.005", 0.005),
        ("optim.lr", "1e-3", 1e-3),
        ("optim.lr", "1", 1.0),
        ("optim.steps", "250", 250),
        ("optim.steps", "-1", -1),
        ("optim.name", "adamw", "adamw"),
        ("optim.name", "3", "3"),
        ("optim.name", "None", "None"),
        ("optim.name", "", ""),
        ("optim.name", "a=b", "a=b"),
        ("resume", "True", True),
        ("resume", "true", True),
        ("resume", "false", False),
        ("optim.milestones", "(16, 22)", (16, 22)),
        ("optim.milestones", "[16, 22]", (16, 22)),
        ("optim.milestones", "16,", (16,)),
        ("optim.milestones", "()", ()),
        ("data.canvases", "((800, 1344), (1344, 800))", ((800, 1344), (1344, 800))),
        ("data.class_names", "('cat', 'dog')", ("cat", "dog")),
        ("data.class_names", "cat,kitten", ("cat", "kitten")),
        ("data.class_names", "traffic light, cat", ("traffic light", "cat")),
        ("data.class_names", "cat", ("cat",)),
        ("data.class_names", "cat,", ("cat",)),
        ("data.train_splits", "2007_trainval,2012_trainval", ("2007_trainval", "2012_trainval")),
        ("data.train_splits", "7,12", ("7", "12")),  # a tuple of text stays one
        ("data.size_limits", "1333,800", (1333, 800)),
        ("data.limit", "5", 5),
        ("data.limit", "0.5", 0.5),
        ("data.limit", "None", None),
        ("data.limit", "none", None),
        ("data.limit", "some text", "some text"),
    ],
)
def test_an_override_is_read_by_the_type_of_the_present_value(key, text, value):
    config = example()
    config_lib.override(config, key, text)
    node = config
    for part in key.split("."):
        node = node[part]
    assert node == value and type(node) is type(value)


@pytest.mark.parametrize(
    "key, text, kind",
    [
        ("optim.lr", "fast", "float"),
        ("optim.lr", "True", "float"),
        ("optim.lr", "", "float"),
        ("optim.steps", "2.5", "int"),
        ("optim.steps", "True", "int"),
        ("optim.steps", "None", "int"),
        ("resume", "1", "bool"),
        ("resume", "yes", "bool"),
        ("optim.milestones", "8", "tuple"),
        ("optim.milestones", "{8: 1}", "tuple"),
        ("data.canvases", "800x1344", "tuple"),
    ],
)
def test_a_value_of_another_type_is_refused_and_the_config_stays(key, text, kind):
    config = example()
    with pytest.raises(errors.UserError) as caught:
        config_lib.override(config, key, text)
    message = str(caught.value)
    assert message.startswith(f"config.{key} is {kind} (") and f"{text!r} is not one" in message
    assert config == example()


@pytest.mark.parametrize(
    "key, text, hint",
    [
        ("data.class_names", "('RBC')", "Write ('RBC',)."),
        ("data.class_names", "('RBC'", "It is written like a,b."),
        ("data.class_names", "RBC,,WBC", "It is written like a,b."),
        ("data.class_names", "", "It is written like a,b."),
        ("optim.milestones", "8", "Write (8,)."),
        ("optim.milestones", "(8, 11", "It is written like (8, 11)."),
        ("optim.milestones", "eight", "It is written like (8, 11)."),
        ("data.canvases", "((64,64)", "It is written like ((128, 128),)."),
        ("data.canvases", "800x1344", "It is written like ((128, 128),)."),
    ],
)
def test_a_refused_tuple_shows_how_it_is_written(key, text, hint):
    with pytest.raises(errors.UserError) as caught:
        config_lib.override(example(), key, text)
    assert str(caught.value).endswith(f"{text!r} is not one. {hint}")


@pytest.mark.parametrize(
    "key, sentence",
    [
        ("optim.lrr", "unknown key config.optim.lrr: no 'lrr', did you mean 'lr'?"),
        ("optin.lr", "unknown key config.optin.lr: no 'optin', did you mean 'optim'?"),
        (
            "optim.xyz",
            "unknown key config.optim.xyz: no 'xyz', choose from: lr, milestones, name, steps.",
        ),
        (
            "optim.lr.decay",
            "config.optim.lr is a value and has no keys; config.optim.lr.decay cannot be set.",
        ),
        (
            "optim",
            "config.optim is a group; set one of its keys: config.optim.lr,"
            " config.optim.milestones, config.optim.name, config.optim.steps.",
        ),
    ],
)
def test_a_key_that_cannot_be_set_is_named_with_what_can(key, sentence):
    config = example()
    with pytest.raises(errors.UserError) as caught:
        config_lib.override(config, key, "1")
    assert str(caught.value) == sentence
    assert config == example()


# ------------------------------------------------------------------------------------------------
# Files


SIMPLE = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(dict(lr=0.1, name="simple"))
"""

VARIANTS = """
from ml_collections import ConfigDict

def get_config(variant=""):
    if variant not in ("", "small"):
        raise ValueError(f"variant {variant!r} is unknown; there is 'small'.")
    return ConfigDict(dict(width=8 if variant == "small" else 64))
"""


def test_a_path_is_loaded_and_overridden(tmp_path):
    path = write(tmp_path / "simple.py", SIMPLE)
    assert config_lib.load(path).lr == 0.1
    assert config_lib.load(path, {"lr": "3", "name": "other"}).to_dict() == {
        "lr": 3.0,
        "name": "other",
    }


def test_a_variant_follows_the_name(tmp_path):
    path = write(tmp_path / "sizes.py", VARIANTS)
    assert config_lib.load(path).width == 64
    assert config_lib.load(f"{path}:small").width == 8
    with pytest.raises(errors.UserError, match="sizes.py: variant 'big' is unknown"):
        config_lib.load(f"{path}:big")


def test_a_file_that_lists_its_variants_is_asked_for_no_other(tmp_path):
    text = VARIANTS.replace("    if ", '    if variant == "big":\n        return None\n    if ')
    path = write(tmp_path / "sizes.py", 'VARIANTS = ("", "small")\n' + text)
    assert config_lib.variants(path) == ["small"]
    assert config_lib.load(f"{path}:small").width == 8
    with pytest.raises(errors.UserError, match="variant 'big' is unknown; choose from: 'small'"):
        config_lib.load(f"{path}:big")
    with pytest.raises(errors.UserError, match="'smal' is unknown; did you mean 'small'?"):
        config_lib.load(f"{path}:smal")
    assert config_lib.variants(write(tmp_path / "one.py", SIMPLE)) == []


@pytest.mark.parametrize("listed", ["3", "'small'", "(1, 2)"])
def test_variants_that_are_no_strings_are_told_with_the_file(listed, tmp_path):
    path = write(tmp_path / "sizes.py", f"VARIANTS = {listed}\n" + VARIANTS)
    with pytest.raises(errors.UserError, match=r"sizes.py: VARIANTS is .*; it must be a tuple of"):
        config_lib.load(f"{path}:small")


def test_a_file_without_variants_refuses_one(tmp_path):
    path = write(tmp_path / "simple.py", SIMPLE)
    with pytest.raises(errors.UserError, match="has no variants; remove ':small'"):
        config_lib.load(f"{path}:small")


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("import not_a_module_of_anyone", "fails on import: ModuleNotFoundError: No module named"),
        ("def get_config(:", "fails on import: SyntaxError"),
        ("1 / 0", "fails on import: ZeroDivisionError: division by zero"),
        ("config = 3", "has no function get_config(); define one"),
        ("def get_config(): return {'lr': 1}", "must return an ml_collections ConfigDict"),
        ("\n\ndef get_config(): return {}['lr']", "broken.py, line 3: KeyError: 'lr'"),
        ("def get_config(): pass", "must return an ml_collections ConfigDict"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, text, sentence):
    path = write(tmp_path / "broken.py", text)
    with pytest.raises(errors.UserError) as caught:
        config_lib.load(path)
    assert sentence in str(caught.value) and path in str(caught.value)


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("config.optim.update(lrr=3)", "unknown key 'lrr'. Did you mean 'lr'?"),
        ("config.data.max_boxs = 3", "unknown key 'max_boxs'. Did you mean 'max_boxes'?"),
        ("config.trian = 3", "unknown key 'trian'. Did you mean 'train'?"),
        ("config.trian.steps = 3", "unknown key 'trian'. Did you mean 'train'?"),
        ("config.modle = ConfigDict()", "unknown key 'modle'. Did you mean 'model'?"),
        ("config.eval.zzz = 3", "unknown key 'zzz'."),
        ("config.data.max_boxes = 'few'", "TypeError: Could not override field 'max_boxes'"),
        ("config.oops()", "unknown key 'oops'."),
        ("common.bsae()", "AttributeError: module 'detlab.experiments.common' has no attribute"),
    ],
)
def test_a_mistake_in_a_config_file_is_named_with_its_line(tmp_path, line, sentence):
    path = write(
        tmp_path / "mine.py",
        f"""
from detlab.experiments import common
from ml_collections import ConfigDict

def get_config():
    config = common.base("retinanet")
    {line}
    return config
""",
    )
    with pytest.raises(errors.UserError) as caught:
        config_lib.load(path)
    assert str(caught.value).startswith(f"config file {path}, line 7: {sentence}")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_python_is_refused(tmp_path):
    path = write(tmp_path / "config.json", "{}")
    with pytest.raises(errors.UserError, match="config.json is not a Python file"):
        config_lib.load(path)


def test_a_missing_file_lists_what_ships_and_the_nearest_name(tmp_path):
    with pytest.raises(errors.UserError) as caught:
        config_lib.load("retinanet_cocoo")
    message = str(caught.value)
    assert "retinanet_cocoo is neither a config file nor a shipped experiment" in message
    assert "Did you mean retinanet_coco?" in message
    assert ", ".join(config_lib.shipped()) in message
    with pytest.raises(errors.UserError, match="Shipped experiments: ") as caught:
        config_lib.load(str(tmp_path / "zzz.py"))
    assert "Did you mean" not in str(caught.value)


FORMER = """
from experiments import common, retinanet_shapes
import experiments.recipes.small as small
from detlab.experiments import common as shipped
from detlab.experiments.recipes import small as shipped_small


def get_config():
    from experiments import fcos_shapes

    assert common is shipped and small is shipped_small
    return retinanet_shapes.get_config()
"""


@pytest.fixture
def experiments_not_imported():
    """The state of a new process; modules that a test imports under this name are removed."""

    def taken_out():
        names = [name for name in sys.modules if name.partition(".")[0] == "experiments"]
        return {name: sys.modules.pop(name) for name in names}

    before = taken_out()
    yield
    taken_out()
    sys.modules.update(before)


@pytest.mark.usefixtures("experiments_not_imported")
def test_configs_that_import_experiments_get_the_modules_of_the_package(tmp_path):
    (tmp_path / "mine.py").write_text(FORMER)
    assert config_lib.load(str(tmp_path / "mine.py")).detector == "retinanet"


@pytest.mark.usefixtures("experiments_not_imported")
def test_a_package_of_the_users_own_called_experiments_stays_theirs(tmp_path, monkeypatch):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").touch()
    (tmp_path / "experiments" / "mine.py").write_text("DEPTH = 34\n")
    (tmp_path / "config.py").write_text(
        "from experiments import mine\nfrom detlab.experiments import retinanet_shapes\n"
        "def get_config():\n    config = retinanet_shapes.get_config()\n"
        "    config.model.depth = mine.DEPTH\n    return config\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert config_lib.load(str(tmp_path / "config.py")).model.depth == 34


def test_shipped_names_are_experiments_and_not_their_helpers():
    names = config_lib.shipped()
    assert "retinanet_voc" in names and names == sorted(names)
    assert not {"common", "__init__", "recipes", "yolov5"} & set(names)


@pytest.mark.parametrize(
    "name",
    [
        "retinanet_shapes",
        "experiments/retinanet_shapes.py",
        "retinanet_shapes.py",
    ],
)
def test_a_shipped_experiment_is_found_from_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert not os.path.exists(name)
    assert config_lib.load(name, {"seed": "7"}).seed == 7


def test_a_field_that_the_experiment_does_not_list_can_be_set_in_its_model_only():
    assert config_lib.load("retinanet_shapes", {"model.nms_iou": "0.6"}).model.nms_iou == 0.6
    with pytest.raises(errors.UserError, match="unknown key config.eval.nms_iou"):
        config_lib.load("retinanet_shapes", {"eval.nms_iou": "0.6"})


def test_a_file_of_the_same_name_comes_before_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "retinanet_shapes.py", SIMPLE)
    assert config_lib.load("retinanet_shapes.py").name == "simple"


def test_a_missing_path_is_not_replaced_by_a_shipped_experiment(tmp_path):
    with pytest.raises(errors.UserError, match="mine/retinanet_shapes.py is neither a config file"):
        config_lib.load(str(tmp_path / "mine" / "retinanet_shapes.py"))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("experiments/retinanet_voc.py", "retinanet_voc"),
        ("retinanet_voc:scratch", "retinanet_voc_scratch"),
    ],
)
def test_a_run_is_named_after_file_and_variant(name, expected):
    assert config_lib.stem(name) == expected


# JSON


def test_json_and_back_keeps_tuples_nones_and_groups():
    config = example()
    for block, keys in config_lib.LATER.items():
        config[block] = {**config.get(block, {}), **keys}
    values = config_lib.to_json(config)
    assert values["data"]["canvases"] == [[128, 128]]
    back = config_lib.from_json(values)
    assert back.to_dict() == config.to_dict()
    assert back.data.canvases == ((128, 128),) and back.data.class_names == ()
    config_lib.override(back, "optim.milestones", "(1, 2)")  # works like the config of the file
    assert back.optim.milestones == (1, 2)


def test_a_config_older_than_a_key_has_what_was_done_then():
    values = config_lib.to_json(common.base("retinanet"))
    values["data"]["rounding"] = "down"
    del values["data"]["demo_rounding"], values["data"]["eval_shrink"], values["data"]["exif"]
    del values["predict"], values["eval"]["rectangles"]
    config = config_lib.from_json(values)
    assert (config.data.rounding, config.data.demo_rounding) == ("down", "half_up")
    assert config.data.eval_shrink == "linear" and config.data.exif == "auto"
    assert "eval_shrink" not in values["data"] and config.eval.views == ("image",)
    assert config.data.keys() == common.base("retinanet").data.keys()
    assert config.predict.to_dict() == common.base("retinanet").predict.to_dict()
    assert config.eval.rectangles == 0 and "predict" not in values


def test_the_mirror_image_of_an_older_cornernet_is_a_view():
    values = config_lib.to_json(common.base("cornernet"))
    del values["eval"]["views"]
    for flip_test, views in ((True, ("image", "mirror")), (False, ("image",))):
        config = config_lib.from_json({**values, "model": {"flip_test": flip_test}})
        assert config.eval.views == views and not config.model


def test_differences_name_changed_and_absent_keys_with_both_values():
    old = config_lib.to_json(example())
    changed = example()
    changed.optim.lr = 0.02
    changed.data.unlock()
    changed.data.extra = 1
    assert config_lib.differences(old, old) == {}
    found = config_lib.differences(old, config_lib.to_json(changed))
    assert list(found.items()) == [("data.extra", ("absent", 1)), ("optim.lr", (0.01, 0.02))]
