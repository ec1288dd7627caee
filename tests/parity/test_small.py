"""Narrow twins of the published cases: the same models with few channels, whole, in seconds."""

import parity_runs
import pytest

# Twin, without the `_small` of its name -> quantities that are compared.
CASES = {
    "retinanet_r50_fpn": 211,
    "retinanet_ghm_r50_fpn": 213,
    "fcos_r50_caffe_fpn_gn_head_center_normbbox_centeronreg_giou": 193,
    "faster_rcnn_r50_fpn": 218,
    "reppoints_moment_r50_fpn_gn": 291,
    "cornernet_hourglass104": 635,
}
OTHER_FORMS = {  # of the same detectors
    "fcos_r50_caffe_fpn_gn_head": 172,
    "reppoints_minmax_r50_fpn_gn": 289,
    "reppoints_partial_minmax_r50_fpn_gn": 289,
    "reppoints_bbox_r50_grid_center_fpn_gn": 289,
}
ALL = [pytest.param(*case, id=case[0]) for case in CASES.items()]
ALL += [pytest.param(*case, id=case[0], marks=pytest.mark.slow) for case in OTHER_FORMS.items()]


@pytest.mark.parametrize("name, count", ALL)
def test_a_narrow_twin_passes_in_full(name, count, shared_dir, capsys):
    run = parity_runs.run(capsys, shared_dir / "parity" / "small", "--case", f"{name}_small")
    assert run.status == 0, run.text
    assert not run.missed and len(run.passed) == count
