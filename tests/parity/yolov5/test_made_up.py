"""Which boxes are compared for YOLOv5 with made-up weights."""

import numpy as np

from benchmarks.parity.yolov5 import made_up
from detlab.detectors import yolov5


def test_narrow_boxes_are_told_by_what_moving_leaves_of_them():
    """Class 45 of release 3.0 is moved by 184320 px, where float32 has steps of 1/64 px."""
    module = yolov5.YOLOv5(block="csp")
    boxes = np.float32([[10, 10, 10.01, 40], [10, 10, 10.02, 40], [10, 10, 10.01, 40]])
    labels = np.array([45, 45, 0])
    np.testing.assert_array_equal(made_up.solid(boxes, labels, module), [False, True, True])
