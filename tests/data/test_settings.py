"""The settings that a config asks for, for each use."""

import numpy as np
import pytest

from detlab import config as config_lib
from detlab.data import settings
from detlab.experiments import common


def test_a_config_augments_nothing_by_default():
    found = settings.of(common.base("retinanet").data, "train")
    assert found.augment == settings.Augment() and found.multiscale == settings.MultiScale()
    assert (found.flip_horizontal, found.flip_vertical) == (0.5, 0.0)


def test_keys_of_the_config_arrive():
    config = common.base("retinanet")
    config.data.augment.update(mosaic=0.5, crop="jitter")
    config.data.update(multiscale_limits=((90, 60), (80, 50)), multiscale="range", workers=3)
    found = settings.of(config.data, "train")
    assert found.augment == settings.Augment(mosaic=0.5, crop="jitter")
    assert found.multiscale == settings.MultiScale((), ((90, 60), (80, 50)), "range")
    assert found.workers == 3


@pytest.mark.parametrize("use", ["eval", "demo"])
def test_evaluation_and_demo_draw_nothing(use):
    found = settings.of(config_lib.load("yolov5_coco").data, use)
    assert found.augment == settings.Augment() and found.multiscale == settings.MultiScale()
    assert found.flip_horizontal == found.flip_vertical == 0.0
    assert found == settings.without_chance(found)


def test_broken_images_are_left_out_as_each_use_says():
    data = common.base("retinanet").data
    assert settings.of(data, "train").skip_broken and not settings.of(data, "eval").skip_broken
    data.update(skip_broken=False, eval_skip_broken=True)
    assert not settings.of(data, "train").skip_broken and settings.of(data, "eval").skip_broken


def test_evaluation_and_demo_have_the_rectangles_of_their_blocks():
    config = common.base("yolov5")
    config.data.canvases = ((640, 640), (320, 1280))
    config.eval.rectangles, config.predict.rectangles = 32, 64
    config.predict.shrink = "corners"
    training = settings.of(config.data, "train")
    of_eval = settings.of(config.data, "eval", config.eval)
    shown = settings.of(config.data, "demo", config.predict)
    assert [x.rectangles for x in (training, of_eval, shown)] == [0, 32, 64]
    assert (of_eval.margin, shown.margin, shown.longest) == (0.5, 0.0, 1280)
    assert (of_eval.dtype, shown.dtype) == (np.uint8, np.float32)
    assert not settings.of(config.data, "eval").rectangles


def test_each_use_has_its_rounding_and_its_way_to_shrink():
    data = common.base("retinanet").data
    data.update(rounding="down", demo_rounding="up", eval_shrink="area", size_limits=(100, 60))
    found = {use: settings.of(data, use) for use in ("train", "eval", "demo")}
    assert [found[use].rounding for use in found] == ["down", "down", "up"]
    assert [found[use].shrink for use in found] == ["linear", "area", "linear"]
    assert all(found[use].resize == (100, 60) for use in found)
