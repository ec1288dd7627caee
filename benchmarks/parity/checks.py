"""How closely detlab must match a recorded number; docs/parity.md explains why.

Every function returns one or a few `Line`s.  The drift of a case is how far the reference itself
moved when its input was changed by one part in a million.  It is recorded, so no run here decides
how far off a number may be.  A line whose tolerance is mostly drift says so.  NaN always misses.
"""

from typing import NamedTuple

import numpy as np

from detlab import types

MAPS = 1e-4  # of the largest value of the map
TARGETS = 1e-4  # of the value, plus 1e-5
FIGURES = 1e-3  # of the value, plus 1e-6
LOSSES = 1e-5  # of the value, plus LOSS_DRIFTS times the drift
LOSS_DRIFTS = 10
# Of a gradient's norm; of the largest norm of the case; times the drift.  See gradient().
GRADIENTS = 2e-3
GRADIENT_FLOOR = 1e-6
GRADIENT_DRIFTS = 3
DOTS = 1e-3  # of the dot
DOT_ANGLE = 5  # times the norm's tolerance times the parameter's root mean square
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
    """Whole numbers: how many differ; none may."""
    return Line(quantity, float((mine != theirs).sum()), 0.0)


def target(quantity: str, mine: np.ndarray, theirs: np.ndarray) -> Line:
    """Values that a loss compares with: |a - b| <= 1e-4 |b| + 1e-5, relative to |b| + 0.1."""
    return Line(quantity, _largest((mine - theirs) / (np.abs(theirs) + 0.1)), TARGETS)


def figure(quantity: str, mine: float, theirs: float) -> Line:
    """A number recorded without a drift: |a - b| <= 1e-3 |b| + 1e-6."""
    return Line(quantity, abs(float(mine) - theirs), FIGURES * abs(theirs) + 1e-6)


def loss(quantity: str, mine: float, theirs: float, drift: float) -> Line:
    """|a - b| <= (1e-5 + 10 drift) |b|, with the drift relative to the loss.

    A loss is a smooth sum over all anchors, so float32 moves it by no more than that.  The floor of
    1e-8 is for losses that are zero.
    """
    drift *= LOSS_DRIFTS
    tolerance = (LOSSES + drift) * abs(theirs) + 1e-8
    return Line(quantity, abs(float(mine) - theirs), tolerance, _drifts(drift > LOSSES))


class Gradient(NamedTuple):
    """The recorded gradient of one parameter."""

    norm: float
    dot: float  # sum of gradient times parameter
    norm_drift: float  # largest change of the norm, ...
    dot_drift: float  # ... of the dot, ...
    vector_drift: float  # ... and norm of the largest change of the gradient itself


def gradient(
    key: str, mine: np.ndarray, weight: np.ndarray, recorded: Gradient, largest: float
) -> list[Line]:
    """Norm of a parameter's gradient, and the sum of gradient times parameter.

    With b and d the recorded norm and dot, n the elements of the parameter:

        E = 2e-3 b + 3 max(norm drift, vector drift) + 1e-6 largest
        |norm - b| <= E
        |dot - d| <= 1e-3 |d| + 3 dot drift + 5 E |parameter| / sqrt(n)

    Rounding at the kinks of activations decides which units a gradient passes; the drift is how far
    that moved the reference.  The last term is the effect on the dot of an error of norm E in a
    direction unrelated to the parameter: five times E times the parameter's root mean square.

    Args:
      key: name of the parameter.
      mine: its gradient, in the reference's layout.
      weight: its value, in the same layout.
      recorded: the gradient of the reference.
      largest: largest gradient norm of any parameter of the case.
    """
    mine, weight = mine.astype(np.float64), weight.astype(np.float64)
    norm_drift = GRADIENT_DRIFTS * max(recorded.norm_drift, recorded.vector_drift)
    norm_own = GRADIENTS * abs(recorded.norm) + GRADIENT_FLOOR * largest
    spread = DOT_ANGLE * np.sqrt(np.mean(weight**2))
    dot_drift = GRADIENT_DRIFTS * recorded.dot_drift + spread * norm_drift
    dot_own = DOTS * abs(recorded.dot) + spread * norm_own
    values = (
        ("norm", np.linalg.norm(mine), recorded.norm, norm_own, norm_drift),
        ("dot", (mine * weight).sum(), recorded.dot, dot_own, dot_drift),
    )
    return [
        Line(
            f"gradient {name} {key}",
            float(abs(value - theirs)),
            float(own + drift),
            _drifts(drift > own),
        )
        for name, value, theirs, own, drift in values
    ]


def detections(
    mine: list[types.Detections],
    theirs: list[types.Detections],
    drift: float = 0.0,
    boxes_px: float = BOXES_PX,
    scores: float = SCORES,
) -> list[Line]:
    """Number, boxes, scores and labels; the worst image counts.

    Two detections with nearly equal scores may swap places: among mine with the same label and a
    score within the tolerance, each of theirs is compared with the one whose box is nearest.

    Args:
      mine, theirs: the detections of each image, [K, ...] without empty rows, best first.
      drift: of the case, relative to the largest value.
      boxes_px, scores: the tolerances.
    """
    count = max(abs(len(a.scores) - len(b.scores)) for a, b in zip(mine, theirs, strict=True))
    box_px, note = _with_drift(boxes_px, drift * max(_largest(b.boxes) for b in theirs))
    score, score_note = _with_drift(scores, drift * max(_largest(b.scores) for b in theirs))
    worst = {"boxes": 0.0, "scores": 0.0, "labels": 0.0}
    for a, b in zip(mine, theirs, strict=True):
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
    """(row of mine, row of theirs), each row once; rows without a partner are paired by rank."""
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


def _drifts(mostly: bool) -> str:
    return "mostly the drift of the case" if mostly else ""


def _with_drift(tolerance: float, drift: float) -> tuple[float, str]:
    if drift > tolerance:
        return drift, f"drift {drift:.1e} of the case instead of {tolerance:.1e}"
    return tolerance, ""


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max()) if np.size(values) else 0.0
