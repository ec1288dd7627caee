"""Outlines and keypoints, checked by the colours of their pixels."""

import numpy as np

from detlab.viz import masks

RED = (255, 0, 0)


def test_a_mask_is_tinted_and_outlined_and_the_rest_stays():
    image = np.full((60, 80, 3), 100, np.uint8)
    mask = np.zeros((60, 80), bool)
    mask[10:30, 20:50] = True
    drawn = masks.draw_masks(image, [mask], [RED])
    # 0.6 * 100 + 0.4 * (255, 0, 0)
    np.testing.assert_array_equal(drawn[20, 35], (162, 60, 60))
    np.testing.assert_array_equal(drawn[10, 20], RED)  # the outline
    np.testing.assert_array_equal(drawn[~mask], 100)
    np.testing.assert_array_equal(image, 100)


def test_later_masks_are_on_top_and_none_change_nothing():
    image = np.zeros((20, 20, 3), np.uint8)
    mask = np.ones((20, 20), bool)
    drawn = masks.draw_masks(image, [mask, mask], [RED, (0, 0, 255)])
    np.testing.assert_array_equal(drawn[10, 10], (61, 0, 102))  # 0.6 * 0.4 * 255, 0.4 * 255
    np.testing.assert_array_equal(masks.draw_masks(image, [], []), image)


def test_marked_points_are_drawn_with_lines_between_marked_pairs():
    image = np.zeros((60, 60, 3), np.uint8)
    points = np.array([(10, 10, 2), (50, 10, 1), (10, 50, 0)], float)
    drawn = masks.draw_keypoints(image, points, [(0, 1), (0, 2)], RED)
    np.testing.assert_array_equal(drawn[10, [10, 30, 50]], [RED] * 3)
    assert not drawn[30:, :].any()  # neither the unmarked point nor a line to it
