"""Recorded inputs of COCO's formats, and of more objects than slots."""

import json
import pathlib
import re
import shlex

import pytest

from detlab import config as config_lib
from detlab import data_sets, errors
from detlab import eval as eval_lib
from detlab.run import setup as setup_lib


def flags(folder, num_classes=1, train="train.json", eval_="val.json"):
    return {
        "data.root": str(folder),
        "data.train_images": "images",
        "data.train_annotations": train,
        "data.eval_images": "images",
        "data.eval_annotations": eval_,
        "model.num_classes": str(num_classes),
    }


def open_both(config):
    train = data_sets.open_source(config, "train")
    return train, data_sets.open_source(config, "eval", train.class_names)


@pytest.mark.parametrize(
    "name, told",
    [
        ("coco-float-category-id", ""),
        ("coco-float-image-id", ""),
        ("coco-json-bom", ""),
        ("coco-no-image-size", ""),
        (
            "coco-roboflow-same-name",
            "categories without objects whose name another has are left out: 1, 0 (cell)",
        ),
    ],
)
def test_the_cells_of_the_file_are_read_for_both_parts(name, told, case, capsys):
    config = config_lib.load("retinanet_coco:scratch", flags(case(name)))
    for source in open_both(config):
        assert source.class_names == ("cell",)
        assert [source.image_id(i) for i in range(2)] == [1, 2]
        assert [source.size(i) for i in range(2)] == [(64, 96), (64, 96)]
        assert source[0]["boxes"].tolist() == [[31, 30, 61, 54]]
        assert source[1]["boxes"].tolist() == [[8, 21, 30, 39]]
        assert source[0]["labels"].tolist() == source[1]["labels"].tolist() == [0]
    printed = [f"{part} data: {told}" for part in ("train", "eval")] if told else []
    assert capsys.readouterr().out.splitlines() == printed


def write_coco(root, images, categories, annotations):
    """An annotation file train.json, used as both parts, with one object (image, category) each."""
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": 40, "width": 60} for i in range(images)
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(categories)],
        "annotations": [
            {"image_id": image, "category_id": category, "bbox": [1, 1, 9, 9]}
            for image, category in annotations
        ],
    }
    (root / "images").mkdir(exist_ok=True)
    (root / "train.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "categories, num_classes, sentence",
    [
        (
            ("cells", "RBC", "WBC", "traffic light"),
            3,
            "config.model.num_classes is 3, but the train data have 4 classes: cells, RBC, WBC,"
            " traffic light (no objects of cells); set --config.model.num_classes=4, or keep 3 of"
            " them: --config.data.class_names=\"('RBC','WBC','traffic light')\".",
        ),
        (
            ("cells", "RBC"),
            1,
            "config.model.num_classes is 1, but the train data have 2 classes: cells, RBC (no"
            " objects of cells); set --config.model.num_classes=2, or keep 1 of them:"
            " --config.data.class_names=\"('RBC',)\".",
        ),
        (
            ("cells", "RBC"),
            80,
            "config.model.num_classes is 80, but the train data have 2 classes: cells, RBC (no"
            " objects of cells); set --config.model.num_classes=2, or, to keep 80, add the classes"
            " that the data lack to --config.data.class_names=\"('cells','RBC')\".",
        ),
    ],
)
def test_a_group_without_objects_is_named_with_the_classes_to_paste(
    categories, num_classes, sentence, tmp_path
):
    write_coco(tmp_path, 1, categories, [(0, k) for k in range(1, len(categories))])
    overrides = flags(tmp_path, num_classes, eval_="train.json")
    with pytest.raises(errors.UserError) as error:
        data_sets.open_source(config_lib.load("retinanet_coco:scratch", overrides), "train")
    assert str(error.value) == sentence


def test_the_value_to_paste_opens_the_data(tmp_path):
    write_coco(tmp_path, 1, ("cells", "RBC", "traffic light"), [(0, 1), (0, 2)])
    overrides = flags(tmp_path, 2, eval_="train.json")
    with pytest.raises(errors.UserError) as error:
        data_sets.open_source(config_lib.load("retinanet_coco:scratch", overrides), "train")
    (flag,) = re.findall(r"--config\.data\.class_names=.*(?=\.$)", str(error.value))
    key, value = shlex.split(flag)[0].removeprefix("--config.").split("=")
    config = config_lib.load("retinanet_coco:scratch", overrides | {key: value})
    assert data_sets.open_source(config, "train").class_names == ("RBC", "traffic light")


@pytest.mark.parametrize("name", ["it's", 'a "b"', "$x", "a`b"])
def test_names_with_quotes_are_typed_as_the_shell_reads_them(name):
    words = shlex.split(data_sets.class_names_flag((name, "b")))
    assert words == [f"--config.data.class_names=({name!r},'b')"]


def test_classes_of_the_other_part_that_cannot_be_joined_are_told_with_the_flag(tmp_path):
    write_coco(tmp_path, 1, ("cat", "dog"), [(0, 0), (0, 1)])
    config = config_lib.load("retinanet_coco:scratch", flags(tmp_path, 2, eval_="train.json"))
    with pytest.raises(errors.UserError) as error:
        data_sets.open_source(config, "eval", ("cat", "cow"))
    assert str(error.value) == (
        "the detector has the classes cat, cow, but the data to evaluate have cat, dog; set"
        " --config.data.class_names=\"('cat','cow')\", the classes of the detector."
    )
    assert data_sets.open_source(config, "eval", ("dog", "cat")).class_names == ("dog", "cat")


