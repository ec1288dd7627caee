"""RetinaNet-50 matches the reference, and parity notices every change.

Every control changes one thing; the lines that it affects must miss, and no others.
"""

import numpy as np
import parity_runs
import pytest

from benchmarks.parity import mmdet, weights
from benchmarks.parity.adapters import retinanet as retinanet_adapter
from detlab import errors
from detlab.converters import mapping
from detlab.converters.tables import mmdet_retinanet
from detlab.detectors import retinanet

LEVELS = range(5)
NECK = {f"neck fpn_{level}" for level in LEVELS}
CLASSES = {f"map cls_score_{level}" for level in LEVELS}
BOXES = {f"map bbox_pred_{level}" for level in LEVELS}
MAPS = NECK | CLASSES | BOXES


@pytest.fixture(scope="module")
def compiled():
    """The case's program, shared by all controls that change weights."""
    return {}


def once(compiled, program=mmdet.program):
    """`mmdet.program` that compiles only at its first use in this file, for one detector."""

    def compile_once(detector, with_gradients, compiler_options):
        if with_gradients not in compiled:
            compiled[with_gradients] = program(detector, with_gradients, compiler_options)
        return compiled[with_gradients]

    return compile_once


@pytest.fixture
def one_program(compiled, monkeypatch):
    monkeypatch.setattr(mmdet, "program", once(compiled))


def test_the_compact_case_passes_in_every_quantity(compact, capsys, one_program):
    run = parity_runs.run(capsys, compact, "--case", parity_runs.CASE)
    assert run.status == 0, run.text
    assert MAPS < set(run.passed)
    kinds = {line.split()[0] for line in run.passed}
    assert kinds == {"neck", "map", "assignment", "targets", "loss", "gradient", "detections"}
    for measure in ("norm", "dot"):  # of the 162 tensors that the reference trains
        assert sum(line.startswith(f"gradient {measure}") for line in run.passed) == 162


def test_the_compact_case_is_small(compact):
    assert sum(path.stat().st_size for path in compact.iterdir()) < 300_000


@pytest.fixture
def with_weights(monkeypatch):
    """`with_weights(change)`: conversion returns `change(path, array)` for each leaf."""

    def set_up(change):
        real = weights.convert

        def converted(*args):
            found = real(*args)
            return found._replace(
                params=parity_runs.mapped(found.params, change),
                state=parity_runs.mapped(found.state, change),
            )

        monkeypatch.setattr(weights, "convert", converted)

    return set_up


@pytest.mark.slow
def test_two_swapped_channels_of_one_input_are_noticed(compact, capsys, one_program, with_weights):
    path = "/head/cls_conv0/conv/kernel"
    with_weights(lambda p, x: x[:, :, [1, 0, *range(2, x.shape[2])]] if p == path else x)
    run = parity_runs.run(capsys, compact)
    assert run.status == 1
    assert CLASSES < set(run.missed)
    assert NECK | BOXES < set(run.passed)
    assert "gradient dot backbone.layer2.0.conv1.weight" in run.missed
    assert not any(line.startswith(("assignment", "targets")) for line in run.missed)


@pytest.mark.slow
def test_larger_variances_in_the_norms_are_noticed(compact, capsys, one_program, with_weights):
    # The effect of YOLOv5's epsilon of 1e-3 without its program, which a slow test compiles.
    with_weights(lambda p, x: x + np.float32(1e-3 - 1e-5) if p.endswith("/var") else x)
    run = parity_runs.run(capsys, compact)
    assert run.status == 1
    assert NECK | BOXES < set(run.missed)
    assert any(line.startswith("gradient norm") for line in run.missed)
    assert not any(line.startswith(("assignment", "targets")) for line in run.missed)


@pytest.fixture
def with_table(monkeypatch):
    """`with_table(change)`: the weights are converted by `change(table)`."""

    def set_up(change):
        adapter = retinanet_adapter.ADAPTER._replace(
            table=lambda bgr: change(mmdet_retinanet.table(bgr))
        )
        monkeypatch.setattr(mmdet, "ADAPTERS", (adapter,))

    return set_up


def dropping(table):
    """The table without the rules of the convolution that makes P7."""
    forgotten = mapping.Dropped(r"neck\.fpn_convs\.4\..*", "forgotten")
    rules = tuple(r for r in table.rules if not r.target.startswith("params/neck/output7/"))
    return table._replace(rules=rules, dropped=(*table.dropped, forgotten))


