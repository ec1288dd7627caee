"""Records with pictures that show where pixels belong, for tests of geometric transforms."""

import numpy as np

BOX = (10, 4, 30, 28)


def record(height, width, box=BOX):
    """A black picture with the box white."""
    image = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = 255
    return {
        "image": image,
        "boxes": np.array([box], np.float32),
        "labels": np.zeros(1, np.int32),
        "ignore": np.zeros(1, bool),
        "area": np.array([(x2 - x1) * (y2 - y1)], np.float32),
        "index": 0,
    }


def assert_white_is_the_box(record):
    """Asserts that the columns and rows with centres inside the box are white, and no others.

    Bilinear interpolation crosses half way between black and white on the edge of the box, so this
    holds for any ratio.  Centres within 0.02 px of an edge are skipped, because OpenCV rounds its
    weights to 1/2048.
    """
    for axis, name in ((0, "columns"), (1, "rows")):
        low, high = record["boxes"][0][axis::2]
        profile = record["image"][..., 0].max(axis=axis) > 127
        centre = np.arange(len(profile)) + 0.5
        inside = (centre > low) & (centre < high)
        near = np.minimum(abs(centre - low), abs(centre - high)) < 0.02
        assert inside.any()
        np.testing.assert_array_equal(profile | near, inside | near, err_msg=name)


def coordinates(record):
    """The same record with a picture of coordinates: red 2x, green 2y at centres, blue 255."""
    height, width = record["image"].shape[:2]
    image = np.full((height, width, 3), 255, np.uint8)
    image[..., 0] = 2 * np.arange(width) + 1
    image[..., 1] = 2 * np.arange(height)[:, None] + 1
    return {**record, "image": image}
