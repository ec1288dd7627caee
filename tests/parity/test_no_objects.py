"""Images without objects: recorded cases, run again with fewer objects.

`tests/data/no_objects` holds the reference's targets, losses and gradients for them.
"""

import json
import re

import numpy as np
import parity_runs
import pytest

from benchmarks.parity import mmdet

RECORDED = parity_runs.REPOSITORY / "tests" / "data" / "no_objects"
NAMES = [path.stem.removesuffix("_3_0") for path in sorted(RECORDED.glob("*_3_0.json"))]
PATHS = [f"small/{name}" if name.endswith("_small") else name for name in NAMES]
# The case with the fewest quantities among those whose twins run every day.
EVERY_DAY = [path for path in parity_runs.every_day() if path in PATHS][:1]

# Prefixes of the recorded arrays that depend on objects.
_OF_OBJECTS = ("gt_", "train_assign.", "train_targets.", "train_rois_", "train_roi_")


@pytest.fixture
def with_objects(shared_dir, tmp_path):
    """`with_objects(path, counts)` writes the shared case with `counts[i]` objects in image i.

    It returns the name of that case, and how many quantities fewer than the shared case it has.
    """

    def write(path, counts):
        name = "_".join([path.rpartition("/")[2], *map(str, counts)])
        shared = json.loads((shared_dir / "parity" / f"{path}.json").read_text())
        info = shared | json.loads((RECORDED / f"{name}.json").read_text())
        (tmp_path / f"{name}.json").write_text(json.dumps(info))
        with np.load(shared_dir / "parity" / f"{path}.npz") as file:
            gone = {key for key in file if key.startswith(_OF_OBJECTS)}
            arrays = {key: file[key] for key in file if key not in gone}
            for i, count in enumerate(counts):
                arrays |= {key: file[key][:count] for key in (f"gt_boxes_{i}", f"gt_labels_{i}")}
        with np.load(RECORDED / f"{name}.npz") as file:
            arrays |= dict(file)
        np.savez(tmp_path / f"{name}.npz", **arrays)
        absent = "|".join(mmdet.adapter_of(shared).not_compared) or "none"
        fewer = sum(not re.fullmatch(absent, key) for key in gone - arrays.keys())
        if not info["grad_norms"]:
            # Norm and dot of each gradient, and the lines of frozen and of unused parameters.
            fewer += 2 * len(shared["grad_norms"]) + 2
        return name, fewer

    return write


@pytest.mark.parametrize("path", parity_runs.parameters(PATHS, EVERY_DAY))
def test_an_image_without_objects_beside_one_with_some_passes(path, with_objects, tmp_path, capsys):
    name, fewer = with_objects(path, (3, 0))
    run = parity_runs.run(capsys, tmp_path, "--case", name)
    assert run.status == 0, run.text
    assert not run.missed and len(run.passed) == parity_runs.quantities(path) - fewer


@pytest.mark.parametrize("path", parity_runs.parameters(PATHS))
def test_a_batch_without_objects_passes(path, with_objects, tmp_path, capsys):
    name, _ = with_objects(path, (0, 0))
    run = parity_runs.run(capsys, tmp_path, "--case", name)
    assert run.status == 0, run.text
    kinds = {line.split()[0] for line in run.passed}
    assert not run.missed and {"map", "targets", "loss", "detections"} <= kinds
