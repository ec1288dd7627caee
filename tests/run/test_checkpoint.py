"""Checkpoints: round trips, which are kept, finding, strict merging, and damage."""

import ast
import gc
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from detlab import errors, types
from detlab.run import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
INFO = {"config": {"detector": "toy", "canvases": [[8, 8]]}, "class_names": ["a", "b"]}


def train_state(step, seed=0, ema=False):
    """A state as in training: an optimizer's named tuples, empty nodes, several dtypes."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "backbone": {"conv": {"kernel": jax.random.normal(keys[0], (3, 3, 2, 4))}},
        "head": {"bias": jax.random.normal(keys[1], (4,)).astype(jnp.bfloat16)},
    }
    state = {"batch_stats": {"backbone": {"norm": {"mean": jax.random.normal(keys[2], (4,))}}}}
    optimizer = optax.partition(
        {
            "train": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
            "frozen": optax.set_to_zero(),
        },
        {"backbone": "train", "head": "frozen"},
    )
    averaged = jax.tree.map(lambda x: x + 1, {"params": params, "state": state}) if ema else None
    return types.TrainState(
        jnp.int32(step), params, state, jax.jit(optimizer.init)(params), averaged
    )


def assert_bit_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Four saved steps, of which two are kept, and a best of step 2; read only."""
    folder = tmp_path_factory.mktemp("run")
    checkpoints = checkpoint.Checkpoints(folder, keep_last=2)
    for step in (1, 2, 3, 4):
        checkpoints.save(train_state(step, seed=step), INFO)
        if step < 3:
            info = {**INFO, "metrics": {"AP": step / 10}}
            checkpoints.save_best(train_state(step, seed=step), info, score=step / 10)
    checkpoints.close()
    return folder


@pytest.fixture
def copied(workdir, tmp_path):
    """A copy of `workdir` to damage."""
    yield shutil.copytree(workdir, tmp_path / "run")
    gc.collect()  # interrupted reads of orbax emit a warning when collected: here, not in a test


def last(folder):
    return folder / "checkpoints" / "4"


@pytest.mark.parametrize("ema", [False, True])
def test_a_training_state_is_restored_bit_for_bit(tmp_path, ema):
    saved = train_state(7, seed=7, ema=ema)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(saved, INFO)
    checkpoints.close()
    again = checkpoint.Checkpoints(tmp_path)
    restored = again.restore(train_state(0, seed=1, ema=ema))
    again.close()
    assert isinstance(restored, types.TrainState)
    assert_bit_equal(restored, saved)
    assert int(restored.step) == 7


def test_whoever_evaluates_reads_the_average_where_there_is_one(tmp_path):
    saved = train_state(7, ema=True)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(saved, INFO)
    checkpoints.save_best(saved, INFO, score=0.5)
    checkpoints.close()
    for which in ("last", "best"):
        weights = checkpoint.load_weights(tmp_path, which)
        assert_bit_equal({"params": weights.params, "state": weights.state}, saved.ema)
    trained = checkpoint.read_arrays(tmp_path / "checkpoints" / "7" / "training")
    assert_bit_equal(trained["params"], saved.params)


@pytest.mark.parametrize("ema", [False, True])
def test_a_checkpoint_of_the_other_kind_of_averaging_is_not_resumed_from(tmp_path, ema):
    """`train` refuses a changed config, so this needs files moved by hand."""
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(train_state(7, ema=ema), INFO)
    checkpoints.wait()
    with pytest.raises(errors.UserError, match="cannot be read"):
        checkpoints.restore(train_state(0, ema=not ema))
    checkpoints.close()


def test_the_last_n_steps_and_the_best_are_kept_apart(workdir):
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["3", "4"]
    assert sorted(p.name for p in (workdir / "best").iterdir()) == ["2"]
    checkpoints = checkpoint.Checkpoints(workdir)
    assert checkpoints.latest_step() == 4
    assert checkpoints.best_score() == 0.2
    assert_bit_equal(checkpoints.restore(train_state(0)), train_state(4, seed=4))
    checkpoints.close()


