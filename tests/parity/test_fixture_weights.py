"""The rule of the made-up weights."""

import json

import numpy as np
import pytest

from benchmarks.parity import fixture_weights


@pytest.mark.parametrize(
    "key, shape, low, high",
    [
        ("backbone.bn1.running_mean", (64,), -0.1, 0.1),
        ("backbone.bn1.running_var", (64,), 0.5, 1.5),
        ("backbone.bn1.weight", (64,), 0.5, 1.0),
        ("backbone.layer1.0.bn3.weight", (64,), 0.15, 0.3),
        ("bbox_head.retina_cls.bias", (45,), -1.6, -1.4),
        ("bbox_head.scales.0.scale", (), 0.8, 1.2),
        ("neck.l2_norm.weight", (512,), 10.0, 20.0),
        ("neck.lateral_convs.0.conv.weight", (8, 6, 1, 1), -0.7, 0.7),
        ("backbone.conv1.weight", (8, 6, 2, 2), -0.5, 0.5),
    ],
)
def test_key_and_shape_decide_the_range(key, shape, low, high):
    values = fixture_weights.make(key, shape, seed=3)
    assert values.shape == shape and values.dtype == np.float32
    assert values.min() >= low and values.max() <= high
    if values.size > 30:
        assert values.min() < low + 0.2 * (high - low) and values.max() > high - 0.2 * (high - low)


def test_every_seed_and_key_has_its_own_values():
    first, second = (fixture_weights.make("a.weight", (5, 5), seed) for seed in (1, 2))
    assert (first != second).any()
    assert (first != fixture_weights.make("b.weight", (5, 5), 1)).any()


def test_kept_tensors_are_as_in_a_new_model():
    info = {
        "name": "made",
        "seed": 0,
        "state_dict": [["edges", [2], "float32"], ["count", [], "int64"]],
        "kept": ["edges", "count"],
        "kept_values": {"edges": [0.0, 0.5]},
        "weights_sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }
    tensors = fixture_weights.state_dict(info)
    assert tensors["edges"].tolist() == [0.0, 0.5]
    assert tensors["count"].dtype == np.int64 and tensors["count"] == 0


@pytest.mark.slow
def test_the_weights_of_every_shared_case_are_those_recorded(shared_dir):
    paths = list((shared_dir / "parity").glob("*.json"))
    assert len(paths) >= 31
    for path in paths:
        fixture_weights.state_dict(json.loads(path.read_text()))  # raises if one differs
