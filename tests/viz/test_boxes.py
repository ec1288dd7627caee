"""Pictures with boxes, checked by the colours of their pixels."""

import cv2
import numpy as np
import pytest

from detlab.viz import boxes as boxes_viz

NAMES = ("cat", "dog", "café")


def image(height=128, width=128):
    return np.full((height, width, 3), 90, np.uint8)


def test_colours_of_eighty_classes_are_distinct_and_fixed():
    colours = [boxes_viz.colour(label) for label in range(80)]
    assert len(set(colours)) == 80
    # Neighbours differ clearly in at least one channel.
    steps = np.abs(np.diff(np.array(colours), axis=0)).max(axis=1)
    assert steps.min() > 60
    assert boxes_viz.colour(0) == (255, 25, 25)


def test_the_edge_has_the_colour_of_the_class_and_the_image_is_not_changed():
    original = image()
    drawn = boxes_viz.draw(original, [[40, 50, 100, 110]], [1], NAMES, min_side=0)
    assert (drawn.shape, drawn.dtype) == ((128, 128, 3), np.uint8)
    for y, x in ((80, 40), (80, 100), (110, 70), (50, 90)):
        assert tuple(drawn[y, x].tolist()) == boxes_viz.colour(1)
    np.testing.assert_array_equal(drawn[60:100, 50:90], 90)
    np.testing.assert_array_equal(original, 90)


def test_small_images_grow_by_a_whole_factor_with_their_boxes():
    drawn = boxes_viz.draw(image(100, 150), [[40, 50, 90, 80]], [0], NAMES, min_side=250)
    assert drawn.shape == (300, 450, 3)
    assert tuple(drawn[200, 120].tolist()) == boxes_viz.colour(0)
    large = boxes_viz.draw(image(500, 600), [], [], NAMES, min_side=250)
    assert large.shape == (500, 600, 3)


@pytest.mark.parametrize(
    ("size", "factor"), [((4, 300), 6), ((4, 3000), 1), ((700, 60), 2), ((100, 150), 5)]
)
def test_enlarging_stops_where_the_longer_side_would_pass_its_limit(size, factor):
    drawn = boxes_viz.draw(image(*size), [[0, 0, 3, 3]], [0], NAMES, scores=[0.5])
    assert drawn.shape == (size[0] * factor, size[1] * factor, 3)


@pytest.mark.parametrize(
    "box", [[-20, -20, 30, 30], [110, 110, 200, 200], [0, 0, 128, 128], [120, 0, 128, 8]]
)
def test_text_stays_in_the_picture(box):
    def letters(box):  # number of pixels darker than the image and any box
        return (boxes_viz.draw(image(), [box], [1], NAMES).max(axis=2) < 80).sum()

    # As many at the border as in the middle: no letter is cut off.
    assert letters(box) == letters([40, 60, 100, 110]) > 20


def test_ignored_boxes_are_grey_and_dashed():
    drawn = boxes_viz.draw(image(), [[10, 30, 110, 120]], [0], NAMES, ignored=[True], min_side=0)
    bottom = (drawn[120, 10:110] == boxes_viz.GREY).all(axis=1)
    assert 0.3 < bottom.mean() < 0.9
    assert not (drawn == boxes_viz.colour(0)).all(axis=2).any()


def test_the_box_of_highest_score_is_on_top():
    same = [[20, 40, 100, 110]] * 2
    for scores, top in (([0.9, 0.1], 0), ([0.1, 0.9], 1)):
        drawn = boxes_viz.draw(image(), same, [0, 1], NAMES, scores=scores, min_side=0)
        assert tuple(drawn[110, 60].tolist()) == boxes_viz.colour(top)


def test_texts_of_equal_boxes_do_not_cover_each_other():
    same = [[30, 40, 100, 110]] * 2
    drawn = boxes_viz.draw(image(), same, [0, 1], NAMES, scores=[0.9, 0.8])
    for label in (0, 1):
        alone = boxes_viz.draw(image(), same[:1], [label], NAMES, scores=[0.9])
        filled = (alone == boxes_viz.colour(label)).all(axis=2)
        # The text of the second box has moved, and its background has kept its size.
        area = (drawn == boxes_viz.colour(label)).all(axis=2).sum()
        background = filled[: 40 * 4 - 2].sum()
        assert area > 0.8 * background


