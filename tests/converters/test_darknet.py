"""`.weights` files are read and written byte for byte; damaged and foreign ones are rejected."""

import json
import struct
import time
import tracemalloc
import types

import numpy as np
import pytest

from detlab.converters import mapping
from detlab.converters.readers import darknet
from detlab.darknet import cfg as darknet_cfg

HEADER = struct.pack("<3iQ", 0, 2, 5, 64)
NET = "[net]\nwidth=16\nheight=16\nchannels=4\n"
# Layers 0, 1, 3 and 5 have weights, of 2 + 3 * 2 + 4, 4 * 4 + 2, 4 + 36 and 7 + 42 values.
SMALL = darknet_cfg.parse(
    NET
    + "[convolutional]\nbatch_normalize=1\nfilters=2\ngroups=2\nactivation=mish\n"
    + "[convolutional]\nbatch_normalize=1\nfilters=2\nsize=1\nactivation=leaky\n"
    + "[route]\nlayers=-1\ngroups=2\ngroup_id=1\n"
    + "[convolutional]\nfilters=4\nsize=3\npad=1\nactivation=linear\n"
    + "[route]\nlayers=-1,-3\n"
    + "[convolutional]\nfilters=7\nactivation=linear\n"
    + "[yolo]\nanchors=4,4\nclasses=2\n",
    "small.cfg",
)
SIZES = {"0": 12, "1": 12, "3": 40, "5": 49}
CFGS = ["yolov3", "yolov3-tiny", "yolov4", "yolov4-tiny", "yolo-fastest-1.1"]
CFGS += ["yolov3-spp", "yolov3-tiny-prn", "csresnext50-panet-spp", "mixed"]
CFGS += ["yolov4-csp", "yolov4x-mish", "yolov7-tiny"]
CFGS += ["yolov2", "yolov2-tiny", "gaussian-yolov3"]


def file_bytes(seed=0):
    """A complete file of SMALL with values like a network's; the variances are positive."""
    values = np.random.default_rng(seed).uniform(0.5, 1.5, sum(SIZES.values()))
    return HEADER + values.astype("<f4").tobytes()


def refused(path, network=SMALL, **options):
    """The message of the error: one sentence that names the file."""
    with pytest.raises(darknet.DarknetError) as info:
        darknet.read(path, network, **options)
    message = str(info.value)
    assert message.startswith(f"{path}: ") and message.endswith(".") and "\n" not in message
    return message


@pytest.fixture
def path(tmp_path):
    return tmp_path / "small.weights"


# ---- The order of the values, and the header. ----


def test_values_come_in_darknets_order(path):
    network = darknet_cfg.parse(
        NET
        + "[convolutional]\nbatch_normalize=1\nfilters=2\ngroups=2\n"
        + "[dropout]\n"
        + "[convolutional]\nfilters=1\nsize=2\n"
    )
    path.write_bytes(HEADER + np.arange(12 + 9, dtype="<f4").tobytes())
    tensors = darknet.read(path, network).tensors
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "0.bias": [0, 1],
        "0.scale": [2, 3],
        "0.mean": [4, 5],
        "0.var": [6, 7],
        "0.weight": [[[[8]], [[9]]], [[[10]], [[11]]]],
        "2.bias": [12],
        "2.weight": [[[[13, 14], [15, 16]], [[17, 18], [19, 20]]]],
    }
    assert list(tensors)[:5] == ["0.bias", "0.scale", "0.mean", "0.var", "0.weight"]


def test_shared_layers_have_no_values_and_weighted_shortcuts_have_theirs_at_their_place(path):
    network = darknet_cfg.parse(
        NET
        + "[convolutional]\nfilters=4\n"
        + "[convolutional]\nfilters=4\nshare_index=0\n"
        + "[shortcut]\nfrom=0\nweights_type=per_channel\n"
        + "[shortcut]\nfrom=0,1\nweights_type=per_feature\n"
        + "[shortcut]\nfrom=0\nweights_normalization=relu\n"
        + "[convolutional]\nfilters=1\n"
    )
    data = HEADER + np.arange(20 + 8 + 3 + 5, dtype="<f4").tobytes()
    path.write_bytes(data)
    weights = darknet.read(path, network)
    assert list(weights.tensors) == ["0.bias", "0.weight", "2.weight", "3.weight", "5.bias"] + [
        "5.weight"
    ]
    assert weights.tensors["2.weight"].tolist() == [[20, 21, 22, 23], [24, 25, 26, 27]]
    assert weights.tensors["3.weight"].tolist() == [28, 29, 30]
    darknet.write(path.with_name("copy.weights"), network, weights)
    assert path.with_name("copy.weights").read_bytes() == data


