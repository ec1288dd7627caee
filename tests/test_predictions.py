"""Predictions as JSON: detlab's own form and the results of COCO's tools."""

import contextlib
import io
import json

import numpy as np
import pytest

from detlab import errors, evaluation
from detlab import predictions as predictions_lib
from detlab.data import coco, shapes, wrappers


@pytest.fixture(scope="module")
def mini(shared_dir):
    """(source, its annotation file): 41 images of COCO."""
    folder = shared_dir / "data" / "coco_mini"
    file = folder / "annotations" / "instances_val2017.json"
    return coco.Coco(folder / "val2017", file, min_side=0), file


def guesses(truth, num_classes, seed=0):
    """Moved objects, some of another class, and the scores of a guess."""
    rng = np.random.default_rng(seed)
    found = []
    for image in truth:
        boxes = image["boxes"] + rng.normal(0, 4, image["boxes"].shape)
        labels = image["labels"].copy()
        wrong = rng.random(len(labels)) < 0.2
        labels[wrong] = rng.integers(0, num_classes, wrong.sum())
        boxes = np.sort(boxes.reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        found.append(
            {
                "image_id": image["image_id"],
                "boxes": boxes.astype(np.float32),
                "scores": rng.random(len(labels)).astype(np.float32),
                "labels": labels.astype(np.int32),
            }
        )
    return found


def test_results_are_scored_alike_here_and_by_pycocotools(mini, tmp_path):
    from pycocotools import coco as coco_lib
    from pycocotools import cocoeval

    source, file = mini
    truth = evaluation.ground_truth(source)
    predictions = guesses(truth, 80)
    expected = evaluation.scalars(evaluation.score(truth, predictions, source.class_names))
    assert 0.1 < expected["AP"] < 0.9
    path = tmp_path / "results.json"
    predictions_lib.write_coco(path, predictions, source)

    back = predictions_lib.match(predictions_lib.load(path), source, truth)
    back = {image["image_id"]: image for image in back}
    for image in predictions:
        if len(image["boxes"]):  # an image without predictions has no row
            for key in ("boxes", "scores", "labels"):
                np.testing.assert_array_equal(back[image["image_id"]][key], image[key])
    again = evaluation.score(truth, list(back.values()), source.class_names)
    assert evaluation.scalars(again) == expected

    with contextlib.redirect_stdout(io.StringIO()):
        there = coco_lib.COCO(str(file))
        scored = cocoeval.COCOeval(there, there.loadRes(str(path)), "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    keys = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100")
    assert [expected[key] for key in keys] == pytest.approx(scored.stats[:9].tolist(), abs=1e-9)


ROW = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.fixture
def pets(tmp_path):
    """(source, truth): the images 7, 8 and "x9" with a cat, category 3, and a dog, category 9."""
    images = [
        {"id": image_id, "file_name": f"{name}.jpg", "height": 20, "width": 20}
        for image_id, name in ((7, "one"), (8, "two"), ("x9", "three"))
    ]
    annotations = [
        {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]},
        {"image_id": 8, "category_id": 9, "bbox": [1, 2, 3, 4]},
    ]
    categories = [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}]
    file = tmp_path / "pets.json"
    file.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    source = coco.Coco(tmp_path, file, min_side=0)
    return source, evaluation.ground_truth(source)


def read(rows, source, truth, folder, encoding="utf-8"):
    path = folder / "results.json"
    path.write_bytes(json.dumps(rows).encode(encoding))
    return predictions_lib.match(predictions_lib.load(path), source, truth)


@pytest.mark.parametrize(
    "image_id, found",
    [(7, 7), (7.0, 7), ("7", 7), ("000000000007", 7), ("x9", "x9"), ("two", 8), ("two.jpg", 8)],
)
@pytest.mark.parametrize("category_id", [9, 9.0, "9"])
def test_ids_are_found_as_number_text_and_file_name(image_id, found, category_id, pets, tmp_path):
    row = {**ROW, "image_id": image_id, "category_id": category_id}
    (image,) = read([row], *pets, tmp_path)
    assert image["image_id"] == found and type(image["image_id"]) is type(found)
    assert image["boxes"].tolist() == [[1, 2, 4, 6]] and image["boxes"].dtype == np.float32
    assert image["labels"].tolist() == [1] and image["scores"].tolist() == [0.5]


