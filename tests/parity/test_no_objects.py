"""Images without objects: recorded cases once more, with fewer objects than they have.

`tests/data/no_objects` holds what the reference then gives for targets, losses and gradients.
"""

import json

import numpy as np
import parity_runs
import pytest

# Case -> quantities that are compared of two images of which one has lost its objects.
EVERY_DAY = {
    "small/fcos_r50_caffe_fpn_gn_head_center_normbbox_centeronreg_giou_small": 193,
}
OTHERS = {
    "small/faster_rcnn_r50_fpn_small": 218,
    "small/retinanet_r50_fpn_small": 211,
    "small/retinanet_ghm_r50_fpn_small": 213,
    "small/fcos_r50_caffe_fpn_gn_head_small": 172,
    "small/reppoints_moment_r50_fpn_gn_small": 291,
    "small/reppoints_bbox_r50_grid_center_fpn_gn_small": 289,
    "small/cornernet_hourglass104_small": 627,
    "yolov3_d53": 65,  # recorded without gradients
}
ALL = [pytest.param(*case, id=case[0]) for case in EVERY_DAY.items()]
ALL += [pytest.param(*case, id=case[0], marks=pytest.mark.slow) for case in OTHERS.items()]

# What the shared files hold of objects and of what follows from them.
_OF_OBJECTS = ("gt_", "train_assign.", "train_targets.", "train_rois_", "train_roi_")


@pytest.fixture
def with_objects(shared_dir, repository, tmp_path):
    """`with_objects(path, counts)` writes the shared case with so many objects an image."""
    recorded = repository / "tests" / "data" / "no_objects"

    def write(path, counts):
        name = "_".join([path.rpartition("/")[2], *map(str, counts)])
        info = json.loads((shared_dir / "parity" / f"{path}.json").read_text())
        info |= json.loads((recorded / f"{name}.json").read_text())
        (tmp_path / f"{name}.json").write_text(json.dumps(info))
        with np.load(shared_dir / "parity" / f"{path}.npz") as file:
            arrays = {key: file[key] for key in file if not key.startswith(_OF_OBJECTS)}
            for i, count in enumerate(counts):
                arrays |= {key: file[key][:count] for key in (f"gt_boxes_{i}", f"gt_labels_{i}")}
        with np.load(recorded / f"{name}.npz") as file:
            arrays |= dict(file)
        np.savez(tmp_path / f"{name}.npz", **arrays)
        return name

    return write


@pytest.mark.parametrize("path, count", ALL)
def test_an_image_without_objects_beside_one_with_some_passes(
    path, count, with_objects, tmp_path, capsys
):
    run = parity_runs.run(capsys, tmp_path, "--case", with_objects(path, (3, 0)))
    assert run.status == 0, run.text
    assert not run.missed and len(run.passed) == count


@pytest.mark.slow
@pytest.mark.parametrize("path", [*EVERY_DAY, *OTHERS])
def test_a_batch_without_objects_passes(path, with_objects, tmp_path, capsys):
    run = parity_runs.run(capsys, tmp_path, "--case", with_objects(path, (0, 0)))
    assert run.status == 0, run.text
    kinds = {line.split()[0] for line in run.passed}
    assert not run.missed and {"map", "targets", "loss", "detections"} <= kinds
