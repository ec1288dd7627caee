"""Parity notices deliberate errors in every detector and passes unchanged cases."""

import jax
import jax.numpy as jnp
import numpy as np
import parity_runs
import pytest

from benchmarks.parity import cases, errors, mmdet
from detlab import layers, types
from detlab.converters import mapping
from detlab.ops import boxes as boxes_lib


@pytest.mark.slow
@pytest.mark.parametrize("name", parity_runs.parameters(parity_runs.every_day()))
def test_every_error_is_noticed(name, shared_dir, tmp_path, capsys):
    fixtures = shared_dir / "parity"
    # The first and the last kernel of each part.
    errors.main(["--fixtures", str(fixtures), "--case", name, "--kernels", "2"])
    text = capsys.readouterr().out
    assert "0 with an unexpected verdict" in text
    assert "passed       unchanged: 0 lines miss" in text
    noticed = [line.removeprefix("noticed").strip() for line in text.splitlines()]
    for error in ("channels swapped in", "flipped", "channels of the input", "epsilon of all"):
        assert any(line.startswith(error) for line in noticed), error
    missing = "stop_gradient missing in "
    files = {line.removeprefix(missing).split(":")[0] for line in noticed if missing in line}
    adapter = mmdet.adapter_of(cases.find(fixtures)[name])
    assert set(adapter.gradient_stops) <= files


def test_a_case_that_cannot_run_is_skipped_with_its_reason(shared_dir, capsys, tmp_path):
    change = parity_runs.config_change("model_cfg", "type", "Unknown")
    parity_runs.changed(shared_dir / "parity", tmp_path, change)
    reasons = {parity_runs.CASE: "no model for mmdet 3.3.0"}
    reasons["yolo/yolov3-tiny"] = "its reference is not mmdet"
    for fixtures, name in zip((tmp_path, shared_dir / "parity"), reasons, strict=True):
        with pytest.raises(SystemExit):
            errors.main(["--fixtures", str(fixtures), "--case", name])
        assert f"skipped  {name}: {reasons[name]}" in capsys.readouterr().out


def inputs():
    leaves = {f"part{i}/conv{j}/kernel": np.zeros((3, 3, 2, 2)) for i in (0, 1) for j in range(5)}
    params = mapping.nest({**leaves, "part0/conv0/bias": np.zeros(2)})
    images = np.arange(24, dtype=np.float32).reshape(1, 2, 4, 3)
    batch = types.Batch(images, *[None] * (len(types.Batch._fields) - 1))
    state = {"loss_factors": {"loss/box": np.float32(1), "loss/cls": np.float32(1)}}
    return errors.Inputs(params, state, batch, jax.random.key(0))


def test_errors_in_numbers_change_one_thing_each():
    given = inputs()
    found = dict(errors.errors_in_numbers(given, 3))
    kernels = [f"part{i}/conv{j}/kernel" for i in (0, 1) for j in (0, 2, 4)]
    assert list(found) == [
        "channels of the input reversed",
        "columns of the input reversed",
        "loss/box 2 % heavier",
        "loss/cls 2 % heavier",
        *(f"{error} {path}" for path in kernels for error in ("channels swapped in", "flipped")),
    ]
    reversed_ = found["columns of the input reversed"]
    np.testing.assert_array_equal(reversed_.batch.images[:, :, ::-1], given.batch.images)
    assert reversed_.params is given.params and reversed_.state is given.state
    factors = found["loss/cls 2 % heavier"].state["loss_factors"]
    assert factors == {"loss/box": 1, "loss/cls": np.float32(1.02)}
    assert len(list(errors.errors_in_numbers(given, 0))) == 4 + 2 * 10


def test_other_epsilons_are_larger_variances_where_statistics_are_constant():
    """With variances v, the epsilon 100 e and v + 99 e with the epsilon e give the same norm."""
    norms = {
        ("backbone", name): layers.Norm(mode, epsilon=1e-3)
        for name, mode in (("first", "stored"), ("last", "frozen"))
    }
    statistics = {"backbone": {name: {"var": np.float32([1, 2])} for name in ("first", "last")}}
    given = inputs()
    given = given._replace(state={**given.state, "batch_stats": statistics})
    found = {error: changed for error, changed, _ in errors.errors_of_norms(norms, given)}
    assert list(found) == ["epsilon of all norms times 100", "epsilon of backbone/first times 100"]
    variances = [
        [changed.state["batch_stats"]["backbone"][name]["var"] for name in ("first", "last")]
        for changed in found.values()
    ]
    more = [1.099, 2.099]
    np.testing.assert_allclose(variances, [[more, more], [more, [1, 2]]], rtol=1e-6)
    x = np.float32(np.random.default_rng(0).normal(size=(1, 2, 3, 2)))
    ones = {"params": {"scale": np.ones(2), "bias": np.zeros(2)}}
    statistics = (variances[0][0], np.float32([1, 2]))
    given = [{**ones, "batch_stats": {"mean": np.zeros(2), "var": var}} for var in statistics]
    larger = layers.Norm("stored", epsilon=1e-3).apply(given[0], x, True)
    expected = layers.Norm("stored", epsilon=0.1).apply(given[1], x, True)
    np.testing.assert_allclose(larger, expected, rtol=1e-6)


def test_other_epsilons_of_norms_with_live_statistics_need_another_program():
    norms = {("stem",): layers.Norm("stored"), ("head",): layers.Norm("group")}
    given = inputs()
    statistics = {"stem": {"var": np.float32([1])}}
    given = given._replace(state={**given.state, "batch_stats": statistics})
    (_, of_all, paths), (_, of_first, _) = errors.errors_of_norms(norms, given)
    assert of_all is None and paths == [("stem",), ("head",)] and of_first is not None
    assert not list(errors.errors_of_norms({}, given))


def test_the_stop_gradient_of_one_file_alone_is_missing():
    boxes, others = jnp.array([[0.0, 0.0, 4.0, 6.0]]), jnp.array([[0.0, 1.0, 5.0, 6.0]])

    def gradient():
        return jax.grad(lambda x: boxes_lib.ciou(x, others).sum())(boxes)

    kept = gradient()
    with errors.stop_gradient(lambda file: not file.endswith("ops/boxes.py")):
        assert not np.allclose(gradient(), kept)
    with errors.stop_gradient(lambda file: not file.endswith("losses/ghm.py")):
        np.testing.assert_array_equal(gradient(), kept)
    np.testing.assert_array_equal(gradient(), kept)
