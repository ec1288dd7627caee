"""From a config's `data` block to a source."""

import json
import types

import cv2
import numpy as np
import pytest

from detlab.data import records, sources


def coco_block(root, **changes):
    """A data set of one image with a cat that sticks out of it, a tiny cat and a dog."""
    cv2.imwrite(str(root / "a.png"), np.zeros((40, 60, 3), np.uint8))
    boxes = {3: [50, 1, 20, 9], 4: [1, 1, 0.5, 9], 5: [1, 1, 9, 9]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": 2 if k == 5 else 1, "bbox": box}
            for k, box in boxes.items()
        ],
    }
    (root / "a.json").write_text(json.dumps(content))
    block = {
        "source": "coco", "root": str(root), "class_names": (), "min_side": 32,
        "train_images": "", "eval_images": "", "train_annotations": "a.json",
        "eval_annotations": "a.json", "skip_broken": True, "eval_skip_broken": False,
    }  # fmt: skip
    return types.SimpleNamespace(**{**block, **changes})


def test_training_clips_boxes_and_evaluation_keeps_them(tmp_path):
    data = coco_block(tmp_path)
    train, evaluation = sources.build(data, "train"), sources.build(data, "eval")
    np.testing.assert_array_equal(train.annotation(0)["boxes"], [[50, 1, 60, 10], [1, 1, 10, 10]])
    assert list(records.counts(train).values()) == [1, 1, 0, 0]
    assert len(evaluation.annotation(0)["boxes"]) == 3
    np.testing.assert_array_equal(evaluation.annotation(0)["boxes"][0], [50, 1, 70, 10])
    assert list(records.counts(evaluation).values()) == [0, 0, 0, 0]


def test_a_class_list_is_a_choice_in_evaluation_too(tmp_path):
    source = sources.build(coco_block(tmp_path, class_names=("dog",)), "eval")
    assert source.class_names == ("dog",) and source.dropped_boxes == 2


def test_a_misspelt_class_is_the_first_that_is_told_where_no_image_is_left(tmp_path):
    data = coco_block(tmp_path)
    content = json.loads((tmp_path / "a.json").read_text())
    content["categories"].append({"id": 7, "name": "cats"})
    (tmp_path / "a.json").write_text(json.dumps(content))
    data.class_names = ("cats",)
    source = sources.build(data, "train")
    assert len(source) == 0
    assert source.problems[0].startswith("no object of class cats in")


def test_every_source_has_counts(tmp_path):
    for part in ("train", "eval"):
        assert set(records.counts(sources.build(coco_block(tmp_path, source="shapes"), part))) == {
            "dropped_boxes", "clipped_boxes", "skipped_records", "filtered_records",
        }  # fmt: skip


def test_voc_classes_are_a_choice_only_where_they_are_given(shared_dir):
    block = {
        "source": "voc", "root": str(shared_dir / "data" / "voc_mini"), "class_names": (),
        "eval_splits": ("2007_trainval",), "eval_skip_broken": False,
    }  # fmt: skip
    source = sources.build(types.SimpleNamespace(**block), "eval")
    assert len(source.class_names) == 20 and source.problems == ()
    block["class_names"] = ("train", "cow")
    source = sources.build(types.SimpleNamespace(**block), "eval")
    assert source.class_names == ("train", "cow") and source.dropped_boxes > 0
    assert all("class" in sentence for sentence in source.problems)


def test_unknown_source_and_part_are_named(tmp_path):
    with pytest.raises(records.DataError, match="'cocoa': shapes, voc or coco"):
        sources.build(coco_block(tmp_path, source="cocoa"), "train")
    with pytest.raises(ValueError, match="part 'test' is neither"):
        sources.build(coco_block(tmp_path), "test")