def test_tensors_are_read_only_views_of_one_buffer(path):
    path.write_bytes(file_bytes())
    tensors = list(darknet.read(path, SMALL).tensors.values())
    assert all(tensor.dtype == np.float32 and not tensor.flags.writeable for tensor in tensors)
    step = tensors[1].__array_interface__["data"][0] - tensors[0].__array_interface__["data"][0]
    assert step == tensors[0].nbytes


@pytest.mark.parametrize(
    "version, seen_format, seen",
    [
        ((0, 1, 0), "<I", 4_000_000_000),
        ((0, 0, 7), "<I", 3),
        ((0, 2, 0), "<Q", 2**40),
        ((0, 2, 5), "<Q", 32_013_312),
        ((1, 0, 0), "<Q", 5),
    ],
)
def test_images_seen_have_64_bits_from_version_0_2_on(path, version, seen_format, seen):
    data = struct.pack("<3i", *version) + struct.pack(seen_format, seen) + file_bytes()[20:]
    path.write_bytes(data)
    weights = darknet.read(path, SMALL)
    assert weights.header == (*version, seen)
    copy = path.with_name("copy.weights")
    darknet.write(copy, SMALL, weights)
    assert copy.read_bytes() == data


def test_counts_of_values_follow_from_the_cfg():
    assert darknet.num_floats(SMALL) == sum(SIZES.values())
    assert [darknet.num_floats(SMALL, n) for n in range(1, 8)] == [12, 24, 24, 64, 64, 113, 113]
    shapes = darknet.tensor_shapes(SMALL)
    assert shapes["0.weight"] == (2, 2, 1, 1)  # groups: half of the four channels
    assert shapes["3.weight"] == (4, 1, 3, 3)  # after a route with groups
    assert shapes["5.weight"] == (7, 6, 1, 1)  # after a route of two layers


# ---- Published files. ----


@pytest.mark.parametrize("name", CFGS)
def test_published_networks_have_the_recorded_number_of_values(shared_dir, name):
    folder = shared_dir / "parity" / "yolo"
    network = darknet_cfg.read(folder / f"{name}.cfg")
    recorded = json.loads((folder / f"{name}.json").read_text())
    size = recorded.get("weights_bytes", 1_384_268)  # the published file of yolo-fastest
    assert 20 + 4 * darknet.num_floats(network) == size


@pytest.mark.parametrize(
    "name, layers, size", [("yolov3", 74, 162_482_580), ("yolov4", 137, 170_038_676)]
)
def test_published_cut_off_files_have_the_size_of_their_first_layers(
    shared_dir, name, layers, size
):
    network = darknet_cfg.read(shared_dir / "parity" / "yolo" / f"{name}.cfg")
    assert 20 + 4 * darknet.num_floats(network, layers) == size


def test_published_file_is_read_completely_and_comes_back_byte_for_byte(shared_dir, tmp_path):
    source = shared_dir / "weights" / "yolo-fastest-1.1.weights"
    network = darknet_cfg.read(source.with_suffix(".cfg"))
    weights = darknet.read(source, network)
    assert weights.header == (0, 2, 5, 14_231_680)
    assert sum(tensor.size for tensor in weights.tensors.values()) == 346_062
    convolutions = [x for x in network.layers if isinstance(x, darknet_cfg.Convolutional)]
    assert len(weights.tensors) == sum(5 if x.batch_normalize else 2 for x in convolutions) == 414
    assert min(tensor.min() for n, tensor in weights.tensors.items() if n.endswith(".var")) > 0
    darknet.write(tmp_path / "copy.weights", network, weights)
    assert (tmp_path / "copy.weights").read_bytes() == source.read_bytes()


# ---- Cut-off files. ----


@pytest.mark.parametrize("layers, values", [(1, 12), (2, 24), (3, 24), (4, 64), (7, 113)])
def test_name_of_a_cut_off_file_says_how_many_layers_it_holds(tmp_path, path, layers, values):
    path.write_bytes(file_bytes())
    whole = darknet.read(path, SMALL)
    cut_off = tmp_path / f"small.conv.{layers}"
    darknet.write(cut_off, SMALL, whole)
    assert cut_off.read_bytes() == file_bytes()[: 20 + 4 * values]
    tensors = darknet.read(cut_off, SMALL).tensors
    assert list(tensors) == list(whole.tensors)[: len(tensors)]
    assert all(int(name.split(".")[0]) < layers for name in tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, whole.tensors[name])


