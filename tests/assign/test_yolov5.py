"""YOLOv5's entries: objects, anchors and neighbour cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.assign import yolov5

SIZES = np.float32([[10, 13], [16, 30], [33, 23]])
STRIDE = 8


def slow_assign(objects, sizes, stride, rows, columns, max_ratio=4.0):
    """The rule in plain loops: [(neighbour, anchor, object, row, column, x, y, w, h)], in order."""
    found = []
    for neighbour in range(5):
        for a, (aw, ah) in enumerate(sizes / stride):
            for g, box in enumerate(objects / stride):
                x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
                w, h = box[2] - box[0], box[3] - box[1]
                if max(w / aw, aw / w, h / ah, ah / h) >= max_ratio:
                    continue
                near = (
                    True,
                    x % 1 < 0.5 and x > 1,
                    y % 1 < 0.5 and y > 1,
                    (columns - x) % 1 < 0.5 and columns - x > 1,
                    (rows - y) % 1 < 0.5 and rows - y > 1,
                )
                if not near[neighbour]:
                    continue
                dx, dy = ((0, 0), (-0.5, 0), (0, -0.5), (0.5, 0), (0, 0.5))[neighbour]
                column = min(max(int(np.floor(x + dx)), 0), columns - 1)
                row = min(max(int(np.floor(y + dy)), 0), rows - 1)
                found.append((neighbour, a, g, row, column, x - column, y - row, w, h))
    return found


def as_rows(entries, slots):
    """The valid entries in the form of `slow_assign`."""
    index = np.flatnonzero(entries.valid)
    decided = (entries.anchor, entries.matched, entries.row, entries.column)
    neighbour = index // (len(SIZES) * slots)
    columns = [neighbour, *(np.asarray(x)[index] for x in decided)]
    return np.concatenate([np.stack(columns, 1), np.asarray(entries.xywh)[index]], axis=1)


def random_objects(rng, count, width, height):
    """Sides of 4 to 60 px; half of the centres are multiples of 4 px: cell borders and middles."""
    size = rng.uniform(4, 60, (count, 2))
    center = rng.uniform(0, (width, height), (count, 2))
    snapped = rng.random((count, 1)) < 0.5
    center = np.where(snapped, np.clip(4 * np.round(center / 4), 0, (width, height)), center)
    size = np.where(snapped, 2 * np.round(size / 2), size)  # so that the centre is exact
    return np.concatenate([center - size / 2, center + size / 2], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def assign():
    return tiny.jit(lambda *args: yolov5.assign(args[0], args[1], SIZES, STRIDE, args[2]))


def test_random_objects_equal_a_slow_loop(assign):
    """Also with empty slots, and with content on only a part of the map."""
    rng, slots, compared = np.random.default_rng(0), 12, 0
    for cells in ((12, 16), (7, 9), (12, 16), (1, 2)):
        count = rng.integers(3, slots)
        objects = np.zeros((slots, 4), np.float32)
        objects[:count] = random_objects(rng, count, cells[1] * STRIDE, cells[0] * STRIDE)
        entries = assign(objects, np.arange(slots) < count, np.int32(cells))
        assert entries.row.dtype == entries.column.dtype == entries.matched.dtype == np.int32
        expected = np.array(slow_assign(objects[:count], SIZES, STRIDE, *cells))
        np.testing.assert_allclose(as_rows(entries, slots), expected, rtol=1e-5, atol=1e-5)
        compared += len(expected)
    assert compared > 100


def test_joined_entries_are_all_entries(assign):
    """Cell by cell, their counts add up to the entries, and the last of them is known."""
    rng, slots, repeated = np.random.default_rng(1), 12, 0

    def cells_of(entries, numbers, indices):
        found = {}  # (column, row, anchor, object) -> [number of entries, index of the last]
        for i in np.flatnonzero(entries.valid):
            number, last = found.get(cell := tuple(int(x[i]) for x in entries[1:5]), (0, -1))
            found[cell] = number + int(numbers[i]), max(last, int(indices[i]))
        return found

    for cells in ((12, 16), (7, 9)):
        objects = random_objects(rng, slots, cells[1] * STRIDE, cells[0] * STRIDE)
        entries = assign(objects, np.ones(slots, bool), np.int32(cells))
        joined = tiny.jit(yolov5.join)(entries)
        assert joined.count.shape == (3 * len(SIZES) * slots,)
        np.testing.assert_array_equal(joined.entries.valid, joined.count > 0)
        expected = cells_of(entries, np.ones(len(entries.valid)), np.arange(len(entries.valid)))
        assert cells_of(joined.entries, joined.count, joined.last) == expected
        used = np.flatnonzero(joined.count)
        np.testing.assert_array_equal(
            joined.entries.xywh[used], entries.xywh[np.asarray(joined.last)[used]]
        )
        repeated += int((np.asarray(joined.count) > 1).sum())
    assert repeated > 10


def test_the_two_neighbours_by_hand(assign):
    """A centre at (2.25, 3.75) cells also gets the cell on its left and the one below."""
    entries = assign(np.float32([[10, 20, 26, 40]]), np.array([True]), np.int32([8, 8]))
    rows = as_rows(entries, 1)
    np.testing.assert_array_equal(rows[:, 1], [0, 1, 2] * 3)  # 16x20 px suits all three anchors
    np.testing.assert_array_equal(rows[::3, 3:5], [[3, 2], [3, 1], [4, 2]])  # row, column
    np.testing.assert_allclose(rows[::3, 5:7], [[0.25, 0.75], [1.25, 0.75], [0.25, -0.25]])
    np.testing.assert_allclose(rows[:, 7:], [[2, 2.5]] * 9)


def test_a_centre_on_a_border_of_cells_counts_twice_in_its_own(assign):
    """It is on the left side of its cell, and half a cell to the right is still the same cell."""
    entries = assign(np.float32([[24, 25, 40, 45]]), np.array([True]), np.int32([8, 8]))
    rows = as_rows(entries, 1)
    x = rows[rows[:, 1] == 0][:, [0, 4]]  # neighbour and column of the first anchor
    assert [0, 4] in x.tolist() and [1, 3] in x.tolist() and [3, 4] in x.tolist()


def test_the_ratio_is_exclusive_and_of_either_side(assign):
    def anchors(width, height):
        box = np.float32([[16, 16, 16 + width, 16 + height]])
        entries = assign(box, np.array([True]), np.int32([16, 16]))
        return set(np.asarray(entries.anchor)[np.asarray(entries.valid)])

    assert anchors(39.9, 13) == {0, 1, 2} and anchors(40, 13) == {1, 2}
    assert anchors(16, 7.6) == {0, 1, 2} and anchors(16, 7.4) == {0, 2}
    assert anchors(200, 200) == anchors(2, 2) == set()


def test_empty_slots_have_no_entry_and_nothing_is_nan(assign):
    entries = assign(np.zeros((3, 4), np.float32), np.zeros(3, bool), np.int32([8, 8]))
    assert not entries.valid.any() and jnp.isfinite(entries.xywh).all()
    no_slot = jnp.zeros((0, 4)), jnp.zeros(0, bool)
    empty = jax.eval_shape(lambda *args: yolov5.assign(*args, SIZES, STRIDE, (8, 8)), *no_slot)
    assert empty.valid.shape == (0,) and empty.xywh.shape == (0, 4)
