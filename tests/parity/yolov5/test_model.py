"""How photographs enter YOLOv5."""

import json

import numpy as np

from benchmarks.parity.yolov5 import model as model_lib


def test_photographs_go_through_the_letterbox_of_the_reference(shared_dir):
    """The recorded sizes, and two made-up ones with half a px rounded to even: 512.5, 517.5."""

    class Looks(model_lib.Model):
        def __init__(self):
            pass

        def __call__(self, images):
            self.images = images
            return None, None, []

    folder = shared_dir / "parity" / "yolo"
    images = json.loads((folder / "yolov5n-v6-photos.json").read_text())["images"]
    sizes = {name: tuple(recorded["size_wh"]) for name, recorded in images.items()}
    assert sizes == {
        "zidane.jpg": (1280, 720), "bus.jpg": (810, 1080), "dog.jpg": (768, 576),
        "person.jpg": (640, 424), "horses.jpg": (773, 512),
    }  # fmt: skip
    images |= {
        "even": {"size_wh": [1024, 820], "input_hw": [512, 640], "pad_wh": [0, 0]},
        "odd": {"size_wh": [828, 1024], "input_hw": [640, 544], "pad_wh": [13, 0]},
    }
    for name, recorded in images.items():
        width, height = recorded["size_wh"]
        canvas = model_lib.canvas(height, width)
        assert canvas == tuple(recorded["input_hw"]), name
        model = Looks()
        model.on_picture(np.full((height, width, 3), 255, np.uint8), canvas)
        [image] = model.images
        left, top = (round(border - 0.1) for border in recorded["pad_wh"])
        right, bottom = (round(border + 0.1) for border in recorded["pad_wh"])
        assert (image[top : canvas[0] - bottom, left : canvas[1] - right] == 255).all(), name
        content = (canvas[0] - top - bottom) * (canvas[1] - left - right)
        assert (image == model_lib.GREY).all(axis=2).sum() == image[..., 0].size - content
