"""Score voting."""

import jax
import numpy as np
import tiny

from detlab import types
from detlab.ops import score_voting

SEED = 0
vote = tiny.jit(score_voting.vote)


def found(boxes, scores, labels=None, valid=None):
    count = len(boxes)
    return types.Detections(
        np.float32(boxes),
        np.float32(scores),
        np.zeros(count, np.int32) if labels is None else np.int32(labels),
        np.ones(count, bool) if valid is None else np.array(valid),
    )


def random_detections(count, seed=SEED, classes=3):
    rng = np.random.default_rng(seed)
    low, size = rng.uniform(0, 40, (count, 2)), rng.uniform(5, 40, (count, 2))
    scores, labels = rng.uniform(0.05, 1, count), rng.integers(0, classes, count)
    return found(np.concatenate([low, low + size], -1), scores, labels, rng.random(count) < 0.9)


def slow_vote(kept, candidates, sigma=0.025):
    """A loop over kept boxes and candidates."""
    boxes = kept.boxes.astype(np.float64)
    for k in np.flatnonzero(kept.valid):
        x1, y1, x2, y2 = np.float64(kept.boxes[k])
        total, mean = 0.0, np.zeros(4)
        for n in np.flatnonzero(candidates.valid & (candidates.labels == kept.labels[k])):
            a1, b1, a2, b2 = np.float64(candidates.boxes[n])
            width, height = min(x2, a2) - max(x1, a1), min(y2, b2) - max(y1, b1)
            inter = max(width, 0) * max(height, 0)
            iou = inter / ((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - inter)
            if iou > 0.01:
                weight = np.exp(-((1 - iou) ** 2) / sigma) * candidates.scores[n]
                total, mean = total + weight, mean + weight * candidates.boxes[n]
        if total > 0:
            boxes[k] = mean / total
    return boxes


def test_voted_boxes_equal_a_loop():
    candidates = random_detections(200)
    kept = types.Detections(*(x[:37] for x in candidates))
    np.testing.assert_allclose(vote(kept, candidates), slow_vote(kept, candidates), atol=1e-3)


def test_a_box_alone_and_one_without_votes_stay():
    candidates = found([[0, 0, 10, 10], [1, 0, 11, 10], [3, 3, 3, 3]], [0.9, 0.8, 0.7], [0, 1, 1])
    kept = candidates._replace(valid=np.array([True, False, True]))
    # The first is alone in its class, the second is empty, the third has no area.
    np.testing.assert_allclose(vote(kept, candidates), kept.boxes)


def test_more_slots_and_invalid_candidates_change_nothing():
    candidates = random_detections(60)
    kept = types.Detections(*(x[:10] for x in candidates))
    more = [np.concatenate([x, x[:20]]) for x in candidates]
    more = types.Detections(*more)._replace(valid=np.append(candidates.valid, np.zeros(20, bool)))
    np.testing.assert_allclose(vote(kept, more), vote(kept, candidates), rtol=1e-6)
    longer = types.Detections(*(np.concatenate([x, 0 * x[:7]]) for x in kept))
    np.testing.assert_array_equal(vote(longer, candidates)[:10], vote(kept, candidates))


def test_memory_is_that_of_a_few_rows_of_overlaps():
    """100 boxes of 10,000 candidates; their matrix of overlaps would take 4 MB an operation."""
    shapes = [((4,), np.float32), ((), np.float32), ((), np.int32), ((), bool)]

    def rows(count):
        return types.Detections(*(jax.ShapeDtypeStruct((count, *s), d) for s, d in shapes))

    compiled = vote.lower(rows(100), rows(10_000)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4e6
