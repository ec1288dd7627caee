"""CornerNet is the reference's: all maps of both stacks, targets, losses, gradients, pairs."""

import parity_runs
import pytest

CASE = "cornernet_hourglass104"


@pytest.mark.slow
def test_the_shared_case_passes_in_full(shared_dir, capsys):
    run = parity_runs.run(capsys, shared_dir / "parity", "--case", CASE)
    assert run.status == 0, run.text
    assert not run.missed and len(run.passed) == 1235
    kinds = {line.split()[0] for line in run.passed}
    assert kinds == {"map", "targets", "loss", "gradient", "detections"}
