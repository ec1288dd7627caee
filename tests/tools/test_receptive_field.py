"""The tool that measures receptive fields: by hand on small networks, then on a detector."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from detlab import errors
from detlab.tools import receptive_field as tool

TINY = ["--config.model.num_classes=4", "--config.train.steps=1", "--limit=2"]


class Network(nn.Module):
    """A convolution of stride 2, a maximum of 3 x 3 of stride 2, and one more convolution."""

    @nn.compact
    def __call__(self, images):
        x = nn.Conv(4, (3, 3), strides=2, padding=1, name="first")(images / 255)
        first = nn.relu(x)
        x = nn.max_pool(first, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return {"first": first, "last": nn.relu(nn.Conv(4, (3, 3), padding=1, name="last")(x))}


@pytest.fixture(scope="module")
def measured():
    network = Network()
    params = network.init(jax.random.key(0), jnp.zeros((1, 64, 96, 3)))["params"]

    def outputs(params, state, images):
        return network.apply({"params": params}, images)

    gradient = jax.jit(tool.gradients(outputs, ["first", "last"], [(16, 24), (8, 12)]))
    return gradient, params


def test_the_theoretical_field_is_that_of_kernels_and_strides(measured):
    gradient, params = measured
    first, last = tool.theoretical(gradient, params, {}, (64, 96))
    assert first == (47, 31, 50, 34)  # 3 x 3 around 2 * 24, 2 * 16
    # 3, then 3 + 2 * 2 = 7 with the maximum, then 7 + 2 * 4 = 15, around 4 * 12, 4 * 8.
    assert last == (48 - 7, 32 - 7, 48 + 8, 32 + 8)


def test_the_effective_field_lies_within_and_follows_the_weights(measured):
    gradient, params = measured
    images = np.full((2, 64, 96, 3), 200, np.float32)
    images += np.random.default_rng(0).normal(0, 10, images.shape).astype(np.float32)
    params = jax.tree.map(jnp.abs, params)
    found = np.asarray(gradient(params, {}, images))
    assert found.shape == (2, 2, 64, 96) and found[0, :, 31:34, 47:50].all()
    assert np.count_nonzero(found[0, 0]) == 9
    doubled = {**params, "last": {**params["last"], "kernel": 2 * params["last"]["kernel"]}}
    other = np.asarray(gradient(doubled, {}, images))
    np.testing.assert_array_equal(other[0], found[0])
    np.testing.assert_allclose(other[1], 2 * found[1], rtol=1e-5)


def test_a_square_holds_its_share_of_the_field():
    field = np.zeros((9, 9))
    field[4, 4], field[4, 3], field[2, 4], field[0, 0] = 5, 3, 1, 1
    middle = (4.5, 4.5)
    assert [tool.side_of_share(field, middle, s) for s in (0.5, 0.8, 0.9, 1.0)] == [1, 3, 5, 9]
    field[4, 4] = 40  # most of it is in the middle now
    assert tool.side_of_share(field, middle, 0.8) == 1


def test_the_picture_shows_the_row():
    one = tool.Map("P3", (4, 4), 8.0, (2, 2), (20.0, 20.0))
    field = np.zeros((32, 32))
    field[16:24, 16:24] = 1
    level = tool.Level(16.0, np.array([(16.0, 16)]), 4.0, 3)
    row = tool.row(one, (8, 8, 32, 32), field, level)
    # Of 8 x 8 pixels around 20, 20, a square of 6 px holds 36, less than 68 %.
    assert row["effective"] == {"50": 6, "68": 8, "95": 8}
    assert row["cut"] and row["theoretical_width"] == 24
    assert row["field_over_anchor"] == row["effective"]["95"] / 16
    assert row["field_over_object"] == row["effective"]["95"] / 4
    assert sum(row["profile"]) == pytest.approx(1)
    figure = tool.draw(row, field, "title")
    assert figure.axes[0].images[0].get_array()[20, 20] == 1
    figure = tool.draw_summary([row], (32, 32), "title")
    assert row["before"] is None and len(figure.axes[0].lines) == 2
    wider = np.ones((32, 32))
    row = tool.row(one, (8, 8, 32, 32), field, level, wider)
    assert row["before"]["95"] > row["effective"]["95"]
    figure = tool.draw_summary([row], (32, 32), "title")
    assert figure.axes[0].lines[-1].get_ydata() == [row["before"]["95"]]
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [24, *(row["effective"][x] for x in ("95", "68", "50"))]


def run(folder, *words):
    tool.main([*words, *TINY, f"--output={folder}"])
    return json.loads((folder / "receptive_field.json").read_text())["results"]


def test_a_detector_is_measured_by_level(tmp_path):
    found = run(tmp_path, "--config=retinanet_shapes:tiny")
    assert [row["name"] for row in found["maps"]] == ["P3", "P4", "P5", "P6", "P7"]
    for row in found["maps"]:
        sides = row["effective"]
        assert 0 < sides["50"] <= sides["68"] <= sides["95"] <= 2 * max(found["canvas"])
        assert row["cut"] and row["anchor_side"] > 3 * row["stride"]
        assert (tmp_path / f"field_{row['name']}.png").exists()
    assert sum(row["objects"] for row in found["maps"]) > 0
    assert set(np.load(tmp_path / "fields.npz")) == {f"field_P{i}" for i in range(3, 8)}


@pytest.mark.slow
def test_modules_are_chosen_by_path_at_another_place(tmp_path):
    words = ["--config=retinanet_shapes:tiny", "--taps=backbone/stage._block0", "--images=random"]
    found = run(tmp_path, *words, "--position=20,10", "--before")
    first = found["maps"][0]
    assert first["name"] == "backbone/stage1_block0" and first["stride"] == 4
    assert first["middle"] == [22, 10] and first["anchor_side"] is None
    assert first["theoretical_width"] < 64
    assert first["before"] == first["effective"]  # no weights were given


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--position=5"], "--position is '5'; it must be x,y px."),
        (["--position=96,5"], "--position 96,5 lies outside the canvas, which is 96 px wide and"),
        (["--taps=nothing"], "--taps nothing matches no module with a map; list their paths with"),
        (["--taps=.*"], "--taps .\\* matches [0-9]+ maps, more than 24: "),
    ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, words, sentence):
    with pytest.raises(errors.UserError, match=sentence):
        run(tmp_path, "--config=retinanet_shapes:tiny", *words)
