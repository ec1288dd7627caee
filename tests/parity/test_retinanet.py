"""RetinaNet-50 is the reference's, and parity says so, and notices whatever is changed.

Every control changes one thing; the lines that miss must be those that it touches and no others.
"""

import numpy as np
import parity_runs
import pytest

from benchmarks import parity

LEVELS = range(5)
NECK = {f"neck fpn_{level}" for level in LEVELS}
CLASSES = {f"map cls_score_{level}" for level in LEVELS}
BOXES = {f"map bbox_pred_{level}" for level in LEVELS}
MAPS = NECK | CLASSES | BOXES


@pytest.fixture(scope="module")
def compiled():
    """The one program of the case, which all controls of its weights run."""
    return {}


@pytest.fixture
def one_program(compiled, monkeypatch):
    """Compiles at the first use in this file; returns how often a program was asked for."""
    program, asked = parity.program, []

    def compile_once(detector, with_gradients):
        asked.append(with_gradients)
        if with_gradients not in compiled:
            compiled[with_gradients] = program(detector, with_gradients)
        return compiled[with_gradients]

    monkeypatch.setattr(parity, "program", compile_once)
    return asked


def test_the_compact_case_passes_in_every_quantity(compact, capsys, one_program):
    run = parity_runs.run(capsys, compact, "--case", parity_runs.CASE)
    assert run.status == 0, run.text
    assert one_program == [True]
    assert MAPS < set(run.passed)
    kinds = {line.split()[0] for line in run.passed}
    assert kinds == {"neck", "map", "assignment", "targets", "loss", "gradient", "detections"}
    for measure in ("norm", "dot"):  # of the 162 tensors that the reference trains
        assert sum(line.startswith(f"gradient {measure}") for line in run.passed) == 162


def test_the_compact_case_is_small(compact):
    assert sum(path.stat().st_size for path in compact.iterdir()) < 300_000


@pytest.fixture
def with_weights(monkeypatch):
    """`with_weights(change)`: conversion gives what `change(path, array)` makes of each leaf."""

    def set_up(change):
        real = parity.convert_weights

        def converted(*args):
            found = real(*args)
            return found._replace(
                params=parity_runs.mapped(found.params, change),
                state=parity_runs.mapped(found.state, change),
            )

        monkeypatch.setattr(parity, "convert_weights", converted)

    return set_up


def test_two_swapped_channels_of_one_input_are_noticed(compact, capsys, one_program, with_weights):
    path = "/head/cls_conv0/conv/kernel"
    with_weights(lambda p, x: x[:, :, [1, 0, *range(2, x.shape[2])]] if p == path else x)
    run = parity_runs.run(capsys, compact)
    assert run.status == 1
    assert CLASSES < set(run.missed)
    assert NECK | BOXES < set(run.passed)
    assert "gradient dot backbone.layer2.0.conv1.weight" in run.missed
    assert not any(line.startswith(("assignment", "targets")) for line in run.missed)


def test_another_epsilon_of_the_norms_is_noticed(compact, capsys, one_program, with_weights):
    # YOLOv5's 1e-3 in place of 1e-5: as a larger variance it needs no other program.
    with_weights(lambda p, x: x + np.float32(1e-3 - 1e-5) if p.endswith("/var") else x)
    run = parity_runs.run(capsys, compact)
    assert run.status == 1
    assert NECK | BOXES < set(run.missed)
    assert any(line.startswith("gradient norm") for line in run.missed)
    assert not any(line.startswith(("assignment", "targets")) for line in run.missed)


def test_one_tensor_left_as_initialised_is_noticed(compact, capsys, one_program, with_weights):
    with_weights(lambda p, x: np.zeros_like(x) if p == "/neck/output7/conv/bias" else x)
    run = parity_runs.run(capsys, compact)
    assert run.status == 1
    assert MAPS & set(run.missed) == {"neck fpn_4", "map cls_score_4", "map bbox_pred_4"}


def config_change(section, *path):
    """`change(info)` that sets the value at a path of a section of the case's JSON."""
    *parents, key, value = path

    def change(info):
        part = info[section]
        for parent in parents:
            part = part[parent]
        assert part[key] != value
        part[key] = value

    return change


HEAD = ("model_cfg", "bbox_head")
CONTROLS = {
    "stride in the 1x1": (
        config_change("model_cfg", "backbone", "style", "caffe"),
        MAPS,
        ("assignment", "targets"),
    ),
    "one anchor ratio": (
        config_change(*HEAD, "anchor_generator", "ratios", [0.5, 1.0, 2.1]),
        {"targets train_targets.bbox_head.get_targets.0.2_1", "loss loss_bbox", "detections boxes"},
        ("neck", "map"),
    ),
    "loss weight": (
        config_change(*HEAD, "loss_bbox", "loss_weight", 1.01),
        {"loss loss_bbox"},
        ("neck", "map", "assignment", "targets", "detections", "loss loss_cls"),
    ),
    "assignment threshold": (
        config_change("train_cfg", "assigner", "pos_iou_thr", 0.55),
        {"assignment train_assign.bbox_head.assigner.0.gt_inds", "loss loss_cls"},
        ("neck", "map", "detections"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTROLS)
def test_another_configuration_is_noticed(name, compact, capsys, tmp_path):
    change, touched, untouched = CONTROLS[name]
    run = parity_runs.run(capsys, parity_runs.changed(compact, tmp_path, change))
    assert run.status == 1
    assert touched <= set(run.missed)
    assert not any(line.startswith(untouched) for line in run.missed)


@pytest.mark.slow
def test_the_shared_case_passes_in_full(shared_dir, capsys, one_program):
    run = parity_runs.run(capsys, shared_dir / "parity", "--case", parity_runs.CASE)
    assert run.status == 0, run.text
    assert not run.missed and len(run.passed) == 383