def named(folder, ids, files):
    """(source, truth) of a cat on each of the images of these ids and files."""
    content = {
        "images": [
            {"id": key, "file_name": file, "height": 60, "width": 90}
            for key, file in zip(ids, files, strict=True)
        ],
        "annotations": [{"image_id": key, "category_id": 3, "bbox": [1, 2, 3, 4]} for key in ids],
        "categories": [{"id": 3, "name": "cat"}],
    }
    (folder / "cats.json").write_text(json.dumps(content))
    source = coco.Coco(folder, folder / "cats.json", min_side=0)
    return source, evaluation.ground_truth(source)


@pytest.mark.parametrize(
    "ids, files, given, found",
    [
        ((100, 101), ("4.jpg", "000005.jpg"), (4, 5), [100, 101]),  # YOLOv5 writes int(stem)
        ((1, 2), ("000002.jpg", "000001.jpg"), ("000001", "000002"), [2, 1]),
        ((1, 2), ("000002.jpg", "000001.jpg"), (1, 2), [1, 2]),
        ((1, 2), ("a/x.jpg", "b/y.jpg"), ("x", "y.jpg"), [1, 2]),
        ((1, "1"), ("x.jpg", "y.jpg"), ("1", 1), ["1", 1]),
    ],
)
def test_images_are_named_in_one_way_by_id_or_by_file(ids, files, given, found, tmp_path):
    rows = [{**ROW, "image_id": key} for key in given]
    assert [image["image_id"] for image in read(rows, *named(tmp_path, ids, files), tmp_path)] == (
        found
    )


@pytest.mark.parametrize(
    "ids, files, given, lost",
    [
        ((1, 2), ("4.jpg", "5.jpg"), (1, 2, 5), "1 of 3 are for images that the data lack (1 im"),
        ((1, 2), ("a/x.jpg", "b/x.jpg"), ("x", "x"), "2 of 2 are for images that the data lack"),
    ],
)
def test_an_image_is_not_guessed(ids, files, given, lost, tmp_path):
    rows = [{**ROW, "image_id": key} for key in given]
    with pytest.raises(errors.UserError) as error:
        read(rows, *named(tmp_path, ids, files), tmp_path)
    assert lost in str(error.value)


