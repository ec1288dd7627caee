"""Who learns what: numbers counted by hand, panels that follow the targets, and every form."""

import argparse
import json

import jax
import numpy as np
import pytest
import tiny
from matplotlib import image as image_lib

from detlab import cli, errors, types
from detlab.tools import assignments, detector_flags, positives
from detlab.viz import assignments as draw_lib

AS_THEY_ARE = argparse.Namespace(points=False)
POINTS = argparse.Namespace(points=True)


def targets(boxes, level, status, matched, **values):
    """Those of a batch of one image."""
    rows = np.float32(boxes), np.int32(level), np.int32(status), np.int32(matched)
    return types.Targets(*(x[None] for x in rows), {k: v[None] for k, v in values.items()})


def batch(boxes, labels, canvas=(32, 32), ignore=()):
    """An image with these objects, and one empty slot."""
    boxes = np.float32([*boxes, (0, 0, 0, 0)])
    valid = boxes[:, 2] > 0
    valid[list(ignore)] = False
    found = tiny.make_batch(objects=(1,))
    return found._replace(
        images=np.zeros((1, *canvas, 3), np.uint8),
        image_size=np.int32([canvas]),
        boxes=boxes[None],
        labels=np.int32([*labels, 0])[None],
        valid=valid[None],
        ignore=(~valid & (boxes[:, 2] > 0))[None],
    )


# Points of 8 px on a canvas of 32 x 32 px, then one cell of 32 px: FCOS with two levels.
CELLS = [(x, y, x + 8, y + 8) for y in range(0, 32, 8) for x in range(0, 32, 8)]
CELLS.append((0, 0, 32, 32))
OBJECT = (0, 0, 17, 17)  # the middles of four cells of 8 px and that of the large one


def of_points(positive):
    status = np.zeros(17, int)
    status[positive] = 1
    status[16] = -1
    return targets(CELLS, [0] * 16 + [1], status, np.zeros(17, int))


def test_points_of_an_object_are_counted_by_level_without_an_overlap():
    entries = assignments.Entries(of_points([0, 1, 4]), (32, 32))
    assert entries.form == "points" and entries.stride(0) == 8 and entries.stride(1) is None
    (row,) = assignments.of_objects(entries, [OBJECT], levels=2)
    assert row == {
        "side_px": 17.0,
        "positives": [3, 0],
        "points_inside": [4, 1],
        "mean_iou": None,
        "min_iou": None,
    }
    assert (entries.negative.sum(), entries.ignored.sum()) == (13, 1)


def test_overlaps_of_anchors_with_their_object_are_averaged():
    anchors = [(0, 0, 10, 10), (0, 0, 20, 10), (0, 0, 10, 10), (20, 20, 30, 30)]
    found = targets(anchors, [0, 0, 1, 0], [1, 1, 0, 1], [0, 0, 0, 1])
    entries = assignments.Entries(found, (32, 32))
    assert entries.form == "boxes"
    first, second, third = assignments.of_objects(
        entries, [(0, 0, 10, 10), (20, 20, 30, 40), (0, 0, 4, 4)], levels=2
    )
    assert first["positives"] == [2, 0] and first["mean_iou"] == 0.75 and first["min_iou"] == 0.5
    assert second["positives"] == [1, 0] and second["mean_iou"] == second["min_iou"] == 0.5
    assert third["positives"] == [0, 0] and third["mean_iou"] is None


def test_a_list_of_positives_has_no_ignored_entries_and_empty_slots_count_nowhere():
    boxes = [(0, 0, 8, 8), (8, 0, 16, 8), (0, 0, 0, 0)]
    listed = assignments.Entries(targets(boxes, [0, 0, 0], [1, -1, -1], [0, 0, 0]), (32, 32))
    sampled = targets(boxes, [0, 0, 0], [0, -1, -1], [0, 0, 0])
    assert not listed.ignored.any()
    assert assignments.Entries(sampled, (32, 32)).ignored.tolist() == [False, True, False]
    assert not assignments.Entries(sampled, (32, 12)).ignored.any()  # the rest is padding


def test_the_summary_counts_objects_by_size_and_those_that_nothing_learns():
    image = batch([OBJECT, (20, 20, 31, 31), (1, 1, 9, 9)], [1, 0, 0], ignore=[2])
    found = assignments.summary([of_points([0, 1, 4])], [image], ("cat", "dog"), ["one"])
    assert (found["positive"], found["negative"], found["ignored"]) == (3, 13, 1)
    assert found["num_objects"] == 2 and found["without_positive"] == 1
    assert found["share_without"] == 0.5
    assert found["positives_per_object"] == {"mean": 1.5, "median": 1.5, "min": 0, "max": 3}
    small, smaller = found["sizes"]["small"], found["sizes"]["tiny"]
    assert small["num_objects"] == 1 and small["without_positive"] == 0  # 17 px
    assert smaller["num_objects"] == 1 and smaller["without_positive"] == 1  # 11 px
    assert found["sizes"]["large"]["positives_per_object"] is None
    assert [row["class"] for row in found["objects"]] == ["dog", "cat"]
    assert found["levels"][0] == {
        "level": 0,
        "stride_px": 8.0,
        "sides_px": [8.0, 8.0],
        "positive": 3,
        "negative": 13,
        "ignored": 0,
    }
    printed = assignments.table(found)
    assert "nothing learns 1 of 2 objects (50.0 %)" in printed
    assert "small 16-32 px" in printed


