"""Annotations as the file has them: pixels of outlines and points, choices, predictions beside."""

import json

import cv2
import made_coco
import numpy as np
import pytest

from detlab import errors
from detlab.tools import visualize
from detlab.viz import boxes as boxes_viz


def run(arguments, folder):
    visualize.main([*arguments, "--output", str(folder)])
    return json.loads((folder / "visualize.json").read_text())["results"]


def outlined(content):
    """The first cat gets an outline, the dog points, the crowd run lengths."""
    cat, dog, _, crowd = content["annotations"]
    cat["segmentation"] = [made_coco.SQUARE]
    dog["keypoints"] = [40, 40, 2, 60, 60, 1, 0, 0, 0]
    content["categories"][1]["skeleton"] = [[1, 2], [2, 3]]
    crowd["segmentation"] = {"size": [160, 200], "counts": [0, 1600, 160 * 200 - 1600]}


def test_outlines_and_keypoints_are_drawn_where_the_file_has_them(coco_data, tmp_path):
    found = run(coco_data(outlined), tmp_path / "out")
    a, b, c = found["images"]
    cat, dog = a["objects"]
    assert cat["class"] == "cat" and cat["outline_px"] == 400 and dog["keypoints"] == 2
    assert b["objects"][1]["ignore"] and b["objects"][1]["outline_px"] == 1600
    assert c["objects"] == [] and found["not_drawn"] == {}
    picture = cv2.imread(str(tmp_path / "out" / a["picture"]))[..., ::-1].astype(int)
    factor = picture.shape[0] // 80
    inside, outside = picture[20 * factor, 20 * factor], picture[75 * factor, 90 * factor]
    tint = np.rint(0.6 * 100 + 0.4 * np.array(boxes_viz.colour(0)))
    assert np.abs(inside - tint).max() < 25 and np.abs(outside - 100).max() < 8  # JPEG

    boxes_only = run([*coco_data(outlined), "--boxes_only"], tmp_path / "boxes")["images"][0]
    assert boxes_only["objects"][0]["outline_px"] is None
    picture = cv2.imread(str(tmp_path / "boxes" / a["picture"])).astype(int)
    assert np.abs(picture[20 * factor, 20 * factor] - 100).max() < 8


def test_objects_are_chosen_by_class_size_and_crowd(coco_data, tmp_path):
    flags = coco_data()
    chosen = [
        [
            (image["name"][-5:], entry["class"])
            for image in run([*flags, *more], tmp_path / "out")["images"]
            for entry in image["objects"]
        ]
        for more in (["--class=cat"], ["--size=small"], ["--only_ignored"])
    ]
    assert chosen == [
        [("a.png", "cat"), ("b.png", "cat")],
        [("a.png", "cat"), ("b.png", "dog")],
        [("b.png", "dog")],
    ]


def test_predictions_are_drawn_beside_the_annotations(coco_data, tmp_path):
    rows = [
        {"image_id": 1, "category_id": 3, "bbox": [10, 10, 20, 20], "score": score}
        for score in (0.9, 0.2)
    ]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    flags = [*coco_data(), f"--predictions={tmp_path / 'results.json'}"]
    first = run(flags, tmp_path / "first")["images"][0]
    assert first["predictions"] == [{"class": "cat", "box": [10, 10, 30, 30], "score": 0.9}]
    second = run([*flags, "--threshold=0.1"], tmp_path / "second")["images"][0]
    assert [entry["score"] for entry in second["predictions"]] == [0.9, 0.2]
    pictures = [cv2.imread(str(tmp_path / name / first["picture"])) for name in ("first", "second")]
    assert pictures[0].shape[1] > 2 * 500 and (pictures[0] != pictures[1]).any()


def test_what_cannot_be_drawn_is_counted_and_the_rest_is_drawn(coco_data, tmp_path):
    def spoil(content):
        cat, dog, other, crowd = content["annotations"]
        cat["segmentation"] = [[1, 2]]
        dog["keypoints"] = [1, 2]
        crowd["segmentation"] = {"size": [5, 5], "counts": [25]}

    found = run(coco_data(spoil), tmp_path / "out")
    assert found["not_drawn"] == {
        "outlines that are neither polygons nor run lengths": 1,
        "keypoints that are no triples": 1,
        "outlines of another size than their image": 1,
    }
    assert sum(len(image["objects"]) for image in found["images"]) == 4


def test_the_flags_of_wider_face_are_written(shared_dir, tmp_path):
    flags = ["--config=retinanet_wider", f"--config.data.root={shared_dir / 'data/wider_mini'}"]
    flags += ["--only_ignored", "--count=1"]
    (image,) = run(flags, tmp_path / "out")["images"]
    assert all(entry["ignore"] for entry in image["objects"])  # invalid faces
    assert (tmp_path / "out" / image["picture"]).exists()


def test_a_threshold_out_of_range_is_refused(coco_data, tmp_path):
    with pytest.raises(errors.UserError, match="--threshold is 2; it must be from 0 to 1."):
        run([*coco_data(), "--threshold=2"], tmp_path / "out")
