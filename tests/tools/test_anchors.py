"""The tool that measures anchors: overlaps by hand, positives by the detector's own rule."""

import json

import numpy as np
import pytest
import tiny

from detlab import config as config_lib
from detlab import contract, errors
from detlab.tools import anchor_grids, anchors, frame

SHAPES = ["--config.model.num_classes=4", "--config.train.steps=1", "--generations=5"]


def level(stride, count, *sizes):
    middles = (np.arange(count) + 0.5) * stride
    return anchor_grids.Level(stride, middles, middles, np.array(sizes, float))


def test_shapes_are_compared_with_a_common_middle():
    ious = anchor_grids.shape_ious([(10, 10), (20, 5)], [(10, 20), (10, 10)])
    np.testing.assert_allclose(ious, [[0.5, 1], [50 / 250, 50 / 150]])
    ratios = anchor_grids.side_ratios([(10, 10), (20, 5)], [(10, 20), (10, 10)])
    np.testing.assert_allclose(ratios, [[2, 1], [4, 2]])


def test_the_best_anchor_on_the_canvas_is_found_as_by_trying_all():
    levels = [level(8, 8, (10, 10), (6, 18)), level(16, 4, (30, 30))]
    # The middle of the first object is 2 px from that of a cell, along x.
    boxes = np.array([[9, 7, 19, 17], [0, 0, 30, 30]], float)
    best = anchor_grids.placed_ious(boxes, levels)
    assert best[0] == pytest.approx(8 * 10 / (200 - 80))
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 40, (50, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(3, 24, (50, 2))], 1)
    every = []
    for one in levels:
        for w, h in one.sizes:
            x, y = np.meshgrid(one.x, one.y)
            every.append(np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1).reshape(-1, 4))
    every = np.concatenate(every)
    low = np.maximum(boxes[:, None, :2], every[:, :2])
    high = np.minimum(boxes[:, None, 2:], every[:, 2:])
    common = np.clip(high - low, 0, None).prod(2)
    area = [(b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, every)]
    expected = (common / (area[0][:, None] + area[1] - common)).max(1)
    np.testing.assert_allclose(anchor_grids.placed_ious(boxes, levels), expected)


def test_other_sizes_are_spread_over_the_levels_by_area():
    levels = [level(8, 8, (1, 1), (2, 2)), level(16, 4, (3, 3))]
    fine, coarse = anchor_grids.with_sizes(levels, [(40, 40), (10, 30), (20, 20)])
    assert fine.sizes.tolist() == [[10, 30], [20, 20]] and coarse.sizes.tolist() == [[40, 40]]
    assert fine.stride == 8 and len(coarse.x) == 4


OBJECTS = anchors.Objects(
    sizes=np.array([(10.0, 10), (40, 10), (50, 50), (100, 100)]),
    labels=np.array([0, 0, 1, 1]),
    placed=np.array([0.9, 0.4, 0.6, 0.8]),
    positives=np.array([2, 0, 5, 1]),
)


def test_rows_of_sizes_and_classes_count_their_objects():
    found = anchors.block(OBJECTS, np.array([(10.0, 10), (50, 50)]), ("cat", "dog", "cow"), 3.9)
    assert list(found) == ["tiny", "small", "medium", "large", "cat", "dog", "all"]
    cat = found["cat"]
    assert cat["objects"] == 2 and cat["without_positive"] == 1 and cat["positives_median"] == 1
    assert cat["mean_iou"] == pytest.approx((1 + 100 / 400) / 2)
    assert cat["recall_50"] == 0.5 and cat["placed_recall_50"] == 0.5
    assert cat["best_possible_recall"] == 0.5  # the sides of (40, 10) differ by 4 and by 5 times
    assert found["dog"]["placed_recall_70"] == 0.5 and found["dog"]["placed_mean_iou"] == 0.7
    assert found["all"]["positives_least"] == 0
    wider = anchors.block(OBJECTS, np.array([(40.0, 10), (50, 50)]), ("cat", "dog", "cow"), 3.9)
    assert wider["cat"]["recall_50"] == 0.5 and wider["cat"]["mean_iou"] == cat["mean_iou"]
    assert wider["tiny"]["mean_iou"] == 0.25 < found["tiny"]["mean_iou"]


def test_the_picture_has_the_objects_by_size_and_changes_with_the_anchors():
    shown = anchors.pictures(OBJECTS, np.array([(10.0, 10), (50, 50)]))
    assert {name: int(sum(c)) for name, c in shown["iou_counts"].items()} == {
        "tiny": 1,
        "small": 1,
        "medium": 1,
        "large": 1,
    }
    assert shown["iou_counts"]["tiny"][-1] == 1 and shown["iou_counts"]["small"][5] == 1
    other = anchors.pictures(OBJECTS, np.array([(20.0, 10), (50, 50)]))
    assert other["iou_counts"]["tiny"][-1] == 0 and other["iou_counts"]["tiny"][10] == 1
    sides = [row["side"] for row in shown["positives_by_side"]]
    assert [row["p50"] for row in shown["positives_by_side"]] == [2, 0, 5, 1]
    assert all(low < side < low * 2 for low, side in zip((8, 16, 45, 90), sides))
    figure = anchors.draw(shown, [(10, 10)], [(20, 20), (9, 9)], "title")
    bars, cloud, _ = figure.axes
    assert sum(bar.get_height() for bar in bars.patches) == 4
    assert [len(points.get_offsets()) for points in cloud.collections] == [4, 1, 2]