def test_other_positives_change_the_panel_and_the_picture():
    image = batch([OBJECT], [0])
    shown = {}
    for positive in ([0, 1, 4], [0, 1]):
        found = {"main": of_points(positive)}
        level0, level1 = assignments.panels("main", found, image, AS_THEY_ARE)
        assert level0.filled and level0.heading.startswith(f"level 0: {len(positive)} positive")
        assert level0.boxes.tolist() == [list(CELLS[i]) for i in positive]
        assert level1.note == "1 ignored" and level1.dots["ignored"].tolist() == [[16, 16]]
        objects = draw_lib.Objects(image.boxes[0][:1], ["cat"], np.array([False]))
        row = draw_lib.Row("main", [level0, level1])
        figure = draw_lib.draw(image.images[0], objects, [row], "title", "legend")
        axis = figure.axes[1]  # after the objects
        filled = axis.collections[-2]  # below the dots
        shown[len(positive)] = [path.vertices.min(0).tolist() for path in filled.get_paths()]
    assert shown[3] == [[0, 0], [8, 0], [0, 8]] and shown[2] == [[0, 0], [8, 0]]


def test_points_in_an_object_that_do_not_learn_it_are_rings_of_the_smallest_object():
    image = batch([OBJECT, (9, 9, 15, 15)], [0, 0])
    level0, _ = assignments.panels("main", {"main": of_points([0, 1])}, image, POINTS)
    assert level0.rings.tolist() == [[4, 12], [12, 12]]
    assert level0.ring_owner.tolist() == [0, 1]
    assert not level0.filled and len(level0.boxes) == 2


def test_too_many_negatives_are_counted_but_not_drawn():
    cells = [(x, y, x + 1, y + 1) for y in range(24) for x in range(24)]
    status = np.zeros(576, int)
    status[0] = 1
    found = {"main": targets(cells, [0] * 576, status, np.zeros(576, int))}
    image = batch([(0, 0, 4, 4)], [0])
    (panel,) = assignments.panels("main", found, image, AS_THEY_ARE)
    assert panel.note == "575 negative" and not panel.dots
    row = draw_lib.Row("main", [panel])
    assert assignments.legend([row], False).endswith("; too many to draw: negative")
    (panel,) = assignments.panels("main", found, image, POINTS)
    assert len(panel.rings) == 15 and len(panel.dots["negative"]) == 560  # in the object; others


def test_corners_are_panels_of_heat_on_the_canvas_or_on_the_points_of_another_assignment():
    image = batch([OBJECT], [0])
    heat = np.zeros((8, 8, 2), np.float32)
    heat[0, 0, 1], heat[4, 4, 1] = 1, 0.5
    named = {"top_left_heat": heat, "bottom_right_heat": np.zeros_like(heat)}
    entries = ([OBJECT], [0], [1], [0])
    found = {"corner": targets(*entries, **named)}
    (panel,) = assignments.panels("corner", found, image, AS_THEY_ARE)
    assert (
        panel.extent == (0, 32, 32, 0) and panel.heading == "top left and bottom right: 1 corners"
    )
    assert panel.heat[0][0, 0] == 1 and panel.heat[0][4, 4] == 0.5
    flat = {"top_left_heat": np.arange(17, dtype=np.float32) / 16}
    found = {"init": of_points([0]), "verification": targets(*entries, **flat)}
    fine, coarse = assignments.panels("verification", found, image, AS_THEY_ARE)
    assert fine.extent == (0, 32, 32, 0) and fine.heat[0].shape == (4, 4)
    assert fine.heat[0][1, 2] == 6 / 16 and coarse.heat[0].tolist() == [[1.0]]


# ------------------------------------------------------------------------------------------------
# The program


def run(tmp_path, *more):
    words = ["--config", "retinanet_shapes", "--output", str(tmp_path / "out"), "--limit", "2"]
    positives.main([*words, *more])
    return json.loads((tmp_path / "out" / "positives.json").read_text())["results"]["detectors"]


def test_a_stricter_threshold_leaves_fewer_anchors_and_other_detectors_see_the_same_objects(
    tmp_path, capsys
):
    (loose,) = run(tmp_path)
    printed = capsys.readouterr().out
    assert "retinanet_shapes, main: " in printed and "not read" in loose["weights"]
    assert {path.name for path in (tmp_path / "out").glob("*.jpg")} == {"0_main.jpg", "1_main.jpg"}
    strict, fcos = run(
        tmp_path, "--config.model.positive_iou=0.7", "--compare", "fcos_shapes", "--pictures=1"
    )
    first, second = (x["assignments"]["main"] for x in (loose, strict))
    assert first["positive"] > second["positive"] > 0
    third = fcos["assignments"]["main"]
    assert third["form"] == "points"
    assert [x["box"] for x in first["objects"]] == [x["box"] for x in third["objects"]]
    picture = image_lib.imread(tmp_path / "out" / "0.jpg")  # both detectors on one picture
    assert picture.shape[1] > 1100


