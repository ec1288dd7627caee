"""The demo of the shipped configs, without a flag, gives what the original programs gave."""

import json

import numpy as np
import pytest

from benchmarks.parity import darknet as parity
from detlab import demo
from detlab.converters import convert

# Px by which boxes may differ: the reference maps both axes back by one ratio, detlab each by that
# of its rounded side.  The only photograph with different ones is horses.jpg, 773x512 px.
BOXES_PX, SCORES = 0.05, 1e-4


def detections(shared_dir, folder, names, *arguments):
    """Name of a photograph -> objects of the demo with converted weights."""
    (folder / "photos").mkdir()
    for name in names:
        (folder / "photos" / name).symlink_to(shared_dir / "images" / name)
    weights = shared_dir / "weights"
    words = [x.format(weights=weights) for x in arguments]
    convert.main([*words, "--output", str(folder / "weights")])
    found = folder / "found"
    demo.main(
        ["--workdir", str(folder / "weights"), "--output", str(found)]
        + ["--input", str(folder / "photos")]
    )
    rows = json.loads((found / "detections.json").read_text())
    return {row["file"].rpartition("/")[2]: row["objects"] for row in rows}


def same(mine, theirs, boxes_px, scores):
    """Checks each of theirs, (class, score, box), against the nearest box of mine of its class."""
    assert len(mine) == len(theirs)
    left = list(mine)
    for name, score, box in theirs:
        own = [x for x in left if x["class"] == name]
        nearest = min(own, key=lambda x: np.abs(np.subtract(x["box"], box)).max())
        left.remove(nearest)
        np.testing.assert_allclose(nearest["box"], box, atol=boxes_px)
        assert abs(nearest["score"] - score) <= scores


@pytest.mark.slow
def test_yolov5_finds_what_detect_found(shared_dir, tmp_path):
    """On rectangles of 384x640 to 640x480 px, with a threshold of 0.25 and one class per box."""
    flags = ("--source=yolov5", "--config=yolov5_coco", "--input={weights}/yolov5n-v6.pt")
    file = shared_dir / "parity" / "yolo" / "yolov5n-v6-photos.json"
    recorded = json.loads(file.read_text())["images"]
    found = detections(shared_dir, tmp_path, recorded, *flags)
    assert len(found) == 5
    for name, image in recorded.items():
        theirs = [(x["name"], x["score"], x["xyxy"]) for x in image["detections"]]
        same(found[name], theirs, BOXES_PX, SCORES)
    assert [x["score"] for x in found["bus.jpg"]][0] == pytest.approx(0.876, abs=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rows, key", [("darknet", ""), ("darknet_letterbox", "letter_box=1\n")])
def test_darknet_finds_what_detector_test_found(rows, key, shared_dir, tmp_path):
    """On photographs stretched or letterboxed by its resize; darknet decodes JPEG otherwise.

    Two of the letterboxed ones have an odd border, whose unrounded half is 1.2 px of the
    photograph from the rounded one.
    """
    published = (shared_dir / "weights" / "yolo-fastest-1.1.cfg").read_text()
    cfg = tmp_path / "network.cfg"
    cfg.write_text(published.replace("[net]\n", f"[net]\n{key}", 1))
    flags = ("--config=darknet_coco", "--input={weights}/yolo-fastest-1.1.weights")
    flags += (f"--cfg={cfg}", "--names={weights}/coco.names")
    file = shared_dir / "parity" / "yolo" / "yolo-fastest-1.1-photos.json"
    recorded = json.loads(file.read_text())["images"]
    found = detections(shared_dir, tmp_path, recorded, *flags)
    assert len(found) == 7
    for name, image in recorded.items():
        size = np.array(image["size_wh"] * 2)
        theirs = []
        for x in image[rows]:
            centre, half = np.array(x["xywh"][:2]), np.array(x["xywh"][2:]) / 2
            box = np.clip(np.concatenate([centre - half, centre + half]), 0, 1) * size
            theirs.append((x["name"], x["score"], box))
        same(found[name], theirs, parity.PHOTO_BOXES * size.max(), parity.PHOTO_SCORES)
