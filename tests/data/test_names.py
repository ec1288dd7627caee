"""Names in lists find their files although other programs spell them otherwise."""

import os
import unicodedata

import pytest

from detlab import files as files_lib
from detlab.data import names

NFC = "café 猫 ガ"
NFD = unicodedata.normalize("NFD", NFC)


def make(folder, *files):
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return names.Files(folder)


@pytest.mark.parametrize(
    "listed, file",
    [
        ("a\\p0.jpg", "a/p0.jpg"),
        (".\\a\\p0.jpg", "a/p0.jpg"),
        ("C:\\data\\images\\a\\p0.jpg", "a/p0.jpg"),
        ("/home/me/images/a/p0.jpg", "a/p0.jpg"),
        ("images/p0.jpg", "p0.jpg"),
        ("./p0.jpg ", "p0.jpg"),
        ("p0.JPG", "p0.jpg"),
        ("A/P0.jpg", "a/p0.JPG"),
        ("my%20photo.jpg", "my photo.jpg"),
        (f"{NFC}.jpg", f"{NFD}.jpg"),
        (f"{NFD}.jpg", f"{NFC}.jpg"),
        (f"x\\{NFD}\\p.JPG", f"{NFC}/p.jpg"),
    ],
)
def test_another_spelling_finds_the_file_and_is_told(tmp_path, listed, file):
    files = make(tmp_path, file, "other.jpg")
    assert files.paths(["other.jpg", listed]) == [str(tmp_path / "other.jpg"), str(tmp_path / file)]
    assert files.problems("list.txt") == [
        f"a name in list.txt is spelt otherwise than its file: {listed!r} is {tmp_path / file}"
    ]


@pytest.mark.parametrize("name", ["p 0.jpg", "a/b/../p0.jpg", "100%25.jpg", "x\\y.jpg", f"{NFD}.x"])
def test_a_name_that_is_right_stays_as_it_is(tmp_path, name):
    if ".." in name:
        make(tmp_path, "a/b/c", "a/p0.jpg")
    files = make(tmp_path, os.path.normpath(name))
    assert files.paths([name]) == [f"{tmp_path}/{name}"]
    assert files.problems("list.txt") == []


@pytest.mark.parametrize(
    "there, listed",
    [
        (["a.jpg", "A.JPG"], ["a.JPG"]),  # two files differ from it in case alone
        (["p0.jpg"], ["a/p0.jpg", "b/p0.jpg"]),  # one file for two names
        (["p0.jpg"], ["a/p0.jpg", "p0.jpg"]),  # another name is the file's own
        (["p0.png"], ["p0.jpg"]),
        (["sub/p0.jpg"], ["p0.jpg"]),  # folders are not searched
    ],
)
def test_a_name_that_could_be_another_file_finds_none(tmp_path, there, listed):
    files = make(tmp_path, *there)
    assert files.paths(listed)[0] == str(tmp_path / listed[0])
    assert not os.path.exists(files.paths(listed)[0])
    assert files.problems("list.txt") == []


@pytest.mark.parametrize("listed", ["a\0b/p0.png", "p0\0.png", "\ud83d/p0.png"])
def test_a_name_that_no_file_can_have_finds_none(tmp_path, listed):
    files = make(tmp_path, "other.jpg")
    assert files.paths([listed]) == [f"{tmp_path}/{listed}"]
    assert files_lib.missing([f"{tmp_path}/{listed}"]) == [f"{tmp_path}/{listed}"]


def test_absolute_names_that_exist_need_no_folder(tmp_path):
    make(tmp_path, "elsewhere/p0.jpg")
    path = str(tmp_path / "elsewhere" / "p0.jpg")
    assert names.Files(tmp_path / "images").paths([path]) == [path]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030"]
)
def test_a_list_is_read_in_the_encoding_it_has(tmp_path, encoding):
    file = tmp_path / "list.txt"
    file.write_bytes("p0\r\n 猫狗\t\r\n\r\n".encode(encoding))
    assert names.read_lines(file, {"猫狗"}.__contains__) == ["p0", "猫狗", ""]


@pytest.mark.parametrize(
    "encoding, name",
    [("cp1252", "café"), ("cp1251", "кот"), ("cp932", "ネコ"), ("cp949", "고양이")],
)
def test_an_older_encoding_is_found_by_the_files_and_else_refused(tmp_path, encoding, name):
    file = tmp_path / "list.txt"
    file.write_bytes(f"p0\n{name}\n".encode(encoding))
    assert names.read_lines(file, {name}.__contains__) == ["p0", name]
    byte = name.encode(encoding).strip(b"caf")[0]
    with pytest.raises(ValueError) as raised:
        names.read_lines(file, set().__contains__)
    assert str(raised.value) == f"is not UTF-8 text (byte 0x{byte:02X} in line 2); save it as UTF-8"


def test_a_list_finds_files_whose_names_are_in_no_known_encoding(tmp_path):
    there = os.fsdecode(b"caf\xe9")
    file = tmp_path / "list.txt"
    file.write_bytes(b"caf\xe9\n")
    assert names.read_lines(file, {there}.__contains__) == [there]