def test_the_verdict_follows_the_rule_of_the_detector():
    blocks = {
        "now": {"all": {"placed_recall_50": 0.5, "best_possible_recall": 0.9}},
        "fitted": {"all": {"placed_recall_50": 0.8, "best_possible_recall": 0.905}},
    }
    dense, yolo = (config_lib.load(name) for name in ("retinanet_shapes", "yolov5_shapes"))
    assert anchors.verdict(blocks, dense, 0.01, 4).startswith("fit: recall +0.300")
    assert anchors.verdict(blocks, yolo, 0.01, 4).startswith("keep: recall +0.005")
    assert anchors.verdict(blocks, yolo, 0.001, 4).startswith("fit: recall +0.005")


def positives_of_objects(config, images):
    """How many entries of RetinaNet's targets learn each object."""
    source = frame.open_data(config, "train", images)
    (batch,) = frame.batches(source, config, "train", images)
    module = contract.module_class(config)(**config.model)
    targets = tiny.jit(lambda batch: module.targets(batch, None)["main"])(batch)
    status, matched = np.asarray(targets.status), np.asarray(targets.matched)
    own = status[..., None] * (matched[..., None] == np.arange(batch.valid.shape[1])) == 1
    return own.sum(1)[batch.valid]


def run(folder, config, *words):
    anchors.main([f"--config={config}", *SHAPES, *words, f"--output={folder}"])
    return json.loads((folder / "anchors.json").read_text())["results"]


def test_a_dense_detector_lists_its_anchors_and_who_learns_each_object(tmp_path, capsys):
    found = run(tmp_path, "retinanet_shapes:tiny", "--limit=16")
    assert capsys.readouterr().out.splitlines()[-2] == found["verdict"]
    assert [one["stride"] for one in found["levels"]] == [8, 16, 32, 64, 128]
    assert found["levels"][0]["cells"] == [8, 12]  # of 64 x 96 px
    sides = np.sqrt(np.prod(found["levels"][1]["sizes"], axis=1))
    np.testing.assert_allclose(np.unique(sides.round(1)), [48, 60.5, 76.2])  # 3 * 16 * 2^(0, 1/3..)
    everything = found["now"]["all"]
    assert everything["objects"] == sum(
        found["now"][name]["objects"] for name in ("rectangle", "ellipse", "triangle", "cross")
    )
    config = config_lib.load("retinanet_shapes:tiny", {"model.num_classes": "4"})
    count = positives_of_objects(config, 16)
    assert everything["objects"] == len(count)
    assert everything["positives_least"] == min(count)
    assert everything["positives_median"] == np.median(count)
    assert everything["without_positive"] == np.sum(count == 0)
    assert everything["placed_mean_iou"] <= everything["mean_iou"]
    assert found["fitted"]["all"]["positives_median"] is None
    assert all((tmp_path / name).exists() for name in ("anchors.png", "cells.png"))


@pytest.mark.slow
def test_a_detector_with_a_field_for_anchors_is_asked_again_with_the_fitted_ones(tmp_path, capsys):
    found = run(tmp_path, "yolov5_shapes:tiny", "--limit=16")
    fitted = found["fitted"]["all"]
    assert fitted["positives_median"] is not None
    assert fitted["mean_iou"] > found["now"]["all"]["mean_iou"]
    printed = capsys.readouterr().out
    (line,) = [x for x in printed.splitlines() if x.startswith("--config.model.anchor_sizes=")]
    again = run(tmp_path, "yolov5_shapes:tiny", "--limit=16", line.replace('"', ""))
    assert again["now"]["all"] == fitted


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, assignment",
    [("darknet_shapes:tiny", "main"), ("faster_rcnn_shapes:tiny", "rpn")],
)
def test_unlike_detectors_are_measured(tmp_path, config, assignment):
    found = run(tmp_path, config, "--limit=2")
    assert ("fitted" in found) == (found["verdict"][:10] != "not fitted")
    assert found["assignment"] == assignment
    assert found["now"]["all"]["positives_median"] >= 1


@pytest.mark.parametrize(
    "config, words, sentence",
    [
        ("fcos_shapes:tiny", [], "fcos has no anchors; detlab tools positives shows what learns"),
        ("retinanet_shapes:tiny", ["--ratio=1"], "--ratio is 1; it must be above 1."),
        ("retinanet_shapes:tiny", ["--generations=-1"], "--generations is -1; it must be at least"),
        ("retinanet_shapes:tiny", ["--worth=2"], "--worth is 2; it must be from 0 to 1."),
    ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, config, words, sentence):
    with pytest.raises(errors.UserError, match=sentence):
        run(tmp_path, config, *words)


def test_corners_have_no_anchors(tmp_path):
    with pytest.raises(errors.UserError, match="cornernet has no anchors"):
        run(tmp_path, "cornernet_shapes:tiny", "--limit=2")
