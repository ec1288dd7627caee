"""Every experiment that ships: it loads, builds its detector, and has no key of its own."""

import importlib
import inspect
import pathlib
import re

import jax
import pytest

from detlab import checkpoint
from detlab import checks
from detlab import config as config_lib
from detlab import detector as detector_lib
from detlab import optim
from detlab import programs
from experiments import common


def variants(name):
    """The empty variant and those that the experiment names when it refuses another."""
    get_config = importlib.import_module(f"experiments.{name}").get_config
    if not inspect.signature(get_config).parameters:
        return [""]
    with pytest.raises(ValueError) as caught:
        get_config("no such variant")
    known = re.findall(r"'(\w+)'", str(caught.value))
    assert known, f"{name} must name its variants: {caught.value}"
    return ["", *known]


EXPERIMENTS = [
    f"{name}:{variant}" if variant else name
    for name in config_lib.shipped()
    for variant in variants(name)
]


def keys(config, prefix=""):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def abstract_model(config):
    detector = detector_lib.build(config)
    params, state = jax.eval_shape(
        detector.init, jax.random.key(0), programs.example_images(config)
    )
    return detector, params, state


def test_every_file_ships_and_variants_are_found(repository):
    files = {p.stem for p in (repository / "experiments").glob("*.py")}
    assert set(config_lib.shipped()) == files - {"__init__", "common"}
    assert {"retinanet_voc", "retinanet_voc:scratch", "retinanet_shapes"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_has_exactly_the_keys_of_base_with_values_of_their_types(name):
    config = config_lib.load(name)
    base = common.base(config.detector)
    assert config.keys() == base.keys()
    for group in set(config) - {"model"}:
        ours, theirs = config[group], base[group]
        assert type(ours) is type(theirs), group
        if hasattr(theirs, "items"):
            assert set(keys(ours)) == set(keys(theirs)), group
            for key in theirs:
                same = type(ours[key]) is type(theirs[key])
                assert same, key


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_keeps_the_rules_of_every_key_also_when_read_back(name):
    config = config_lib.load(name)
    checks.check_config(config)
    checks.check_config(config_lib.from_json(config_lib.to_json(config)))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_is_locked_but_for_its_model(name):
    config = config_lib.load(name)
    groups = [config, config.data, config.train, config.optim, config.eval]
    assert all(group.is_locked for group in groups) and not config.model.is_locked


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_builds_its_detector_and_optimizer(name):
    config = config_lib.load(name)
    detector, params, state = abstract_model(config)
    assert sum(x.size for x in jax.tree.leaves(params)) > 1e6
    built = optim.build(
        config.optim,
        params,
        total_steps=100_000,
        batch_size=config.train.batch_size,
        steps_per_unit=1000,
        frozen=detector.frozen,
    )
    assert set(jax.tree.leaves(built.labels)) <= {"train", "frozen"}
    assert float(built.schedule(config.optim.warmup_steps)) > 0
    paths = checkpoint.flat_paths(params, state)
    for pattern in detector.frozen:
        assert any(re.fullmatch(pattern, p) for p in paths), pattern
    for pattern in config.init_skip:
        assert any(re.fullmatch(pattern, p) for p in paths), pattern


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_leaves_that_never_change_come_from_a_file(name):
    config = config_lib.load(name)
    frozen = detector_lib.build(config).frozen
    assert bool(config.init_from) == bool(frozen)
    assert bool(config.init_from) == bool(config.init_help)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_survives_json(name):
    config = config_lib.load(name)
    back = config_lib.from_json(config_lib.to_json(config))
    assert back.to_dict() == config.to_dict()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_schedule_and_length_fit_together(name):
    config = config_lib.load(name)
    assert bool(config.train.epochs) != bool(config.train.steps)
    length = config.train.epochs or config.train.steps
    if config.optim.schedule == "step":
        assert list(config.optim.milestones) == sorted(config.optim.milestones)
        assert all(0 < m < length for m in config.optim.milestones)


def test_help_for_missing_weights_names_experiments_that_exist(repository):
    for name in EXPERIMENTS:
        text = config_lib.load(name).init_help
        for path in re.findall(r"experiments/\w+\.py", text):
            assert pathlib.Path(repository, path).is_file()
        for scratch in re.findall(r"--config (\S+?)[`]", text):
            assert not config_lib.load(scratch).init_from
