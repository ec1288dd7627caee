"""How an AP comes about: values computed by hand, and equal to the evaluators' own."""

import json

import numpy as np
import pytest

from detlab import errors
from detlab.metrics import coco, voc
from detlab.tools import average_precision

HEADER = "kind,image,class,score,x1,y1,x2,y2,ignore"
ROWS = [
    "truth,a,cat,,0,0,10,10,",
    "truth,a,cat,,20,0,30,10,0",
    "detection,a,cat,0.9,0,0,10,10,",  # finds object 1
    "detection,a,cat,0.8,0,0,10,9,",  # finds it again
    "detection,a,cat,0.7,20,0,30,9,",  # finds object 2, IoU .9
]


def run(rows, folder, *more):
    folder.mkdir()
    (folder / "boxes.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    arguments = [f"--boxes={folder / 'boxes.csv'}", f"--output={folder}", *more]
    average_precision.main(arguments)
    return json.loads((folder / "average_precision.json").read_text())["results"]


def verdicts(found, rule):
    return [detection[rule]["verdict"] for detection in found["detections"]]


def reasons(found, rule):
    return [detection[rule]["reason"] for detection in found["detections"]]


def test_the_curves_of_three_detections_are_those_computed_by_hand(tmp_path, capsys):
    found = run(ROWS, tmp_path / "first")["classes"]["cat"]
    assert found["voc"]["recall"] == [0.5, 0.5, 1.0]
    assert found["voc"]["precision"] == pytest.approx([1, 1 / 2, 2 / 3])
    assert found["voc"]["envelope"] == pytest.approx([1, 2 / 3, 2 / 3])
    assert found["voc"]["eleven_points"] == pytest.approx([1] * 6 + [2 / 3] * 5)
    assert found["voc_AP12"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert found["voc_AP07"] == pytest.approx((6 + 5 * 2 / 3) / 11)
    at_half = (51 + 50 * 2 / 3) / 101  # recalls 0, .01, .. .5 and .51, .. 1
    assert found["coco_AP50"] == pytest.approx(at_half)
    # At IoU .95 the third detection finds nothing: recall stays at .5.
    assert found["coco"]["AP"] == pytest.approx([at_half] * 9 + [51 / 101], abs=1e-6)
    assert verdicts(found, "voc") == verdicts(found, "coco") == ["TP", "FP", "TP"]
    assert reasons(found, "voc")[1] == "object 1 (IoU 0.90) has detection 1 (score 0.90)"
    assert "VOC FP, object 1 (IoU 0.90) has detection 1" in capsys.readouterr().out

    # The second detection now comes last, and costs nothing by VOC's rules.
    other = run([*ROWS[:3], ROWS[3].replace("0.8", "0.1"), ROWS[4]], tmp_path / "second")
    assert other["classes"]["cat"]["voc_AP12"] == other["classes"]["cat"]["voc_AP07"] == 1
    for name in ("curves.png", "boxes_voc.jpg"):
        pictures = [(tmp_path / run_ / name).read_bytes() for run_ in ("first", "second")]
        assert pictures[0] != pictures[1]


def test_the_protocols_differ_where_a_better_object_is_taken(tmp_path):
    """The second detection has IoU 85/110 with object 1 and 90/145 with object 2."""
    rows = [
        "truth,a,cat,,0,0,10,10,",
        "truth,a,cat,,0,2,10,16,",
        "detection,a,cat,0.9,0,0,10,10,",
        "detection,a,cat,0.8,0,1.5,10,11,",
    ]
    found = run(rows, tmp_path / "out")["classes"]["cat"]
    assert verdicts(found, "voc") == ["TP", "FP"] and verdicts(found, "coco") == ["TP", "TP"]
    assert reasons(found, "coco")[1].startswith("IoU 0.62 with object 2, the best that is free")


def test_ignored_objects_make_detections_neither_true_nor_false(tmp_path):
    rows = [
        "truth,a,cat,,0,0,100,100,1",
        "truth,b,cat,,0,0,10,10,0",
        "detection,a,cat,0.9,0,0,90,90,",  # IoU .81 with the ignored object
        "detection,a,cat,0.8,0,0,10,10,",  # IoU .01, but inside it
        "detection,b,cat,0.7,0,0,10,4,",  # IoU .4
        "detection,c,cat,0.6,0,0,10,10,",
    ]
    found = run(rows, tmp_path / "out")["classes"]["cat"]
    assert verdicts(found, "voc") == ["ignored", "FP", "FP", "FP"]
    assert verdicts(found, "coco") == ["ignored", "ignored", "FP", "FP"]
    assert reasons(found, "coco")[1] == "1.00 of it lies in object 1, which is ignored"
    assert reasons(found, "voc")[2] == "IoU 0.40 with object 1, the best, is under 0.5"
    assert reasons(found, "voc")[3] == "the image has no object of the class"
    assert found["num_objects"] == 1
    # Only the threshold is another: 0.4 is still no match.
    at_other = run(rows, tmp_path / "other", "--iou=0.85")["classes"]["cat"]
    assert verdicts(at_other, "voc")[0] == "FP" and verdicts(at_other, "coco")[0] == "ignored"


def test_coco_counts_the_best_hundred_detections_of_a_class_in_an_image(tmp_path):
    far = [f"detection,a,cat,{1 - k / 1000:.3f},50,0,60,10," for k in range(100)]
    rows = ["truth,a,cat,,0,0,10,10,", *far, "detection,a,cat,0.1,0,0,10,10,"]
    found = run(rows, tmp_path / "out", "--count=0")["classes"]["cat"]
    assert verdicts(found, "voc")[-1] == "TP" and found["voc_AP12"] == pytest.approx(1 / 101)
    assert verdicts(found, "coco")[-1] == "ignored" and found["coco_AP50"] == 0
    assert reasons(found, "coco")[-1] == "only the best 100 of a class in an image count"
    assert not list((tmp_path / "out").glob("*.jpg"))


def made_up(rng, images=6):
    """Random objects of two classes, and detections near them and elsewhere."""
    truth, found = [], []
    for i in range(images):
        low = rng.uniform(0, 80, (8, 2))
        boxes = np.concatenate([low, low + rng.uniform(5, 60, (8, 2))], axis=1)
        labels, ignore = rng.integers(0, 2, 8), rng.random(8) < 0.2
        truth.append(
            {
                "image_id": i,
                "boxes": boxes.astype(np.float32),
                "labels": labels.astype(np.int32),
                "ignore": ignore,
                "area": np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).astype(np.float32),
            }
        )
        near = np.concatenate([boxes, boxes, boxes + 30]) + rng.normal(0, 4, (24, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        of = np.where(rng.random(24) < 0.8, np.tile(labels, 3), rng.integers(0, 2, 24))
        found.append(
            {"image_id": i, "boxes": near, "scores": rng.random(24).round(2), "labels": of}
        )
    return average_precision.Truth("made up", ("cat", "dog"), truth, found, None)


def test_numbers_are_the_evaluators_and_verdicts_add_up_to_them():
    data = made_up(np.random.default_rng(0))
    names = data.class_names
    by_voc = voc.evaluate(data.objects, data.predictions, names, 0.5)
    by_coco = coco.evaluate(data.objects, data.predictions, names)
    both = average_precision.Both.of(data, 0.5)
    assert both.overall["voc_mAP07"] == by_voc["mAP07"] and both.overall["coco_AP"] == by_coco["AP"]
    for label in range(2):
        found = both.explain(label)
        wanted, other = by_voc["classes"][label], by_coco["classes"][label]
        assert found["voc_AP07"] == wanted["AP07"] and found["voc_AP12"] == wanted["AP12"]
        assert found["coco_AP"] == other["AP"] and found["coco_AP75"] == other["AP75"]
        assert np.mean(found["coco"]["AP"]) == pytest.approx(other["AP"], abs=1e-12)
        assert found["coco"]["AP"][0] == pytest.approx(other["AP50"], abs=1e-12)
        assert verdicts(found, "voc").count("TP") == round(wanted["recall"] * wanted["num_objects"])
        # The curve from COCO's verdicts, interpolated at its recalls, is COCO's AP50.
        counted = [v for v in verdicts(found, "coco") if v != "ignored"]
        true = np.cumsum([v == "TP" for v in counted])
        precision = true / np.arange(1, len(counted) + 1)
        envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)
        at = np.searchsorted(true / other["num_objects"], np.linspace(0, 1, 101), side="left")
        assert envelope[at].mean() == pytest.approx(other["AP50"], abs=1e-9)
        assert {"TP", "FP", "ignored"} == set(verdicts(found, "voc"))


def test_saved_predictions_of_data_are_read_and_a_class_is_chosen(coco_data, tmp_path):
    rows = [
        {"image_id": 2, "category_id": key, "bbox": [50, 50, 10, 10], "score": 0.5}
        for key in (3, 7)
    ]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    flags = [*coco_data(), f"--predictions={tmp_path / 'results.json'}"]
    flags += [f"--output={tmp_path / 'out'}"]
    average_precision.main([*flags, "--class=all"])
    found = json.loads((tmp_path / "out" / "average_precision.json").read_text())["results"]
    assert verdicts(found["classes"]["cat"], "voc") == ["FP"]
    assert verdicts(found["classes"]["dog"], "coco") == ["ignored"]  # inside the crowd
    average_precision.main(flags)
    found = json.loads((tmp_path / "out" / "average_precision.json").read_text())["results"]
    assert list(found["classes"]) == ["cat"]  # has most objects


def test_json_by_hand_is_read_as_csv_is(tmp_path):
    expected = run(ROWS, tmp_path / "csv")
    keys = HEADER.split(",")
    rows = [dict(zip(keys, row.split(","))) for row in ROWS]
    rows = [{key: value for key, value in row.items() if value != ""} for row in rows]
    (tmp_path / "boxes.json").write_text(json.dumps(rows))
    average_precision.main([f"--boxes={tmp_path / 'boxes.json'}", f"--output={tmp_path / 'out'}"])
    found = json.loads((tmp_path / "out" / "average_precision.json").read_text())["results"]
    assert found == expected


@pytest.mark.parametrize(
    "rows, sentence",
    [
        (ROWS[2:], "boxes.csv has no object .kind truth., so there is no AP."),
        (["truht,a,cat,,0,0,9,9,"], "box 1 has the kind 'truht'; it must be truth or detection."),
        ([*ROWS, "detection,a,cat,,0,0,9,9,"], "box 6 has the score '', which is no number."),
        (["truth,a,cat,,9,0,9,9,"], "box 1 has no area; x1, y1 is the upper left corner"),
        (["truth,a,cat,,0,0,9,9,maybe"], "box 1 has ignore 'maybe'; it must be 0 or 1."),
    ],
)
def test_a_row_that_lacks_something_is_told_in_a_sentence(tmp_path, rows, sentence):
    with pytest.raises(errors.UserError, match=sentence):
        run(rows, tmp_path / "out")


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--iou=0.3"], "--iou is 0.3; it must be one of 0.5, 0.55"),
        (["--boxes=none.csv"], "cannot read --boxes none.csv: No such file"),
        (["--boxes=a.csv", "--config=retinanet_shapes"], "--boxes has all boxes; give it without"),
        (["--config=retinanet_shapes"], "no predictions given; name their file with --predicti"),
    ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, arguments, sentence):
    with pytest.raises(errors.UserError, match=sentence):
        average_precision.main([*arguments, f"--output={tmp_path / 'out'}"])
