"""Class names are drawn in their own letters, whatever the script, or in Latin ones."""

import unicodedata

import cv2
import numpy as np
import pytest

from detlab.viz import letters

CJK = ["猫", "ネコ", "고양이"]


@pytest.mark.parametrize(
    "name",
    ["café", "œuf ß", "Đặng", "кот", "γάτα", "կատու", "კატა", "חתול", "قطة", "x²", "→", *CJK],
)
def test_a_script_that_a_font_has_is_drawn_in_its_own_letters(name):
    if name in CJK and not hasattr(cv2, "FontFace"):
        pytest.skip("OpenCV before 5.0 has no font with these letters")
    assert letters.spelling(name) == name and letters.sentence([name]) == ""
    drawn = letters.mask(f"{name} 0.50", 24)
    assert drawn.dtype == np.uint8 and drawn.shape[0] == 24
    ink = drawn > 127
    assert not ink[0].any() and not ink[-1].any(), "letters are cut off"
    # The last letter is not cut off, and other letters give another picture.
    assert not ink[:, -1].any() and ink.any(axis=0).sum() > 20
    other = letters.mask("?" * len(name) + " 0.50", 24)
    assert other.shape != drawn.shape or (other != drawn).any()


@pytest.mark.parametrize(
    "name, drawn",
    [
        ("แมว", "aemowo"),  # the sounds of the letters
        ("बिल्ली", "billii"),
        ("மரம்", "maram"),
        ("🐈", "cat"),
        ("red 🐶 2", "red dog face 2"),
        ("ኣ", "aa"),
        ("\U00013000", "U+13000"),
        ("\x85", "U+0085"),
        ("é🐈", "écat"),
        ("é\ud83d", "éU+D83D"),  # half of an emoji, as a cut-off JSON has; OpenCV 5 crashes on it
    ],
)
def test_what_no_font_has_is_spelt_in_latin_letters_and_told_once(name, drawn):
    assert letters.spelling(name) == drawn
    assert letters.sentence(["dog", name, "caña"]) == (
        "1 class name is drawn in Latin letters, because no font here has their own (the first: "
        f"{name} as {drawn})"
    )
    assert letters.mask(f"{drawn} 0.50", 20).any()


def test_without_the_font_of_opencv_5_chinese_is_told_by_its_numbers(monkeypatch):
    monkeypatch.setattr(letters, "_has_opencv", lambda letter: False)
    letters.spelling.cache_clear()
    try:
        assert letters.sentence(["猫", "ネコ", "고양이"]) == (
            "3 class names are drawn in Latin letters, because no font here has their own (the "
            "first: 猫 as U+732B)"
        )
        assert [letters.spelling(name) for name in ("ネコ", "고양이")] == ["neko", "goyangi"]
    finally:
        letters.spelling.cache_clear()


def test_composed_and_decomposed_names_look_the_same():
    name = unicodedata.normalize("NFD", "café ガ")
    assert letters.spelling(name) == "café ガ"


@pytest.mark.parametrize(
    "name, drawn",
    [
        ("café\nau lait", "café au lait"),
        ("猫\r\nb", "猫  b" if hasattr(cv2, "FontFace") else "U+732B  b"),
        ("кот\0", "кот "),
        ("traffic\r\nlight", "traffic  light"),
        ("é\u2028b", "é b"),
        (unicodedata.normalize("NFD", "café"), "café"),
    ],
)
def test_ends_of_lines_and_decomposed_letters_are_drawn_and_are_no_other_letters(name, drawn):
    assert letters.spelling(name) == drawn
    if "U+" not in drawn:
        assert letters.sentence([name]) == ""
    assert letters.mask(f"{drawn} 0.50", 20).any()


def test_ascii_names_stay_as_they_are():
    assert letters.spelling("traffic light") == "traffic light"
    assert letters.sentence(["cat", "dog"]) == ""
