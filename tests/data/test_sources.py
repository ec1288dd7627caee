"""A config's `data` block opens the right source."""

import json

import cv2
import numpy as np
import pytest

from detlab import config as config_lib
from detlab.data import records, shapes, sources
from detlab.experiments import common


def coco_block(root, **changes):
    """A data set of one image with a cat that reaches beyond it, a tiny cat and a dog."""
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
        "eval_annotations": "a.json",
    }  # fmt: skip
    return make_block(**{**block, **changes})


def make_block(**values):
    """config.data with these values."""
    data = common.base("retinanet").data
    data.update(values)
    return data


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
    assert source.problems[0].startswith("there are no objects of class cats in")


def test_every_source_has_counts(tmp_path):
    for part in ("train", "eval"):
        assert set(records.counts(sources.build(coco_block(tmp_path, source="shapes"), part))) == {
            "dropped_boxes", "clipped_boxes", "skipped_records", "filtered_records",
        }  # fmt: skip


def voc_block(shared_dir, **changes):
    block = {
        "source": "voc", "root": str(shared_dir / "data" / "voc_mini"),
        "train_splits": ("2007_trainval",), "eval_splits": ("2007_trainval",),
    }  # fmt: skip
    return make_block(**{**block, **changes})


def test_voc_classes_are_a_choice_only_where_they_are_given(shared_dir):
    data = voc_block(shared_dir)
    source = sources.build(data, "eval")
    assert len(source.class_names) == 20 and source.problems == ()
    data.class_names = ("train", "cow")
    source = sources.build(data, "eval")
    assert source.class_names == ("train", "cow") and source.dropped_boxes > 0
    assert all("class" in sentence for sentence in source.problems)


def test_unknown_source_and_part_are_named(tmp_path):
    with pytest.raises(records.DataError, match="'cocoa'; it must be .* wider or tfds"):
        sources.build(coco_block(tmp_path, source="cocoa"), "train")
    with pytest.raises(ValueError, match="part 'test' is neither"):
        sources.build(coco_block(tmp_path), "test")


# ------------------------------------------------------------------------------------------------
# Every kind of source


def labels_of(source):
    return [source.annotation(i)["labels"].tolist() for i in range(len(source))]


def test_wider_is_opened_by_its_splits(shared_dir):
    root = str(shared_dir / "data" / "wider_mini")
    data = make_block(source="wider", root=root, train_splits=("train",), eval_splits=("val",))
    train, evaluation = sources.build(data, "train"), sources.build(data, "eval")
    assert len(evaluation) == 24 and train.class_names == ("face",)
    assert evaluation.annotation(0)["flags"].shape[1] == train[0]["flags"].shape[1] == 6
    assert train.name(0).count("WIDER_train") == evaluation.name(0).count("WIDER_val") == 1
    data.rename_classes = (("face", "head"),)
    assert sources.build(data, "eval").class_names == ("head",)
    data.class_names = ("face",)
    with pytest.raises(
        records.DataError, match="class_names has 'face', but the data set has no such"
    ):
        sources.build(data, "eval")


def test_tfds_is_opened_by_its_name_and_splits(tmp_path, monkeypatch):
    asked = []

    def open_shapes(*args, **options):
        asked.append((args, options))
        return shapes.Shapes("val", num_images=2)

    monkeypatch.setattr(sources.tfds, "Tfds", open_shapes)
    data = make_block(
        source="tfds", root=str(tmp_path), tfds_name="voc/2007", train_splits=("train",),
        eval_splits=("test",), class_names=("cross",),
    )  # fmt: skip
    assert sources.build(data, "eval").class_names == ("cross",)
    sources.build(data, "train")
    assert asked == [
        (("voc/2007", ("test",), tmp_path, ("cross",)), dict(strict=True, exif="auto")),
        (("voc/2007", ("train",), tmp_path, ("cross",)), dict(strict=False, exif="auto")),
    ]


def test_shapes_take_classes_and_names(tmp_path):
    data = make_block(class_names=("plus", "box"), rename_classes=(("cross", "plus"),))
    data.rename_classes += (("rectangle", "box"),)
    source = sources.build(data, "eval")
    assert source.class_names == ("plus", "box") and source.dropped_boxes > 0
    known = shapes.Shapes("val")
    new = {"cross": 0, "rectangle": 1}
    names = [known.class_names[label] for label in known.annotation(5)["labels"]]
    assert source.annotation(5)["labels"].tolist() == [new[n] for n in names if n in new]


# ------------------------------------------------------------------------------------------------
# Keys


