"""PyTorch's own files (tests/data/torch/make.py) are read; malicious and broken ones rejected."""

import hashlib
import json
import os
import pickle
import pickletools
import struct
import time
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from detlab.converters.readers import pickle_machine, torch_file
from detlab.converters.writers import torch_file as torch_writer

ONE = np.ones(1, np.float32)
NARROW = {name: getattr(ml_dtypes, name) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")}


@pytest.fixture(scope="module")
def folder(repository):
    return repository / "tests" / "data" / "torch"


def refused(path):
    """The message of the error: one sentence that names the file."""
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
            if key in NARROW:  # NumPy's own format has no such types
                assert tensors[key].dtype == NARROW[key]
            else:
                assert tensors[key].dtype == expected[key].dtype
            np.testing.assert_array_equal(tensors[key].astype(expected[key].dtype), expected[key])


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_views_share_their_storage_and_expanded_tensors_take_no_memory(folder, name):
    tensors = torch_file.read(folder / name).tensors
    for view in ("row", "transposed", "strided"):
        assert np.shares_memory(tensors[view], tensors["base"])
    assert tensors["expanded"].strides == (4, 0)


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth"])
def test_the_format_is_told_in_words(folder, name):
    words = {"zip.pth": "PyTorch (zip)", "legacy.pth": "PyTorch (legacy)"}
    assert torch_file.read(folder / name).format == words[name]


def test_checkpoint_gives_its_state_dict_without_the_prefix_and_the_rest_as_meta(folder):
    file = torch_file.read(folder / "checkpoint.pth")
    assert list(file.tensors)[:2] == ["conv.weight", "conv.bias"]
    assert file.class_names == ("circle", "square")
    assert file.meta == {
        "meta": {"CLASSES": ["circle", "square"], "epoch": 12, "mmdet_version": "2.28.0"},
        "optimizer": "dict with 4 tensors",  # of momentum
    }


@pytest.mark.parametrize("name", ["module.pt", "legacy_module.pt", "ema.pt"])
def test_module_of_an_unknown_class_gives_its_parameters_and_persistent_buffers(folder, name):
    file = torch_file.read(folder / name)
    with np.load(folder / "expected_module.npz") as expected:
        assert list(file.tensors) == list(expected)  # without "scratch", which is not persistent
        for key in expected:  # of ema.pt the averaged module, not the trained one
            np.testing.assert_array_equal(file.tensors[key], expected[key])
    assert file.class_names == ("circle", "square")
    unused = {"updates": 7, "model": "__main__.Block"} if name == "ema.pt" else {}
    assert file.meta == {"epoch": 3, **unused}


def names(pth, *values):
    return b"(" + b"".join(pth.text(value) for value in values) + b"t"


def test_class_names_are_found_where_each_project_keeps_them(pth, tmp_path):
    both = names(pth, "a", "b")
    weights = pth.dict({"w": pth.tensor(ONE)})

    def module(value):
        state = {"_modules": b"}", "_parameters": weights, "names": value}
        return b"cmodels.yolo\nModel\n)\x81" + pth.dict(state) + b"b"

    def wrapped(value):
        children = pth.dict({"module": module(value)})
        return b"ctorch.nn\nDataParallel\n)\x81" + pth.dict({"_modules": children}) + b"b"

    def mmdet(meta):
        return pth.dict({"meta": pth.dict(meta), "state_dict": weights})

    numbered = b"}(" + b"K\x00" + pth.text("a") + b"K\x01" + pth.text("b") + b"u"
    programs = {
        "mmdet 2.x": mmdet({"CLASSES": both}),
        "mmdet 3.x": mmdet({"dataset_meta": pth.dict({"classes": both})}),
        "mmengine 0.x": mmdet({"dataset_meta": pth.dict({"CLASSES": both})}),
        "yolov5 to 6.1": pth.dict({"model": module(both)}),
        "yolov5 from 6.2": pth.dict({"model": module(numbered)}),
        "the module alone": module(numbered),
        "DataParallel": wrapped(both),
    }
    for case, program in programs.items():
        file = torch_file.read(pth.write(tmp_path / "names.pt", program))
        assert list(file.tensors) == ["w"] and file.class_names == ("a", "b"), case
    numbers = {("5",): b"(K\x05t", ("a",): b"}K\x07" + pth.text("a") + b"s"}
    for expected, value in numbers.items():
        file = torch_file.read(pth.write(tmp_path / "some.pt", mmdet({"CLASSES": value})))
        assert file.class_names == expected
    beside = pth.dict({"weights": weights, "names": both})
    assert torch_file.read(pth.write(tmp_path / "x.pt", beside)).class_names == ("a", "b")
    for value in (b"N", b"]", b"K\x05"):
        file = torch_file.read(pth.write(tmp_path / "none.pt", mmdet({"CLASSES": value})))
        assert file.class_names is None


@pytest.mark.parametrize(
    "key, value",
    [
        ("categories", [{"id": 2, "name": "b"}, {"id": 1, "name": "a"}]),
        ("class_to_idx", {"b": 1, "a": 0}),
        ("idx_to_class", {1: "b", 0: "a"}),
        ("label_map", {1: "a", 2: "b"}),
        ("labels", ["a", "b"]),
        ("hyper_parameters", {"class_names": ["a", "b"], "lr": 0.1}),
    ],
)
def test_class_names_are_found_under_other_usual_keys(key, value, pth, tmp_path):
    path = pth.write_state_dict(tmp_path / "x.pt", {"w": ONE}, **{key: value})
    assert torch_file.read(path).class_names == ("a", "b")
    both = {key: value, "names": ["c", "d"]}
    path = pth.write_state_dict(tmp_path / "x.pt", {"w": ONE}, **both)
    assert torch_file.read(path).class_names == ("c", "d"), "the surest key wins"


@pytest.mark.parametrize(
    "value, kind", [("a,b", "str"), ([["a"], ["b"]], "list"), ((("a",),), "tuple")]
)
def test_names_in_an_unknown_form_are_told(value, kind, pth, tmp_path):
    file = torch_file.read(pth.write_state_dict(tmp_path / "x.pt", {"w": ONE}, classes=value))
    assert file.class_names is None
    assert file.notes == (
        f"its class names are a {kind} that is no list of names, so they are left out; give them"
        " with --names FILE",
    )


def test_names_that_cannot_be_read_are_told(pth, tmp_path):
    weights = pth.dict({"w": pth.tensor(ONE)})
    unordered = b"c__builtin__\nset\n](" + pth.text("a") + pth.text("b") + b"e\x85R"
    path = pth.write(tmp_path / "x.pt", pth.dict({"weights": weights, "names": unordered}))
    file = torch_file.read(path)
    assert file.class_names is None
    assert file.notes == (
        "its class names are a set that is no list of names, so they are left out; give them with"
        " --names FILE",
    )


def test_ema_that_is_absent_or_no_weights_leaves_the_model(pth, tmp_path):
    weights = pth.dict({"w": pth.tensor(ONE)})
    for ema in (b"N", b"G" + struct.pack(">d", 0.5), b"}", b"cmodels\nEma\n)\x81"):
        path = pth.write(tmp_path / "ema.pt", pth.dict({"ema": ema, "model": weights}))
        assert list(torch_file.read(path).tensors) == ["w"]


def test_meta_is_what_json_can_hold_however_large_or_shared(pth, tmp_path):
    entries = {
        "object": b"cnumpy\nfloat64\n)R",
        "long": b"\x8a\x10" + bytes(15) + b"\x01",  # 2^120
        "bytes": b"U\x02\xff\xff",
        "set": b"c__builtin__\nset\n](K\x03e\x85R",
        "numbers": b"}K\x05Ns",
        "shared": b")" + b"2\x86" * 200,  # 2^200 leaves
    }
    weights = pth.dict({"w": pth.tensor(ONE)})
    program = pth.dict({"state_dict": weights, **entries})
    meta = torch_file.read(pth.write(tmp_path / "meta.pth", program)).meta
    text = json.dumps(meta)
    assert len(text) < 1 << 20
    assert meta["object"] == "numpy.float64" and meta["long"] == "int"
    assert meta["set"] == [3] and meta["numbers"] == {"5": None}


def test_published_yolov5_is_read_completely_without_its_code(shared_dir):
    file = torch_file.read(shared_dir / "weights" / "yolov5n-v6.pt")
    tensors = file.tensors
    assert len(tensors) == 349 and file.meta["epoch"] == -1
    coco = (shared_dir / "weights" / "coco.names").read_text().split("\n")[:80]
    renamed = {"motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch"}
    renamed |= {"pottedplant": "potted plant", "diningtable": "dining table", "tvmonitor": "tv"}
    assert file.class_names == tuple(renamed.get(name, name) for name in coco)
    with np.load(shared_dir / "weights" / "yolov5n-v6.npz") as expected:
        assert tensors.keys() == set(expected)
        for name in expected:
            assert tensors[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(tensors[name], expected[name])


# ---- Malicious pickles.  Each would create the file `harm` if any of it were executed. ----


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
def test_malicious_pickle_is_refused_and_runs_nothing(pth, tmp_path, name):
    harm = tmp_path / "harm"
    attack = attacks(harm)[name]
    checkpoint = pth.dict({"state_dict": pth.dict({"w": pth.tensor(ONE)}), "x": attack})
    for program in (attack, pth.dict({"w": pth.tensor(ONE), "x": attack}), checkpoint):
        refused(pth.write(tmp_path / "evil.pth", program))
        assert not harm.exists()


def test_call_of_a_function_that_nobody_has_listed_becomes_text(pth, tmp_path):
    harm = tmp_path / "harm"
    attack = b"ctimeit\ntimeit\n" + text("") + text(f"open({str(harm)!r}, 'w')") + b"\x86R"
    pickle.loads(b"\x80\x02" + attack + b".")
    harm.unlink()  # created by Python's own unpickler
    program = pth.dict({"state_dict": pth.dict({"w": pth.tensor(ONE)}), "x": attack})
    assert torch_file.read(pth.write(tmp_path / "evil.pth", program)).meta == {"x": "timeit.timeit"}
    assert not harm.exists()


def test_legacy_stream_with_a_malicious_pickle_runs_nothing(tmp_path):
    harm = tmp_path / "harm"
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Evil(os.system, f"touch {harm}"), 2))
    assert "asks for posix.system" in refused(path)
    path.write_bytes(pickle.dumps([1, 2], 2))
    assert "not one that torch.save wrote" in refused(path)
    assert not harm.exists()


