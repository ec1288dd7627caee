"""Which recorded quantity has which line, on made-up cases; no compiling."""

import types

import numpy as np
import parity_runs
import pytest

from benchmarks.parity import lines as lines_lib


def test_a_recorded_map_that_nothing_is_compared_with_misses():
    made = parity_runs.made_case(True, [0, 0])
    names = ("image0_x_0", "image1_fpn_0", "train_assign.a.0.gt_inds", "train_targets.b.0.0")
    made.arrays.update(x=np.zeros(2, np.float32), det_boxes_0=np.zeros((0, 4)))
    made.arrays.update({name: np.zeros(3) for name in names})
    lines, not_compared = lines_lib.of_arrays(made, {"x": np.zeros((3, 2), np.float32)}, ())
    kinds = ("map", "neck", "assignment", "targets")
    expected = ["map x", *(f"{kind} {name}" for kind, name in zip(kinds, names))]
    assert [line.quantity for line in lines] == expected
    assert not any(line.passed for line in lines)
    assert "shape" in lines[0].note
    assert all("nothing to compare" in line.note for line in lines[1:])
    assert not not_compared


def test_only_what_the_adapter_names_may_be_absent_and_is_listed():
    made = parity_runs.made_case(True, [0, 0])
    made.arrays.update({name: np.zeros(3) for name in ("train_a.0.scores", "train_a.0.scores_0")})
    lines, not_compared = lines_lib.of_arrays(made, {}, (r"train_a\.\d\.scores",))
    assert [line.quantity for line in lines] == ["map train_a.0.scores_0"]
    assert not_compared == ["train_a.0.scores"]


def test_targets_that_the_network_predicts_are_compared_as_maps():
    made = parity_runs.made_case(True, [0, 0])
    values = np.float32([0.01, 60.0])  # px; 3e-5 off is half a millionth of the largest
    mine = dict.fromkeys(("train_targets.b.1.3", "train_targets.b.0"), values + np.float32(3e-5))
    made.arrays.update(dict.fromkeys(mine, values))
    lines, _ = lines_lib.of_arrays(made, mine, (), (r"train_targets\.b\.1\.\d",))
    assert {line.quantity: line.passed for line in lines} == {
        "map train_targets.b.1.3": True,
        "targets train_targets.b.0": False,
    }


def test_of_targets_only_what_the_loss_reads_is_compared():
    made = parity_runs.made_case(True, [0, 0])
    name = "train_targets.b.0.1"
    made.arrays[name] = np.float32([[1, 2], [3, 4], [0, 0]])
    readable = {name: np.array([[True], [False], [True]])}
    for row, passed in ((0, False), (1, True), (2, False)):
        mine = made.arrays[name].copy()
        mine[row, 1] += 0.01
        (line,), _ = lines_lib.of_arrays(made, {name: mine}, (), readable=readable)
        assert line.passed == passed
    assert not lines_lib.of_arrays(made, {name: mine[:2]}, (), readable=readable)[0][0].passed


def test_maps_of_training_may_be_absent_where_its_norms_are_live():
    made = parity_runs.made_case(True, [0, 0])
    made.arrays.update({name: np.zeros(3) for name in ("m_0", "train_m_0", "train_n_0")})
    mine = {"m_0": np.zeros(3)}
    lines, not_compared = lines_lib.of_arrays(made, mine, ())
    missed = [line.quantity for line in lines if not line.passed]
    assert missed == ["map train_m_0", "map train_n_0"] and not not_compared
    made.info["batch_norm_in_train"]["batch_statistics"] = 20
    lines, not_compared = lines_lib.of_arrays(made, mine, ())
    assert [line.quantity for line in lines if not line.passed] == ["map train_n_0"]
    assert not_compared == ["train_m_0"]


def test_the_total_loss_drifts_only_as_far_as_its_losses():
    info = {
        "losses": {"loss_a": 2.0, "acc": 50.0},
        "total_loss": 2.0,
        "drift": {"losses": {"loss_a": 2e-3, "acc": 0.5}},
    }
    results = types.SimpleNamespace(metrics={"loss/a": 2.0, "acc": 50.0}, total_loss=2.0)
    names = {"loss_a": "loss/a", "acc": "acc"}
    lines = lines_lib.of_losses(types.SimpleNamespace(info=info), names, results)
    assert [line.quantity for line in lines] == ["loss loss_a", "loss acc", "loss total"]
    assert lines[-1].tolerance == pytest.approx(10 * 2e-3 * 2.0, rel=1e-3)


def test_other_state_is_compared_and_a_name_without_a_leaf_misses():
    case = types.SimpleNamespace(info={"extra": {"a_after": 0.5, "b_after": 0.5, "c": 0.0}})
    state = {"loss_state": {"a": np.float32(0.5), "b": np.float32(0.6)}}
    names = {"a_after": "loss_state/a", "b_after": "loss_state/b"}
    lines = lines_lib.of_extra(case, names, state)
    assert {line.quantity: line.passed for line in lines} == {
        "state a_after": True,
        "state b_after": False,
        "state c": False,
    }