def test_cut_off_file_of_another_name_is_read_on_request_and_recognised_without(path):
    path.write_bytes(file_bytes()[: 20 + 4 * 64])
    tensors = darknet.read(path, SMALL, first_layers=4).tensors
    assert list(tensors)[-1] == "3.weight" and len(tensors) == 12
    message = refused(path)
    assert "have 113 values, but the file holds 64: 49 are missing" in message
    assert "its values fit the first 4 layers (first_layers=4)" in message


def test_missing_and_left_over_values_are_counted(tmp_path, path):
    path.write_bytes(file_bytes()[:-8])
    assert refused(path).endswith(
        "have 113 values, but the file holds 111: 2 are missing, so it is cut short or belongs to"
        " another cfg."
    )
    path.write_bytes(file_bytes() + bytes(12))
    assert refused(path).endswith(
        "the file holds 116: 3 are left over, so it belongs to another cfg."
    )
    path.write_bytes(file_bytes() + b"x")
    assert "holds 113 and 1 bytes of another" in refused(path)
    named = tmp_path / "small.conv.2"
    named.write_bytes(file_bytes())
    message = refused(named)
    assert "the first 2 of 7 layers of small.cfg have 24 values" in message
    assert message.endswith(
        "the file holds 113: 89 are left over; it is a whole file of small.cfg, which is read if"
        " its name does not end in .conv.2."
    )
    named.write_bytes(file_bytes()[: 20 + 4 * 64])
    assert "its values fit the first 4 layers (first_layers=4)" in refused(named)


@pytest.mark.parametrize("layers", [0, 8, -1])
def test_more_layers_than_the_cfg_has_cannot_be_asked_for(path, layers):
    path.write_bytes(file_bytes())
    message = refused(path, first_layers=layers)
    assert f"the first {layers} layers were requested, but small.cfg has 7" in message


# ---- Writing. ----


def test_tensors_of_a_conversion_table_fill_a_file_again(path):
    path.write_bytes(file_bytes())
    weights = darknet.read(path, SMALL)
    rules = (
        mapping.Rule(r"([0-9]+)\.weight", r"params/layer\1/kernel", ("conv_oihw_to_hwio",)),
        mapping.Rule(r"([0-9]+)\.(bias|scale|mean|var)", r"params/layer\1/\2"),
    )
    table = mapping.Table("small", ("params",), rules, ())
    shapes = {
        f"params/layer{name.replace('.weight', '/kernel').replace('.', '/')}": (
            (shape[2], shape[3], shape[1], shape[0]) if len(shape) == 4 else shape
        )
        for name, shape in darknet.tensor_shapes(SMALL).items()
    }
    tree, _ = mapping.convert(weights.tensors, table, shapes)
    assert tree["params"]["layer3"]["kernel"].shape == (3, 3, 1, 4)
    back = mapping.reverse(tree, table)
    copy = path.with_name("copy.weights")
    darknet.write(copy, SMALL, darknet.Weights(weights.header, back))
    assert copy.read_bytes() == file_bytes()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"5.weight": None}, "the tensor 5.weight of small.cfg is missing"),
        ({"4.weight": np.ones(3)}, "no place for the tensor '4.weight'"),
        ({"5.bias": np.ones(8)}, "5.bias has shape (8,), but small.cfg needs (7,)"),
        ({"5.bias": np.full(7, np.nan)}, "5.bias holds values that are not finite"),
        ({"5.bias": np.full(7, 1e39)}, "5.bias holds values that are not finite"),
        ({"1.var": np.full(2, -1e-9)}, "1.var holds variances below 0"),
    ],
)
def test_tensors_that_make_no_file_are_refused_before_it_is_touched(path, change, message):
    path.write_bytes(file_bytes())
    header, tensors = darknet.read(path, SMALL)
    tensors = {n: t for n, t in (tensors | change).items() if t is not None}
    with pytest.raises(darknet.DarknetError, match=str(path)) as info:
        darknet.write(path, SMALL, darknet.Weights(header, tensors))
    assert message in str(info.value)
    assert path.read_bytes() == file_bytes()


def test_headers_and_places_that_cannot_be_written_are_refused(tmp_path, path):
    path.write_bytes(file_bytes())
    weights = darknet.read(path, SMALL)
    for header in (darknet.Header(seen=-1), darknet.Header(0, 1, 0, 2**32)):
        with pytest.raises(darknet.DarknetError, match="does not fit into a file"):
            darknet.write(path, SMALL, weights._replace(header=header))
    with pytest.raises(darknet.DarknetError, match="a version that darknet never writes"):
        darknet.write(path, SMALL, weights._replace(header=darknet.Header(major=1000)))
    with pytest.raises(darknet.DarknetError, match="cannot be written"):
        darknet.write(tmp_path / "absent" / "x.weights", SMALL, weights)


