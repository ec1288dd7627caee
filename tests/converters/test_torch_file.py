"""Files of real PyTorch (tests/data/torch/make.py) are read; hostile and broken ones refused."""

import os
import pickle
import struct
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest

from converters.readers import torch_file

ONE = np.ones(1, np.float32)


@pytest.fixture(scope="module")
def folder(repository):
    return repository / "tests" / "data" / "torch"


def refused(path):
    """The message with which a file is refused; it is one sentence that names the file."""
    with pytest.raises(torch_file.TorchFileError) as info:
        torch_file.read(path)
    message = str(info.value)
    assert message.startswith(f"{path}: ") and message.endswith(".") and "\n" not in message
    return message


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "protocol4.pth"])
def test_every_container_gives_what_pytorch_itself_sees(folder, name):
    tensors = torch_file.read(folder / name).tensors
    with np.load(folder / "expected.npz") as expected:
        assert list(tensors) == list(expected)
        for key in expected:
            if key == "bfloat16":  # NumPy's own format has no such type
                assert tensors[key].dtype == ml_dtypes.bfloat16
            else:
                assert tensors[key].dtype == expected[key].dtype
            np.testing.assert_array_equal(tensors[key].astype(expected[key].dtype), expected[key])


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_views_share_their_storage_and_expanded_tensors_take_no_memory(folder, name):
    tensors = torch_file.read(folder / name).tensors
    for view in ("row", "transposed", "strided"):
        assert np.shares_memory(tensors[view], tensors["base"])
    assert tensors["expanded"].strides == (4, 0)


def test_checkpoint_gives_its_state_dict_without_the_prefix_and_the_rest_as_meta(folder):
    file = torch_file.read(folder / "checkpoint.pth")
    assert list(file.tensors)[:2] == ["conv.weight", "conv.bias"]
    assert file.meta["meta"] == {"CLASSES": ("circle", "square"), "epoch": 12}
    assert "optimizer" in file.meta


def test_module_of_an_unknown_class_gives_its_parameters_and_persistent_buffers(folder):
    file = torch_file.read(folder / "module.pt")
    with np.load(folder / "expected_module.npz") as expected:
        assert list(file.tensors) == list(expected)  # without "scratch", which is not persistent
        for name in expected:
            np.testing.assert_array_equal(file.tensors[name], expected[name])
    assert file.meta == {"epoch": 3}


def test_published_yolov5_is_read_completely_without_its_code(shared_dir):
    tensors = torch_file.read(shared_dir / "weights" / "yolov5n-v6.pt").tensors
    with np.load(shared_dir / "weights" / "yolov5n-v6.npz") as expected:
        assert tensors.keys() == set(expected)
        for name in expected:
            assert tensors[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(tensors[name], expected[name])


# ---- Malicious pickles.  Each would make the file `harm` if anything of it were executed. ----


class Evil:
    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def text(value):
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def attacks(harm):
    command = text(f"touch {harm}")
    run = command + b"\x85R"
    return {
        "os.system": b"cos\nsystem\n" + run,
        "eval": b"cbuiltins\neval\n" + text(f"open({str(harm)!r}, 'w')") + b"\x85R",
        "__reduce__": pickle.dumps(Evil(os.system, f"touch {harm}"), 2)[2:-1],
        "INST": f"(S'touch {harm}'\n".encode() + b"ios\nsystem\n",
        "OBJ": b"(cos\nsystem\n" + command + b"o",
        "NEWOBJ": b"csubprocess\nPopen\n" + command + b"\x85\x81",
        "STACK_GLOBAL": text("os") + text("system") + b"\x93" + run,
        "nested global": b"\x80\x04" + text("posixpath") + text("os.system") + b"\x93" + run,
        "call of a call": b"cbuiltins\ngetattr\ncimportlib\nimport_module\n"
        + (text("os") + b"\x85R" + text("system") + b"\x86R" + run),
        "rebuild of os.system": b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nN"
        + (command + b"\x85NtR"),
        "EXT1": b"\x82\x01",
        "BUILD of a global": b"ccollections\nOrderedDict\nN}"
        + (text("get") + b"cos\nsystem\ns\x86b"),
    }


def test_attacks_are_real_for_pythons_own_unpickler(tmp_path):
    names = ("os.system", "eval", "__reduce__", "INST", "OBJ", "STACK_GLOBAL", "nested global")
    for name in (*names, "call of a call"):
        harm = tmp_path / f"harm {name}".replace(" ", "_")
        pickle.loads(b"\x80\x02" + attacks(harm)[name] + b".")
        assert harm.exists(), name


@pytest.mark.parametrize("name", list(attacks("")))
def test_malicious_pickle_runs_nothing(pth, tmp_path, name):
    harm = tmp_path / "harm"
    attack = attacks(harm)[name]
    checkpoint = pth.dict({"state_dict": pth.dict({"w": pth.tensor(ONE)}), "x": attack})
    for program in (attack, pth.dict({"w": pth.tensor(ONE), "x": attack}), checkpoint):
        path = pth.write(tmp_path / "evil.pth", program)
        try:
            file = torch_file.read(path)
        except torch_file.TorchFileError:
            pass
        else:  # the object lies beside the state dict: it has become inert
            assert list(file.tensors) == ["w"] and not callable(file.meta["x"])
        assert not harm.exists()


def test_legacy_stream_with_a_malicious_pickle_runs_nothing(tmp_path):
    harm = tmp_path / "harm"
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Evil(os.system, f"touch {harm}"), 2))
    assert "not one that torch.save wrote" in refused(path)
    assert not harm.exists()