@pytest.mark.parametrize(
    "data, sentence",
    [
        (b"null", "it is neither a JSON object nor a list"),
        (b'"x"', "it is neither a JSON object nor a list"),
        (b" \n", "it is empty"),
        (b'{"class_names": "cat", "images": []}', "its class_names are no list of names"),
        (b'{"class_names": null, "images": []}', "its class_names are no list of names"),
        (
            b'{"class_names": ["cat", "dog"], "images": {"7": []}}',
            "its images are no list of objects",
        ),
        (b'{"class_names": ["cat", "dog"], "images": [[7]]}', "its images are no list of objects"),
        (b"\x1f\x8b\x08", None),
        ('["é"]'.encode("cp1252"), None),
    ],
)
def test_other_files_are_named_in_words(data, sentence, pets, tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes(data)
    with pytest.raises(errors.UserError) as error:
        predictions_lib.match(predictions_lib.load(path), *pets)
    faults = {
        b"\x1f": "it is compressed by gzip; unpack it.",
        b"[": "it is not UTF-8 text (byte 0xE9 in line 1); save it as UTF-8.",
    }
    start = f"{path} is not a predictions file of detlab.eval, nor one of COCO's results"
    end = f" ({sentence}); write it again with --workdir or --checkpoint."
    assert str(error.value) == start + (end if sentence else f": {faults[data[:1]]}")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_results_have_any_unicode_encoding(encoding, pets, tmp_path):
    assert len(read([ROW], *pets, tmp_path, encoding)) == 1


def test_results_without_a_row_are_no_detections(pets, tmp_path, capsys):
    assert read([], *pets, tmp_path) == []
    assert capsys.readouterr().out == "images without predictions: 3 of 3\n"


def test_categories_that_the_data_lack_are_counted_and_passed_over(pets, tmp_path, capsys):
    rows = [ROW, {**ROW, "category_id": 1}, {**ROW, "category_id": 90}, {**ROW, "image_id": 8}]
    found = read(rows, *pets, tmp_path)
    assert [image["labels"].tolist() for image in found] == [[0], [0]]
    assert capsys.readouterr().out == (
        "predictions of categories that the data lack are passed over: 2 of 4, category_id 1, 90\n"
        "images without predictions: 1 of 3\n"
    )


def test_labels_are_those_of_the_classes_that_were_chosen(pets, tmp_path, capsys):
    source, _ = pets
    rows = [ROW, {**ROW, "category_id": 9}]
    chosen = wrappers.choose_classes(source, ("hound",), (("dog", "hound"),))
    (image,) = read(rows, chosen, evaluation.ground_truth(chosen), tmp_path)
    assert image["labels"].tolist() == [0] and image["image_id"] == 7
    told = "predictions of categories that are not in class_names are passed over: 1 of 2\n"
    assert told in capsys.readouterr().out
    other = wrappers.choose_classes(source, ("dog", "cat"))
    (image,) = read(rows, other, evaluation.ground_truth(other), tmp_path)
    assert image["labels"].tolist() == [1, 0]


@pytest.mark.parametrize(
    "rows, sentence",
    [
        (
            [ROW, {**ROW, "image_id": 5}, {**ROW, "image_id": 5}, {**ROW, "image_id": "a"}],
            "the predictions in {path} do not match the data: 3 of 4 are for images that the data"
            " lack (2 images, image_id 5, 'a'); evaluate them on the data that they are for.",
        ),
        (
            [{**ROW, "category_id": 0}, {**ROW, "category_id": 1}],
            "the predictions in {path} do not match the data: no category_id of theirs (0, 1) is"
            " among the data's (3, 9).",
        ),
        (
            [ROW, {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]}],
            "{path} is not a file of COCO's results: entry 1 has no 'score'; each entry needs"
            " image_id, category_id, bbox and score.",
        ),
        (
            [{**ROW, "score": "high"}],
            '{path} is not a file of COCO\'s results: entry 0 has the score "high", which is not a'
            " finite number; each entry needs image_id, category_id, bbox and score.",
        ),
        (
            [{**ROW, "bbox": None}],
            "{path} is not a file of COCO's results: entry 0 has the bbox null, which is not a list"
            " of 4 finite numbers: x, y, width, height; each entry needs image_id, category_id,"
            " bbox and score.",
        ),
        (
            {"images": [], "annotations": [], "categories": []},
            "{path} is not a predictions file of detlab.eval, nor one of COCO's results (it has no"
            " 'class_names'); write it again with --workdir or --checkpoint.",
        ),
    ],
)
def test_results_that_do_not_fit_get_one_sentence(rows, sentence, pets, tmp_path):
    with pytest.raises(errors.UserError) as error:
        read(rows, *pets, tmp_path)
    assert str(error.value) == sentence.format(path=tmp_path / "results.json")


def test_classes_without_category_ids_are_numbered_from_1(tmp_path, capsys):
    source = shapes.Shapes("val", num_images=3)
    truth = evaluation.ground_truth(source)
    predictions = guesses(truth, 4)
    predictions_lib.write_coco(tmp_path / "results.json", predictions, source)
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["category_id"] - 1 for row in rows] == [
        label for image in predictions for label in image["labels"]
    ]
    back = predictions_lib.match(predictions_lib.load(tmp_path / "results.json"), source, truth)
    for image, other in zip(predictions, back, strict=True):
        np.testing.assert_array_equal(image["labels"], other["labels"])
    assert capsys.readouterr().out == (
        "the data have no category ids; 1 to 4 are read as rectangle, ellipse, triangle, cross\n"
    )


def test_predictions_of_a_class_without_category_are_not_written_and_told(pets, tmp_path, capsys):
    source, _ = pets
    more = wrappers.choose_classes(source, ("cow", "cat", "dog"))
    predictions = [
        {
            "image_id": 7,
            "boxes": np.ones((3, 4), np.float32),
            "scores": np.ones(3, np.float32),
            "labels": np.array([0, 1, 0], np.int32),
        }
    ]
    predictions_lib.write_coco(tmp_path / "results.json", predictions, more)
    assert [r["category_id"] for r in json.loads((tmp_path / "results.json").read_text())] == [3]
    assert capsys.readouterr().out == (
        "predictions of classes that the annotation file lacks are not written: 2, of cow\n"
    )
    pet = wrappers.choose_classes(source, rename=(("dog", "pet"), ("cat", "pet")))
    predictions_lib.write_coco(tmp_path / "results.json", [], pet)
    assert capsys.readouterr().out == (
        "classes of several categories are written with the first of their ids: pet (3, 9)\n"
    )
