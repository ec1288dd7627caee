"""CornerNet, built tiny: maps, tags, pairs, clipping; and its table."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tables
import tiny

from detlab import contract, views
from detlab.converters.tables import mmdet_cornernet
from detlab.detectors import cornernet

FIELDS = tiny.TINY["cornernet"].fields
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def detector():
    return contract.from_module(cornernet.CornerNet(**FIELDS))


@pytest.mark.parametrize("size, cells", [((64, 96), (16, 24)), ((511, 511), (128, 128))])
def test_every_stack_has_maps_of_a_quarter_of_the_canvas(detector, size, cells):
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.uint8)
    variables = jax.eval_shape(detector.init, KEY, images)
    maps = jax.eval_shape(tiny.maps_of(detector), *variables, images)
    assert len(maps.features) == 2
    for of_kind in (maps.top_left, maps.bottom_right):
        for name, channels in (("heat", 3), ("offset", 2), ("tag", 1)):
            found = [x.shape for x in getattr(of_kind, name)]
            assert found == [(2, *cells, channels)] * 2


def test_heatmaps_start_at_the_prior(detector):
    branches = ("top_left0", "top_left1", "bottom_right0", "bottom_right1")

    def last(images):
        params, _ = detector.init(KEY, images)
        return [params[f"branches_{branch}"]["heat"] for branch in branches]

    for conv in tiny.jit(last)(jnp.zeros((1, 64, 96, 3), jnp.uint8)):
        np.testing.assert_allclose(jax.nn.sigmoid(conv["bias"]), 0.1, rtol=1e-5)
        assert 0.2 < np.abs(conv["kernel"]).max() <= 0.25  # the root of 1 / 16 inputs


def test_tags_are_pulled_within_and_pushed_between_the_objects_of_an_image():
    tags = jnp.array([0.0, 0.5, 9.0])
    pull, push = cornernet.tag_losses(tags, tags + 1, jnp.array([True, True, False]))
    # Each tag is 1/2 from the mean of its pair; the means are 1/2 apart.
    assert pull == pytest.approx(0.5) and push == pytest.approx(0.5)
    for valid in ([True, False, False], [False] * 3):
        pull, push = cornernet.tag_losses(tags, tags, jnp.array(valid))
        assert pull == push == 0


def of_maps(size=(64, 96), offset=0.5, **corners):
    """Candidates of one image on 64 x 96 px from made-up maps: (row, column, class, tag)."""
    maps = {}
    for name, points in corners.items():
        heat, tag = np.full((1, 16, 24, 3), -10, np.float32), np.zeros((1, 16, 24, 1), np.float32)
        for row, column, label, value in points:
            heat[0, row, column, label], tag[0, row, column] = 3, value
        offsets = np.full((1, 16, 24, 2), offset, np.float32)
        maps[name] = cornernet.CornerMaps(*((jnp.array(x),) for x in (heat, offsets, tag)))
    module = cornernet.CornerNet(**FIELDS)
    find = tiny.jit(lambda maps, size: module.candidates(maps, size, (64, 96)))
    found = find(cornernet.Outputs((), **maps), jnp.array([size]))
    high = np.asarray(found.scores[0]) > 0.5
    return np.asarray(found.boxes[0])[high], np.asarray(found.labels[0])[high]


def test_corners_of_one_class_with_like_tags_are_a_box():
    boxes, labels = of_maps(
        top_left=[(2, 3, 1, 0.0), (1, 1, 2, 5.0)], bottom_right=[(10, 12, 1, 0.4), (8, 9, 2, 4.8)]
    )
    assert sorted(labels) == [1, 2]
    np.testing.assert_allclose(sorted(boxes.tolist()), [[6, 6, 38, 34], [14, 10, 50, 42]])


@pytest.mark.parametrize(
    "first, second",
    [
        ((2, 3, 1, 0.0), (10, 12, 2, 0.0)),  # of different classes
        ((2, 3, 1, 0.0), (10, 12, 1, 0.6)),  # with different tags
        ((10, 12, 1, 0.0), (2, 3, 1, 0.0)),  # on the wrong sides
    ],
)
def test_other_pairs_are_none(first, second):
    boxes, _ = of_maps(top_left=[first], bottom_right=[second])
    assert not len(boxes)


def test_boxes_are_moved_into_the_content_of_the_canvas():
    boxes, _ = of_maps(
        size=(40, 60),
        offset=-0.5,
        top_left=[(0, 0, 1, 0.0), (0, 14, 1, 9.0)],
        bottom_right=[(9, 14, 1, 0.0), (9, 16, 1, 9.0)],  # column 16 is right of the content
    )
    np.testing.assert_allclose(boxes, [[0, 0, 54, 34]])
    boxes, _ = of_maps(
        size=(40, 60), offset=2.0, top_left=[(0, 0, 1, 0.0)], bottom_right=[(9, 14, 1, 0.0)]
    )
    np.testing.assert_allclose(boxes, [[8, 8, 60, 40]])


class Colours(cornernet.CornerNet):
    """Corners at red (top left) and green (bottom right) cells of an image, with blue as tag."""

    def maps(self, images, train):
        seen = images[:, ::4, ::4].astype(jnp.float32)
        nothing = jnp.zeros((*seen.shape[:3], 2))

        def corners(channel):
            heat = jnp.full((*seen.shape[:3], 3), -10.0).at[..., 0].set(seen[..., channel] / 25 - 5)
            return cornernet.CornerMaps((heat,), (nothing,), (seen[..., 2:],))

        return cornernet.Outputs((), corners(0), corners(1))


VIEWS = ("image",), ("image", "mirror")


def colours(names, **fields):
    chosen = tuple(views.VIEWS[name] for name in names)
    return contract.from_module(Colours(**FIELDS | fields), chosen)


def test_the_mirror_image_adds_its_pairs_where_they_lie_in_the_image():
    images = np.zeros((2, 64, 96, 3), np.uint8)
    sizes = np.int32([[64, 96], [48, 80]])
    for image in images:

        def paint(row, column, colour):
            image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = colour

        paint(2, 3, (255, 0, 0)), paint(9, 8, (0, 255, 0))  # a box from red to green
        paint(4, 17, (255, 0, 9)), paint(10, 11, (0, 255, 9))  # another, in the mirror
    found = {}
    for names in VIEWS:
        detector = colours(names, min_score=0.9)  # without soft suppression
        found[names] = jax.device_get(tiny.jit(detector.predict)({}, {}, images, sizes))

    def boxes(detections, i):
        assert not detections.boxes[i][~detections.valid[i]].any()
        return sorted(detections.boxes[i][detections.scores[i] > 0.9].tolist())

    for i in range(2):
        plain, more = (boxes(found[names], i) for names in VIEWS)
        # In both views cells begin at whole multiples of 4 px; mirrored, corners are their right
        # edges: the red cell at 68..72 px and the green one at 44..48.
        assert plain == [[12, 8, 32, 36]]
        assert more == [[12, 8, 32, 36], [48, 16, 72, 40]]


def test_a_bound_on_pairs_is_exceeded_by_those_of_the_image_or_of_its_mirror_image():
    images = np.zeros((1, 64, 96, 3), np.uint8)
    # Four boxes, from each red cell to each green one; none in the mirror image.
    for channel, cells in enumerate((((2, 3), (3, 6)), ((9, 12), (11, 15)))):
        for row, column in cells:
            images[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4, channel] = 255
    told = {}
    for view, pictures in (("plain", images), ("mirrored", images[:, :, ::-1])):
        for names in VIEWS:
            detector = colours(names, num_candidates=1, max_corners=2)
            size = np.int32([[64, 96]])
            _, exceeded = tiny.jit(detector.predict_with_bounds)({}, {}, pictures, size)
            told[view, names] = exceeded["num_candidates"].tolist()
    assert told.pop(("mirrored", ("image",))) == [False]
    assert set(map(tuple, told.values())) == {(True,)}


def test_the_table_nests_hourglasses_by_their_names():
    _, tensors = tables.there_and_back(mmdet_cornernet.table(bgr=True), "cornernet", FIELDS)
    assert tensors["backbone.hourglass_modules.1.low2.low2.0.conv1.weight"].shape == (24, 24, 3, 3)


@pytest.mark.parametrize(
    "fields, sentence",
    [
        (dict(channels=(16,)), "channels is .* two or more widths"),
        (dict(blocks=(1, 1)), "blocks is .* a block count above 0 for each of `channels`"),
        (dict(norm="group"), "norm is 'group'; it must be one of batch, stored"),
        (dict(peak_kernel=4), "peak_kernel is 4; it must be odd"),
        (dict(max_corners=0), "max_corners is 0; it must be at least 1"),
        (dict(min_overlap=1.0), "min_overlap is 1.0; it must be between 0 and 1"),
    ],
)
def test_values_that_cannot_be_are_refused(fields, sentence):
    cornernet.CornerNet().check()
    with pytest.raises(ValueError, match=re.compile(f"^{sentence}")):
        cornernet.CornerNet(**fields).check()
