"""Data in three forms: what is written, what is dropped and why, and that reading back notices."""

import json
import pathlib
from xml.etree import ElementTree

import numpy as np
import pytest

from detlab import errors
from detlab.data import coco, voc
from detlab.tools import convert_dataset


def run(arguments, folder):
    convert_dataset.main([*arguments, "--check", "--output", str(folder)])
    return json.loads((folder / "convert_dataset.json").read_text())["results"]


def corners(file):
    root = ElementTree.parse(file).getroot()
    keys = ("xmin", "ymin", "xmax", "ymax")
    return [
        (
            o.findtext("name"),
            *(int(o.findtext(f"bndbox/{k}")) for k in keys),
            o.findtext("difficult"),
        )
        for o in root.iter("object")
    ]


def test_coco_has_ids_from_one_in_the_order_of_the_classes(coco_data, tmp_path):
    found = run([*coco_data(), "--to=coco"], tmp_path / "out")["eval"]
    assert (found["images"], found["objects_read"], found["objects_written"]) == (3, 4, 4)
    assert found["classes"] == {"cat": 2, "dog": 2} and found["dropped"] == {}
    assert found["check"] == {"boxes": 4, "within_1e-3_px": 4, "largest_difference": 0.0}
    content = json.loads((tmp_path / "out/annotations/instances_eval.json").read_text())
    assert [(c["id"], c["name"]) for c in content["categories"]] == [(1, "cat"), (2, "dog")]
    assert [(i["id"], i["file_name"]) for i in content["images"]] == [
        (1, "a.png"), (2, "b.png"), (3, "c.png"),
    ]  # fmt: skip
    assert [a["bbox"] for a in content["annotations"]][0] == [10, 10, 20, 20]
    assert [a["iscrowd"] for a in content["annotations"]] == [0, 0, 0, 1]
    source = coco.Coco(tmp_path / "out/images", tmp_path / "out/annotations/instances_eval.json")
    assert source[1]["image"].shape == (160, 200, 3)  # through the link


def test_voc_counts_pixels_from_one_and_marks_the_difficult(coco_data, tmp_path):
    def half(content):
        content["annotations"][2]["bbox"] = [0.4, 0, 99.9, 200]  # 40 px beyond the image

    found = run([*coco_data(half), "--to=voc", "--files=copy"], tmp_path / "out")["eval"]
    assert corners(tmp_path / "out/Annotations/a.xml") == [
        ("cat", 11, 11, 31, 31, "0"),
        ("dog", 1, 1, 65, 65, "0"),
    ]
    assert corners(tmp_path / "out/Annotations/b.xml") == [
        ("cat", 1, 1, 101, 160, "0"),
        ("dog", 51, 51, 61, 61, "1"),
    ]
    assert found["check"]["within_1e-3_px"] == 3 and found["check"]["boxes"] == 4
    assert found["check"]["largest_difference"] == pytest.approx(1, abs=1e-3)  # the lower edge
    source = voc.Voc(tmp_path / "out", "eval", ("cat", "dog"))
    assert source.image_id(2) == "c" and (tmp_path / "out/JPEGImages/c.png").is_file()


def test_yolo_has_parts_of_the_sides_and_drops_what_it_cannot_mark(coco_data, tmp_path):
    found = run([*coco_data(), "--to=yolo"], tmp_path / "out")["eval"]
    lines = (tmp_path / "out/labels/a.txt").read_text().split("\n")
    assert [float(x) for x in lines[0].split()] == [0, 0.2, 0.25, 0.2, 0.25]
    assert [float(x) for x in lines[1].split()] == pytest.approx([1, 0.32, 0.4, 0.64, 0.8])
    assert found["dropped"] == {"ignored, which the form cannot say": 1}
    assert found["objects_written"] == 3 and found["check"]["within_1e-3_px"] == 3
    assert (tmp_path / "out/labels/c.txt").read_text() == ""
    assert (tmp_path / "out/eval.txt").read_text().splitlines()[0] == "./images/a.png"
    assert '  0: "cat"\n  1: "dog"\n' in (tmp_path / "out/data.yaml").read_text()


