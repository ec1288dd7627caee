"""Parity with YOLOv5, for each kind of case.

Cases are those of `parity/yolo` with reference "ultralytics/yolov5": their weights are made up by a
rule, or published and run on photographs or on a small part of COCO.
"""

import pathlib
from collections.abc import Mapping

from benchmarks.parity import runner
from benchmarks.parity.yolov5 import data_set, made_up, photographs


def knows(info: Mapping) -> bool:
    """Whether a case is of YOLOv5."""
    weights = info.get("weights")
    named = isinstance(weights, str) and weights.startswith("yolov5")
    return named or "ultralytics/yolov5" in str(info.get("reference"))


def run(
    fixtures: pathlib.Path, name: str, info: dict, settings: runner.Settings
) -> runner.Compared:
    """The lines of a case, by the module of its kind."""
    kind = data_set if "data" in info else photographs if "images" in info else made_up
    return kind.run(fixtures, name, info, settings), []


RUNNER = runner.Runner("YOLOv5", knows, run)
