"""Feature maps: known gradients of a tiny detector, heat counted by hand, and every kind."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn

from detlab import cli, contract, errors, types
from detlab.tools import detector_flags, feature_maps, heat, taps
from detlab.viz import heat as draw_lib

CANVAS = (4, 8)


class Maps(NamedTuple):
    features: tuple
    logits: tuple


class Neck(nn.Module):
    """Two levels of one channel: the red pixels, and the mean of each 2 x 2 of them."""

    def __call__(self, images):
        red = images[..., :1].astype(jnp.float32)
        return red, nn.avg_pool(red, (2, 2), (2, 2))


class Shared(nn.Module):
    """Twice its input; called once for each level."""

    @nn.compact
    def __call__(self, x):
        return 2 * x * self.param("one", nn.initializers.ones, ())


class Known(nn.Module):
    """The score of candidate 0 is 3 f[1, 2] + c[0, 3]^2 of the doubled maps f, c; 1 has f[0, 0]."""

    def setup(self):
        self.neck, self.head = Neck(), Shared()

    def maps(self, images, train):
        features = self.neck(images)
        return Maps(features, tuple(map(self.head, features)))

    def candidates(self, maps, image_size, canvas):
        fine, coarse = (x[..., 0] for x in maps.logits)
        scores = jnp.stack([3 * fine[:, 1, 2] + coarse[:, 0, 3] ** 2, fine[:, 0, 0]], axis=1)
        boxes = jnp.tile(jnp.array([[2.0, 1, 3, 2], [0, 0, 1, 1]]), (len(scores), 1, 1))
        labels = jnp.tile(jnp.array([0, 1]), (len(scores), 1))
        return types.Detections(boxes, scores, labels, scores > 0)

    def suppress(self, found):
        return found

    def frozen_paths(self):
        return ()


@pytest.fixture(scope="module")
def known():
    """(detector, params, state, an image [1, 4, 8, 3] of 1, 2, 3 ...)."""
    detector = contract.from_module(Known())
    images = jnp.tile(jnp.arange(32.0).reshape(1, *CANVAS, 1) + 1, (1, 1, 1, 3))
    return detector, *detector.init(jax.random.key(0), images), images


def test_gradients_of_a_known_score_reach_the_neck_and_each_call_of_a_shared_head(known):
    detector, params, state, images = known
    size = jnp.array([CANVAS])
    found = taps.maps(detector, params, state, images, "neck|head")
    assert sorted(found) == ["head:0", "head:1", "neck.0", "neck.1"]
    assert found["neck.1"][0, 0, 3, 0] == (7 + 8 + 15 + 16) / 4 == 11.5
    slopes = taps.gradients(detector, params, state, images, size, found, 0)
    expected = {name: np.zeros(x.shape, np.float32) for name, x in found.items()}
    expected["head:0"][0, 1, 2, 0] = 3  # of 3 f
    expected["head:1"][0, 0, 3, 0] = 2 * 2 * 11.5  # of c^2, where c is twice the map
    expected["neck.0"][0, 1, 2, 0] = 2 * 3
    expected["neck.1"][0, 0, 3, 0] = 2 * 2 * 2 * 11.5
    for name, values in expected.items():
        np.testing.assert_array_equal(slopes[name], values, err_msg=name)
    other = taps.gradients(detector, params, state, images, size, found, 1)
    assert np.flatnonzero(other["neck.0"]).tolist() == [0] and not np.any(other["neck.1"])


def test_modules_are_chosen_by_a_pattern_and_the_neck_by_default(known):
    detector, params, state, images = known
    listed = taps.listing(detector, params, state, images)
    assert listed["neck.1"] == (1, 2, 4, 1) and listed["head:0"] == (1, 4, 8, 1)
    assert taps.choose(listed, None) == "neck" and taps.choose(listed, "he.d") == "he.d"
    assert taps.choose({"backbone.0": (1, 1, 1, 1), "backbone/a": ()}, None) == "backbone"
    with pytest.raises(errors.UserError, match=r"--taps nek matches no module .* \(head, neck, "):
        taps.choose(listed, "nek")
    with pytest.raises(errors.UserError, match=r"--taps \( is no regular expression"):
        taps.choose(listed, "(")


# ------------------------------------------------------------------------------------------------
# Heat


def test_channels_are_reduced_to_their_mean_size_norm_or_largest():
    values = np.float32([[[3, -4], [1, 1]]])
    assert heat.reduce(values, "mean").tolist() == [[3.5, 1]]
    assert heat.reduce(values, "norm").tolist() == [[5, np.float32(np.sqrt(2))]]
    assert heat.reduce(values, "max").tolist() == [[3, 1]]
    assert heat.largest(values, 1).tolist() == [1]  # 2.5 and 2
    assert heat.largest(values, 2).tolist() == [1, 0]


def test_principal_components_are_the_axes_of_the_largest_variance():
    # Along (1, 0, 0): -2, 2, 0, 0; along (0, -1, 0): 1, -1 in the others.  Variances 8 and 2.
    values = np.array([[[-2, 0, 5], [2, 0, 5]], [[0, 1, 5], [0, -1, 5]]], float)
    found, shares = heat.principal(values)
    np.testing.assert_allclose(shares, [0.8, 0.2, 0], atol=1e-9)
    np.testing.assert_allclose(found[..., 0], [[-2, 2], [0, 0]], atol=1e-9)
    np.testing.assert_allclose(found[..., 1], [[0, 0], [1, -1]], atol=1e-9)
    constant, shares = heat.principal(np.ones((2, 2, 2)))
    assert not constant.any() and not shares.any()


def test_gradcam_weighs_channels_and_layercam_weighs_cells():
    values = np.float32([[[1, 2], [3, 4]]])
    slopes = np.float32([[[2, -1], [0, -1]]])
    # Channel means 1 and -1: 1 - 2 and 3 - 4, both negative; by cell: 2 * 1 and nothing.
    assert heat.cam(values, slopes, "gradcam").tolist() == [[0, 0]]
    assert heat.cam(values, slopes, "layercam").tolist() == [[2, 0]]
    assert heat.cam(values, -slopes, "gradcam").tolist() == [[1, 1]]
    assert heat.cam(values, -slopes, "layercam").tolist() == [[2, 4]]


def test_the_share_of_heat_in_a_box_counts_parts_of_cells_and_leaves_out_padding():
    cells = np.float32([[1, 2], [3, 4]])  # 2 px each on 4 x 4 px
    assert heat.share_inside(cells, (0, 0, 2, 2), (4, 4), (4, 4)) == 0.1
    assert heat.share_inside(cells, (0, 0, 3, 2), (4, 4), (4, 4)) == pytest.approx(0.2)
    assert heat.share_inside(cells, (-9, 0, 2, 99), (4, 4), (4, 4)) == pytest.approx(0.4)
    assert heat.share_inside(cells, (0, 0, 2, 2), (4, 4), (2, 4)) == pytest.approx(1 / 3)
    assert heat.share_inside(cells - 2, (0, 0, 4, 2), (4, 4), (4, 4)) == pytest.approx(1 / 6)
    assert heat.share_inside(0 * cells, (0, 0, 2, 2), (4, 4), (4, 4)) is None
    figures = heat.figures(cells, (4, 4), (4, 4), (0, 0, 2, 2))
    assert figures["peak_px"] == {"x": 3.0, "y": 3.0} and figures["stride_px"] == [2.0, 2.0]
    assert (figures["min"], figures["max"], figures["share_in_box"]) == (1, 4, 0.1)


def test_a_cell_counts_the_same_on_every_level_of_a_sum():
    fine, coarse = np.zeros((4, 4), np.float32), np.zeros((1, 1), np.float32)
    fine[3, 0], coarse[0, 0] = 8, 8
    total = heat.over_levels([fine, coarse], (8, 8))
    assert total.sum() == 16 and total[7, 1] == 8 / 4 + 8 / 64 and total[0, 0] == 8 / 64


def test_a_constant_map_says_constant():
    same = np.full((2, 3), 7.0, np.float32)
    assert heat.is_constant(same) and heat.is_constant(0 * same)
    assert not heat.is_constant(np.float32([1, 1.001]))
    panel = draw_lib.Panel("", "", same, None)
    image = np.zeros((4, 6, 3), np.uint8)
    figure = draw_lib.draw(image, image, [panel], (4, 6), "")
    assert [text.get_text() for text in figure.axes[1].texts] == ["constant: 7"]


def test_a_detection_finds_the_candidate_it_was():
    found = dict(
        boxes=np.float32([[0, 0, 9, 9], [0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]]),
        scores=np.float32([0.9, 0.8, 0.7, 0.9]),
        labels=np.int32([0, 0, 1, 0]),
        valid=np.array([True, True, True, True]),
    )

    def own(box, score, label):
        return heat.own_candidate(dict(box=box, score=score, label=label), found)

    assert own([0, 0, 10, 10], 0.8, 0) == 1 and own([0, 0, 10, 10], 0.7, 1) == 2
    assert own([0, 0, 10, 10], 0.9, 0) == 0  # voting moved the box, the score tells
    assert own([0, 0, 10, 10], 0.5, 0) == 1  # soft suppression lowered the score, the box tells


# ------------------------------------------------------------------------------------------------
# The program


@pytest.fixture(scope="module")
def layercam(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layercam")
    words = ["--config=retinanet_shapes:tiny", f"--output={folder}", "--method=layercam"]
    words += [
        "--config.model.num_classes=4",
        "--config.train.steps=1",
        "--limit=2",
        "--arrays",
        "--detection=3",
    ]
    words += ["--config.model.score_threshold=0.0", "--config.predict.threshold=1.0"]
    feature_maps.main(words)
    return folder


def test_the_heat_of_a_detection_is_in_the_json_and_differs_between_images(layercam):
    content = json.loads((layercam / "feature_maps.json").read_text())
    first, second = content["results"]["images"]
    assert (first["image"], first["looked_at"]["rank"]) == ("0", 3)
    assert first["looked_at"]["score"] == first["looked_at"]["candidate_score"]
    assert not first["detections"]  # none reaches predict.threshold
    names = [entry["map"] for entry in first["maps"]]
    assert names == ["sum of all levels", *(f"backbone.{i}" for i in range(4))]
    assert sum(entry["share_of_sum"] for entry in first["maps"][1:]) == pytest.approx(1, abs=1e-3)
    assert [entry["max"] for entry in first["maps"]] != [entry["max"] for entry in second["maps"]]
    for image in (first, second):
        with np.load(layercam / f"{image['image']}.npz") as arrays:
            for entry in image["maps"][1:]:
                values, slopes = arrays[entry["map"]], arrays[f"gradient of {entry['map']}"]
                one = arrays[f"heat of {entry['map']}"]
                np.testing.assert_allclose(one, heat.cam(values, slopes, "layercam"))
                assert entry["max"] == pytest.approx(float(one.max()))
        assert (layercam / f"{image['image']}.jpg").stat().st_size > 10_000


def test_a_rank_that_an_image_lacks_and_unknown_classes_are_told_in_a_sentence(known):
    detector, params, state, images = known

    def look(*more):
        args, _ = cli.parse(["--output", "out", *more], detector_flags.feature_maps(""))
        chooser = feature_maps.Look.__new__(feature_maps.Look)
        chooser.args, chooser.class_names = args, ("cat", "dog", "cow")
        found = taps.candidates(detector, params, state, images, jnp.array([CANVAS]))
        return chooser.chosen("a.jpg", types.Detections(*(np.asarray(x[0]) for x in found)))

    assert look() == 0 and look("--class", "dog") == 1 and look("--detection", "1") == 1
    for more, sentence in (
        (["--detection", "2"], "--detection is 2, but image a.jpg has 2 detections"),
        (["--class", "cow"], "image a.jpg has no detection of cow."),
        (["--class", "pig"], "--class pig is no class of the detector; its classes are cat, dog"),
    ):
        with pytest.raises(errors.UserError, match=sentence):
            look(*more)


@pytest.mark.parametrize(
    "more, sentence",
    [
        (["--channels=0"], "--channels is 0; it must be at least 1."),
        (["--detection=-1"], "--detection is -1; it must be at least 0."),
        (["--detection=1", "--class=a"], "both choose a detection; remove one."),
    ],
)
def test_flags_out_of_range_are_refused(more, sentence):
    args, _ = cli.parse(["--output", "out", *more], detector_flags.feature_maps(""))
    with pytest.raises(errors.UserError, match=sentence):
        detector_flags.check_feature_maps(args)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["topk", "pca"])
def test_methods_without_gradients_draw_every_level(method, tmp_path):
    words = ["--config=retinanet_shapes:tiny", f"--output={tmp_path}", f"--method={method}"]
    words += [
        "--config.model.num_classes=4",
        "--config.train.steps=1",
        "--limit=1",
        "--channels=2",
        "--taps=neck|head",
    ]
    feature_maps.main(words)
    (image,) = json.loads((tmp_path / "feature_maps.json").read_text())["results"]["images"]
    levels = [entry["map"] for entry in image["maps"]]
    assert levels.count("neck.4") == levels.count("head.cls_logits.0") == (method == "topk") + 1
    assert (tmp_path / "0.jpg").exists()


# Their score reaches the features through RoIs, corner pools, deformable samples, darknet's layers.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["faster_rcnn", "cornernet", "darknet"])
def test_a_score_has_finite_gradients_in_every_kind_of_detector(name):
    subject = tiny.Subject(name)
    # With random weights no tags agree.
    detector = subject.build(**(dict(max_tag_distance=1e9) if name == "cornernet" else {}))
    params, state = subject.variables
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: 0.01 * x if "heat" in str(path) else x, params
    )  # their corners have a score of 1, whose gradient is zero
    images, size = subject.batch.images[:1], subject.batch.image_size[:1]
    pattern = taps.choose(taps.listing(detector, params, state, images), None)

    @tiny.jit
    def slopes(params, state, images, size):
        found = taps.maps(detector, params, state, images, pattern)
        return taps.gradients(detector, params, state, images, size, found, 0)

    found = jax.device_get(slopes(params, state, images, size))
    assert all(np.isfinite(x).all() for x in found.values())
    assert any(x.any() for x in found.values())