def skipping(table):
    """The same, with subtrees that exclude that convolution."""
    others = [f"params/neck/lateral{level}" for level in (3, 4, 5)]
    others += [f"params/neck/output{level}" for level in (3, 4, 5, 6)]
    subtrees = ("params/backbone", *others, "params/head", "batch_stats")
    return dropping(table)._replace(subtrees=subtrees)


def test_a_table_without_rules_for_a_tensor_is_refused(compact, capsys, with_table):
    with_table(dropping)
    with pytest.raises(errors.UserError, match="params/neck/output7/conv/kernel of the detector's"):
        parity_runs.run(capsys, compact)


def test_a_tensor_that_the_table_skips_is_noticed(compact, capsys, one_program, with_table):
    with_table(skipping)
    run = parity_runs.run(capsys, compact)
    assert run.status == 1
    skipped = {f"weights params/neck/output7/conv/{leaf}" for leaf in ("kernel", "bias")}
    assert skipped < set(run.missed)
    assert MAPS & set(run.missed) == {"neck fpn_4", "map cls_score_4", "map bbox_pred_4"}
    assert "gradient norm neck.fpn_convs.4.conv.weight" in run.missed
    assert not any(line.startswith(("assignment", "targets")) for line in run.missed)


HEAD = ("model_cfg", "bbox_head")
BEHIND_THE_MAPS = {
    "one anchor ratio": (
        parity_runs.config_change(*HEAD, "anchor_generator", "ratios", [0.5, 1.0, 2.1]),
        {"targets train_targets.bbox_head.get_targets.0.2_1", "loss loss_bbox", "detections boxes"},
        ("neck", "map"),
    ),
    "loss weight": (
        parity_runs.config_change(*HEAD, "loss_bbox", "loss_weight", 1.01),
        {"loss loss_bbox"},
        ("neck", "map", "assignment", "targets", "detections", "loss loss_cls"),
    ),
    "assignment threshold": (
        parity_runs.config_change("train_cfg", "assigner", "pos_iou_thr", 0.55),
        {"assignment train_assign.bbox_head.assigner.0.gt_inds", "loss loss_cls"},
        ("neck", "map", "detections"),
    ),
}


@pytest.fixture
def given_maps(compact, compiled, capsys, monkeypatch):
    """Replaces the network by its maps of the compact case, so the rest compiles in seconds."""
    if "maps" not in compiled:
        real_run = mmdet.run_program

        def run(*args):
            results = real_run(*args)
            compiled["maps"] = results.outputs
            return results

        with monkeypatch.context() as patch:
            patch.setattr(mmdet, "program", once(compiled))
            patch.setattr(mmdet, "run_program", run)
            parity_runs.run(capsys, compact)

    def maps(self, images, train):
        return self.get_variable("given", "maps")

    def convert(*args):
        return weights.Converted({}, None, {}, {"given": {"maps": compiled["maps"]}}, ())

    monkeypatch.setattr(retinanet.RetinaNet, "maps", maps)
    monkeypatch.setattr(weights, "convert", convert)


@pytest.mark.slow
@pytest.mark.parametrize("name", BEHIND_THE_MAPS)
def test_another_configuration_is_noticed(name, compact, capsys, tmp_path, given_maps):
    change, touched, untouched = BEHIND_THE_MAPS[name]
    run = parity_runs.run(capsys, parity_runs.changed(compact, tmp_path, change))
    assert run.status == 1
    assert touched <= set(run.missed)
    assert not any(line.startswith(untouched) for line in run.missed)


@pytest.mark.slow
def test_another_place_of_the_stride_is_noticed(compact, capsys, tmp_path):
    change = parity_runs.config_change("model_cfg", "backbone", "style", "caffe")
    run = parity_runs.run(capsys, parity_runs.changed(compact, tmp_path, change))
    assert run.status == 1
    assert MAPS < set(run.missed)
    assert not any(line.startswith(("assignment", "targets")) for line in run.missed)


@pytest.mark.slow
def test_the_shared_case_passes_in_full(shared_dir, capsys, one_program):
    run = parity_runs.in_full(capsys, shared_dir / "parity", parity_runs.CASE)
    absent = ", ".join(f"train_assign.bbox_head.assigner.{i}.max_overlaps" for i in range(2))
    assert f"\nnot compared: {absent}\n" in run.text
