"""Proposals: the best anchors of each level, NMS per level, then the best of all."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from detlab.ops import proposals

SIZE = (100, 120)  # height, width


def levels(seed, counts=(60, 20, 3)):
    """Random logits, deltas, anchors and `inside` of each level."""
    rng = np.random.default_rng(seed)
    found = []
    for n in counts:
        low = rng.uniform(-10, 90, (n, 2))
        anchors = np.float32(np.concatenate([low, low + rng.uniform(5, 50, (n, 2))], -1))
        deltas = np.float32(rng.normal(0, 0.2, (n, 4)))
        found.append((np.float32(rng.normal(0, 2, n)), deltas, anchors, rng.random(n) < 0.8))
    return [list(parts) for parts in zip(*found)]


def iou(a, b):
    inner = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
    return inner / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner)


def slow(logits, deltas, anchors, inside, per_level, num_proposals, nms_iou):
    """[(box, score)], one box at a time."""
    kept = []
    for logit, delta, anchor, there in zip(logits, deltas, anchors, inside):
        score = np.where(there, 1 / (1 + np.exp(-logit.astype(np.float64))), -1)
        order = [i for i in np.argsort(-score, kind="stable")[:per_level] if there[i]]
        of_level = []
        for i in order:
            x1, y1, x2, y2 = anchor[i]
            w, h = x2 - x1, y2 - y1
            dx, dy, dw, dh = delta[i]
            cx, cy = (x1 + x2) / 2 + dx * w, (y1 + y2) / 2 + dy * h
            w, h = w * np.exp(dw), h * np.exp(dh)
            box = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
            box = box.clip(0, [SIZE[1], SIZE[0]] * 2)
            if (box[2:] <= box[:2]).any():
                continue
            if all(iou(box, b) <= nms_iou for b, _ in of_level):
                of_level.append((box, score[i]))
        kept += of_level
    kept.sort(key=lambda pair: -pair[1])
    return kept[:num_proposals]


@pytest.fixture(scope="module")
def propose():
    settings = dict(per_level=30, num_proposals=50, nms_iou=0.5)
    return tiny.jit(lambda *args: proposals.propose(*args, jnp.array(SIZE), **settings))


@pytest.mark.parametrize("seed", range(3))
def test_proposals_are_those_of_the_plain_algorithm(propose, seed):
    maps = levels(seed)
    found = propose(*maps)
    expected = slow(*maps, per_level=30, num_proposals=50, nms_iou=0.5)
    count = int(found.valid.sum())
    assert count == len(expected) < 50, "some slots stay empty"
    np.testing.assert_allclose(found.boxes[:count], [b for b, _ in expected], atol=1e-4)
    np.testing.assert_allclose(found.scores[:count], [s for _, s in expected], rtol=1e-5)
    assert not found.boxes[count:].any() and not found.scores[count:].any()
    assert found.valid[:count].all()


def test_padding_proposes_nothing(propose):
    logits, deltas, anchors, inside = levels(0)
    found = propose(logits, deltas, anchors, [np.zeros_like(level) for level in inside])
    assert not found.valid.any() and not found.boxes.any()
