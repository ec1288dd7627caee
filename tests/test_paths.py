"""Paths with `~` and environment variables, in flags and in configs."""

import argparse
import pwd

import pytest

from detlab import cli, errors, paths
from detlab import config as config_lib
from detlab.converters import flags


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("GONE", "")
    monkeypatch.delenv("GONE")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "text, path",
    [
        ("~/run", "/home/ada/run"),
        ("~", "/home/ada"),
        ("~root/x", f"{pwd.getpwnam('root').pw_dir}/x"),
        ("$DATA/coco", "/data/coco"),
        ("${DATA}set", "/dataset"),
        ("~/$DATA", "/home/ada//data"),
        ("a/~/b", "a/~/b"),
        ("photo~1.jpg", "photo~1.jpg"),
        ("costs$1.jpg", "costs$1.jpg"),
        ("~/photos/*.jpg", "/home/ada/photos/*.jpg"),
        ("https://x.org/~ada/$DATA.pth", "https://x.org/~ada/$DATA.pth"),
        ("", ""),
    ],
)
def test_home_and_variables_are_replaced_as_a_shell_would(text, path):
    assert paths.expand(text) == path


def test_a_file_that_has_just_that_name_is_kept(tmp_path):
    for name in ("$GONE", "~backup.jpg", "$DATA"):
        (tmp_path / name).touch()
        assert paths.expand(name) == name
    (tmp_path / "~").mkdir()  # left by a program that does not expand it
    assert paths.expand("~/run") == "/home/ada/run"


@pytest.mark.parametrize(
    "text, sentence",
    [
        (
            "$GONE/run",
            "the path $GONE/run has the environment variable GONE, which is not set; set it, or"
            " write the path out.",
        ),
        ("${GONE}/run", "the path ${GONE}/run has the environment variable GONE, which is not set"),
        (
            "~nobody-here/run",
            "the path ~nobody-here/run begins with ~nobody-here, but there is no user nobody-here;"
            " write the path out, or ./~nobody-here/run for a file or folder of that name.",
        ),
    ],
)
def test_what_cannot_be_replaced_is_a_sentence(text, sentence):
    with pytest.raises(errors.UserError) as error:
        paths.expand(text)
    assert str(error.value).startswith(sentence)


PARSERS = {
    "train": (cli.train, "config workdir draw", []),
    "eval": (cli.evaluation, "config workdir checkpoint predictions json draw", []),
    "demo": (cli.demo, "config workdir checkpoint input output", ["--input=x", "--output=x"]),
    "convert": (flags.convert, "config input output checkpoint inspect cfg names", []),
    "fit_anchors": (cli.fit_anchors, "config output", []),
}


@pytest.mark.parametrize(
    "program, flag", [(name, flag) for name, (_, of, _) in PARSERS.items() for flag in of.split()]
)
@pytest.mark.parametrize("form", ["--{}=~/x", "--{} ~/x", "--{}=$HOME/x"])
def test_every_path_flag_is_expanded(program, flag, form):
    parser, _, needed = PARSERS[program]
    words = [] if flag == "config" else ["--config=x"]
    args, _ = cli.parse([*words, *needed, *form.format(flag).split()], parser("doc"))
    assert str(getattr(args, flag)) == "/home/ada/x"


@pytest.mark.parametrize("key", ["init_from", *(f"data.{key}" for key in config_lib.PATHS)])
def test_every_path_key_is_expanded(key):
    config = config_lib.load("retinanet_coco", {key: "~/x"})
    assert config_lib.to_json(config) == config_lib.to_json(
        config_lib.load("retinanet_coco", {key: "/home/ada/x"})
    )


def test_paths_of_a_config_file_are_expanded_too(tmp_path):
    text = """
from detlab.experiments import common


def get_config():
    config = common.base("retinanet")
    config.data.root = "$DATA/voc"
    config.data.train_also = ({"root": "~/more", "class_names": ("$x",)},)
    return config
"""
    (tmp_path / "mine.py").write_text(text)
    data = config_lib.load("mine.py").data
    assert data.root == "/data/voc"
    assert data.train_also == ({"root": "/home/ada/more", "class_names": ("$x",)},)


def test_a_flag_of_a_benchmark_is_a_path():
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=paths.path)
    assert str(parser.parse_args(["--output=~/x.json"]).output) == "/home/ada/x.json"
