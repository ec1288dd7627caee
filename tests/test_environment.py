"""The environment in bug reports and runs: correct, complete, and without private names."""

import configparser
import json
import os
import pathlib
import platform
import re

import jax
import pytest
from ml_collections import ConfigDict

import detlab
from detlab import config as config_lib
from detlab import environment, errors


def test_describe_is_plain_json_with_versions_devices_cache_and_hash():
    config = config_lib.load("retinanet_shapes")
    found = environment.describe(config)
    assert json.loads(json.dumps(found)) == found
    assert found["detlab"] == detlab.__version__
    assert found["commit"] is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", found["commit"])
    assert found["packages"]["jax"] == jax.__version__
    assert found["backend"] == jax.default_backend()
    assert found["devices"] == f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    assert found["variables"]["XLA_FLAGS"] == environment.anonymous(os.environ["XLA_FLAGS"])
    cache = found["compilation_cache"]
    assert cache["folder"] == environment.anonymous(jax.config.jax_compilation_cache_dir)
    assert cache["files"] >= 0 and cache["megabytes"] >= 0
    downloads = found["download_cache"]
    assert downloads["folder"].endswith("detlab/downloads") and downloads["files"] >= 0
    assert found["config_hash"] == environment.config_hash(config)
    assert environment.describe()["config_hash"] is None


def test_packages_are_those_that_detlab_requires(repository):
    setup = configparser.ConfigParser()
    setup.read(repository / "setup.cfg")
    required = {re.split("[>=<]", x)[0] for x in setup["options"]["install_requires"].split()}
    assert set(environment.PACKAGES) == required | {"jaxlib"}
    assert None not in environment.describe()["packages"].values()


def test_hash_of_a_config_is_that_of_its_values_in_any_order():
    config = ConfigDict({"b": (1, 2), "a": {"y": None, "x": 0.5}})
    other = ConfigDict({"a": {"x": 0.5, "y": None}, "b": (1, 2)})
    # From sha256 of {"a": {"x": 0.5, "y": null}, "b": [1, 2]}: the same in every process.
    assert environment.config_hash(config) == "a62ccf74e9b0e014"
    assert environment.config_hash(other) == environment.config_hash(config)
    other.a.x = 0.25
    assert environment.config_hash(other) != environment.config_hash(config)


def test_names_of_user_and_host_and_the_home_folder_are_not_told(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("USER", "ada")
    monkeypatch.setattr(platform, "node", lambda: "engine-1")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/home/ada/cache")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "engine-0:1234")
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/scratch/ada/dump --other=/nfs/engine-1/x")
    found = environment.describe()["variables"]
    assert found["JAX_COMPILATION_CACHE_DIR"] == "~/cache"
    assert found["JAX_COORDINATOR_ADDRESS"] == "set"
    assert found["XLA_FLAGS"] == "--xla_dump_to=/scratch/USER/dump --other=/nfs/HOST/x"
    assert environment.anonymous("/home/adalbert/x ada") == "/home/adalbert/x ada"
    assert str(pathlib.Path.home()) == "/home/ada"


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError])
def test_devices_that_do_not_start_are_said_with_their_error(kind, monkeypatch):
    def no_backend():
        raise kind("Unable to initialize backend 'cuda': no driver\nmore")

    monkeypatch.setattr(jax, "default_backend", no_backend)
    found = environment.describe()
    assert found["backend"] is None
    assert found["devices"] == "Unable to initialize backend 'cuda': no driver"


@pytest.mark.parametrize(
    "platforms, error, sentence",
    [
        (
            "cuda",
            AssertionError(),
            "JAX_PLATFORMS is 'cuda', but jax finds no NVIDIA GPU here (no NVIDIA GPU is visible to"
            " this process; CUDA_VISIBLE_DEVICES is '7'); start on a machine that has one and with"
            " jax's plugin for it, or compute on the CPU with JAX_PLATFORMS=cpu.",
        ),
        (
            "tpu",
            RuntimeError(
                "Unable to initialize backend 'tpu': libtpu is busy (set JAX_PLATFORMS='' to"
                " automatically choose an available backend)"
            ),
            "JAX_PLATFORMS is 'tpu', but jax finds no TPU here (Unable to initialize backend 'tpu':"
            " libtpu is busy); start on a machine that has one and with jax's plugin for it, or"
            " compute on the CPU with JAX_PLATFORMS=cpu.",
        ),
        (
            "gpu",
            RuntimeError("Unable to initialize backend 'cuda': out of memory"),
            "JAX_PLATFORMS is 'gpu', but jax finds no GPU here (Unable to initialize backend"
            " 'cuda': out of memory); start on",
        ),
        (
            "gpu",
            RuntimeError(
                "Unable to initialize backend 'cuda': Backend 'cuda' is not in the list of known"
                " backends: ['cpu', 'tpu']."
            ),
            "JAX_PLATFORMS is 'gpu', but jax finds no GPU here (jax's plugin for it is not"
            " installed); start on",
        ),
        (
            "cpu,tpu",
            RuntimeError("Unable to initialize backend 'tpu': no libtpu"),
            "JAX_PLATFORMS is 'cpu,tpu', but jax finds no TPU here (Unable",
        ),
        (
            "cuda, cpu",
            RuntimeError(
                "Unable to initialize backend ' cpu': Backend ' cpu' is not in the list of known"
                " backends: ['cpu', 'tpu']."
            ),
            "JAX_PLATFORMS is 'cuda, cpu', and jax knows no platform ' cpu' here; it may be unset,",
        ),
        (
            None,
            RuntimeError("Unable to initialize backend 'tpu': libtpu is busy"),
            "jax can start no device (Unable to initialize backend 'tpu': libtpu is busy);"
            " JAX_PLATFORMS=cpu computes on the CPU.",
        ),
    ],
)
def test_a_missing_device_is_one_sentence_with_its_cause(platforms, error, sentence, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", platforms)
    try:
        with pytest.raises(errors.UserError) as caught:
            environment.check_devices()
    finally:
        jax.config.update("jax_platforms", before)
    assert str(caught.value).startswith(sentence)


def test_a_folder_for_compiled_programs_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", "~/xla")
    try:
        environment.use_compilation_cache()
        assert jax.config.jax_compilation_cache_dir == "/home/ada/xla"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    monkeypatch.setenv("XDG_CACHE_HOME", "~/cache")
    assert str(environment.cache_folder("xla")) == "/home/ada/cache/detlab/xla"


def test_a_package_inside_the_repository_of_another_has_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(detlab, "__file__", str(tmp_path / "detlab" / "__init__.py"))
    assert environment.describe()["commit"] is None


@pytest.mark.parametrize("variables", [{}, {"JAX_PLATFORMS": "cpu"}])
def test_text_has_a_line_a_value(variables):
    found = {"python": "3.11.7", "commit": None, "variables": variables, "config_hash": "ab"}
    shown = environment.text(found).splitlines()
    assert shown[0].split() == ["python:", "3.11.7"]
    assert shown[1].split() == ["commit:", "none"]
    assert shown[-1].split() == ["config_hash:", "ab"]
    assert [line.split() for line in shown[2:-1]] == (
        [["variables:"], ["JAX_PLATFORMS", "cpu"]] if variables else [["variables:", "none"]]
    )
