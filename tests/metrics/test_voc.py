"""VOC numbers against mmdetection's recorded ones, a slow reference, and by hand."""

import json

import numpy as np
import pytest

from detlab.metrics import voc


def truth(image_id, boxes, labels, ignore=None):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    ignore = np.zeros(len(boxes), bool) if ignore is None else ignore
    return {
        "image_id": image_id,
        "boxes": boxes,
        "labels": labels,
        "ignore": ignore,
        "area": np.zeros(len(boxes), np.float32),  # VOC reads the boxes only
        "height": 100,
        "width": 100,
    }


def prediction(image_id, boxes, labels, scores):
    return {"image_id": image_id, "boxes": boxes, "labels": labels, "scores": scores}


def recorded(folder, name):
    """Ground truth (difficult and crowd ignored), predictions, names and figures."""
    gt, found, figures = (
        json.loads((folder / f"{name}_{part}.json").read_text())
        for part in ("gt", "dets", "figures")
    )
    labels = {category["id"]: label for label, category in enumerate(gt["categories"])}

    def arrays(rows, image):
        rows = [row for row in rows if row["image_id"] == image["id"]]
        xywh = np.array([row["bbox"] for row in rows], float).reshape(-1, 4)
        xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        return rows, xyxy.astype(np.float32), [labels[row["category_id"]] for row in rows]

    truths, predictions = [], []
    for image in gt["images"]:
        rows, boxes, classes = arrays(gt["annotations"], image)
        ignore = [bool(row["iscrowd"] or row["difficult"]) for row in rows]
        truths.append(truth(image["id"], boxes, classes, ignore))
        rows, boxes, classes = arrays(found, image)
        predictions.append(prediction(image["id"], boxes, classes, [row["score"] for row in rows]))
    names = [category["name"] for category in gt["categories"]]
    return truths, predictions, names, figures["eval_map"]


@pytest.mark.parametrize("name", ["main", "absent"])
def test_numbers_equal_eval_map_of_mmdetection(shared_dir, name):
    truths, predictions, names, cases = recorded(shared_dir / "parity" / "metrics", name)
    for case in cases:
        arguments = case["arguments"]
        ranges = arguments.get("scale_ranges", [])
        result = voc.evaluate(
            truths,
            predictions[::-1],  # predictions may come in any order
            names,
            iou_threshold=arguments["iou_thr"],
            legacy_plus_one=arguments.get("use_legacy_coordinate", False),
            size_ranges=ranges,
        )
        results = result["sizes"] if ranges else [result]
        ap = {"11points": "AP07", "area": "AP12"}[arguments["eval_mode"]]
        # 1e-5 is the tolerance of the recording: its curves are float32.
        close = {"rtol": 0, "atol": 1e-5, "err_msg": str(arguments)}
        np.testing.assert_allclose(
            [size[f"m{ap}"] for size in results], np.ravel(case["mean_ap"]), **close
        )
        for label, expected in enumerate(case["classes"]):
            rows = [size["classes"][label] for size in results]
            for key, theirs in (
                (ap, "ap"),
                ("recall", "recall"),
                ("precision", "precision"),
                ("num_objects", "num_gts"),
            ):
                np.testing.assert_allclose(
                    [row[key] for row in rows], np.ravel(expected[theirs]), **close
                )
            assert {row["num_detections"] for row in rows} == {expected["num_dets"]}


def slow_decisions(truths, predictions, label, threshold):
    """Every detection in turn, with plain loops: list of (true, false) by descending score."""
    ordered = sorted(
        (
            (-score, number, box)
            for number, image in enumerate(predictions)
            for box, score, found in zip(image["boxes"], image["scores"], image["labels"])
            if found == label
        ),
        key=lambda entry: entry[:2],
    )
    taken, decisions = set(), []
    for _, number, box in ordered:
        best, best_iou = None, -1
        image = truths[number]
        for slot, gt_box in enumerate(image["boxes"]):
            sides = np.minimum(box[2:], gt_box[2:]) - np.maximum(box[:2], gt_box[:2])
            overlap = np.prod(np.maximum(sides, 0))
            union = np.prod(box[2:] - box[:2]) + np.prod(gt_box[2:] - gt_box[:2]) - overlap
            if image["labels"][slot] == label and overlap / union > best_iou:
                best, best_iou = slot, overlap / union
        if best_iou < threshold:
            decisions.append((False, True))
        elif image["ignore"][best]:
            decisions.append((False, False))
        else:
            free = (number, best) not in taken
            taken.add((number, best))
            decisions.append((free, not free))
    return decisions


def test_decisions_equal_a_loop_over_detections():
    rng = np.random.default_rng(3)

    def boxes(count):
        corner = rng.uniform(0, 40, (count, 2))
        return np.concatenate([corner, corner + rng.uniform(15, 40, (count, 2))], axis=1).astype(
            np.float32
        )

    truths = [truth(i, boxes(5), rng.integers(0, 2, 5), rng.random(5) < 0.2) for i in range(8)]
    predictions = [
        prediction(i, boxes(40), rng.integers(0, 2, 40), rng.random(40)) for i in range(8)
    ]
    matches = voc.match(truths, predictions, num_classes=2)
    for label in range(2):
        for threshold in (0.3, 0.5):
            decisions = voc.decide(matches, label, threshold)
            expected = slow_decisions(truths, predictions, label, threshold)
            assert sum(true for true, _ in expected) > 3
            assert list(zip(decisions.true, decisions.false)) == expected