def test_a_new_workdir_has_neither_steps_nor_a_score(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    assert checkpoints.latest_step() is None and checkpoints.best_score() is None
    checkpoints.close()
    assert checkpoint.latest_step(tmp_path) is None


def test_the_same_step_is_written_once(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(train_state(1, seed=1), INFO)
    checkpoints.save(train_state(1, seed=2), INFO)
    checkpoints.wait()
    assert_bit_equal(checkpoints.restore(train_state(0)), train_state(1, seed=1))
    checkpoints.close()


def test_a_best_is_complete_when_its_score_is_known(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save_best(train_state(3, seed=1), INFO, score=0.5)
    assert checkpoint.find(tmp_path).name == "3"
    assert checkpoints.best_score() == 0.5
    checkpoints.save_best(train_state(3, seed=2), INFO, score=0.6)  # same step: not written again
    assert checkpoints.best_score() == 0.5
    checkpoints.save_best(train_state(4, seed=2), INFO, score=0.7)
    assert checkpoints.best_score() == 0.7
    checkpoints.close()
    assert checkpoint.find(tmp_path).name == "4"


def test_info_is_saved_with_the_step_and_the_metrics(workdir):
    assert checkpoint.load_weights(workdir, "last").info == {**INFO, "step": 4}
    assert checkpoint.load_weights(workdir).info == {
        **INFO,
        "metrics": {"AP": 0.2},
        "score": 0.2,
        "step": 2,
    }


@pytest.mark.parametrize(
    "which, found",
    [
        ("best", "best/2"),
        ("last", "checkpoints/4"),
        ("3", "checkpoints/3"),
        ("2", "best/2"),
    ],
)
def test_find_knows_best_last_and_numbers(workdir, which, found):
    assert checkpoint.find(workdir, which) == workdir / found
    assert checkpoint.find(workdir / found, which) == workdir / found


def test_best_and_last_stand_in_for_each_other(copied):
    shutil.rmtree(copied / "best")
    assert checkpoint.find(copied).name == "4"
    (copied / "checkpoints").rename(copied / "best")
    assert checkpoint.find(copied, "last").name == "4"


def test_an_unfinished_step_is_not_found(copied):
    (copied / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir()
    assert checkpoint.find(copied, "last").name == "4"
    assert checkpoint.latest_step(copied) == 4


@pytest.mark.parametrize("which", ["1", "best2", "-1", ""])
def test_a_missing_step_lists_those_that_exist(workdir, which):
    with pytest.raises(errors.UserError) as caught:
        checkpoint.find(workdir, which)
    assert f"has no checkpoint {which!r}; give best, last, or one of 2, 3, 4." in str(caught.value)


def test_a_path_without_checkpoints_says_what_to_give(tmp_path):
    with pytest.raises(errors.UserError, match="run does not exist; give the workdir of a run"):
        checkpoint.find(tmp_path / "run")
    with pytest.raises(errors.UserError, match="holds no checkpoint; give the workdir of a run"):
        checkpoint.find(tmp_path)


@pytest.mark.parametrize("path", ["", "checkpoints/4"])
def test_weights_are_numpy_arrays_bit_equal_to_the_saved_ones(workdir, path):
    weights = checkpoint.load_weights(workdir / path, "last")
    saved = train_state(4, seed=4)
    assert_bit_equal(weights.params, saved.params)
    assert_bit_equal(weights.state, saved.state)
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(weights.params))
    assert weights.path == last(workdir) and weights.info["step"] == 4


def test_a_weights_folder_holds_part_of_a_tree(tmp_path):
    params = {"backbone": {"conv": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)}}}
    state = {"batch_stats": {"backbone": {"norm": {"var": np.ones(3, np.float32)}}}}
    checkpoint.save_weights(tmp_path / "w", params, state, {"class_names": ["a"]})
    weights = checkpoint.load_weights(tmp_path / "w")
    assert_bit_equal(weights.params, params)
    assert_bit_equal(weights.state, state)
    assert weights.info == {"class_names": ["a"]}


def test_weights_without_state_are_read_as_such(tmp_path):
    params = {"head": {"bias": np.ones(3, np.float32)}}
    checkpoint.save_weights(tmp_path / "w", params, {}, {})
    weights = checkpoint.load_weights(tmp_path / "w")
    assert_bit_equal(weights.params, params)
    assert weights.state == {}


# Merging


def weights_of(params, state=None):
    return checkpoint.Weights(params, state or {}, {}, "weights/toy")


def target():
    params = {
        "backbone": {"kernel": np.zeros((2, 3), np.float32)},
        "head": {"kernel": np.zeros((3, 4), np.float32), "bias": np.zeros(4, np.float32)},
    }
    return params, {"batch_stats": {"backbone": {"mean": np.zeros(3, np.float32)}}}


def source(**head):
    params = {
        "backbone": {"kernel": np.ones((2, 3), np.float64)},
        "head": {"kernel": np.ones((3, 4), np.float32), "bias": np.ones(4, np.float32), **head},
    }
    state = {"batch_stats": {"backbone": {"mean": np.full(3, 2.0, np.float32)}}}
    return weights_of(params, state)


def test_merging_takes_every_leaf_in_the_dtype_of_the_model():
    merged = checkpoint.merge(*target(), source(), skip=())
    ones = jax.tree.map(np.ones_like, target()[0])
    assert_bit_equal(merged.params, ones)
    assert_bit_equal(merged.state["batch_stats"]["backbone"]["mean"], np.full(3, 2.0, np.float32))
    assert set(merged.loaded) == set(checkpoint.flat_paths(*target()))
    assert merged.initialised == ()


def test_skipped_paths_stay_as_initialised_and_are_listed():
    other = source(kernel=np.ones((3, 80), np.float32), extra=np.ones(1, np.float32))
    del other.params["head"]["bias"]
    merged = checkpoint.merge(*target(), other, skip=("params/head/.*",))
    assert_bit_equal(merged.params["head"], target()[0]["head"])
    assert merged.params["backbone"]["kernel"].min() == 1
    assert set(merged.initialised) == {"params/head/kernel", "params/head/bias"}
    assert set(merged.loaded) == {"params/backbone/kernel", "batch_stats/backbone/mean"}


def start(weights, num_classes=4):
    """Merges as training does at its start, without `config.init_skip`."""
    reasons = checkpoint.may_differ(weights, num_classes)
    return checkpoint.merge(*target(), weights, skip=sum(reasons.values(), ()))


def test_a_folder_is_complete_in_the_subtrees_that_it_names_and_nowhere_else():
    backbone = source()
    del backbone.params["head"]
    with pytest.raises(errors.UserError, match="2 not in the file: params/head/kernel"):
        start(backbone)  # without "subtrees", a folder must hold a whole model
    backbone.info["subtrees"] = ["params/backbone", "batch_stats"]
    merged = start(backbone)
    assert set(merged.loaded) == {"params/backbone/kernel", "batch_stats/backbone/mean"}
    assert_bit_equal(merged.params["head"], target()[0]["head"])
    del backbone.state["batch_stats"]
    with pytest.raises(errors.UserError, match="1 not in the file: batch_stats/backbone/mean"):
        start(backbone)
    backbone = source()
    backbone.info["subtrees"] = ["params/backbone", "batch_stats"]
    backbone.params["backbone"]["bias"] = np.ones(3, np.float32)
    with pytest.raises(errors.UserError, match="1 not in the model: params/backbone/bias"):
        start(backbone)


def test_leaves_of_another_number_of_classes_stay_as_initialised():
    other = source(kernel=np.ones((3, 80), np.float32), bias=np.ones(80, np.float32))
    leaves = ["params/head/kernel", "params/head/bias"]
    other.info.update(num_classes=80, class_leaves=leaves)
    assert set(start(other).initialised) == set(leaves)
    with pytest.raises(errors.UserError, match="2 of another shape: params/head/kernel"):
        start(other, num_classes=80)  # another network, not other classes
    other.info["class_leaves"] = leaves[:1]
    with pytest.raises(errors.UserError, match="1 of another shape: params/head/bias"):
        start(other)
    with pytest.raises(errors.UserError, match="give the config.model that they were trained"):
        checkpoint.merge(*target(), other, skip=None)  # as in evaluation


def test_an_old_converted_folder_is_asked_to_be_converted_again():
    old = source()
    del old.params["head"]
    old.info["converted_from"] = {"table": "torchvision ResNet"}
    with pytest.raises(errors.UserError, match="init_skip, or convert the file again"):
        start(old)


def test_a_skip_regex_matches_whole_paths():
    other = source()
    del other.params["head"]["bias"]
    for skip in ("params/head", "head/bias", "bias"):
        with pytest.raises(errors.UserError, match="1 not in the file: params/head/bias"):
            checkpoint.merge(*target(), other, skip=(skip,))


def test_the_whole_difference_is_told_at_once():
    other = source(kernel=np.ones((3, 80), np.float32), extra=np.ones(1, np.float32))
    del other.params["head"]["bias"]
    del other.state["batch_stats"]
    with pytest.raises(errors.UserError) as caught:
        checkpoint.merge(*target(), other, skip=())
    assert str(caught.value) == (
        "weights/toy does not fit the model: 2 not in the file: params/head/bias,"
        " batch_stats/backbone/mean; 1 not in the model: params/head/extra; 1 of another shape:"
        " params/head/kernel: (3, 80) in the file, (3, 4) in the model"
        "; to let paths differ, add regexes that match them to config.init_skip."
    )


def test_long_differences_are_cut():
    params = {f"layer{i:02}": np.zeros(1, np.float32) for i in range(20)}
    with pytest.raises(errors.UserError, match="20 not in the file.*layer11 and 8 more"):
        checkpoint.merge(params, {}, weights_of({}), skip=())


def test_merging_into_shapes_alone_gives_arrays():
    params, state = target()
    abstract = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, (params, state)))
    merged = checkpoint.merge(*abstract, source(), skip=())
    assert_bit_equal(merged.params, jax.tree.map(np.ones_like, params))


