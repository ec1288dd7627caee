"""Text files of other programs."""

import pytest

from detlab import text

WORDS = "ein Käfer\r\n船\n"


@pytest.mark.parametrize(
    "data",
    [
        WORDS.encode(),
        WORDS.encode("utf-8-sig"),
        WORDS.encode("utf-16"),
        b"\xfe\xff" + WORDS.encode("utf-16-be"),
        WORDS.encode("utf-16-le"),
        WORDS.encode("utf-16-be"),
        WORDS.encode("utf-32"),
        WORDS.encode("utf-32-le"),
        b"\x00\x00\xfe\xff" + WORDS.encode("utf-32-be"),
    ],
    ids=lambda data: data[:4].hex(),
)
def test_marks_and_zero_bytes_give_the_encoding(data, tmp_path):
    assert text.decode(data) == WORDS
    (tmp_path / "file").write_bytes(data)
    assert text.read(tmp_path / "file") == WORDS


def test_a_declared_encoding_is_read_and_a_mark_wins():
    assert text.decode("船".encode("gb2312"), "gb2312") == "船"
    assert text.decode("é".encode("cp1252"), "windows-1252") == "é"
    assert text.decode("船".encode("utf-8-sig"), "gb2312") == "船"


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\xff\xfe"])
def test_empty_files_are_empty_text(data):
    assert text.decode(data) == ""


@pytest.mark.parametrize(
    "data, declared, sentence",
    [
        ("a\né".encode("cp1252"), None, "is not UTF-8 text (byte 0xE9 in line 2); save it"),
        (b"\xff\xfea\x00\x00\xd8", None, "is not UTF-16 text (byte 0x00 in line 1); save it"),
        (b"a\xff", "gb2312", "is not GB2312 text (byte 0xFF in line 1); save it as UTF-8"),
        (b"a", "klingon", "has the unknown encoding 'klingon'; save it as UTF-8"),
        (b"ab\x00c\x01", None, "is not text (it has zero bytes); give a text file"),
        (b"\0\0\0\0\x02\0\0\0\x80\x3f", None, "is not text (it has zero bytes); give a text file"),
        (b"\x89PNG\r\n\x1a\n\0\0", None, "is not text (it has zero bytes); give a text file"),
        (b"version https://git-lfs.github.com/spec/v1\n", None, "is a Git LFS pointer, not the"),
        (b"\x1f\x8b\x08", None, "is compressed by gzip; unpack it"),
        (b"PK\x03\x04", None, "is a zip archive; unpack it"),
    ],
)
def test_what_is_no_text_is_said_with_the_remedy(data, declared, sentence):
    with pytest.raises(ValueError) as error:
        text.decode(data, declared)
    assert str(error.value).startswith(sentence)
