"""The references that have cases, and which of them a case belongs to."""

import pathlib
from collections.abc import Mapping

from benchmarks.parity import darknet, mmdet, runner
from benchmarks.parity.yolov5 import kinds as yolov5
from detlab import errors

RUNNERS = (darknet.RUNNER, yolov5.RUNNER, mmdet.RUNNER)


def of(info: Mapping) -> runner.Runner | None:
    """The one of RUNNERS that knows a case; None if none does.

    Raises:
      UserError: more than one does.
    """
    known = [found for found in RUNNERS if found.knows(info)]
    if len(known) > 1:
        names = " and ".join(found.reference for found in known)
        raise errors.UserError(
            f"case {info.get('name')} fits the runners of {names}; it must fit only one."
        )
    return known[0] if known else None


def lacks(fixtures: pathlib.Path, name: str, info: Mapping) -> str:
    """What a case needs and detlab lacks, in words; "" if the case can run."""
    found = of(info)
    if found:
        return found.lacks(fixtures, name, info)
    source = info.get("source") or info.get("reference") or "published weights"
    return f"no model for {source}"
