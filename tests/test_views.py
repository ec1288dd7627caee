"""Views: their transforms and undos, and the joined candidates of all views of an image."""

import jax
import numpy as np

from detlab import checks, types, views

SIZES = np.int32([[6, 8], [4, 5]])


def pictures():
    return np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), np.uint8)


def boxes_as_seen(seen, sizes):
    """A fake network: one box at pixel (1, 2), whose score is the red value there."""
    corner = np.tile(np.float32([2, 1, 3, 2]), (len(seen), 1, 1))
    scores = seen[:, 1, 2, :1] / np.float32(255)
    valid = np.ones((len(seen), 1), bool)
    found = types.Detections(corner, scores, np.zeros((len(seen), 1), np.int32), valid)
    return found, {"bound": sizes[:, 1] > 6}


def test_every_view_has_a_name_that_a_config_may_use():
    assert tuple(views.VIEWS) == checks.VIEWS


def test_the_mirror_shows_the_content_where_it_was_with_left_and_right_exchanged():
    images = pictures()
    seen, sizes = views.VIEWS["mirror"].transform(images, SIZES)
    np.testing.assert_array_equal(sizes, SIZES)
    for image, mirrored, (height, width) in zip(images, seen, SIZES):
        np.testing.assert_array_equal(mirrored[:height, :width], image[:height, :width][:, ::-1])


def test_what_the_mirror_shows_comes_back_and_empty_rows_stay_zeros():
    boxes = np.float32([[[1, 2, 4, 5], [0, 0, 0, 0]], [[0, 0, 5, 4], [0, 0, 0, 0]]])
    valid = np.array([[True, False], [True, False]])
    found = types.Detections(boxes, valid * 1.0, valid * 0, valid)
    back = views.VIEWS["mirror"].undo(found, SIZES)
    np.testing.assert_array_equal(back.boxes[:, 0], [[4, 2, 7, 5], [0, 0, 5, 4]])
    assert not back.boxes[:, 1].any()


def test_candidates_of_all_views_stand_side_by_side_and_any_may_exceed_a_bound():
    images = pictures()
    both = [views.VIEWS[name] for name in ("image", "mirror")]
    found, exceeded = jax.jit(lambda *x: views.candidates(boxes_as_seen, both, *x))(images, SIZES)
    np.testing.assert_allclose(found.scores[:, 0], images[:, 1, 2, 0] / 255, rtol=1e-6)
    mirrored = [images[i, 1, SIZES[i, 1] - 1 - 2, 0] / 255 for i in range(2)]
    np.testing.assert_allclose(found.scores[:, 1], mirrored, rtol=1e-6)
    np.testing.assert_array_equal(found.boxes[:, 1], [[5, 1, 6, 2], [2, 1, 3, 2]])
    assert exceeded["bound"].tolist() == [True, False]


def test_a_view_of_another_size_is_seen_on_its_own_canvas():
    def shrink(images, sizes):
        return images[:, ::2, ::2], -(-sizes // 2)

    half = views.View(shrink, lambda found, _: found._replace(boxes=2 * found.boxes))
    seen = []

    def find(images, sizes):
        seen.append(images.shape)
        return boxes_as_seen(images, sizes)

    all_three = (views.VIEWS["image"], half, views.VIEWS["mirror"])
    found, exceeded = views.candidates(find, all_three, pictures(), SIZES)
    assert seen == [(4, 6, 8, 3), (2, 3, 4, 3)], "views of one size form one batch"
    np.testing.assert_array_equal(found.boxes[0], [[2, 1, 3, 2], [4, 2, 6, 4], [5, 1, 6, 2]])
    assert exceeded["bound"].tolist() == [True, False]
