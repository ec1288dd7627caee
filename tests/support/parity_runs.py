"""Runs of the parity command as the tests read them."""

import json
import pathlib
import re
import shutil
from typing import Callable, NamedTuple

import numpy as np

from benchmarks import parity

CASE = "retinanet_r50_fpn"


class Run(NamedTuple):
    status: int
    text: str
    passed: list[str]  # names of the quantities
    missed: list[str]


def run(capsys, fixtures: pathlib.Path, *more: str) -> Run:
    """`python -m benchmarks.parity --quick --fixtures FIXTURES ...` in this process."""
    capsys.readouterr()
    try:
        parity.main(["--fixtures", str(fixtures), "--quick", *more])
        status = 0
    except SystemExit as error:
        status = error.code
    text = capsys.readouterr().out
    lines = {
        verdict: re.findall(rf"^{verdict} +(.*?) +error .* tolerance ", text, re.MULTILINE)
        for verdict in ("ok", "MISS")
    }
    return Run(status, text, lines["ok"], lines["MISS"])


def changed(
    fixtures: pathlib.Path, folder: pathlib.Path, change: Callable[[dict], None]
) -> pathlib.Path:
    """A copy of the case in `folder`, without gradients and with another JSON.

    Without them the program compiles in a quarter of the time.
    """
    info = json.loads((fixtures / f"{CASE}.json").read_text())
    info.update(grad_norms={}, grad_dots={})
    change(info)
    (folder / f"{CASE}.json").write_text(json.dumps(info))
    shutil.copy(fixtures / f"{CASE}.npz", folder)
    return folder


def mapped(tree, change: Callable[[str, np.ndarray], np.ndarray], prefix: str = ""):
    """A copy of a tree of arrays, each what `change(path, array)` makes of it."""
    if not hasattr(tree, "items"):
        return change(prefix, tree)
    return {key: mapped(value, change, f"{prefix}/{key}") for key, value in tree.items()}