def test_storage_key_that_leaves_the_archive_is_only_a_missing_member(pth, tmp_path):
    program = pth.dict({"w": pth.tensor(ONE, key="../../../etc/passwd")})
    pth.storages.clear()
    assert "has no member" in refused(pth.write(tmp_path / "traversal.pth", program))


# ---- Bombs: small files that claim to be huge or would become huge. ----


BOMBS = {
    "memo index": b"]r\xff\xff\xff\xff.",
    "bytes": b"\x8e" + struct.pack("<Q", 1 << 60) + b"x",
    "bytearray": b"\x96" + struct.pack("<Q", 1 << 40) + b"x",
    "long": b"\x8b" + struct.pack("<i", (1 << 31) - 1) + b"x",
    "negative length": b"\x8b" + struct.pack("<i", -1) + b"x",
    "frame": b"\x95" + struct.pack("<Q", 1 << 60) + b"N",
    # ((((), ()), ((), ())), ...): 2^200 leaves, and hashing visits them all.
    "hash": b"})" + b"2\x86" * 200 + b"Ns",
    # Integers with the same hash: each is compared with all before it.
    "hash collisions": b"}("
    + b"".join(
        b"\x8a\x0b" + (i * ((1 << 61) - 1)).to_bytes(11, "little") + b"N" for i in range(1, 100_000)
    )
    + b"u",
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
    start = time.process_time()
    refused(path)
    # Seconds; each needs hours or terabytes when run naively.
    assert time.process_time() - start < 5


SAME_HASH = (1 << 61) - 1  # integers that differ by it have the same hash, as do some tuples


@pytest.mark.parametrize(
    "program, message",
    [
        (b"}K\x01K\x02\x86Ns", "uses a tuple as a key"),
        (b"(K\x01K\x02\x86\x91", "uses a tuple as a key"),
        (b"](p%d\nK\x01e" % SAME_HASH, "impossible memo index"),
        (b"](p-%d\nK\x01e" % SAME_HASH, "impossible memo index"),
        (b"]p%d\n" % (1 << 32), "impossible memo index"),
    ],
)
def test_keys_whose_hashes_a_file_can_choose_are_refused(pth, tmp_path, program, message):
    assert message in refused(pth.write(tmp_path / "bomb.pth", program))


def test_names_that_were_not_imported_may_be_keys(pth, tmp_path):
    program = pth.dict({"state_dict": pth.dict({"w": pth.tensor(ONE)}), "x": b"}cm\nC\nK\x05s"})
    torch_file.read(pth.write(tmp_path / "names.pth", program))


def test_number_of_operations_is_bounded(pth, tmp_path, monkeypatch):
    path = pth.write(tmp_path / "sets.pth", b"(" + b"\x8f" * 1000 + b"t")  # 232 bytes each
    assert "holds a tuple" in refused(path)
    monkeypatch.setattr(pickle_machine, "_MAX_OPCODES", 1000)
    assert "more than 1000 operations" in refused(path)


def test_bound_of_operations_is_far_above_a_published_file(shared_dir):
    with zipfile.ZipFile(shared_dir / "weights" / "yolov5n-v6.pt") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        count = sum(1 for _ in pickletools.genops(archive.read(name)))
    assert 30_000 < count < pickle_machine._MAX_OPCODES / 50


def test_attack_is_told_from_a_name_that_only_resembles_one(pth, tmp_path):
    weights = pth.dict({"w": pth.tensor(ONE)})

    def path(module, attribute):
        name = text(module) + text(attribute) + b"\x93)R"
        return pth.write(tmp_path / "x.pth", pth.dict({"state_dict": weights, "x": name}))

    for names in (("mypkg.os", "Thing"), ("net.sys", "Block"), ("mypkg", "socket"), ("m", "eval")):
        assert torch_file.read(path(*names)).meta == {"x": ".".join(names)}
    for names in (("os.path", "join"), ("m", "os.system"), ("m", "a.sys.exit"), ("sys", "exit")):
        assert f"asks for {'.'.join(names)}" in refused(path(*names))


@pytest.mark.parametrize("kind", ["_parameters", "_buffers", "_modules"])
@pytest.mark.parametrize("value", ["tensor", "none"])
def test_modules_that_share_their_entries_do_not_grow_without_end(pth, tmp_path, kind, value):
    # A thousand children with the same thousand entries, in 22 kB.
    names = [str(i) for i in range(1000)]
    entries = pth.dict(dict.fromkeys(names, b"h\x00" if value == "tensor" else b"N"))
    child = b"cm\nM\n)\x81" + pth.dict({"_modules": b"}", kind: entries}) + b"b"
    children = pth.dict(dict.fromkeys(names, b"h\x01"))
    program = pth.tensor(ONE) + b"q\x000" + child + b"q\x010"
    program += b"cm\nM\n)\x81" + pth.dict({"_modules": children}) + b"b"
    path = pth.write(tmp_path / "modules.pt", program)
    tracemalloc.start()
    try:
        assert "too many or too deeply nested" in refused(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 << 20  # bytes; a million names take 150 MB


def test_text_that_is_shown_without_end_is_refused(pth, tmp_path):
    long = pth.text("x" * (1 << 20)) + b"q\x00"
    for shown in (b"(" + b"h\x00" * 40 + b"t", b"(" + b"}h\x00Ns" * 40 + b"t"):
        weights = pth.dict({"w": pth.tensor(ONE)})
        program = pth.dict({"state_dict": weights, "a": long, "b": shown})
        assert "too long" in refused(pth.write(tmp_path / "meta.pth", program))


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
    assert "too many or too deeply nested" in refused(path)
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
    # Within the allowance, but beyond the end of the storage.
    pth.write(path, pth.dict({"w": pth.tensor(ONE, size=(2,), strides=(1,))}))
    assert "extends beyond its storage" in refused(path)


def test_compressed_members_are_refused_unread(pth, tmp_path):
    pth.storages["0"] = bytes(100 << 20)
    path = pth.write(tmp_path / "bomb.pth", b"N", zipfile.ZIP_DEFLATED)
    assert "is compressed" in refused(path)


def test_member_that_claims_more_than_the_file_is_refused_unread(pth, tmp_path):
    tensor = pth.tensor(np.ones(1111, np.float32))
    path = pth.write(tmp_path / "bomb.pth", pth.dict({"w": tensor}))
    sizes = struct.pack("<II", 4444, 4444)  # in the archive: compressed, uncompressed
    data = path.read_bytes()
    assert data.count(sizes) == 2  # before the member, and in the directory
    path.write_bytes(data.replace(sizes, struct.pack("<II", 4444, 1 << 31)))
    assert "claims 2147483648 bytes" in refused(path)


def test_many_names_of_one_storage_are_refused_beyond_the_allowance(pth, tmp_path):
    tensor = pth.tensor(np.ones(1 << 18, np.float32), key="0")  # 1 MiB, shown 100 times
    path = pth.write(tmp_path / "views.pth", pth.dict({f"w{i}": tensor for i in range(100)}))
    assert "declares tensors of" in refused(path)


@pytest.mark.parametrize(
    "rebuild, message",
    [
        (b"\x89N" + b"}X\x04\x00\x00\x00conj\x88s", "lazily conjugated"),
        (None, "not a tensor of a known kind"),
    ],
)
def test_tensors_whose_values_are_not_in_their_storage_are_refused(pth, tmp_path, rebuild, message):
    program = pth.tensor(ONE)
    if rebuild:
        program = program.replace(b"\x89ccollections\nOrderedDict\n)R", rebuild)
    else:
        program = program.replace(b"_rebuild_tensor_v2", b"_rebuild_sparse_tensor")
    for entries in (
        pth.dict({"w": program}),
        b"cm\nM\n)\x81"
        + pth.dict({"_modules": b"}", "_parameters": pth.dict({"w": program})})
        + b"b",
    ):
        assert message in refused(pth.write(tmp_path / "lazy.pth", entries))


def test_storage_of_an_unknown_type_is_named(pth, tmp_path):
    program = pth.dict({"w": pth.tensor(ONE).replace(b"FloatStorage", b"QInt8Storage")})
    assert "torch.QInt8Storage are not supported" in refused(pth.write(tmp_path / "q.pth", program))


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


# ---- The writer. ----


def test_written_state_dict_is_read_back_in_order(tmp_path):
    rng = np.random.default_rng(3)
    tensors = {
        "z.weight": rng.normal(size=(2, 3, 4)).astype(np.float32),
        "transposed": rng.normal(size=(3, 4)).T,
        "broadcast": np.broadcast_to(np.float16(3), (2, 2)),
        "reversed": np.arange(4, dtype=np.int16)[::-1],
        "big-endian": np.arange(3, dtype=">f4"),
        "scalar": np.array(5),
        "empty": np.zeros((3, 0, 2), np.int32),
        "bfloat16": np.ones(2, ml_dtypes.bfloat16),
        "bool": np.array([True, False]),
        "complex": np.array([1 + 2j]),
        "uint8": np.arange(3, dtype=np.uint8),
    }
    path, again = tmp_path / "out.pth", tmp_path / "again.pth"
    torch_writer.write(path, tensors)
    torch_writer.write(again, tensors)
    assert path.read_bytes() == again.read_bytes()
    file = torch_file.read(path)
    assert list(file.tensors) == list(tensors)
    for name, array in tensors.items():
        assert file.tensors[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(file.tensors[name], array)


def test_written_file_has_the_bytes_that_pytorch_was_seen_to_load(tmp_path):
    # PyTorch 2.13 read this very file with torch.load(weights_only=True), also with mmap=True.
    path = tmp_path / "out.pth"
    torch_writer.write(path, {"w": np.arange(6, dtype=np.float32).reshape(2, 3)})
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] == "0adfc4de0fa9d8b9"


def test_types_that_the_format_cannot_name_are_refused_before_writing(tmp_path):
    for array in (np.array("text"), np.array([None]), np.zeros(1, np.uint16)):
        with pytest.raises(ValueError, match="^w has type"):
            torch_writer.write(tmp_path / "out.pth", {"w": array})
    assert not (tmp_path / "out.pth").exists()
