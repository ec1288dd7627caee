"""How closely detlab has to meet a recorded number: the tolerances of the fixtures' README.

Every function gives one or a few `Line`s.  A case's own `drift` says how far the reference itself
moved when its input was changed by one part in a million; where that is more than the tolerance,
it takes its place, and the line says so.  NaN misses everything.
"""

from typing import NamedTuple, Sequence

import numpy as np

from detlab import types

MAPS = 1e-4  # of the largest value of the map
TARGETS = 1e-4  # of the value, and 1e-5
LOSSES = 1e-3  # of the value, and 1e-6
GRADIENTS = 1e-3  # of the value; see gradient()
OWN_DRIFT = 0.03  # of a gradient's norm: what moves more by itself is no measure
BOXES_PX = 0.1
SCORES = 1e-4


class Line(NamedTuple):
    """One compared quantity."""

    quantity: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return bool(self.error <= self.tolerance)


def array_map(quantity: str, mine: np.ndarray, theirs: np.ndarray) -> Line:
    """Largest difference over the largest value."""
    return Line(quantity, _largest(mine - theirs) / max(_largest(theirs), 1e-12), MAPS)


def decision(quantity: str, mine: np.ndarray, theirs: np.ndarray) -> Line:
    """Whole numbers: how many differ, and none may."""
    return Line(quantity, float((mine != theirs).sum()), 0.0)


def target(quantity: str, mine: np.ndarray, theirs: np.ndarray) -> Line:
    """What a loss compares with: |a - b| <= 1e-4 |b| + 1e-5, as a part of |b| + 0.1."""
    return Line(quantity, _largest((mine - theirs) / (np.abs(theirs) + 0.1)), TARGETS)


def loss(quantity: str, mine: float, theirs: float, drift: float = 0.0) -> Line:
    """|a - b| <= 1e-3 |b| + 1e-6."""
    relative, note = _with_drift(LOSSES, drift)
    return Line(quantity, abs(float(mine) - theirs), relative * abs(theirs) + 1e-6, note)


def gradient(
    key: str,
    mine: np.ndarray,
    weight: np.ndarray,
    norm: float,
    dot: float,
    largest: float,
    nudged: Sequence[np.ndarray] = (),
) -> list[Line]:
    """Norm of a parameter's gradient, and the sum of gradient times parameter.

    Args:
      key: of the parameter.
      mine: its gradient, in the reference's layout.
      weight: its value there.
      norm, dot: what the reference had.
      largest: norm of any parameter of the case.
      nudged: the same gradient where the input is changed by one part in a million.  As far as that
        moves it, and no further than OWN_DRIFT, it may be off.
    """
    mine, weight = mine.astype(np.float64), weight.astype(np.float64)
    drift = max((float(np.linalg.norm(other - mine)) for other in nudged), default=0.0)
    drift = drift if drift <= OWN_DRIFT * abs(norm) else 0.0
    norm_error = abs(np.linalg.norm(mine) - norm)
    dot_error = abs((mine * weight).sum() - dot)
    dot_floor = 1e-5 * norm * np.linalg.norm(weight)
    lines = [
        Line(f"gradient norm {key}", float(norm_error), GRADIENTS * max(abs(norm), 1e-3 * largest)),
        Line(f"gradient dot {key}", float(dot_error), float(GRADIENTS * abs(dot) + dot_floor)),
    ]
    return [
        line
        if line.passed or line.error > bound
        else line._replace(tolerance=bound, note=f"own drift instead of {line.tolerance:.1e}")
        for line, bound in zip(lines, (drift, drift * float(np.linalg.norm(weight))))
    ]


def detections(
    mine: list[types.Detections],
    theirs: list[types.Detections],
    drift: float = 0.0,
    boxes_px: float = BOXES_PX,
    scores: float = SCORES,
) -> list[Line]:
    """Number, boxes, scores and labels; the worst image counts.

    Two detections of nearly the same score may change places: each of theirs is compared with that
    one of mine, of its label and of its score to within the tolerance, whose box is nearest.

    Args:
      mine, theirs: of each image its detections, [K, ...] without empty rows, best first.
      drift: of the case, a part of the largest value.
      boxes_px, scores: the tolerances.
    """
    count = max(abs(len(a.scores) - len(b.scores)) for a, b in zip(mine, theirs, strict=True))
    box_px, note = _with_drift(boxes_px, drift * max(_largest(b.boxes) for b in theirs))
    score, score_note = _with_drift(scores, drift * max(_largest(b.scores) for b in theirs))
    worst = {"boxes": 0.0, "scores": 0.0, "labels": 0.0}
    for a, b in zip(mine, theirs):
        pairs = _pairs(a, b, score)
        a = types.Detections(*(np.asarray(values)[[i for i, _ in pairs]] for values in a))
        b = types.Detections(*(np.asarray(values)[[j for _, j in pairs]] for values in b))
        worst["boxes"] = np.maximum(worst["boxes"], _largest(a.boxes - b.boxes))
        worst["scores"] = np.maximum(worst["scores"], _largest(a.scores - b.scores))
        worst["labels"] += (a.labels != b.labels).sum()
    return [
        Line("detections count", float(count), 0.0),
        Line("detections boxes", float(worst["boxes"]), box_px, note),
        Line("detections scores", float(worst["scores"]), score, score_note),
        Line("detections labels", float(worst["labels"]), 0.0),
    ]


def _pairs(mine, theirs, score_tolerance: float) -> list[tuple[int, int]]:
    """(row of mine, row of theirs), each row once; what has no partner is left to its rank."""
    free, pairs = list(range(len(mine.scores))), []
    for j in range(len(theirs.scores)):
        if not free:
            break
        near = [
            i
            for i in free
            if mine.labels[i] == theirs.labels[j]
            and abs(mine.scores[i] - theirs.scores[j]) <= score_tolerance
        ]
        if near:
            i = min(near, key=lambda i: np.abs(mine.boxes[i] - theirs.boxes[j]).max())
        else:
            i = j if j in free else free[0]
        free.remove(i)
        pairs.append((i, j))
    return pairs


def _with_drift(tolerance: float, drift: float) -> tuple[float, str]:
    if drift > tolerance:
        return drift, f"drift {drift:.1e} of the case instead of {tolerance:.1e}"
    return tolerance, ""


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max()) if np.size(values) else 0.0
