"""Files in COCO's form, made object by object, as pycocotools reads them."""

import json

import numpy as np
import pytest
from pycocotools import coco as coco_lib

from detlab.data import coco, coco_creator


@pytest.fixture
def creator():
    made = coco_creator.CocoCreator(("cat", "dog"), supercategories=("animal", "animal"))
    assert made.add_image("a.png", 20, 30) == 1 and made.add_image("b.png", 8, 8) == 2
    return made


def test_a_box_a_polygon_and_a_mask_have_their_areas(creator, tmp_path):
    assert creator.add_box(1, "dog", (1, 2, 11, 7)) == 1
    assert creator.add_polygons(1, "cat", [[2, 3, 12, 3, 12, 9, 2, 9]]) == 2
    mask = np.zeros((8, 8), bool)
    mask[2:5, 1:7] = True
    mask[2, 1] = False
    assert creator.add_mask(2, "cat", mask, crowd=True, note="many") == 3
    box, polygon, crowd = creator.content["annotations"]
    assert box["bbox"] == [1, 2, 10, 5] and box["area"] == 50 and box["category_id"] == 2
    assert polygon["bbox"] == [2, 3, 10, 6] and polygon["area"] == 60
    assert crowd["bbox"] == [1, 2, 6, 3] and crowd["area"] == 17
    assert (crowd["iscrowd"], crowd["image_id"], crowd["note"]) == (1, 2, "many")

    creator.save(tmp_path / "annotations" / "instances.json")
    index = coco_lib.COCO(tmp_path / "annotations" / "instances.json")
    np.testing.assert_array_equal(index.annToMask(index.anns[3]), mask)
    assert index.annToMask(index.anns[2]).sum() == 60
    (tmp_path / "images").mkdir()
    source = coco.Coco(tmp_path / "images", tmp_path / "annotations" / "instances.json")
    assert source.class_names == ("cat", "dog")
    np.testing.assert_array_equal(source.annotation(0)["boxes"], [[1, 2, 11, 7], [2, 3, 12, 9]])
    np.testing.assert_array_equal(source.annotation(0)["labels"], [1, 0])
    assert source.annotation(1)["ignore"].all()


def test_objects_of_no_size_are_dropped_and_counted(creator):
    assert creator.add_box(1, "cat", (5, 5, 5, 9)) is None
    assert creator.add_mask(1, "cat", np.zeros((20, 30))) is None
    assert creator.add_polygons(1, "cat", [[5, 5, 5, 5, 5, 5]]) is None
    assert creator.content["annotations"] == []
    assert creator.dropped == {"without area": 1, "covering less than a px": 2}
    json.dumps(creator.content)


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda c: c.add_box(1, "cow", (0, 0, 1, 1)), "class 'cow' is not among the classes, cat"),
        (lambda c: c.add_box(3, "cat", (0, 0, 1, 1)), "image 3 was not added; give the id of add"),
        (lambda c: c.add_box(1, "cat", (0, 0, 1)), "it must be 4 finite numbers, x1, y1, x2, y2"),
        (lambda c: c.add_image("a.png", 9, 9), "image 'a.png' is added twice"),
        (lambda c: c.add_image("c.png", 0, 9), "has 0x9 px; sides are at least 1"),
        (lambda c: c.add_polygons(1, "cat", [[1, 1, 2, 2]]), "x and y of at least 3 points"),
        (lambda c: c.add_mask(2, "cat", np.ones((9, 8))), r"mask has the shape \(9, 8\); that of"),
        (lambda c: coco_creator.CocoCreator(("a", "a")), "give at least one, each once"),
        (lambda c: coco_creator.CocoCreator(("a",), ("b", "c")), "2 supercategories for 1 class"),
    ],
)
def test_what_does_not_fit_is_refused(creator, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(creator)