@pytest.mark.parametrize("side", [64, 128, 500])
@pytest.mark.parametrize("name", ["café", "猫", "قطة", "แมว"])
def test_names_in_other_scripts_are_drawn_on_backgrounds_of_the_same_height(name, side):
    def heights(name):
        drawn = boxes_viz.draw(image(side, side), [[0, side // 2, 9, side]], [0], (name,), [0.5])
        column = (drawn == boxes_viz.colour(0)).all(axis=2)[:, 1]
        return column.sum()

    assert heights(name) == heights("Ag")


def test_a_name_in_another_script_stays_in_the_picture():
    for box in ([-20, -20, 30, 30], [110, 110, 200, 200], [0, 0, 128, 128]):
        drawn = boxes_viz.draw(image(), [box], [0], ("猫" * 60,), scores=[0.5])
        assert drawn.shape == (512, 512, 3)


def test_a_pair_has_the_truth_left_and_the_predictions_right():
    pair = boxes_viz.draw_pair(
        image(),
        {"boxes": [[20, 40, 100, 110]], "labels": [0], "ignore": [False]},
        {"boxes": [[20, 40, 100, 110]], "labels": [1], "scores": [0.5]},
        NAMES,
        min_side=0,
    )
    assert pair.shape[0] > 128
    assert pair.shape[1] > 256
    left, right = pair[:, :128], pair[:, -128:]
    assert (left == boxes_viz.colour(0)).all(axis=2).any()
    assert not (left == boxes_viz.colour(1)).all(axis=2).any()
    assert (right == boxes_viz.colour(1)).all(axis=2).any()
    assert not (right == boxes_viz.colour(0)).all(axis=2).any()


def test_contact_sheet_keeps_the_shape_of_each_image():
    tall, wide = np.full((100, 50, 3), 255, np.uint8), np.full((30, 90, 3), 255, np.uint8)
    sheet = boxes_viz.contact_sheet([tall, wide, tall], columns=2, cell=(60, 90))
    assert sheet.shape == (2 * 64 + 4, 2 * 94 + 4, 3)
    white = (sheet == 255).all(axis=2)
    assert white[:64, :98].sum() == 60 * 30
    assert white[:64, 98:].sum() == 30 * 90
    assert boxes_viz.contact_sheet([wide], columns=4, cell=(60, 90)).shape == (68, 98, 3)
    with pytest.raises(ValueError, match="at least one image"):
        boxes_viz.contact_sheet([])


def test_save_makes_folders_and_keeps_rgb(tmp_path):
    drawn = boxes_viz.draw(image(), [[20, 40, 100, 110]], [0], NAMES)
    path = tmp_path / "new" / "folder" / "picture.png"
    boxes_viz.save(path, drawn)
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], drawn)


def test_save_says_what_cannot_be_written(tmp_path):
    with pytest.raises(OSError, match="cannot write images with the suffix '.nonsense'"):
        boxes_viz.save(tmp_path / "picture.nonsense", image())
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        boxes_viz.save(tmp_path / "file" / "picture.png", image())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((image().astype(float), [], [], NAMES), r"float64 \[128, 128, 3\]; it must be uint8"),
        ((image()[..., 0], [], [], NAMES), r"uint8 \[128, 128\]; it must be uint8 \[H, W, 3\]"),
        ((image(), [[0, 0, 1, 1]], [3], NAMES), r"label 3 is outside 0\.\.2"),
        ((image(), [[0, 0, 1, 1]], [0, 1], NAMES), "1 boxes, 2 labels"),
        ((image(), [[0, 0, 1, 1]], [0], NAMES, [0.1, 0.2]), "1 labels, 2 scores"),
    ],
)
def test_bad_input_raises(arguments, message):
    with pytest.raises(ValueError, match=message):
        boxes_viz.draw(*arguments)


def test_captions_and_shades_replace_names_and_colours_of_classes():
    box = [[20, 40, 100, 110]]
    told = {"captions": ["TP"], "shades": [(1, 200, 3)]}
    drawn = boxes_viz.draw(image(), box, [0], NAMES, min_side=0, **told)
    np.testing.assert_array_equal(drawn[110, 60], (1, 200, 3))
    assert not (drawn == boxes_viz.colour(0)).all(axis=2).any()
    silent = boxes_viz.draw(image(), box, [0], NAMES, min_side=0, captions=[""])
    named = boxes_viz.draw(image(), box, [0], NAMES, min_side=0)
    assert (silent[:36] == 90).all() and (named[:36] != 90).any()


def test_a_heading_is_above_the_picture_and_cut_off_at_its_edge():
    headed = boxes_viz.with_heading(image(60, 80), "a text that is far too long for the picture")
    assert headed.shape[1:] == (80, 3) and headed.shape[0] > 60
    np.testing.assert_array_equal(headed[-60:], 90)
    assert (headed[:-60] > 200).any()


def test_a_jpeg_of_lower_quality_is_smaller_and_a_png_has_none(capfd):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert len(boxes_viz.encode(noise, ".jpg", 50)) < 0.7 * len(boxes_viz.encode(noise, ".jpg"))
    assert boxes_viz.encode(noise, ".png", 50) == boxes_viz.encode(noise, ".png")
    assert capfd.readouterr().err == ""  # no warning of OpenCV