def test_a_detection_whose_best_object_is_taken_is_false_though_another_is_free():
    # The second detection overlaps the second object by more than .5, but the first one by more.
    truths = [truth(0, [[0, 0, 10, 10], [0, 2, 10, 12]], [0, 0])]
    boxes = [[0, 0, 10, 10], [0, 0.5, 10, 10.5]]
    decisions = voc.decide(voc.match(truths, [prediction(0, boxes, [0, 0], [0.9, 0.8])], 1), 0)
    assert decisions.true.tolist() == [True, False]
    assert decisions.false.tolist() == [False, True]


def test_a_detection_of_a_difficult_object_counts_neither_way():
    truths = [truth(0, [[0, 0, 10, 10], [20, 20, 30, 30]], [0, 0], [True, False])]
    boxes = [[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]]
    result = voc.evaluate(truths, [prediction(0, boxes, [0] * 3, [0.9, 0.8, 0.7])], ["cat"])
    assert result["mAP12"] == 1
    assert result["classes"][0]["num_objects"] == 1


def test_curve_and_both_rules_of_true_false_true_of_four_objects():
    gt_boxes = [[20 * i, 0, 20 * i + 10, 10] for i in range(4)]
    truths = [truth("a", gt_boxes, [0] * 4)]
    boxes = [gt_boxes[0], [200, 200, 210, 210], gt_boxes[1]]
    predictions = [prediction("a", boxes, [0] * 3, [0.9, 0.8, 0.7])]
    recall, precision = voc.pr_curve(voc.decide(voc.match(truths, predictions, 1), 0))
    np.testing.assert_allclose(recall, [0.25, 0.25, 0.5])
    np.testing.assert_allclose(precision, [1, 1 / 2, 2 / 3])
    # 1 up to recall 1/4, 2/3 up to 1/2, nothing beyond.
    assert voc.average_precision(recall, precision) == pytest.approx(0.25 + 0.25 * 2 / 3)
    # Recalls 0, .1, .2 at 1; .3, .4, .5 at 2/3.
    assert voc.average_precision(recall, precision, "11points") == pytest.approx((3 + 2) / 11)


def test_recall_three_tenths_does_not_reach_the_fourth_of_eleven_points():
    assert voc.average_precision(
        np.array([0.1, 0.2, 0.3]), np.ones(3), "11points"
    ) == pytest.approx(3 / 11)


def test_equal_scores_keep_the_order_of_images_and_rows():
    truths = [truth(0, [], []), truth(1, [[0, 0, 10, 10]], [0])]
    predictions = [
        prediction(1, [[0, 0, 10, 10], [50, 50, 60, 60]], [0, 0], [0.5, 0.5]),
        prediction(0, [[0, 0, 10, 10]], [0], [0.5]),
    ]
    decisions = voc.decide(voc.match(truths, predictions, 1), 0)
    assert decisions.true.tolist() == [False, True, False]


def test_plus_one_makes_a_whole_pixel_of_a_box_without_width():
    truths = [truth(0, [[5, 5, 5, 5]], [0])]
    predictions = [prediction(0, [[5, 5, 5, 5]], [0], [1])]
    assert voc.evaluate(truths, predictions, ["cat"])["mAP12"] == 0
    assert voc.evaluate(truths, predictions, ["cat"], legacy_plus_one=True)["mAP12"] == 1


def test_empty_inputs_give_zeros():
    assert voc.evaluate([], [], ["cat"])["mAP12"] == 0
    truths = [truth(0, [[0, 0, 10, 10]], [0])]
    assert voc.evaluate(truths, [], ["cat", "dog"])["mAP12"] == 0
    result = voc.evaluate([truth(0, [], [])], [prediction(0, [[0, 0, 1, 1]], [0], [1])], ["cat"])
    assert result["mAP12"] == 0
    assert result["classes"][0]["num_detections"] == 1


def test_classes_without_objects_are_left_out_of_the_mean_of_either_rule():
    truths = [truth(0, [[0, 0, 10, 10]], [0])]
    predictions = [prediction(0, [[0, 0, 10, 10], [0, 0, 10, 10]], [0, 1], [1, 1])]
    result = voc.evaluate(truths, predictions, ["cat", "dog"], size_ranges=[(0, 32), (32, 96)])
    assert result["mAP07"] == result["mAP12"] == 1
    assert [row["num_objects"] for row in result["classes"]] == [1, 0]
    assert [size["mAP12"] for size in result["sizes"]] == [1, 0]


def test_unknown_rule_and_unknown_image_raise():
    with pytest.raises(ValueError, match="rule is '2007'; it must be one of area, 11points"):
        voc.average_precision(np.zeros(0), np.zeros(0), rule="2007")
    with pytest.raises(ValueError, match="image 'b': the ground truth has no such image"):
        voc.evaluate([truth("a", [], [])], [prediction("b", [], [], [])], ["cat"])