def test_a_photograph_with_given_objects_is_shown_without_data(tmp_path, shared_dir):
    # 768 x 576 px on a canvas of 128 x 128 px are 128 x 96.
    (found,) = run(
        tmp_path,
        f"--input={shared_dir / 'images' / 'dog.jpg'}",
        "--config.data.source=coco",
        "--config.data.class_names=('cat','dog','bus','tv set')",
        "--objects= dog 131 220 309 540; tv set 467 75 693 170",
        "--pictures=0",
    )
    dog, other = found["assignments"]["main"]["objects"]
    assert (dog["class"], other["class"]) == ("dog", "tv set")
    np.testing.assert_allclose(dog["box"], np.array([131, 220, 309, 540]) / 6, rtol=0.01)


@pytest.mark.parametrize(
    "more, sentence",
    [
        (["--pictures=-1"], "--pictures is -1; it must be at least 0."),
        (["--input=a.jpg"], "--input and --objects go together"),
        (["--input=a.jpg", "--objects=x", "--augmented"], "choose from the data; remove --input."),
        (["--augmented", "--image", "3"], "remove --image and --part."),
    ],
)
def test_flags_that_exclude_each_other_are_refused(more, sentence):
    parser = detector_flags.positives("")
    args, _ = cli.parse(["--output", "out", *more], parser)
    with pytest.raises(errors.UserError, match=sentence):
        detector_flags.check_positives(args)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("dog 1 2 3", "--objects has 'dog 1 2 3'; write a class and a box, NAME x1 y1 x2 y2"),
        ("dog 5 5 1 9", "with x1 < x2 and y1 < y2"),
        (
            "cow 1 2 3 4",
            "names 'cow', which is no class of the detector; its classes are cat, dog.",
        ),
        ("dog 1 2 3 4", "image file none.jpg does not exist"),
    ],
)
def test_wrong_objects_of_a_photograph_are_told_in_a_sentence(text, sentence):
    with pytest.raises(errors.UserError, match=sentence):
        positives.photograph("none.jpg", text, ("cat", "dog"))


def test_objects_name_the_classes_of_a_detector_that_has_no_names(shared_dir):
    path = str(shared_dir / "images" / "dog.jpg")
    text = "dog 1 2 30 40; cow 5 5 9000 60; dog 3 4 50 60"
    record, names = positives.photograph(path, text, ("class 0", "class 1", "class 2"), named=False)
    assert names == ("dog", "cow", "class 2") and record["labels"].tolist() == [0, 1, 0]
    assert record["boxes"][1].tolist() == [5, 5, 768, 60]  # clipped to the photograph
    with pytest.raises(errors.UserError, match="names 'cow', which is no class of the detector"):
        positives.photograph(path, text, ("class 0",), named=False)


def test_an_unknown_image_is_told_with_an_example():
    class Source:
        def __len__(self):
            return 2

        def image_id(self, i):
            return 10 + i

        def name(self, i):
            return f"folder/{i}.jpg"

    assert positives.choose(Source(), ["11", "0.jpg"]) == [1, 0]
    with pytest.raises(errors.UserError, match="--image 12 is no image of the data; .* as 10"):
        positives.choose(Source(), ["12"])


KINDS = {
    "retinanet": False,
    "cornernet": False,
    "yolov5": False,
    "reppoints_v2": True,
    "faster_rcnn": True,
    "darknet": True,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_form_of_targets_has_numbers_that_add_up_and_panels(name):
    subject = tiny.Subject(name)
    detector, key = subject.detector, jax.random.key(0)
    image = tiny.make_batch(subject.entry.canvas, objects=(3,))
    shapes = jax.eval_shape(detector.init, key, image.images)
    assert positives.reads_weights(detector.targets, shapes, image, key) == KINDS[name]
    found = jax.device_get(subject.targets(*subject.variables, image, key))
    for part, of_part in found.items():
        numbers = assignments.summary([of_part], [image], ("a", "b", "c"), ["one"])
        rows = numbers["objects"]
        assert numbers["positive"] == sum(sum(row["positives"]) for row in rows)
        assert numbers["positive"] == sum(row["positive"] for row in numbers["levels"]) > 0
        panels = assignments.panels(part, found, image, AS_THEY_ARE)
        if numbers["form"] == "maps":
            assert max(heat.max() for panel in panels for heat in panel.heat) == 1
        else:
            assert sum(len(panel.boxes) for panel in panels) == numbers["positive"]
        objects = positives.objects_of(image, ("a", "b", "c"))
        row = draw_lib.Row(part, panels)
        figure = draw_lib.draw(
            image.images[0], objects, [row], "", assignments.legend([row], False)
        )
        assert len(figure.axes) >= 1 + len(panels)
