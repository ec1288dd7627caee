"""The flags of a small data set, written for each test."""

import json

import cv2
import made_coco
import numpy as np
import pytest


@pytest.fixture
def coco_data(tmp_path):
    """`coco_data(change)` -> flags that name the data; `change(content)` edits the file first."""

    def write(change=lambda content: None):
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for name, size in made_coco.SIZES.items():
            value = 200 if name == "b.png" else 100
            cv2.imwrite(str(folder / name), np.full((*size, 3), value, np.uint8))
        made = made_coco.content()
        change(made)
        (tmp_path / "instances.json").write_text(json.dumps(made))
        return [
            f"--images={folder}",
            f"--annotations={tmp_path / 'instances.json'}",
            "--config.data.canvases=((160,200),)",
            "--config.data.size_limits=()",
        ]

    return write
