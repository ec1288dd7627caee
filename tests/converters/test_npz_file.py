"""`.npz` archives of arrays are read; pickles, bombs and damaged ones are refused."""

import io
import struct
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest

from detlab.converters.readers import npz_file


def npy(array, **kwargs):
    stream = io.BytesIO()
    np.save(stream, array, **kwargs)
    return stream.getvalue()


def archive(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def refused(path):
    with pytest.raises(npz_file.NpzError) as info:
        npz_file.read(path)
    message = str(info.value)
    assert message.startswith(f"{path}: ") and message.endswith(".") and "\n" not in message
    return message


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_under_their_names(tmp_path, save):
    rng = np.random.default_rng(0)
    tensors = {
        "a.weight": rng.normal(size=(2, 3)).astype(np.float16),
        "fortran": np.asfortranarray(rng.normal(size=(3, 4))),
        "big-endian": np.arange(3, dtype=">i4"),
        "scalar": np.array(5),
        "empty": np.zeros((3, 0), np.float32),
        "bool": np.array([True, False]),
        "complex": np.array([1 + 2j]),
    }
    path = tmp_path / "weights.npz"
    save(path, **tensors)
    file = npz_file.read(path)
    assert (file.format, file.class_names, file.meta) == ("npz", None, {})
    assert list(file.tensors) == list(tensors)
    for name, array in tensors.items():
        assert file.tensors[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(file.tensors[name], array)


def test_published_yolov5_is_read_as_numpy_reads_it(shared_dir):
    path = shared_dir / "weights" / "yolov5n-v6.npz"
    tensors = npz_file.read(path).tensors
    with np.load(path) as expected:
        assert list(tensors) == list(expected) and len(tensors) == 349
        for name in expected:
            assert tensors[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(tensors[name], expected[name])


@pytest.mark.parametrize(
    "array",
    [
        np.array([None, "x"]),
        np.array(["text"]),
        np.array(["2020-01-01"], "datetime64[D]"),
        np.zeros(2, [("a", np.float32)]),
        np.zeros(2, ml_dtypes.bfloat16),  # stored as void
    ],
)
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, array):
    path = archive(tmp_path / "bad.npz", {"x.npy": npy(array)})
    assert "is not numeric" in refused(path)


def header(text, version=1):
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode()


def test_headers_that_lie_are_refused_before_allocation(tmp_path):
    path = tmp_path / "lies.npz"
    shapes = ("(1099511627776,)", "(4611686018427387904, 4611686018427387904)", "(-1,)", "(3,)")
    for shape in (*shapes, "('x',)", "(1.5,)", "5", "__import__('os').system('true')"):
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n"
        for version in (1, 2):
            refused(archive(path, {"x.npy": header(text, version) + bytes(8)}))
    for descr in ("'|O'", "'<f4,<i4'", "'(9,)<f4'", "'nonsense'", "[]", "'<f3'"):
        text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (2,)}}\n"
        refused(archive(path, {"x.npy": header(text) + bytes(8)}))
    assert "unknown version" in refused(archive(path, {"x.npy": header("{}", 9)}))


def test_zip_bomb_is_refused_unread(tmp_path):
    path = archive(tmp_path / "bomb.npz", {"x.npy": bytes(100 << 20)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    start = time.monotonic()
    assert "claims arrays of" in refused(path)
    assert time.monotonic() - start < 1  # seconds


def test_member_that_is_longer_than_it_claims_gives_only_what_it_claims(tmp_path):
    path = archive(tmp_path / "bomb.npz", {"x.npy": npy(np.zeros(1 << 20))}, zipfile.ZIP_DEFLATED)
    data, size = path.read_bytes(), struct.pack("<I", len(npy(np.zeros(1 << 20))))
    path.write_bytes(data.replace(size, struct.pack("<I", 200)))
    refused(path)


def test_zeros_that_compress_well_are_read_within_the_allowance(tmp_path):
    path = tmp_path / "zeros.npz"
    np.savez_compressed(path, x=np.zeros(1 << 20, np.float32))
    assert npz_file.read(path).tensors["x"].size == 1 << 20


def test_archives_that_are_no_npz_are_refused(tmp_path):
    path, one = tmp_path / "odd.npz", npy(np.ones(1))
    assert "is not an array" in refused(archive(path, {"../../etc/passwd": b"x"}))
    assert "is not an array" in refused(archive(path, {"x.npy": one, "data.pkl": b"N."}))
    assert "without arrays" in refused(archive(path, {}))
    assert "way that NumPy" in refused(archive(path, {"x.npy": one}, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(path, "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("x.npy", one)
        file.writestr("x.npy", one)
    assert "two arrays have the name" in refused(path)


def test_name_with_a_path_stays_a_name(tmp_path):
    path = archive(tmp_path / "path.npz", {"../../etc/x.npy": npy(np.ones(1))})
    assert list(npz_file.read(path).tensors) == ["../../etc/x"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["path.npz"]


def test_empty_cut_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, a=np.arange(100), b=np.ones((3, 4)))
    data = path.read_bytes()
    for length in range(1, len(data), 53):
        path.write_bytes(data[:length])
        refused(path)
    for content, kind in ((b"", "an empty file"), (b"\x93NUMPY\x01\x00", "a NumPy .npy file")):
        path.write_bytes(content)
        assert kind in refused(path)
    assert "No such file" in refused(tmp_path / "absent.npz")


def test_changed_byte_of_an_array_is_noticed(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, a=np.arange(100))
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    assert "CRC" in refused(path)
