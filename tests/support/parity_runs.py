"""Runs of the parity command, parsed for tests, and lists of the available cases."""

import functools
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import pytest

from benchmarks.parity import __main__ as program
from benchmarks.parity import cases as cases_lib
from benchmarks.parity import mmdet, references, weights
from benchmarks.parity import runner as runner_lib

CASE = "retinanet_r50_fpn"
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared" / "parity"  # to list cases; tests use `shared_dir`


class Run(NamedTuple):
    status: int
    text: str
    passed: list[str]  # names of the quantities
    missed: list[str]


def run(capsys, fixtures: pathlib.Path, *more: str) -> Run:
    """`python -m benchmarks.parity --quick --fixtures FIXTURES ...` in this process."""
    capsys.readouterr()
    try:
        program.main(["--fixtures", str(fixtures), "--quick", *more])
        status = 0
    except SystemExit as error:
        status = error.code
    text = capsys.readouterr().out
    lines = {
        verdict: re.findall(rf"^{verdict} +(.*?) +error .* tolerance ", text, re.MULTILINE)
        for verdict in ("ok", "MISS")
    }
    return Run(status, text, lines["ok"], lines["MISS"])


def in_full(capsys, fixtures: pathlib.Path, name: str) -> Run:
    """Runs a case, which must pass in as many quantities as in the last release."""
    found = run(capsys, fixtures, "--case", name)
    assert found.status == 0, found.text
    assert not found.missed and len(found.passed) == quantities(name)
    return found


def quantities(name: str) -> int:
    """How many lines a case had when it passed in the last release."""
    row = rows().get(name, {})
    if row.get("status") != "passed":
        command = f"python -m benchmarks.release --only parity/{name}"
        pytest.fail(f"{name} has no passed row in release_parity.json; run {command}")
    return row["quantities"]


@functools.cache
def rows() -> dict[str, dict]:
    """Case -> its row of the results of the last release."""
    file = REPOSITORY / "benchmarks" / "results" / "release_parity.json"
    return json.loads(file.read_text())["cases"]


@functools.cache
def _cases(folder: str) -> dict[str, dict]:
    place = SHARED / folder
    return cases_lib.find(place) if place.is_dir() else {}


def runnable(folder: str, runner: runner_lib.Runner) -> dict[str, dict]:
    """`folder/NAME` of each shared case that a runner can run -> its JSON.

    Empty without the shared folder; tests that run a case then say so.
    """
    return {
        f"{folder}/{name}": info
        for name, info in _cases(folder).items()
        if references.of(info) is runner and not runner.lacks(SHARED / folder, name, info)
    }


@functools.cache
def every_day() -> list[str]:
    """The narrow twin of each detector with the most quantities, fewest first; others are slow."""
    most = {}
    for name, info in runnable("small", mmdet.RUNNER).items():
        count = rows().get(name, {}).get("quantities", 0)
        detector = mmdet.adapter_of(info).detector
        most[detector] = max(most.get(detector, (0, name)), (count, name))
    return [name for _, name in sorted(most.values())]


def parameters(names: Iterable[str], not_slow: Iterable[str] = ()) -> list:
    """A parameter for each case, marked as slow if it is not in `not_slow`.

    Without cases there is one empty parameter: its test asks for `shared_dir`, which says why it
    cannot run.
    """
    found = [
        pytest.param(
            name,
            id=name.rpartition("/")[2].removesuffix("_small"),
            marks=() if name in not_slow else pytest.mark.slow,
        )
        for name in names
    ]
    return found or [pytest.param("", id="no shared folder")]


def changed(
    fixtures: pathlib.Path, folder: pathlib.Path, change: Callable[[dict], None], case: str = CASE
) -> pathlib.Path:
    """A copy of a case in `folder`, with a changed JSON and without gradients.

    Without gradients the program compiles in a quarter of the time.
    """
    info = json.loads((fixtures / f"{case}.json").read_text())
    info.update(grad_norms={}, grad_dots={})
    change(info)
    (folder / f"{pathlib.Path(case).name}.json").write_text(json.dumps(info))
    shutil.copy(fixtures / f"{case}.npz", folder)
    return folder


def config_change(*path) -> Callable[[dict], None]:
    """`change(info)` that sets the value at the end of `path`, under the keys before it."""
    *parents, key, value = path

    def change(info):
        part = info
        for parent in parents:
            part = part[parent]
        assert part[key] != value
        part[key] = value

    return change


def mapped(tree, change: Callable[[str, np.ndarray], np.ndarray], prefix: str = ""):
    """A copy of a tree of arrays, each what `change(path, array)` makes of it."""
    if not hasattr(tree, "items"):
        return change(prefix, tree)
    return {key: mapped(value, change, f"{prefix}/{key}") for key, value in tree.items()}


def without_weights(monkeypatch, part: str) -> None:
    """Runs from here on have zeros for the reference's weights of a part of the detector."""
    real = weights.convert

    def convert(*args):
        found = real(*args)
        zeros = mapped(found.params[part], lambda path, x: np.zeros_like(x))
        return found._replace(params={**found.params, part: zeros})

    monkeypatch.setattr(weights, "convert", convert)


def made_case(bgr_to_rgb: bool, counts: list[int]) -> cases_lib.Case:
    """A case of two images with `counts[i]` objects in image i, and no other arrays."""
    image = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    arrays = {"image": image}
    for i, count in enumerate(counts):
        arrays[f"gt_boxes_{i}"] = np.ones((count, 4), np.float32)
        arrays[f"gt_labels_{i}"] = np.full(count, 2, np.int32)
    info = {
        "gt_counts": counts,
        "model_cfg": {"data_preprocessor": {"bgr_to_rgb": bgr_to_rgb}},
        "sampled": {"x": {"shape": [2, 3], "step": 4}},
        "batch_norm_in_train": {"batch_statistics": 0},
    }
    return cases_lib.Case("made", info, arrays)
