"""Class names in the forms in which people store them."""

import io
import pickle
import time

import numpy as np
import pytest

from detlab import errors
from detlab.converters.readers import class_names, pickle_machine


@pytest.mark.parametrize(
    "value, names",
    [
        (["cat", "dog"], ("cat", "dog")),
        (("cat",), ("cat",)),
        ([0, 1, 10], ("0", "1", "10")),
        ([1.5, 2], ("1.5", "2")),
        ([False, True], ("False", "True")),  # no and yes in YAML
        (["cat", None], ("cat", "None")),  # null in YAML
        (["Käfer", "船"], ("Käfer", "船")),
        ([b"cat", "Käfer".encode(), b"caf\xe9"], ("cat", "Käfer", "café")),
        ({0: "cat", 1: "dog"}, ("cat", "dog")),
        ({1: "dog", 0: "cat"}, ("cat", "dog")),
        ({"0": "cat", "1": "dog"}, ("cat", "dog")),
        ({str(i): f"c{i}" for i in (10, 9, 2, 1)}, ("c1", "c2", "c9", "c10")),
        ({1: "cat", 2: "dog"}, ("cat", "dog")),
        ({0.0: "cat", 1.0: "dog"}, ("cat", "dog")),
        ({7: "cat"}, ("cat",)),
        ({"dog": 1, "cat": 0}, ("cat", "dog")),
        ({0: 5, 1: 7}, ("5", "7")),
        ([{"id": 2, "name": "dog"}, {"id": 1, "name": "cat"}], ("cat", "dog")),  # COCO
        ([{"name": "dog"}, {"name": "cat"}], ("dog", "cat")),
        ([{"id": 1, "name": ["cat"]}], None),
        ([{"id": 1}], None),
        ({"a": "cat", "b": "dog"}, None),  # no order
        ({"a": 0, "b": 0}, None),
        ({"cat", "dog"}, None),
        ([["cat"]], None),
        ([1 << 80], None),
        (80, None),
        ("cat", None),
        ([], None),
        ({}, None),
        (None, None),
    ],
)
def test_names_are_text_in_the_order_of_their_numbers(value, names):
    assert class_names.of(value) == names


def through_pickle(value, protocol):
    """What the reader of PyTorch's files makes of a value."""
    return pickle_machine.Machine(io.BytesIO(pickle.dumps(value, protocol))).run()


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    "value, names",
    [
        (np.array(["cat", "Käfer"]), ("cat", "Käfer")),
        (np.array([b"cat", b"dogs"]), ("cat", "dogs")),
        (np.array(["cat", "dog"], object), ("cat", "dog")),
        (np.array(["cat", "dog"]).astype(">U5"), ("cat", "dog")),
        (np.array([3, 4]), ("3", "4")),
        (np.array([0.5], np.float32), ("0.5",)),
        ([np.str_("cat"), np.str_("dog")], ("cat", "dog")),
        ([np.int64(3), np.uint8(4), np.bool_(True)], ("3", "4", "True")),
        ({np.int64(1): "dog", np.int64(0): "cat"}, ("cat", "dog")),
        ({0: np.str_("cat")}, ("cat",)),
        ([b"cat", b"\xff"], ("cat", "ÿ")),
        (np.array([["cat"]]), None),
        (np.array(["2020-01-01"], "datetime64[D]"), None),
    ],
)
def test_numpys_text_and_numbers_are_read_without_numpys_code(value, names, protocol):
    assert class_names.of(through_pickle(value, protocol)) == names


def test_sizes_that_an_array_does_not_have_are_no_names():
    array = through_pickle(np.array(["cat", "dog"]), 2)
    version, _, *rest = array.state
    array.state = (version, (1 << 40,), *rest)
    assert class_names.of(array) is None
    array.state = (version, (-2,), *rest)
    assert class_names.of(array) is None


def test_names_that_a_file_repeats_or_makes_slow_to_hash_take_no_time():
    nested = ()
    for _ in range(200):
        nested = (nested, nested)
    start = time.process_time()
    assert class_names.of([nested]) is None
    assert len(class_names.of(["x" * 1000] * 1_000_000)) == 1_000_000
    assert class_names.of([i * ((1 << 61) - 1) for i in range(1, 50_000)]) is None
    assert time.process_time() - start < 5


WORDS = "Käfer\r\ntraffic light  \r\n\r\n船\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        WORDS.encode(),
        WORDS.encode("utf-8-sig"),
        WORDS.encode("utf-16"),
        WORDS.encode("utf-16-be"),
        WORDS.replace("\r\n", "\n").encode(),
        WORDS.replace("\r\n", "\r").encode(),
        WORDS.strip().encode(),
    ],
    ids=["utf-8", "mark", "utf-16", "utf-16-be", "lf", "cr", "no last line"],
)
def test_a_text_file_of_names_is_read_in_any_unicode(tmp_path, data):
    (tmp_path / "my.names").write_bytes(data)
    assert class_names.read(tmp_path / "my.names", 3) == ("Käfer", "traffic light", "船")


@pytest.mark.parametrize(
    "data, sentence",
    [
        (
            "cat\ncafé\n".encode("cp1252"),
            "--names {path} is not UTF-8 text (byte 0xE9 in line 2); save it as UTF-8.",
        ),
        (
            b"cat\n",
            "--names {path} has 1 names, but the network has 2 classes; give one name per line.",
        ),
        (
            b"classes = 2\ntrain = train.txt\nnames = data/obj.names\n",
            "--names {path} describes a data set (names = data/obj.names); give a text file with"
            " one name per line.",
        ),
        (
            b"nc: 2\nval: x\nnames: [cat, dog]\n",
            "--names {path} describes a data set (names: [cat, dog]); give a text file with one"
            " name per line.",
        ),
        (None, "--names {path} cannot be read: No such file or directory."),
    ],
)
def test_files_without_the_names_are_one_sentence(tmp_path, data, sentence):
    path = tmp_path / "my.names"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(errors.UserError) as info:
        class_names.read(path, 2)
    assert str(info.value) == sentence.format(path=path)
