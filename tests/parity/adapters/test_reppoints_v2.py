"""RepPoints V2 matches the reference, and what of its ideas is missing is noticed.

Its one case has the published size; there is no narrow twin.
"""

import json
import re

import jax
import numpy as np
import parity_runs
import pytest
import tables
import tiny

from benchmarks import command
from benchmarks.parity import cases, checks, mmdet, weights
from benchmarks.parity import lines as lines_lib
from detlab import types
from detlab.assign import verification
from detlab.converters import sources
from detlab.converters.tables import mmdet_reppoints_v2
from detlab.detectors import reppoints_v2
from detlab.ops import anchors as anchors_lib
from detlab.ops import corner_refine

CASE = "reppoints_v2_r50_fpn"
CANVAS = (128, 160)


@pytest.mark.slow
def test_the_shared_case_passes_in_full(shared_dir, capsys):
    parity_runs.in_full(capsys, shared_dir / "parity", CASE)


CORNERS = "(top_left|bottom_right)_(pool|heat|offset)"
CONTROLS = {
    # The branches' weights -> lines that must miss, and beginnings of those that must not.
    "corners": (
        CORNERS,
        {"map hm_score_0", "map hm_offset_0", "map cls_out_0", "map pts_out_refine_0"}
        | {"loss loss_heatmap", "loss loss_offset", "loss loss_cls", "detections boxes"},
        ("neck", "map sem_", "map pts_out_init", "targets", "loss loss_pts_init", "loss loss_sem"),
    ),
    "foreground": (
        "semantic_(logits|embedding)",
        {"map sem_score_0", "map hm_score_0", "map cls_out_0", "map pts_out_init_0"}
        | {"loss loss_sem", "loss loss_pts_init", "loss loss_cls", "detections boxes"},
        ("neck", "targets train_targets.bbox_head.get_hm_targets"),
    ),
}


@pytest.mark.slow
def test_a_network_without_one_of_the_verification_tasks_is_noticed(shared_dir):
    """The weights of its branch are zeros.  Without gradients, and one program for both tasks."""
    fixtures = shared_dir / "parity"
    info = json.loads((fixtures / f"{CASE}.json").read_text()) | dict(grad_norms={}, grad_dots={})
    adapter, detector, config = mmdet.plan(info)
    case = cases.read(fixtures, CASE, info)
    converted = weights.convert(case, adapter, config, 0)
    compute = mmdet.program(detector, False, command.QUICK)

    def missed(branch):
        def change(path, leaf):
            return np.zeros_like(leaf) if re.search(f"/head/{branch}", path) else leaf

        params = parity_runs.mapped(converted.params, change)
        results = compute(params, converted.state, case.batch(), jax.random.key(0))
        lines, _ = lines_lib.compare(case, adapter, converted, jax.device_get(results))
        return {line.quantity for line in lines if not line.passed}

    assert missed("nothing") == set()
    for name, (branch, expected, others) in CONTROLS.items():
        found = missed(branch)
        assert expected <= found, name
        assert not any(line.startswith(others) for line in found), name


def recorded(arrays, name):
    return tuple(arrays[f"{name}_{i}"].transpose(0, 2, 3, 1) for i in range(5))


OTHERS = {"detections boxes"}
INFERENCE = {
    "as the reference": (None, set()),
    "boxes as regressed": (lambda grid, boxes, scores, offsets: boxes, OTHERS),
    "without offsets": (
        lambda grid, boxes, scores, offsets: real(grid, boxes, scores, [0 * x for x in offsets]),
        OTHERS,
    ),
}
real = corner_refine.refine


@pytest.mark.parametrize("how", INFERENCE)
def test_recorded_maps_give_the_recorded_detections(how, shared_dir, monkeypatch):
    """Decodes the reference's raw maps, without a network; without joint inference they miss."""
    refine, missed = INFERENCE[how]
    if refine:
        monkeypatch.setattr(corner_refine, "refine", refine)
    arrays = np.load(shared_dir / "parity" / f"{CASE}.npz")
    names = ("cls_out", "pts_out_init", "pts_out_refine", "hm_score", "hm_offset", "sem_score")
    maps = reppoints_v2.Outputs((), *(recorded(arrays, name) for name in names))
    module = reppoints_v2.RepPointsV2(num_classes=5, keep_swapped=True)

    @tiny.jit
    def predict(maps):
        return module.suppress(module.candidates(maps, np.tile(np.int32(CANVAS), (2, 1)), CANVAS))

    found = jax.device_get(predict(maps))
    mine, theirs = [], []
    for i, valid in enumerate(found.valid):
        mine.append(types.Detections(*(values[i][valid] for values in found)))
        boxes, scores, labels = (arrays[f"det_{x}_{i}"] for x in ("boxes", "scores", "labels"))
        theirs.append(types.Detections(boxes, scores, labels, np.ones(len(scores), bool)))
    lines = checks.detections(mine, theirs)
    assert {line.quantity for line in lines if not line.passed} == missed


def test_foreground_is_the_recorded_map_that_the_reference_was_given(shared_dir):
    arrays = np.load(shared_dir / "parity" / f"{CASE}.npz")
    grid = anchors_lib.grid(CANVAS, (8, 16, 32, 64, 128))
    size = np.int32(CANVAS)
    for i in range(2):
        boxes, labels = arrays[f"gt_boxes_{i}"], arrays[f"gt_labels_{i}"]
        valid = np.ones(len(boxes), bool)
        found = verification.foreground(grid, boxes, labels, valid, size, num_classes=5)
        first = np.asarray(found[grid.slices()[0]]).reshape(16, 20, 5).transpose(2, 0, 1)
        np.testing.assert_allclose(first, arrays["gt_sem_weights"][i], rtol=1e-6)
        np.testing.assert_array_equal(first > 0, arrays["gt_sem_map"][i] > 0)


def test_the_table_knows_all_branches_and_is_not_that_of_reppoints():
    fields = tiny.TINY["reppoints_v2"].fields
    _, tensors = tables.there_and_back(mmdet_reppoints_v2.table(bgr=True), "reppoints_v2", fields)
    assert tensors["bbox_head.reppoints_cls_conv.weight"].shape == (16, 16 + 6, 3, 3)
    assert tensors["bbox_head.hem_br.p2_conv1.conv.weight"].shape == (8, 16, 3, 3)
    assert tensors["bbox_head.hem_tl.conv2.conv.weight"].shape == (16, 16, 1, 1)
    known = sources.fitting(sources.collect(), tensors)
    assert [source.detector for source in known] == ["reppoints_v2"]
