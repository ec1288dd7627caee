"""Boxes and scores of every kind of darknet head, against the formulas value by value."""

import numpy as np
import pytest

from detlab.darknet import cfg as darknet_cfg
from detlab.heads import darknet

NET = "[net]\nwidth=48\nheight=32\nchannels=3\n[conv]\nfilters={}\n"
COMMON = "anchors=4,6, 10,5\nnum=2\nclasses=3\n"
HEADS = {
    "yolo": (16, "[yolo]\nscale_x_y=1.2\n"),
    "new_coords": (16, "[yolo]\nscale_x_y=2\nnew_coords=1\n"),
    "gaussian": (24, "[Gaussian_yolo]\nscale_x_y=1.1\n"),
    "region": (16, "[region]\nsoftmax=1\n"),
    "region without softmax": (16, "[region]\n"),
}
CANVAS, SHAPE = (32, 48), (2, 3)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def decoded(name, head, values, row, column, a):
    """(cxcywh, objectness, score of each class) of one anchor."""
    s, (width, height) = getattr(head, "scale_x_y", 1), head.anchors[a]
    if name == "gaussian":
        x, sx, y, sy, w, sw, h, sh, objectness, *classes = values
        certainty = 1 - np.mean(sigmoid(np.array([sx, sy, sw, sh])))
    else:
        x, y, w, h, objectness, *classes = values
        certainty = 1
    classes = np.array(classes)
    if name == "new_coords":
        w, h = 4 * w * w, 4 * h * h
    else:
        x, y, w, h = sigmoid(x), sigmoid(y), np.exp(w), np.exp(h)
        objectness = sigmoid(objectness)
    if name == "region":
        classes = np.exp(classes) / np.exp(classes).sum()
    elif name in ("yolo", "gaussian"):
        classes = sigmoid(classes)
    if name.startswith("region"):
        width, height = width * 16, height * 16  # from cells to px
    box = (
        (column + s * x - (s - 1) / 2) / SHAPE[1],
        (row + s * y - (s - 1) / 2) / SHAPE[0],
        w * width / CANVAS[1],
        h * height / CANVAS[0],
    )
    return box, objectness, objectness * classes * certainty


@pytest.mark.parametrize("name", HEADS)
def test_values_are_decoded_as_darknet_does(name):
    filters, section = HEADS[name]
    network = darknet_cfg.parse(NET.format(filters) + section + COMMON, "small.cfg")
    darknet_cfg.shapes(network)
    head = network.layers[1]
    raw = np.random.default_rng(0).normal(0, 1, (1, *SHAPE, 2, filters // 2))
    if name == "new_coords":
        raw = sigmoid(raw)
    threshold = 0.4
    boxes = darknet.boxes(head, np.float32(raw), CANVAS)
    scores = darknet.scores(head, np.float32(raw), threshold)
    dropped = 0
    for row, column, a in np.ndindex(*SHAPE, 2):
        values = raw[0, row, column, a]
        box, objectness, expected = decoded(name, head, values, row, column, a)
        if objectness <= threshold and not name.startswith("region"):
            expected, dropped = 0 * expected, dropped + 1
        np.testing.assert_allclose(boxes[0, row, column, a], box, rtol=1e-5)
        np.testing.assert_allclose(scores[0, row, column, a], expected, rtol=1e-5)
    assert name.startswith("region") or 0 < dropped < 12
