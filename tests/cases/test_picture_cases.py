"""Recorded pictures: turned by their camera, too large, and of formats that demos meet."""

import subprocess
import sys

import numpy as np
import pytest

from detlab import media
from detlab.data import records, voc


@pytest.mark.parametrize("part", ["train", "val"])
def test_phone_photos_annotated_upright_are_turned(case, part):
    root = case("exif-orientation-6")
    source = voc.Voc(root, part, ("cell",))
    assert [source.size(i) for i in range(2)] == [(96, 64)] * 2
    for record in source:
        assert record["image"].shape == (96, 64, 3)
        np.testing.assert_array_equal(record["boxes"], [[9, 11, 39, 79]])
    path = root / "JPEGImages" / "p0.jpg"
    np.testing.assert_array_equal(
        source[0]["image"], np.rot90(records.read_image(path, "stored"), -1)
    )
    np.testing.assert_array_equal(source[0]["image"], records.read_image(path))  # as in the demo
    assert source.problems == (
        "2 of 2 images have an EXIF orientation: 2 turned upright, as annotated sizes "
        f"say (the first: {path}); config.data.exif=upright or stored decides for all",
    )


@pytest.mark.slow
def test_a_huge_picture_names_the_limit(case, tmp_path):
    path = tmp_path / "big.png"
    script = case("huge-image") / "make.py"
    subprocess.run([sys.executable, str(script), str(path)], check=True)
    assert records.read_image_size(path) == (30000, 40000)
    with pytest.raises(records.DataError) as raised:
        records.read_image(path)
    assert str(raised.value) == (
        f"image file {path} cannot be decoded: it is 40000x30000 px, more than the 1073741824 px "
        "that OpenCV accepts; make it smaller, or set the environment variable "
        "OPENCV_IO_MAX_IMAGE_PIXELS to 1200000000 or more"
    )


def test_the_demo_takes_all_files_of_a_folder(case, tmp_path):
    folder = case("demo-folder")
    found = media.find_inputs(str(folder), tmp_path / "found")
    assert found.files == [folder / name for name in ("a.gif", "b.jfif", "sub/c.jpg")]
    assert found.passed_over == [folder / "README.md"]
    assert media.output_names(found.files, folder) == ["a.png", "b.png", "sub/c.png"]
    for path in found.files:
        assert records.read_image(path).shape[2] == 3
