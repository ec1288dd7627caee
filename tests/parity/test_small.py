"""Narrow twins of the published cases: the same models with few channels, checked in seconds."""

import parity_runs
import pytest

from benchmarks.parity import cases as cases_lib
from benchmarks.parity import mmdet, references

LONG_TO_COMPILE = {
    # Three box heads, or deformable convolution, take a minute.
    "small/cascade_rcnn_r50_fpn_small",
    "small/sabl_cascade_rcnn_r50_fpn_small",
    "small/ga_faster_rcnn_r50_fpn_small",
    "small/pisa_faster_rcnn_r50_fpn_small",  # its parts have everyday tests of their own
}
INSTEAD = {"small/sabl_faster_rcnn_r50_fpn_small"}  # of the same detector with one stage
TWINS = parity_runs.parameters(
    parity_runs.runnable("small", mmdet.RUNNER),
    {*parity_runs.every_day()} - LONG_TO_COMPILE | INSTEAD,
)


@pytest.mark.parametrize("name", TWINS)
def test_a_narrow_twin_passes_in_full(name, shared_dir, capsys):
    parity_runs.in_full(capsys, shared_dir / "parity", name)


def test_a_case_without_a_passed_row_names_the_command_that_writes_one():
    with pytest.raises(
        pytest.fail.Exception, match=r"benchmarks\.release --only parity/small/new$"
    ):
        parity_runs.quantities("small/new")


def test_every_case_that_has_passed_is_still_known(shared_dir):
    """Tests find cases by their adapters, so a case could be lost unnoticed."""
    folder = shared_dir / "parity"
    cases = cases_lib.find(folder)
    passed = [name for name, row in parity_runs.rows().items() if row["status"] == "passed"]
    assert len(passed) >= 35
    assert [name for name in passed if references.lacks(folder, name, cases[name])] == []
