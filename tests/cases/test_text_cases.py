"""Recorded inputs whose names and encodings are those of other programs and systems."""

import unicodedata

import numpy as np
import pytest

from detlab.data import coco, records, voc

P0, P1 = [30, 29, 60, 53], [7, 20, 29, 38]  # boxes, px from 0


@pytest.mark.parametrize(
    "name, first, boxes",
    [
        ("voc-split-utf16", "p0", [P0, P1]),
        ("voc-nfd-names", "café", [P0, P1]),
        ("voc-xml-gb2312", "p0", [[9, 11, 39, 49], P1]),
    ],
)
def test_a_voc_folder_of_another_system_is_read(case, name, first, boxes):
    source = voc.Voc(case(name), "train", ("cell",))
    assert [source.image_id(i) for i in range(len(source))] == [first, "p1"]
    for record, box in zip(source, boxes, strict=True):
        np.testing.assert_array_equal(record["boxes"], [box])
        np.testing.assert_array_equal(record["labels"], [0])
        assert record["image"].shape == (64, 96, 3)


def test_the_decomposed_name_is_told_and_a_missing_one_stays_missing(case):
    root = case("voc-nfd-names")
    there = unicodedata.normalize("NFD", "café")
    assert voc.Voc(root, "train", ("cell",)).problems == (
        f"a name in the splits of {root} is spelt otherwise than its file: 'café' is "
        f"{root}/Annotations/{there}.xml",
        f"a name in {root}/Annotations is spelt otherwise than its file: 'café' is "
        f"{root}/JPEGImages/{there}.jpg",
    )
    with pytest.raises(records.DataError) as raised:  # the list of val has the name before macOS
        voc.Voc(root, "val", ("cell",))
    assert str(raised.value) == f"annotation file {root}/Annotations/p0.xml does not exist"


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_windows_path_leads_to_the_folder(case, part):
    root = case("coco-windows-path")
    source = coco.Coco(root / "images", root / f"{part}.json")
    assert [source.name(i) for i in range(4)] == [
        str(root / "images" / name) for name in ("a/p0.jpg", "p1.jpg", "p2.jpg", "p3.jpg")
    ]
    np.testing.assert_array_equal(source[0]["boxes"], [[31, 30, 61, 54]])
    assert source.problems == (
        f"a name in {root / part}.json is spelt otherwise than its file: 'a\\\\p0.jpg' is "
        f"{root}/images/a/p0.jpg",
    )
