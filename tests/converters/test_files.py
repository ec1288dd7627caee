"""Contents determine the format; no file makes a reader raise or allocate beyond its limits."""

import contextlib
import io
import os
import resource
import shutil
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from detlab.converters.readers import (
    contents,
    darknet,
    files,
    npz_file,
    safetensors_file,
    torch_file,
)
from detlab.converters.writers import safetensors_file as safetensors_writer
from detlab.converters.writers import torch_file as torch_writer
from detlab.converters.writers import whole
from detlab.darknet import cfg as darknet_cfg


@pytest.fixture(scope="module")
def folder(repository):
    return repository / "tests" / "data" / "torch"


def test_format_is_known_by_the_content_whatever_the_suffix(folder, tmp_path):
    expected = {
        "zip.pth": "PyTorch (zip)",
        "legacy.pth": "PyTorch (legacy)",
        "module.pt": "PyTorch (zip)",
        "tensors.safetensors": "safetensors",
        "expected.npz": "npz",
    }
    for name, words in expected.items():
        for suffix in (".weights", ".pth", ".npz", ".safetensors", ""):
            path = tmp_path / f"file{suffix}"
            shutil.copyfile(folder / name, path)
            assert files.read(path).format == words, (name, suffix)


CFG = """
[net]
width=32
height=32
channels=3
[convolutional]
filters=2
size=1
stride=1
activation=linear
"""


