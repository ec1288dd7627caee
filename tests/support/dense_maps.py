"""Made-up maps of a dense head, and plain loops over what its losses compare."""

import numpy as np

STRIDES = (8, 16, 32, 64, 128)


def random(canvas, images, channels, seed=0, scale=1.0):
    """Normal numbers, [images, Hl, Wl, channels] for each level."""
    rng = np.random.default_rng(seed)
    shapes = [(-(-canvas[0] // s), -(-canvas[1] // s)) for s in STRIDES]
    return tuple(np.float32(scale * rng.normal(size=(images, *s, channels))) for s in shapes)


def flatten(maps):
    """Maps of all levels -> [images, N, channels] float64."""
    return np.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in maps], 1).astype(np.float64)


def points(canvas, offset=0.0):
    """[N, 3]: x, y px and the stride of each point."""
    return np.array(
        [
            ((column + offset) * stride, (row + offset) * stride, stride)
            for stride in STRIDES
            for row in range(-(-canvas[0] // stride))
            for column in range(-(-canvas[1] // stride))
        ]
    )


def overlaps(a, b):
    """(IoU, generalized IoU) of two boxes."""
    a, b = np.float64(a), np.float64(b)
    inner = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    outer = np.prod(np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2]))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inner
    return inner / union, inner / union - (outer - union) / outer


def decoded(anchor, deltas, stds=(0.1, 0.1, 0.2, 0.2)):
    """The box of one anchor, xyxy px, from its four deltas."""
    anchor, (dx, dy, dw, dh) = np.float64(anchor), np.float64(deltas) * stds
    width, height = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x = (anchor[0] + anchor[2]) / 2 + dx * width
    y = (anchor[1] + anchor[3]) / 2 + dy * height
    width, height = width * np.exp(dw), height * np.exp(dh)
    return np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
