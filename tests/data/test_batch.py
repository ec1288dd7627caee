"""Records to a batch, and boxes on the canvas back to their image."""

import numpy as np
import pictures
import pytest

from detlab.data import batch as batch_lib
from detlab.data import transforms


def test_batch_fields_by_hand():
    record = pictures.Pictures(counts=[4] * 21)[1]  # 40 high, 20 wide; object 3 is ignored
    record = transforms.mirror_horizontal(transforms.resize_keep_ratio(record, 32, 48))
    batch = batch_lib.to_batch([record, None], (32, 48), max_boxes=5, pad_value=(9, 8, 7))
    assert batch.images.shape == (2, 32, 48, 3) and batch.images.dtype == np.uint8
    assert (batch.images[0, :, :16] == 1).all()
    assert (batch.images[0, :, 16:] == [9, 8, 7]).all() and (batch.images[1] == [9, 8, 7]).all()
    np.testing.assert_array_equal(batch.image_size, [[32, 16], [32, 48]])
    np.testing.assert_allclose(batch.placement, [[-0.8, 0.8, 16, 0], [1, 1, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(batch.boxes[0, 1], [12.8, 0.8, 15.2, 4.8], rtol=1e-6)
    np.testing.assert_array_equal(batch.boxes[0, 4], [0, 0, 0, 0])
    np.testing.assert_array_equal(batch.labels[0], [0, 1, 2, 0, 0])
    np.testing.assert_array_equal(batch.valid, [[1, 1, 1, 0, 0], [0] * 5])
    np.testing.assert_array_equal(batch.ignore, [[0, 0, 0, 1, 0], [0] * 5])
    np.testing.assert_array_equal(batch.index, [1, -1])
    np.testing.assert_array_equal(batch.real, [True, False])
    dtypes = {name: value.dtype.str[1:] for name, value in batch._asdict().items()}
    assert dtypes == {
        "images": "u1", "boxes": "f4", "labels": "i4", "valid": "b1", "ignore": "b1",
        "image_size": "i4", "placement": "f4", "index": "i4", "real": "b1",
    }  # fmt: skip


def test_the_largest_objects_get_the_slots_and_the_rest_is_counted():
    source = pictures.Pictures(counts=[6] + [0] * 20)  # objects 0..5 grow; 3 is ignored
    record = transforms.resize_fixed(source[0], 20, 40)
    batch = batch_lib.to_batch([record], (32, 48), max_boxes=3, pad_value=0)
    np.testing.assert_array_equal(batch.boxes[0], record["boxes"][[2, 4, 5]])
    assert batch.valid.all()
    assert batch_lib.count_dropped([record, None], max_boxes=3) == 3
    batch = batch_lib.to_batch([record], (32, 48), max_boxes=6, pad_value=0)
    np.testing.assert_array_equal(batch.ignore[0], [0, 0, 0, 1, 0, 0])
    dropped = [loaded.dropped_boxes for loaded in pictures.evaluate(source)]
    assert sum(dropped) == dropped[0] == 3


@pytest.mark.parametrize("resize", ["fit", "letterbox", "stretch", (30, 25)])
def test_placement_leads_back_to_the_annotation(resize):
    source = pictures.Pictures()
    for loaded in [
        *pictures.train(source, resize=resize),
        *pictures.evaluate(source, resize=resize),
    ]:
        batch = loaded.batch
        for row in np.flatnonzero(batch.real):
            i = int(batch.index[row])
            corners = batch.boxes[row][batch.valid[row]].reshape(-1, 2, 2)
            sx, sy, tx, ty = batch.placement[row]
            original = np.sort((corners - [tx, ty]) / [sx, sy], axis=1).reshape(-1, 4)
            # Coordinates under 50 px in float32, divided by scales from 0.3: 1e-4 px is ample.
            np.testing.assert_allclose(original, source.annotation(i)["boxes"], atol=1e-4)


def test_evaluation_maps_letterboxed_boxes_back_to_the_image():
    source = pictures.Pictures()
    for loaded in pictures.evaluate(source, resize="letterbox"):
        batch = loaded.batch
        for row in np.flatnonzero(batch.real):
            i = int(batch.index[row])
            boxes = batch_lib.to_original(
                batch.boxes[row, :2], batch.placement[row], source.size(i)
            )
            np.testing.assert_allclose(boxes, source.annotation(i)["boxes"], atol=1e-4)
            # The whole canvas, including the border, is clipped to the whole image.
            canvas = np.array([[0, 0, *batch.images.shape[2:0:-1]]], np.float32)
            whole = batch_lib.to_original(canvas, batch.placement[row], source.size(i))
            height, width = source.size(i)
            np.testing.assert_allclose(whole, [[0, 0, width, height]], atol=1e-4)