def test_darknet_weights_are_read_with_their_cfg_and_named_without(tmp_path):
    path = tmp_path / "small.weights"
    values = np.arange(8, dtype=np.float32)
    path.write_bytes(struct.pack("<iiiQ", 0, 2, 5, 640) + values.tobytes())
    network = darknet_cfg.parse(CFG)
    file = files.read(path, network)
    assert (file.format, file.class_names) == ("darknet", None)
    assert file.meta == {"major": 0, "minor": 2, "revision": 5, "seen": 640}
    np.testing.assert_array_equal(
        np.concatenate([t.ravel() for t in file.tensors.values()]), values
    )
    with pytest.raises(contents.ReadError, match="a darknet .weights file, which needs its cfg"):
        files.read(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(contents.ReadError, match="small.weights: "):
        files.read(path, network)


def test_published_weights_of_every_kind_are_read(shared_dir):
    weights = shared_dir / "weights"
    torch, npz = (files.read(weights / f"yolov5n-v6{suffix}").tensors for suffix in (".pt", ".npz"))
    assert torch.keys() == npz.keys()
    for name in torch:
        np.testing.assert_array_equal(torch[name], npz[name])
    network = darknet_cfg.read(weights / "yolo-fastest-1.1.cfg")
    tensors = files.read(weights / "yolo-fastest-1.1.weights", network).tensors
    assert sum(array.size for array in tensors.values()) == 346_062


def test_files_of_no_known_kind_say_what_they_look_like(tmp_path):
    path = tmp_path / "weights"
    kinds = {
        b"": "an empty file",
        b"<html>": "a web page",
        b"hello": "a text file",
        b"\x93NUMPY\x01\x00": "a NumPy .npy file",
        b"PK\x05\x06" + bytes(18): "an empty or damaged ZIP archive",
        b"PK\x03\x04": "a ZIP archive that is cut short",
        b"\xfe\xed" * 30: "no known format",
    }
    for data, kind in kinds.items():
        path.write_bytes(data)
        with pytest.raises(contents.ReadError) as info:
            files.read(path)
        assert str(info.value).startswith(f"{path}: ") and kind in str(info.value)
    for missing in (tmp_path / "absent", tmp_path):
        with pytest.raises(contents.ReadError, match="cannot be read"):
            files.read(missing)


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path):
    path = tmp_path / "evil.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("\x1b[2J\nx", b"")
    with pytest.raises(contents.ReadError) as info:
        npz_file.read(path)
    assert str(info.value).isprintable() and r"\x1b[2J\n" in str(info.value)


# ---- Mutations. ----


def mutated(data, rng):
    """`data` cut short, or with bytes changed, removed, inserted, doubled or made extreme."""
    data = bytearray(data)
    if rng.random() < 0.1:
        del data[int(rng.integers(len(data))) :]
    for _ in range(rng.integers(1, 6)):
        at, length = int(rng.integers(len(data) + 1)), int(rng.integers(1, 64))
        match rng.integers(5):
            case 0 if at < len(data):
                data[at] = rng.integers(256)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = rng.bytes(length)
            case 3:  # a splice: from one place to another
                source = int(rng.integers(len(data) + 1))
                data[at : at + length] = data[source : source + length]
            case _:
                data[at : at + 4] = struct.pack("<I", rng.choice([0, 0x7FFFFFFF, 0xFFFFFFFF]))
    return bytes(data)


def torch_zip(folder, pth):
    """Archives, and pickles in intact archives, which get past the checksums."""
    with zipfile.ZipFile(folder / "module.pt") as archive:
        program = archive.read("module/data.pkl")[2:-1]
        storages = [name for name in archive.namelist() if "/data/" in name]
        pth.storages = {name.split("/")[-1]: archive.read(name) for name in storages}
    names = ("zip.pth", "checkpoint.pth", "ema.pt")
    sources = [(folder / name).read_bytes() for name in names]

    def write(path, rng, i):
        if i % 2:
            pth.write(path, mutated(program, rng))
        else:
            path.write_bytes(mutated(sources[i // 2 % 3], rng))

    return torch_file.read, torch_file.TorchFileError, write


def torch_legacy(folder, pth):
    names = ("legacy.pth", "legacy_module.pt")
    sources = [(folder / name).read_bytes() for name in names]

    def write(path, rng, i):
        path.write_bytes(mutated(sources[i % 2], rng))

    return torch_file.read, torch_file.TorchFileError, write


def safetensors(folder, pth):
    source = (folder / "tensors.safetensors").read_bytes()
    length = 8 + int.from_bytes(source[:8], "little")

    def write(path, rng, i):
        if i % 2:  # with the length that the mutated header has
            header = mutated(source[8:length], rng)
            path.write_bytes(struct.pack("<Q", len(header)) + header + source[length:])
        else:
            path.write_bytes(mutated(source, rng))

    return safetensors_file.read, safetensors_file.SafetensorsError, write


def npz(folder, pth):
    """Archives, and arrays in intact archives, which get past the checksums."""
    source = (folder / "expected_module.npz").read_bytes()
    stream = io.BytesIO()
    np.save(stream, np.ones((3, 4), np.float32))

    def write(path, rng, i):
        if i % 2:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a.npy", mutated(stream.getvalue(), rng))
        else:
            path.write_bytes(mutated(source, rng))

    return npz_file.read, npz_file.NpzError, write


def every_kind(folder, pth):
    """All of these and darknet's, through `files.read`, which detects the format."""
    makers = [kind(folder, pth)[2] for kind in (torch_zip, torch_legacy, safetensors, npz)]
    network = darknet_cfg.parse(CFG)
    values = np.ones(darknet.num_floats(network), "<f4").tobytes()

    def darknet_maker(path, rng, i):
        path.write_bytes(mutated(struct.pack("<iiiQ", 0, 2, 5, 640) + values, rng))

    makers.append(darknet_maker)

    def read(path):
        is_darknet = contents.is_darknet(path.read_bytes()[:20])
        return files.read(path, network if is_darknet else None)

    def write(path, rng, i):
        makers[i % 5](path, rng, i // 5)

    return read, contents.ReadError, write


@pytest.mark.parametrize(
    "kind",
    [
        *(pytest.param(k, marks=pytest.mark.slow) for k in (torch_zip, torch_legacy, safetensors)),
        pytest.param(npz, marks=pytest.mark.slow),
        every_kind,
    ],
)
def test_two_thousand_mutated_files_raise_nothing_but_the_readers_own_error(
    kind, folder, pth, tmp_path, recwarn
):
    seed = 20
    rng = np.random.default_rng(seed)
    read, error_type, write = kind(folder, pth)
    path = tmp_path / "mutated"
    refusals, slowest = 0, 0.0
    tracemalloc.start()
    try:
        for i in range(2000):
            write(path, rng, i)
            start = time.process_time()
            try:
                file = read(path)
            except error_type as error:
                refusals += 1
                assert str(error).startswith(f"{path}: ") and str(error).isprintable()
            else:
                assert file.tensors, f"seed {seed}, file {i}"
            slowest = max(slowest, time.process_time() - start)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 500 < refusals < 2000, f"seed {seed}: the mutations are all fatal or all harmless"
    assert peak < 80 << 20  # bytes: the allowance for views and compression, and some more
    assert slowest < 2  # seconds for one file
    assert not [str(w.message) for w in recwarn]  # a warning would show text of the file


def test_random_bytes_are_refused_by_every_reader(tmp_path):
    seed = 21
    rng = np.random.default_rng(seed)
    path = tmp_path / "random"
    starts = (b"", b"PK\x03\x04", b"\x80\x02", struct.pack("<Q", 40) + b"{", b"PK\x05\x06")
    for i in range(500):
        path.write_bytes(starts[i % 5] + rng.bytes(int(rng.integers(200))))
        for reader in (files, torch_file, npz_file, safetensors_file):
            with pytest.raises(contents.ReadError):
                reader.read(path)


def test_what_the_writers_wrote_is_recognised(tmp_path):
    path = tmp_path / "out"
    safetensors_writer.write(path, {"w": np.ones(3)}, ["a"])
    assert files.read(path).class_names == ("a",)


# ---- Writers. ----


def write_safetensors(path, size):
    safetensors_writer.write(path, {"w": np.ones(size)})


def write_torch(path, size):
    torch_writer.write(path, {"w": np.ones(size)})


def write_darknet(path, size):
    network = darknet_cfg.parse(CFG.replace("filters=2", f"filters={size}"))
    shapes = darknet.tensor_shapes(network)
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    try:
        darknet.write(path, network, darknet.Weights(darknet.Header(), tensors))
    except darknet.DarknetError as error:
        raise error.__cause__ from None


@contextlib.contextmanager
def full_disk():
    """No file grows beyond 4 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


WRITERS = [write_safetensors, write_torch, write_darknet]


@pytest.mark.parametrize("write", WRITERS)
def test_file_that_cannot_be_written_completely_leaves_the_one_before(write, tmp_path):
    path = tmp_path / "weights"
    write(path, 8)
    before = path.read_bytes()
    with full_disk(), pytest.raises(OSError, match="too large"):
        write(path, 10_000)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    write(path, 9)
    assert path.read_bytes() != before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", WRITERS)
def test_what_is_no_regular_file_is_never_replaced(write, tmp_path):
    folder, pipe = tmp_path / "folder", tmp_path / "pipe"
    folder.mkdir()
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # a writer would wait for a reader
    for path in (folder, pipe):
        with pytest.raises(OSError, match="not a regular file"):
            write(path, 8)
    os.close(reader)
    assert folder.is_dir() and pipe.is_fifo()
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "absent" / "weights", 8)


@pytest.mark.parametrize("write", WRITERS)
def test_written_files_have_the_mode_of_any_new_file_and_links_stay(write, tmp_path):
    path, link, plain = (tmp_path / name for name in ("weights", "link", "plain"))
    plain.touch()
    link.symlink_to(path)
    write(link, 8)
    assert link.is_symlink() and path.stat().st_mode == plain.stat().st_mode


def test_interrupted_write_leaves_nothing_behind(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), whole.replacing(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