# Damage


def assert_one_sentence(error, folder):
    message = str(error.value)
    assert str(folder) in message and "\n" not in message


def data_files(item):
    """The files with the values of an item, at any depth."""
    found = [p for p in item.rglob("*") if p.is_file() and p.parent.name == "d"]
    assert found
    return found


def remove_data(item):
    shutil.rmtree(item / "d")


def empty_data(item):
    for path in data_files(item):
        path.write_bytes(b"")


def halve_data(item):
    for path in data_files(item):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def overwrite_data(item):
    for path in data_files(item):
        path.write_bytes(b"\xff" * path.stat().st_size)


def remove_all(item):
    for path in item.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


DAMAGES = [remove_data, empty_data, halve_data, overwrite_data, remove_all]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_named_in_one_sentence(copied, damage):
    damage(last(copied) / "weights")
    with pytest.raises(errors.UserError, match="is damaged or incomplete") as error:
        checkpoint.load_weights(copied, "last")
    assert_one_sentence(error, last(copied))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("item", ["weights", "training"])
def test_a_damaged_checkpoint_is_not_resumed_from(copied, item, damage):
    damage(last(copied) / item)
    checkpoints = checkpoint.Checkpoints(copied)
    with pytest.raises(errors.UserError, match="delete that folder to resume") as error:
        checkpoints.restore(train_state(0))
    checkpoints.close()
    assert_one_sentence(error, last(copied))


