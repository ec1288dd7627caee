"""What `--inspect` prints for each kind of file."""

import struct

import ml_dtypes
import numpy as np
import pytest

from detlab.converters import inspect_file
from detlab.converters.readers import contents, files
from detlab.converters.writers import safetensors_file as writer
from detlab.darknet import cfg as darknet_cfg


def test_small_file_is_described_literally(tmp_path):
    path = tmp_path / "small.safetensors"
    tensors = {
        "conv.weight": np.array([[1, 2, 3], [5, 6, 7]], np.float32),  # mean 4, variance 14 / 3
        "empty": np.zeros((0, 3), ml_dtypes.bfloat16),
        "steps": np.array(7),
    }
    writer.write(path, tensors, ["cat", "dog"])
    assert inspect_file.describe(path).split("\n") == [
        str(path),
        f"format            safetensors, {path.stat().st_size} bytes",
        "tensors           3, 7 values, 32 bytes",
        "types             1 int64, 1 float32, 1 bfloat16",
        "classes           2: cat, dog",
        "",
        "name         type      shape          mean          std",
        "steps        int64     scalar            7            0",
        "conv.weight  float32   2 x 3             4       2.1602",
        "empty        bfloat16  0 x 3             -            -",
    ]


def test_published_yolov5_is_described_alike_from_both_files(shared_dir):
    torch, npz = (
        inspect_file.describe(shared_dir / "weights" / f"yolov5n-v6{suffix}")
        for suffix in (".pt", ".npz")
    )
    for text in (torch, npz):
        assert "349, 1881736 values" in text and "292 float16, 57 int64" in text
    assert "PyTorch (zip), 4062133 bytes" in torch and "npz, 3586154 bytes" in npz
    assert "80: person, bicycle," in torch and "hair drier, toothbrush" in torch
    assert torch.split("\n\n")[1] == npz.split("\n\n")[1]  # the tables of tensors


def test_entries_beside_the_weights_are_told(repository):
    text = inspect_file.describe(repository / "tests" / "data" / "torch" / "checkpoint.pth")
    assert "meta.epoch        12\n" in text
    assert "optimizer         dict with 4 tensors\n" in text


def test_darknet_file_without_its_cfg_tells_header_and_count(tmp_path):
    path = tmp_path / "x.weights"
    for minor, seen in ((2, struct.pack("<Q", 1 << 33)), (1, struct.pack("<I", 640))):
        path.write_bytes(struct.pack("<iii", 0, minor, 5) + seen + bytes(4 * 10))
        lines = [line.split() for line in inspect_file.describe(path).split("\n")]
        assert ["minor", str(minor)] in lines and ["values", "10"] == lines[-1][:2]
        assert ["seen", str(1 << 33 if minor == 2 else 640)] in lines


def test_darknet_file_with_its_cfg_tells_every_tensor(shared_dir):
    weights = shared_dir / "weights"
    network = darknet_cfg.read(weights / "yolo-fastest-1.1.cfg")
    text = inspect_file.describe(weights / "yolo-fastest-1.1.weights", network)
    assert "346062 values" in text and "seen              14231680\n" in text
    assert "0.weight    float32  8 x 3 x 3 x 3" in text


def test_statistics_of_large_and_strided_arrays_are_those_of_numpy():
    array = np.random.default_rng(0).normal(3, 2, (1500, 1500)).astype(np.float32).T[::2]
    mean, std = inspect_file._statistics(array)
    assert mean == f"{array.mean(dtype=np.float64):.5g}"
    assert std == f"{array.std(dtype=np.float64):.5g}"


def test_values_that_are_not_finite_show(tmp_path):
    path = tmp_path / "nan.npz"
    np.savez(path, a=np.array([1.0, np.nan]), b=np.array([np.inf, 1.0]), c=np.array([1j]))
    rows = [line.split() for line in inspect_file.describe(path).split("\n")[-3:]]
    assert [row[-2:] for row in rows] == [["nan", "nan"], ["inf", "nan"], ["-", "-"]]


def test_control_characters_are_escaped_and_long_entries_cut(pth, tmp_path):
    entries = {"note\x1b[2J": "\x1b[31mred\n", "config": "x" * 10_000}
    tensors = {"w\n\x07": np.ones(1, np.float32)}
    text = inspect_file.describe(pth.write_state_dict(tmp_path / "x.pth", tensors, **entries))
    assert text.replace("\n", "").isprintable() and len(text) < 1000
    assert r"w\n\x07" in text and r"note\x1b[2J" in text


def test_class_names_are_printable_for_whoever_shows_them(tmp_path):
    path = tmp_path / "x.safetensors"
    writer.write(path, {"w": np.ones(1)}, ["\x1b[2Jcat\n", "dog", "x" * 1000, "dog"])
    names = files.read(path).class_names
    assert names == (r"\x1b[2Jcat\n", "dog", "x" * 97 + "...", "dog")
    assert f"4: {', '.join(names)}\n" in inspect_file.describe(path)


def test_what_is_no_weight_file_is_refused_by_name(tmp_path):
    path = tmp_path / "x"
    path.write_text("hello")
    with pytest.raises(contents.ReadError, match="it looks like a text file"):
        inspect_file.describe(path)
