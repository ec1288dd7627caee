"""What a data set holds: numbers computed by hand, warnings, and that data change the picture."""

import json

import numpy as np
import pytest

from detlab import errors
from detlab.tools import data_flags, dataset, frame, images


def run(arguments, folder):
    dataset.main([*arguments, "--output", str(folder)])
    return json.loads((folder / "dataset.json").read_text())["results"]


def test_classes_are_counted_and_measured_in_the_files_and_on_the_canvas(
    coco_data, tmp_path, capsys
):
    found = run(coco_data(), tmp_path / "first")["eval"]
    assert found["images"] == 3 and found["raw"]["all"]["objects"] == 3
    cat, dog = found["raw"]["classes"]
    assert (cat["images"], cat["objects"], cat["ignored"]) == (2, 2, 0)
    assert (dog["images"], dog["objects"], dog["ignored"]) == (1, 1, 1)
    assert cat["share"] == pytest.approx(2 / 3)
    assert cat["side"] == pytest.approx({"p5": 24, "p50": 60, "p95": 96})  # of 20 and 100 px
    assert (cat["small"], cat["medium"], cat["large"]) == (1, 0, 1)
    assert (dog["small"], dog["medium"], dog["large"]) == (0, 1, 0)
    assert found["raw"]["objects_per_image"] == [1, 1, 1]  # images with 0, 1, 2 objects
    on_canvas = found["canvas"]["classes"]
    assert on_canvas[0]["side"]["p50"] == pytest.approx(70)  # a grows twofold: 40 and 100 px
    assert on_canvas[1]["side"]["p50"] == pytest.approx(128) and on_canvas[1]["large"] == 1
    assert np.sum(found["joint"]["height_by_width"]) == 3
    assert found["image_sizes"][0] == {"width": 100, "height": 80, "images": 2}
    warned = {warning["what"]: warning for warning in found["warnings"]}
    assert warned["images that are equal"]["count"] == 1
    assert warned["images without objects"]["first"][0].endswith("c.png")
    assert "warning: images without objects: 1, " in capsys.readouterr().out

    def wider(content):
        content["annotations"][0]["bbox"] = [10, 10, 80, 20]

    other = run(coco_data(wider), tmp_path / "second")["eval"]
    assert other["raw"]["classes"][0]["side"]["p50"] == pytest.approx((40 + 100) / 2)
    assert other["raw"]["classes"][0]["ratio"]["p95"] > 3.8
    pictures = [(tmp_path / name / "eval.png").read_bytes() for name in ("first", "second")]
    assert pictures[0] != pictures[1]


def test_the_stream_of_training_is_measured_as_the_network_gets_it(coco_data, tmp_path):
    flags = coco_data()
    args, overrides = frame.parse([*flags, "--output", str(tmp_path)], data_flags.dataset(""))
    config = images.config_of(args, overrides)
    found = dataset.measure_stream(config, 4, seed=0)
    # c has no objects, so a and b are shown twice, each on the canvas, where a is twice as large.
    assert found["images"] == 4 and found["all"]["objects"] == 6 and found["all"]["ignored"] == 2
    cat = found["classes"][0]
    assert cat["side"] == pytest.approx({"p5": 40, "p50": 70, "p95": 100})
    config.data.augment.update(affine=1.0, affine_scale=0.5)
    moved = dataset.measure_stream(config, 4, seed=0)["classes"][0]
    assert moved["side"]["p50"] != pytest.approx(70, abs=0.5)


def test_boxes_that_cannot_be_right_are_named(coco_data, tmp_path):
    def break_it(content):
        content["annotations"] += [
            dict(content["annotations"][1], id=8, bbox=[0, 0, 64, 64.1]),  # again
            dict(content["annotations"][1], id=9, bbox=[90, 10, 30, 30]),  # 20 px beyond
            dict(content["annotations"][1], id=10, bbox=[5, 5, 1, 30]),  # under 2 px
            dict(content["annotations"][1], id=11, bbox=[5, 5, 3, 30]),  # 6 px on the canvas
        ]

    warned = run(coco_data(break_it), tmp_path / "out")["eval"]["warnings"]
    counts = {warning["what"]: warning["count"] for warning in warned}
    assert counts["boxes that reach more than 1 px beyond their image"] == 1
    assert counts["objects with a side under 2 px"] == 1
    assert counts["objects with a side of 2 px or more, under 8 px on the canvas"] == 1
    assert counts["objects marked twice (same class, IoU above 0.99)"] == 1
    named = [warning["first"][0] for warning in warned if "beyond" in warning["what"]]
    assert named[0].endswith("a.png")


def test_images_that_cannot_be_read_and_those_of_both_parts_are_named(coco_data, tmp_path):
    flags = coco_data()
    (tmp_path / "images" / "b.png").write_bytes(b"no picture")
    config = [
        "--config=retinanet_coco",
        f"--config.data.root={tmp_path}",
        *(f"--config.data.{part}_images=images" for part in ("train", "eval")),
        *(f"--config.data.{part}_annotations=instances.json" for part in ("train", "eval")),
        "--augmented=0",
        *flags[2:],
    ]
    found = run(config, tmp_path / "out")
    (warning,) = (w for w in found["train"]["warnings"] if "cannot be read" in w["what"])
    assert warning["count"] == 1 and "b.png cannot be decoded" in warning["first"][0]
    assert found["in_both_parts"]["count"] == 1  # a and c have the same pixels
    assert "a.png = " in found["in_both_parts"]["first"][0]


def test_generated_pictures_are_measured_too(tmp_path):
    found = run(["--config=retinanet_shapes", "--limit=4", "--augmented=0"], tmp_path / "out")
    assert found["train"]["images"] == found["eval"]["images"] == 4
    assert found["in_both_parts"]["count"] == 0
    assert {row["name"] for row in found["train"]["raw"]["classes"]} > {"ellipse", "cross"}


@pytest.mark.parametrize(
    "more, sentence",
    [
        ([], "no data given; name them with --config, or with --images and --annotations."),
        (["--images=x"], "--images and --annotations go together, and without --config."),
        (["--config=retinanet_shapes", "--splits=val"], "--splits is 'val'; it must be train, ev"),
        (["--config=retinanet_shapes", "--augmented=-1"], "--augmented is -1; it must be at lea"),
        (["--images=/none", "--annotations=/n.json"], "image folder /none does not exist"),
    ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, more, sentence):
    with pytest.raises(errors.UserError, match=sentence):
        dataset.main(["--output", str(tmp_path / "out"), *more])