def test_a_checkpoint_without_an_item_is_not_resumed_from(copied):
    shutil.rmtree(last(copied) / "training")
    checkpoints = checkpoint.Checkpoints(copied)
    with pytest.raises(errors.UserError, match="delete that folder to resume") as error:
        checkpoints.restore(train_state(0))
    checkpoints.close()
    assert_one_sentence(error, last(copied))


def test_after_deleting_a_damaged_checkpoint_the_one_before_is_resumed(copied):
    shutil.rmtree(last(copied))
    checkpoints = checkpoint.Checkpoints(copied)
    assert_bit_equal(checkpoints.restore(train_state(0)), train_state(3, seed=3))
    checkpoints.close()


def test_a_state_of_another_shape_is_not_resumed_from(workdir):
    state = train_state(0)
    state.params["head"]["bias"] = jnp.zeros(9)
    checkpoints = checkpoint.Checkpoints(workdir)
    with pytest.raises(errors.UserError, match="cannot be read") as error:
        checkpoints.restore(state)
    checkpoints.close()
    assert_one_sentence(error, last(workdir))


@pytest.mark.parametrize("text", [None, "", "{"])
def test_a_missing_or_broken_config_is_named_in_one_sentence(copied, text):
    path = last(copied) / "config" / "metadata"
    assert json.loads(path.read_text())["class_names"] == ["a", "b"]
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(errors.UserError, match="has no readable config") as error:
        checkpoint.load_weights(copied, "last")
    assert_one_sentence(error, last(copied))


# Failed writes