def test_classes_of_the_other_part_in_another_spelling_are_renamed_by_the_flag(tmp_path):
    write_coco(tmp_path, 1, ("Cat", "dog"), [(0, 0), (0, 1)])
    (tmp_path / "train.json").rename(tmp_path / "val.json")
    write_coco(tmp_path, 1, ("cat", "dog"), [(0, 0), (0, 1)])
    overrides = flags(tmp_path, 2)
    with pytest.raises(errors.UserError) as error:
        open_both(config_lib.load("retinanet_coco:scratch", overrides))
    assert str(error.value) == (
        "the detector has the classes cat, dog, but the data to evaluate have Cat, dog; set"
        " --config.data.rename_classes=\"(('Cat', 'cat'),)\"."
    )
    overrides |= {"data.rename_classes": "(('Cat', 'cat'),)"}
    for source in open_both(config_lib.load("retinanet_coco:scratch", overrides)):
        assert source.class_names == ("cat", "dog")
        assert source.annotation(0)["labels"].tolist() == [0, 1]


def test_data_without_any_class_of_the_detector_are_the_wrong_data(tmp_path):
    write_coco(tmp_path, 1, ("x", "y"), [(0, 0), (0, 1)])
    config = config_lib.load("retinanet_coco:scratch", flags(tmp_path, 2, eval_="train.json"))
    with pytest.raises(errors.UserError) as error:
        data_sets.open_source(config, "eval", ("cat", "cow"))
    assert str(error.value) == (
        "the detector has the classes cat, cow, but the data to evaluate have x, y; evaluate it on"
        " data of its classes, or name them alike with rename_classes."
    )


@pytest.mark.parametrize("chosen", ["()", "('cat','dog')", "('dog','cat')"])
def test_a_class_without_entry_in_the_evaluation_file_has_no_objects(chosen, case, capsys):
    folder = case("coco-val-lacks-class")
    overrides = flags(folder, num_classes=2) | {"data.class_names": chosen}
    train, evaluation = open_both(config_lib.load("retinanet_coco:scratch", overrides))
    names = train.class_names
    assert set(names) == {"cat", "dog"} and evaluation.class_names == names
    cat, dog = names.index("cat"), names.index("dog")
    labels = [evaluation.annotation(i)["labels"].tolist() for i in range(4)]
    assert labels == [[], [dog], [dog], [dog]]
    assert train.annotation(0)["labels"].tolist() == [cat]
    where = "the data set" if chosen == "()" else f"annotation file {folder / 'val.json'}"
    sentence = f"{where} has no class cat (its classes: dog); it counts as a class without objects"
    assert capsys.readouterr().out == f"eval data: {sentence}\n"


def test_another_number_of_classes_is_told_with_the_flag_to_paste(case):
    config = config_lib.load("retinanet_coco:scratch", flags(case("coco-val-lacks-class")))
    with pytest.raises(errors.UserError) as error:
        data_sets.open_source(config, "train")
    assert str(error.value) == (
        "config.model.num_classes is 1, but the train data have 2 classes: cat, dog; set"
        " --config.model.num_classes=2, or keep 1 of --config.data.class_names=\"('cat','dog')\"."
    )


def test_results_of_coco_are_scored(case, tmp_path, capsys):
    """One of the two cells is found, exactly."""
    folder = case("coco-results-json")
    words = [f"--config.{k}={v}" for k, v in flags(folder, eval_="train.json").items()]
    arguments = ["--config", "retinanet_coco:scratch", *words]
    figures = tmp_path / "figures.json"
    arguments += ["--predictions", str(folder / "results.json"), "--json", str(figures)]
    eval_lib.main(arguments)
    scores = json.loads(pathlib.Path(figures).read_text())
    assert scores["AP"] == pytest.approx(51 / 101)  # recalls 0, 0.01 .. 0.5
    assert scores["AR100"] == pytest.approx(0.5)
    assert "images without predictions: 1 of 2\n" in capsys.readouterr().out


def test_objects_without_a_slot_are_told_at_the_start(case, capsys, monkeypatch):
    overrides = {
        "data.root": str(case("dense-objects")),
        "data.class_names": "('cell',)",
        "data.train_splits": "('train',)",
        "data.eval_splits": "('val',)",
        "model.num_classes": "1",
    }

    class Enough(Exception):
        pass

    def end():
        raise Enough

    monkeypatch.setattr(setup_lib.sharding, "make_mesh", end)  # the detector is not needed
    with pytest.raises(Enough):
        setup_lib.build(config_lib.load("retinanet_bccd", overrides))
    assert capsys.readouterr().out.splitlines()[-1] == (
        "train data: 1 of 1 images has more objects than the 48 slots of config.data.max_boxes, up"
        " to 150; 102 of their 150 objects, the smallest, are not learnt;"
        " --config.data.max_boxes=150 has room for all"
    )
    overrides["data.max_boxes"] = "150"
    with pytest.raises(Enough):
        setup_lib.build(config_lib.load("retinanet_bccd", overrides))
    assert "slots" not in capsys.readouterr().out
