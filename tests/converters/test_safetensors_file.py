"""Files of PyTorch's writer and of ours are read, and broken files are rejected."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from detlab.converters.readers import safetensors_file
from detlab.converters.writers import safetensors_file as writer


def file_of(header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def entry(dtype, shape, start, stop):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def refused(path, data):
    path.write_bytes(data)
    with pytest.raises(safetensors_file.SafetensorsError) as info:
        safetensors_file.read(path)
    message = str(info.value)
    assert message.startswith(f"{path}: ") and message.endswith(".") and "\n" not in message
    return message


def test_file_of_the_library_for_pytorch_gives_every_type(repository):
    folder = repository / "tests" / "data" / "torch"
    file = safetensors_file.read(folder / "tensors.safetensors")
    assert file.format == "safetensors"
    assert file.class_names == ("circle", "square") and file.meta == {"format": "pt"}
    with np.load(folder / "expected.npz") as expected:
        assert file.tensors.keys() == set(expected) - {"complex128"}  # not in the format
        for name, array in file.tensors.items():
            np.testing.assert_array_equal(array.astype(expected[name].dtype), expected[name])
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        assert file.tensors[name].dtype == getattr(ml_dtypes, name)


def test_written_file_is_read_back_and_has_the_same_bytes_each_time(tmp_path):
    tensors = {
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "big-endian": np.arange(3, dtype=">f4"),
        "scalar": np.array(5),
        "empty": np.zeros((3, 0), np.int32),
        "bfloat16": np.ones((2, 2), ml_dtypes.bfloat16),
        "bool": np.array([True, False]),
    }
    path, again = tmp_path / "out.safetensors", tmp_path / "again.safetensors"
    writer.write(path, tensors, ["Blüte", "b"])
    writer.write(again, dict(reversed(tensors.items())), ["Blüte", "b"])
    assert path.read_bytes() == again.read_bytes()
    file = safetensors_file.read(path)
    assert file.class_names == ("Blüte", "b") and file.tensors.keys() == tensors.keys()
    for name, array in tensors.items():
        assert file.tensors[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(file.tensors[name], array)


def test_class_names_are_optional_and_other_values_are_no_class_names(tmp_path):
    path = tmp_path / "out.safetensors"
    writer.write(path, {"w": np.ones(1)})
    assert safetensors_file.read(path).class_names is None
    others = {"5": None, "[]": None, '{"a": "b"}': None, "[1]": ("1",), '{"1": "a"}': ("a",)}
    for text, names in others.items():
        header = {"__metadata__": {"class_names": text}, "w": entry("U8", [1], 0, 1)}
        path.write_bytes(file_of(header, b"x"))
        assert safetensors_file.read(path).class_names == names
    header["__metadata__"]["class_names"] = "["
    assert "not JSON" in refused(path, file_of(header, b"x"))


def test_bytes_of_bools_become_true_and_false(tmp_path):
    path = tmp_path / "bool.safetensors"
    path.write_bytes(file_of({"w": entry("BOOL", [3], 0, 3)}, b"\x00\x01\x07"))
    array = safetensors_file.read(path).tensors["w"]
    assert array.dtype == np.bool_ and array.view(np.uint8).tolist() == [0, 1, 1]


DAMAGED = {
    "huge header": struct.pack("<Q", 1 << 60) + b"{}",
    "header longer than the file": struct.pack("<Q", 1000) + b"{}",
    "overlap": file_of({"a": entry("U8", [3], 0, 3), "b": entry("U8", [2], 2, 4)}, bytes(4)),
    "gap": file_of({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, bytes(3)),
    "offset behind the end": file_of({"a": entry("U8", [9], 0, 9)}, bytes(4)),
    "offsets backwards": file_of({"a": entry("U8", [1], 1, 0)}, bytes(1)),
    "bytes left over": file_of({"a": entry("U8", [1], 0, 1)}, bytes(9)),
    "shape larger than its bytes": file_of({"a": entry("F32", [1 << 40], 0, 4)}, bytes(4)),
    "shape that overflows": file_of({"a": entry("F32", [1 << 62, 1 << 62], 0, 4)}, bytes(4)),
    "negative size": file_of({"a": entry("F32", [-1], 0, 4)}, bytes(4)),
    "nested without end": file_of(b'{"a":' + b"[" * 100_000),
    "not UTF-8": file_of(b'{"\xff": 1}'),
    "not JSON": file_of(b"{]"),
    "metadata that is no text": file_of({"__metadata__": {"a": [1]}}),
    "unknown type": file_of({"a": entry("F99", [1], 0, 4)}, bytes(4)),
    "sub-byte type": file_of({"a": entry("F4", [2], 0, 1)}, bytes(1)),
    "no tensors": file_of({}),
    "same name, same bytes": file_of(
        b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "same name, other bytes": file_of(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
        bytes(2),
    ),
}


@pytest.mark.parametrize("name", list(DAMAGED))
def test_damaged_file_is_refused(tmp_path, name):
    refused(tmp_path / "bad.safetensors", DAMAGED[name])


def test_file_that_is_cut_short_anywhere_is_refused(repository, tmp_path):
    data = (repository / "tests" / "data" / "torch" / "tensors.safetensors").read_bytes()
    for length in range(0, len(data), 53):
        refused(tmp_path / "cut.safetensors", data[:length])


def test_other_kinds_of_files_are_named(tmp_path):
    path = tmp_path / "model.safetensors"
    assert "an empty file" in refused(path, b"")
    assert "a Git LFS pointer" in refused(path, b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(safetensors_file.SafetensorsError, match="No such file"):
        safetensors_file.read(tmp_path / "absent")