# ---- Files that are something else, or broken. ----


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "empty: 0 of the 16 or 20 bytes of a header"),
        (HEADER[:9], "cut short: 9 of the 16 or 20 bytes of a header"),
        (HEADER[:17], "cut short: 17 of the 20 bytes of a header"),
        (HEADER, "holds 0: 113 are missing"),
        (b"[net]\nwidth=32\nheight=32\n", "a text file"),
        (b"<!DOCTYPE html><html>404", "a text file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a text file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "does not start with a darknet version"),
        (b"PK\x03\x04" + bytes(99), "does not start with a darknet version"),
        (struct.pack("<3i", 0, -1, 0) + bytes(99), "does not start with a darknet version"),
        (HEADER + np.full(113, np.inf, "<f4").tobytes(), "0.bias holds values that are not finite"),
        (HEADER + np.full(113, -1, "<f4").tobytes(), "0.var holds variances below 0"),
    ],
)
def test_other_files_are_refused_by_what_is_wrong_with_them(path, data, message):
    path.write_bytes(data)
    assert message in refused(path)


def test_random_values_behind_a_true_header_are_refused(path):
    network = darknet_cfg.parse(NET + "[convolutional]\nfilters=256\nsize=3\npad=1\n")
    # One exponent in 256 means "not finite", so 9472 values are all finite once in 1e16 files.
    path.write_bytes(HEADER + np.random.default_rng(5).bytes(4 * darknet.num_floats(network)))
    assert "not finite" in refused(path, network)


def test_missing_files_and_folders_are_named(tmp_path):
    assert "No such file" in refused(tmp_path / "absent.weights")
    assert "directory" in refused(tmp_path)


def test_file_that_is_cut_short_anywhere_is_refused(path):
    data = file_bytes()
    for length in range(0, len(data)):
        path.write_bytes(data[:length])
        refused(path)


@pytest.mark.parametrize("missing", [3, 8])
def test_file_that_shrinks_while_it_is_read_is_refused(path, monkeypatch, missing):
    path.write_bytes(file_bytes()[:-missing])
    before = types.SimpleNamespace(st_size=len(file_bytes()))
    monkeypatch.setattr(darknet.os, "fstat", lambda _: before)
    assert "damaged darknet .weights file (ValueError" in refused(path)


@pytest.fixture
def peak_memory():
    """`peak_memory()` -> the most bytes that Python and NumPy have held since the test started."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def test_cfg_that_claims_terabytes_allocates_none_of_them(path, peak_memory):
    huge = darknet_cfg.parse(NET + "[convolutional]\nfilters=1048576\nsize=9\npad=1\n" * 2)
    path.write_bytes(file_bytes())
    assert "have 89060783685632 values" in refused(path, huge)
    assert peak_memory() < 1 << 20  # bytes


def mutated(data, rng):
    """`data` with bytes changed, removed, doubled, or four of them replaced by extreme values."""
    data = bytearray(data)
    extremes = [0, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800000, 0xFF800000, 0x80000000, 0x7FC00000]
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(24 if rng.integers(2) else len(data)))  # half of them in the header
        length = int(rng.integers(1, 64))
        match rng.integers(6):
            case 0 | 1 | 2:
                data[at % len(data)] = rng.integers(256)
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = data[at : at + length]
            case 5:
                data[at : at + 4] = struct.pack("<I", rng.choice(extremes))
        data = data or bytearray(1)
    return bytes(data)


def test_mutated_files_raise_nothing_but_the_readers_own_error(path, peak_memory):
    seed, rounds, refusals = 37, 2400, 0
    rng = np.random.default_rng(seed)
    copy = path.with_name("copy.weights")
    whole = file_bytes()
    start = time.monotonic()
    for i in range(rounds):
        data = mutated(whole, rng)
        path.write_bytes(data)
        try:
            weights = darknet.read(path, SMALL)
        except darknet.DarknetError as error:
            refusals += 1
            assert str(path) in str(error) and len(str(error)) < 1000, f"seed {seed}, round {i}"
        else:
            darknet.write(copy, SMALL, weights)
            assert copy.read_bytes() == data, f"seed {seed}, round {i}"
    seconds = time.monotonic() - start
    assert 0.5 * rounds < refusals < 0.95 * rounds, f"seed {seed}: too harmless or too fatal"
    assert seconds < 60  # for all rounds; about 3 on one core
    assert peak_memory() < 4 << 20  # bytes
