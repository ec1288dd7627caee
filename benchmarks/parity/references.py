"""The references of which there are cases, and which of them one is of."""

import pathlib
from collections.abc import Mapping

from benchmarks.parity import darknet, mmdet, runner
from benchmarks.parity.yolov5 import kinds as yolov5
from detlab import errors

RUNNERS = (darknet.RUNNER, yolov5.RUNNER, mmdet.RUNNER)


def of(info: Mapping) -> runner.Runner | None:
    """The one of RUNNERS that knows a case; None where none does.

    Raises:
      UserError: more than one does.
    """
    known = [found for found in RUNNERS if found.knows(info)]
    if len(known) > 1:
        names = " and ".join(found.reference for found in known)
        raise errors.UserError(f"case {info.get('name')} is known to the runners of {names}.")
    return known[0] if known else None


def lacks(fixtures: pathlib.Path, name: str, info: Mapping) -> str:
    """What detlab does not have that a case needs, in words; "" where it can run."""
    found = of(info)
    if found:
        return found.lacks(fixtures, name, info)
    source = info.get("source") or info.get("reference") or "published weights"
    return f"no model for {source}"