def test_storage_key_that_leaves_the_archive_is_only_a_missing_member(pth, tmp_path):
    program = pth.dict({"w": pth.tensor(ONE, key="../../../etc/passwd")})
    pth.storages.clear()
    assert "has no member" in refused(pth.write(tmp_path / "traversal.pth", program))


# ---- Bombs: little files that claim or would become something huge. ----


BOMBS = {
    "memo index": b"]r\xff\xff\xff\xff.",
    "bytes": b"\x8e" + struct.pack("<Q", 1 << 60) + b"x",
    "bytearray": b"\x96" + struct.pack("<Q", 1 << 40) + b"x",
    "long": b"\x8b" + struct.pack("<i", (1 << 31) - 1) + b"x",
    "negative length": b"\x8b" + struct.pack("<i", -1) + b"x",
    "frame": b"\x95" + struct.pack("<Q", 1 << 60) + b"N",
    # ((((), ()), ((), ())), ...): 2^200 leaves, and hashing visits them all.
    "hash": b"})" + b"2\x86" * 200 + b"Ns",
    "decimal": b"I" + b"9" * 100_000 + b"\n",
    # A set of 50,000 numbers, copied 50,000 times from the same list.
    "copies": b"]("
    + b"".join(b"M" + struct.pack("<H", i) for i in range(50_000))
    + b"eq\x01"
    + b"0]("
    + b"c__builtin__\nset\nh\x01\x85R" * 50_000
    + b"e",
    "joined names": b"X"
    + struct.pack("<I", 1 << 20)
    + b"m" * (1 << 20)
    + b"q\x010]("
    + b"h\x01h\x01\x93" * 100_000
    + b"e",
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_pickle_bomb_is_refused_in_no_time(pth, tmp_path, name):
    path = pth.write(tmp_path / "bomb.pth", BOMBS[name])
    start = time.monotonic()
    refused(path)
    assert time.monotonic() - start < 5  # seconds; each needs hours or terabytes when run naively


@pytest.mark.parametrize("last", ["module", "tensor"])
def test_modules_that_share_their_children_do_not_grow_without_end(pth, tmp_path, last):
    leaf = pth.tensor(ONE) if last == "tensor" else b"N"
    # {"a": child, "b": child}, wrapped forty times: 2^40 paths to the innermost.
    program = b"cm\nM\n)\x81}" + pth.text("_parameters") + pth.dict({"w": leaf}) + b"sb"
    for i in range(40):
        program += b"r" + struct.pack("<I", i) + b"0"
        child = b"j" + struct.pack("<I", i)
        children = pth.dict({"a": child, "b": child})
        program += b"cm\nM\n)\x81}" + pth.text("_modules") + children + b"sb"
    path = pth.write(tmp_path / "modules.pt", program)
    start = time.monotonic()
    assert "without end" in refused(path)
    assert time.monotonic() - start < 5


def test_sizes_that_the_file_does_not_hold_are_refused_before_allocation(pth, tmp_path):
    path = tmp_path / "big.pth"
    huge = 1 << 40
    claims = {
        "storage": {"num_elements": huge},
        "shape": {"size": (huge,), "strides": (1,)},
        "expanded": {"size": (huge,), "strides": (0,)},
        "both": {"num_elements": huge, "size": (huge,), "strides": (1,)},
        "overflow": {"size": (1 << 61, 1 << 61), "strides": (0, 0)},
        "dimensions": {"size": (1,) * 40, "strides": (1,) * 40},
        "negative": {"size": (-1,), "strides": (1,)},
        "negative stride": {"size": (1,), "strides": (-1,)},
        "ranks": {"size": (1,), "strides": ()},
    }
    for claim in claims.values():
        pth.write(path, pth.dict({"w": pth.tensor(ONE, **claim)}))
        refused(path)
    # Within the allowance, but behind the end of the storage.
    pth.write(path, pth.dict({"w": pth.tensor(ONE, size=(2,), strides=(1,))}))
    assert "behind its storage" in refused(path)


def test_compressed_members_are_refused_unread(pth, tmp_path):
    pth.storages["0"] = bytes(100 << 20)
    path = pth.write(tmp_path / "bomb.pth", b"N", zipfile.ZIP_DEFLATED)
    assert "is compressed" in refused(path)


# ---- Files that are something else, or broken. ----


@pytest.mark.parametrize(
    "data, looks_like",
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>404", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"[net]\nbatch=64\n", "a text file"),
        (struct.pack("<Q", 64) + b'{"__metadata__":{}}', "a safetensors file"),
        (b"\x89PNG\r\n\x1a\n", "a PNG image"),
        (b"\x93NUMPY\x01\x00", "a NumPy .npy file"),
        (b"\x1f\x8b\x08\x00", "a gzip file"),
        (b"\x00\x01\x02\x03" * 8, "no known format"),
    ],
)
def test_other_kinds_of_files_are_named(tmp_path, data, looks_like):
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    assert looks_like in refused(path)


