"""The benchmark of operations runs and its programs agree; the times are not tested."""

import json

import pytest

from benchmarks import ops

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    output = tmp_path_factory.mktemp("ops") / "ops.json"
    ops.main(["--size", "tiny", "--repeats", "1", "--output", str(output)])
    result = json.loads(output.read_text())
    assert result["size"] == "tiny" and result["machine"]["cores"] > 0
    return result["cases"]


def test_every_operation_has_cases_with_a_peer_and_another_program(cases):
    for op in ops.OPS:
        own = {name: figures for name, figures in cases.items() if name.startswith(op)}
        assert own and any("NumPy" in figures for figures in own.values())
        for figures in own.values():
            assert {"detlab", "detlab elsewhere"} <= set(figures)
            assert figures["detlab"]["ratio_to_detlab"] == 1.0
            assert all(row["min_ms"] > 0 for row in figures.values())


def test_all_programs_of_a_case_give_the_same_result(cases):
    """float32 sums differ in order; suppression gives identical indices."""
    for name, figures in cases.items():
        bound = 0.0 if name.startswith("nms") else 1e-4
        for program, row in figures.items():
            if program != "convolution without offsets":
                assert row["difference"] <= bound, (name, program)


def test_one_operation_can_be_chosen(capsys):
    ops.main(["--op", "nms", "--size", "tiny", "--repeats", "1"])
    out = capsys.readouterr().out
    assert "nms 2x40 boxes" in out and "roi_align" not in out
