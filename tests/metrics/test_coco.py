"""COCO numbers against pycocotools on json files, and by hand."""

import json

import numpy as np
import pytest

from detlab.metrics import coco

NAMES = ("cat", "dog")


def truth(image_id, boxes, labels, ignore=None, area=None):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) if area is None else area
    ignore = np.zeros(len(boxes), bool) if ignore is None else ignore
    return {
        "image_id": image_id,
        "boxes": boxes,
        "labels": labels,
        "ignore": ignore,
        "area": area,
        "height": 100,
        "width": 100,
    }


def prediction(image_id, boxes, labels, scores):
    return {"image_id": image_id, "boxes": boxes, "labels": labels, "scores": scores}


def recorded(folder, name):
    """Ground truth and predictions of the recorded files as the metric takes them."""
    files = [
        json.loads((folder / f"{name}_{part}.json").read_text())
        for part in ("gt", "dets", "figures")
    ]
    gt, found, figures = files
    labels = {category["id"]: label for label, category in enumerate(gt["categories"])}

    def arrays(rows, image):
        rows = [row for row in rows if row["image_id"] == image["id"]]
        xywh = np.array([row["bbox"] for row in rows], float).reshape(-1, 4)
        xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        return rows, xyxy.astype(np.float32), [labels[row["category_id"]] for row in rows]

    truths, predictions = [], []
    for image in gt["images"]:
        rows, boxes, classes = arrays(gt["annotations"], image)
        crowd = [row["iscrowd"] == 1 for row in rows]
        truths.append(truth(image["id"], boxes, classes, crowd, [row["area"] for row in rows]))
        rows, boxes, classes = arrays(found, image)
        predictions.append(prediction(image["id"], boxes, classes, [row["score"] for row in rows]))
    return truths, predictions, [category["name"] for category in gt["categories"]], figures["coco"]


@pytest.mark.parametrize("name", ["main", "absent"])
def test_numbers_equal_pycocotools_on_json_files(shared_dir, name):
    truths, predictions, names, figures = recorded(shared_dir / "parity" / "metrics", name)
    # Predictions may come in any order.
    result = coco.evaluate(truths, predictions[::-1], names)
    # 1e-5 is the tolerance of the recording; boxes are float32 here and double there.
    for key, value in figures["stats"].items():
        key = key.replace("AR_1", "AR1")  # AR_1, AR_10, AR_100; AR_small keeps its name
        assert result[key] == pytest.approx(value, rel=0, abs=1e-5), key
    for row, expected in zip(result["classes"], figures["classes"], strict=True):
        for key in ("AP", "AP50", "AP75", "AR_100"):
            value = row[key.replace("AR_", "AR")]
            assert value == pytest.approx(expected[key], rel=0, abs=1e-5), (row["name"], key)


def test_boxes_that_equal_the_objects_score_one_and_sizes_without_objects_minus_one():
    truths = [truth("a", [[0, 0, 50, 50]], [0]), truth("b", [[10, 10, 60, 60]], [1])]
    predictions = [prediction(t["image_id"], t["boxes"], t["labels"], [0.9]) for t in truths]
    result = coco.evaluate(truths, predictions, NAMES)
    for key in ("AP", "AP50", "AP75", "AP_medium", "AR1", "AR100", "AR_medium"):
        assert result[key] == pytest.approx(1), key
    for key in ("AP_small", "AP_large", "AR_small", "AR_large"):
        assert result[key] == -1, key
    assert result["classes"][1]["num_objects"] == 1


def test_the_first_object_of_the_first_image_can_be_matched():
    """An annotation with the id 0 would count as never matched."""
    truths = [truth(0, [[0, 0, 50, 50]], [0])]
    result = coco.evaluate(truths, [prediction(0, [[0, 0, 50, 50]], [0], [0.5])], ["cat"])
    assert result["AP"] == pytest.approx(1)


def test_a_detection_of_iou_0_72_counts_at_five_of_ten_thresholds():
    truths = [truth(0, [[0, 0, 100, 100]], [0])]
    result = coco.evaluate(truths, [prediction(0, [[0, 0, 72, 100]], [0], [0.5])], ["cat"])
    assert result["AP"] == pytest.approx(0.5)
    assert (result["AP50"], result["AP75"]) == (pytest.approx(1), 0)


def test_detections_inside_a_crowd_box_do_not_count():
    truths = [truth(0, [[0, 0, 40, 40], [50, 0, 100, 100]], [0, 0], [False, True])]
    boxes = [[60, 10, 70, 20], [75, 10, 85, 20], [0, 0, 40, 40]]
    result = coco.evaluate(truths, [prediction(0, boxes, [0, 0, 0], [0.9, 0.8, 0.7])], ["cat"])
    assert result["AP"] == pytest.approx(1)
    assert result["classes"][0]["num_objects"] == 1
    assert result["classes"][0]["num_detections"] == 3


def test_no_predictions_score_zero():
    truths = [truth(0, [[0, 0, 50, 50]], [0])]
    for predictions in ([], [prediction(0, [], [], [])]):
        result = coco.evaluate(truths, predictions, NAMES)
        assert result["AP"] == 0
        assert result["classes"][1]["AP"] == -1


def test_no_ground_truth_gives_minus_one():
    result = coco.evaluate([truth(0, [], [])], [prediction(0, [[0, 0, 9, 9]], [0], [1])], NAMES)
    assert all(result[key] == -1 for key in coco.SUMMARY)
    result = coco.evaluate([], [], NAMES)
    assert all(result[key] == -1 for key in coco.SUMMARY)


def test_nothing_is_printed(capsys):
    coco.evaluate([truth(0, [], [])], [], NAMES)
    assert capsys.readouterr().out == ""


NAN = float("nan")


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([prediction(7, [], [], [])], "image 7: the ground truth has no such image"),
        ([prediction(0, [], [], [])] * 2, "image 0 is given twice"),
        ([prediction(0, [[0, 0, 1, 1]], [2], [1])], r"label 2 is outside 0\.\.1"),
        ([prediction(0, [[0, 0, 1, 1]], [-1], [1])], "label -1 is outside"),
        ([prediction(0, [[0, 0, 1, NAN]], [0], [1])], "a box is not finite"),
        ([prediction(0, [[0, 0, 1, 1]], [0], [NAN])], "scores has a value that is not finite"),
        (
            [prediction(0, [[0, 0, 1, 1]], [0, 1], [1])],
            r"labels has the shape \(2,\), not \(1,\) with one",
        ),
        ([prediction(0, [[0, 0, 1]], [0], [1])], r"shape \(1, 3\), not \[n, 4\]"),
    ],
)
def test_predictions_that_do_not_fit_raise(predictions, message):
    with pytest.raises(ValueError, match=message):
        coco.evaluate([truth(0, [], [])], predictions, NAMES)


def test_ground_truth_that_does_not_fit_raises():
    with pytest.raises(ValueError, match="ground truth of image 'a' is given twice"):
        coco.evaluate([truth("a", [], []), truth("a", [], [])], [], NAMES)
    with pytest.raises(ValueError, match="label 5 is outside"):
        coco.evaluate([truth("a", [[0, 0, 1, 1]], [5])], [], NAMES)