@pytest.mark.parametrize("form", ["coco", "voc", "yolo"])
def test_a_result_that_differs_fails_the_check(coco_data, tmp_path, form, monkeypatch):
    def shifted(write):
        def spoil(part, folder, marks):
            dropped = write(part, folder, marks)
            for path in [*folder.rglob("a.xml"), *folder.rglob("a.txt")]:
                old, new = ("<xmax>31<", "<xmax>33<") if form == "voc" else ("0.2000", "0.2001")
                path.write_text(path.read_text().replace(old, new))
            for path in folder.rglob("instances_*.json"):
                path.write_text(path.read_text().replace("[10.0, 10.0", "[10.0, 10.01"))
            return dropped

        return spoil

    write = getattr(convert_dataset, f"write_{form}")
    monkeypatch.setattr(convert_dataset, f"write_{form}", shifted(write))
    with pytest.raises(errors.UserError, match="the check failed: a box of a.png came back"):
        run([*coco_data(), f"--to={form}"], tmp_path / "out")


def test_voc_becomes_coco_with_both_years_and_difficult_objects(shared_dir, tmp_path):
    """The conversion that other code bases call voc2coco."""
    flags = ["--config=retinanet_voc", f"--config.data.root={shared_dir / 'data/voc_mini'}"]
    flags += ["--config.data.train_splits=('2007_trainval','2012_trainval')"]
    found = run([*flags, "--splits=train", "--to=coco"], tmp_path / "out")["train"]
    assert found["images"] == 8 and found["objects_written"] == 25 and found["ignored"] == 2
    assert found["check"]["within_1e-3_px"] == 25
    content = json.loads((tmp_path / "out/annotations/instances_train.json").read_text())
    assert [c["name"] for c in content["categories"]] == list(voc.CLASS_NAMES)
    hard = [a for a in content["annotations"] if a["difficult"]]
    assert len(hard) == 2 and all(a["ignore"] == 1 and a["iscrowd"] == 0 for a in hard)
    assert content["images"][0]["file_name"].startswith("VOC2007/JPEGImages/")
    back = coco.Coco(tmp_path / "out/images", tmp_path / "out/annotations/instances_train.json")
    assert sum(back.annotation(i)["ignore"].sum() for i in range(len(back))) == 2
    # Back in VOC's form, the files have the numbers of the original ones.
    again = run([*flags, "--splits=train", "--to=voc"], tmp_path / "voc")["train"]
    assert again["check"]["within_1e-3_px"] == 25
    (name,) = [n for n in ("VOC2007/JPEGImages",) if (tmp_path / "voc/Annotations" / n).is_dir()]
    for file in (tmp_path / "voc/Annotations" / name).glob("*.xml"):
        original = shared_dir / "data/voc_mini/VOC2007/Annotations" / file.name
        assert corners(file) == corners(original)


def test_wider_face_becomes_coco_with_its_flags(shared_dir, tmp_path):
    """The conversion that other code bases call widerface2coco."""
    flags = ["--config=retinanet_wider", f"--config.data.root={shared_dir / 'data/wider_mini'}"]
    found = run([*flags, "--splits=eval", "--to=coco", "--files=none"], tmp_path / "out")["eval"]
    assert found["images"] == 24 and found["ignored"] == 86
    content = json.loads((tmp_path / "out/annotations/instances_eval.json").read_text())
    faces = content["annotations"]
    assert len({image["id"] for image in content["images"]}) == 24
    assert sum(face["iscrowd"] for face in faces) == 86
    assert all(face["attributes"]["invalid"] == face["iscrowd"] for face in faces)
    assert "--" in content["images"][0]["file_name"]  # its event
    assert not any((tmp_path / "out/images").iterdir())


def test_generated_pictures_are_written_without_loss(tmp_path):
    flags = ["--config=retinanet_shapes", "--limit=2", "--to=yolo"]
    run(flags, tmp_path / "out")
    files = sorted(pathlib.Path(tmp_path / "out/images").iterdir())
    assert [file.name for file in files] == [
        "shapes_train_0.png", "shapes_train_1.png", "shapes_val_0.png", "shapes_val_1.png",
    ]  # fmt: skip
    from detlab.data import records, shapes

    np.testing.assert_array_equal(records.read_image(files[0]), shapes.Shapes()[0]["image"])


def test_names_that_would_fall_together_are_refused(coco_data, tmp_path):
    flags = coco_data(lambda content: content["images"][1].update(file_name="a.jpg"))
    (tmp_path / "images/b.png").rename(tmp_path / "images/a.jpg")
    with pytest.raises(errors.UserError, match=r"a.png and .*a.jpg would both be a in the result"):
        run([*flags, "--to=voc"], tmp_path / "out")
    run([*flags, "--to=coco"], tmp_path / "out")