def test_other_archives_missing_files_and_folders_are_named(tmp_path):
    path = tmp_path / "arrays.pth"
    with path.open("wb") as file:
        np.savez(file, a=ONE)
    assert "a NumPy .npz file" in refused(path)
    assert "No such file" in refused(tmp_path / "absent.pth")
    assert "directory" in refused(tmp_path)


def test_checkpoint_without_tensors_lists_its_entries(pth, tmp_path):
    path = pth.write(tmp_path / "empty.pth", pth.dict({"epoch": b"K\x03", "best": b"N"}))
    assert "'epoch', 'best'" in refused(path)


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_file_that_is_cut_short_anywhere_is_refused(folder, tmp_path, name):
    data = (folder / name).read_bytes()
    path = tmp_path / name
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        refused(path)


def mutated(data, rng):
    """`data` with bytes changed, removed, doubled or replaced by extreme integers."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(len(data)))
        match rng.integers(4):
            case 0:
                data[at] = rng.integers(256)
            case 1:
                del data[at : at + int(rng.integers(1, 64))]
            case 2:
                data[at:at] = data[at : at + int(rng.integers(1, 64))]
            case 3:
                data[at : at + 4] = struct.pack("<I", rng.choice([0, 0x7FFFFFFF, 0xFFFFFFFF]))
    return bytes(data)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in mutated text
def test_mutated_files_raise_nothing_but_the_readers_own_error(folder, pth, tmp_path):
    seed = 20
    rng = np.random.default_rng(seed)
    path = tmp_path / "mutated.pth"
    names = ["zip.pth", "legacy.pth", "checkpoint.pth", "module.pt"]
    with zipfile.ZipFile(folder / "module.pt") as archive:
        program = archive.read("module/data.pkl")[2:-1]
        pth.storages = {
            n.split("/")[-1]: archive.read(n) for n in archive.namelist() if "/data/" in n
        }
    start = time.monotonic()
    refusals = 0
    for i in range(300):
        if i % 2:  # behind the archive's checksum, so that it reaches the pickle machine
            pth.write(path, mutated(program, rng))
        else:
            path.write_bytes(mutated((folder / names[i // 2 % 4]).read_bytes(), rng))
        try:
            file = torch_file.read(path)
        except torch_file.TorchFileError:
            refusals += 1
        else:
            assert all(np.asarray(t).nbytes < 1 << 27 for t in file.tensors.values())
    assert 100 < refusals < 300, f"seed {seed}: the mutations are all fatal or all harmless"
    assert time.monotonic() - start < 60  # seconds for all