def test_what_a_kill_left_unfinished_is_cleared_away_and_the_step_is_written_again(copied):
    for name in ("checkpoints", "best"):
        left = copied / name / "5.orbax-checkpoint-tmp"
        shutil.copytree(last(copied), left)
        (left / "config").rename(left / "config.orbax-checkpoint-tmp")
    checkpoints = checkpoint.Checkpoints(copied)
    assert not list(copied.rglob("*tmp*"))
    assert checkpoints.latest_step() == 4
    checkpoints.save(train_state(5, seed=5), INFO)
    checkpoints.wait()
    assert_bit_equal(checkpoints.restore(train_state(0)), train_state(5, seed=5))
    checkpoints.close()


def test_what_is_left_of_a_removal_that_a_kill_met_goes_when_the_run_is_resumed(copied):
    """Even if the run was finished: no later save would remove it."""
    for name, step in (("checkpoints", 2), ("best", 1)):
        left = copied / name / str(step)
        shutil.copytree(last(copied), left)
        shutil.rmtree(left / "weights")
    checkpoints = checkpoint.Checkpoints(copied, keep_last=2)
    assert_bit_equal(checkpoints.restore(train_state(0)), train_state(4, seed=4))
    checkpoints.close()
    names = {
        name: sorted(p.name for p in (copied / name).iterdir()) for name in ("checkpoints", "best")
    }
    assert names == {"checkpoints": ["3", "4"], "best": ["2"]}


def test_a_damaged_step_costs_no_other_when_fewer_are_to_be_kept(copied):
    shutil.rmtree(last(copied) / "training")
    checkpoints = checkpoint.Checkpoints(copied, keep_last=1)
    with pytest.raises(errors.UserError, match="delete that folder to resume from step 3"):
        checkpoints.restore(train_state(0))
    checkpoints.close()
    assert checkpoint.find(copied, "3").is_dir()


def test_a_folder_that_cannot_be_made_is_named_in_one_sentence():
    with pytest.raises(errors.UserError, match="there is no checkpoint yet") as error:
        checkpoint.Checkpoints("/proc/run")  # not even root can create folders there
    assert_one_sentence(error, "/proc/run/checkpoints")


FAILING = """
import pathlib, resource, sys

import jax.numpy as jnp
import numpy as np

from detlab import errors
from detlab import types
from detlab.run import checkpoint


def state(step):
    noise = np.random.default_rng(step).random(100_000, np.float32)  # cannot be compressed
    return types.TrainState(jnp.int32(step), {"w": jnp.asarray(noise)}, {}, {}, None)


def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def refused(call, *arguments):
    try:
        call(*arguments)
    except errors.UserError as error:
        return [str(error)]
    return []


def main(arguments):
    workdir = pathlib.Path(arguments[0])
    checkpoints = checkpoint.Checkpoints(workdir, keep_last=1)
    checkpoints.save(state(1), {})
    checkpoints.save_best(state(1), {}, 0.1)
    checkpoints.wait()
    limit(100_000)
    told = refused(checkpoints.save, state(2), {}) or refused(checkpoints.wait)
    told += refused(checkpoints.save_best, state(2), {}, 0.2)
    refused(checkpoints.close)
    steps = [str(p.relative_to(workdir)) for p in workdir.glob("*/*")]
    limit(resource.RLIM_INFINITY)
    checkpoints = checkpoint.Checkpoints(workdir, keep_last=1)
    values = checkpoints.restore(state(0)).params["w"]
    checkpoints.save(state(2), {})
    checkpoints.save_best(state(2), {}, 0.2)
    checkpoints.close()
    print(repr((told, sorted(steps), bool((values == state(1).params["w"]).all()))))


errors.run_main(main)
"""


def test_a_write_that_fails_leaves_the_checkpoint_before_and_nothing_else(tmp_path, repository):
    """Files may not exceed 100 kB, even for root; only one step is kept."""
    command = [sys.executable, "-c", FAILING, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    (of_last, of_best), steps, restored = ast.literal_eval(done.stdout)
    for name, told in (("checkpoints", of_last), ("best", of_best)):
        assert told == (
            f"cannot write a checkpoint into {tmp_path / name}: File too large; the checkpoint of"
            " step 1 is complete and kept; raise the limit on file size, or move the run to another"
            " --workdir, then resume with the same command."
        )
    assert steps == ["best/1", "checkpoints/1"] and restored
    assert checkpoint.find(tmp_path, "last").name == checkpoint.find(tmp_path).name == "2"