def test_renaming_is_the_same_for_coco_and_voc(tmp_path, shared_dir):
    data = coco_block(tmp_path, rename_classes=(("dog", "pet"), ("cat", "pet")))
    source = sources.build(data, "eval")
    assert source.class_names == ("pet",) and labels_of(source) == [[0, 0, 0]]
    data.class_names = ("pet",)
    assert labels_of(sources.build(data, "eval")) == [[0, 0, 0]]

    splits = ("2007_trainval", "2012_trainval")
    plain = sources.build(voc_block(shared_dir, eval_splits=splits), "eval")
    number = plain.class_names.index("person")
    people = [[0] * labels.count(number) for labels in labels_of(plain)]
    assert sum(map(len, people)) > 0
    data = voc_block(shared_dir, eval_splits=splits, rename_classes=(("person", "human"),))
    assert labels_of(sources.build(data, "eval")) == labels_of(plain)
    assert sources.build(data, "eval").class_names[number] == "human"
    data.class_names = ("human",)
    assert labels_of(sources.build(data, "eval")) == people
    data.rename_classes = (("persn", "human"),)
    with pytest.raises(records.DataError, match="no objects of class persn"):
        sources.build(data, "eval")
    data.class_names = ()
    with pytest.raises(
        records.DataError, match="rename_classes has 'persn', .*; did you mean 'person'"
    ):
        sources.build(data, "eval")


def test_training_is_repeated_and_evaluation_is_not(tmp_path):
    data = coco_block(tmp_path, train_repeat=3)
    assert [record["index"] for record in sources.build(data, "train")] == [0, 1, 2]
    assert len(sources.build(data, "eval")) == 1


def add_empty_image(root):
    """Adds a second image without objects to the data set of `coco_block`."""
    cv2.imwrite(str(root / "b.png"), np.zeros((40, 60, 3), np.uint8))
    content = json.loads((root / "a.json").read_text())
    content["images"].append({"id": 2, "file_name": "b.png", "height": 40, "width": 60})
    (root / "a.json").write_text(json.dumps(content))


def test_empty_and_small_images_are_left_out_of_training_unless_asked_for(tmp_path):
    data = coco_block(tmp_path)
    add_empty_image(tmp_path)
    assert len(sources.build(data, "train")) == 1 and len(sources.build(data, "eval")) == 2
    data.keep_empty = True
    assert len(sources.build(data, "train")) == 2
    data.min_side = 41
    assert len(sources.build(data, "train")) == 0 and len(sources.build(data, "eval")) == 2


def test_more_data_are_joined_for_training_alone(tmp_path, shared_dir):
    """COCO's dog and cat, then VOC's objects under COCO's names."""
    also = {
        "source": "voc", "root": str(shared_dir / "data" / "voc_mini"),
        "train_splits": ("2007_trainval", "2012_trainval"),
        "class_names": ("cat", "dog"), "rename_classes": (("person", "dog"),),
        "keep_empty": True, "train_repeat": 2,
    }  # fmt: skip
    data = coco_block(tmp_path, train_also=(also,))
    source = sources.build(data, "train")
    assert source.class_names == ("cat", "dog") and len(source) == 1 + 2 * 8
    assert source.name(0).endswith("a.png") and "VOC2007" in source.name(1)
    assert labels_of(source)[0] == [0, 1] and {1} <= set(np.concatenate(labels_of(source)[1:]))
    assert [r["index"] for r in source] == list(range(17))
    assert len(sources.build(data, "eval")) == 1
    assert len(sources.build(coco_block(tmp_path, train_also=(also, also)), "train")) == 1 + 4 * 8


def test_what_more_data_do_not_set_is_as_in_the_block(tmp_path):
    data = coco_block(tmp_path, class_names=("dog",), train_repeat=2, train_also=({},))
    source = sources.build(data, "train")
    assert len(source) == 4 and source.class_names == ("dog",)
    assert [source.image_id(i) for i in range(4)] == ["0/1", "0/1", "1/1", "1/1"]


def test_more_data_of_other_classes_or_with_unknown_keys_are_refused(tmp_path, shared_dir):
    wider_data = {
        "source": "wider", "root": str(shared_dir / "data" / "wider_mini"), "class_names": (),
        "train_splits": ("train",),
    }  # fmt: skip
    data = coco_block(tmp_path, train_also=(wider_data,))
    with pytest.raises(records.DataError, match="cannot be joined: cat, dog and face"):
        sources.build(data, "train")
    data.train_also = ({"rooot": "x"},)
    with pytest.raises(
        records.DataError, match="train_also has the unknown key 'rooot'; did you mean 'ro"
    ):
        sources.build(data, "train")
    data.train_also = ({"canvases": ((64, 64),)},)
    with pytest.raises(
        records.DataError, match="unknown key 'canvases'; keys: .*source.*train_repeat"
    ):
        sources.build(data, "train")


def test_more_data_can_be_typed_and_are_kept_with_the_checkpoint(tmp_path):
    config = common.base("retinanet")
    coco_block(tmp_path)
    text = f"{{'source': 'coco', 'root': {str(tmp_path)!r}, 'train_annotations': 'a.json'}}"
    config_lib.override(config, "data.source", "coco")
    config_lib.override(config, "data.root", str(tmp_path))
    config_lib.override(config, "data.train_annotations", "a.json")
    config_lib.override(config, "data.train_also", f"({text}, {text})")
    assert len(sources.build(config.data, "train")) == 3
    back = config_lib.from_json(json.loads(json.dumps(config_lib.to_json(config))))
    assert back.to_dict() == config.to_dict()
    assert len(sources.build(back.data, "train")) == 3


def test_keys_of_a_source_are_keys_of_configs():
    data = common.base("retinanet").data
    assert set(sources.SOURCE_KEYS) <= set(data)
