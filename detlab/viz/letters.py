"""Class names in any script as pictures of their letters.

OpenCV's drawn font has only ASCII.  The other letters come from the fonts that dependencies bring:
matplotlib's DejaVu Sans (Latin, Greek, Cyrillic, Armenian, Georgian, Hebrew, Arabic ...), and the
font inside OpenCV since 5.0 (Chinese, Japanese, Korean).  What neither has is spelt in Latin
letters after its Unicode name.
"""

import functools
import pathlib
import re
import unicodedata
from collections.abc import Sequence

import cv2
import numpy as np


@functools.lru_cache(maxsize=1024)
def spelling(name: str) -> str:
    """The name as it can be drawn: on one line, with Latin letters for those that no font has."""
    name = _on_one_line(name)
    if name.isascii():
        return name
    # A text is drawn in one font: the one that lacks fewer of its letters.
    missing = min((_missing(name, has) for has in (_has_pillow, _has_opencv)), key=len)
    text = ""
    for letter in name:
        if letter not in missing:
            text += letter
        else:
            latin, joins = _latin(letter)
            text = text.removesuffix("a") if joins else text
            text += latin
    return text if text.strip() else "?"


def sentence(class_names: Sequence[str]) -> str:
    """Which class names are not drawn in their own letters; "" if all are."""
    changed = [(name, spelling(name)) for name in class_names]
    changed = [(name, drawn) for name, drawn in changed if drawn != _on_one_line(name)]
    if not changed:
        return ""
    name, drawn = changed[0]
    names = "class name is" if len(changed) == 1 else "class names are"
    return (
        f"{len(changed)} {names} drawn in Latin letters, because no font here has their own (the "
        f"first: {name} as {drawn})"
    )


@functools.lru_cache(maxsize=1024)
def mask(text: str, height: int) -> np.ndarray:
    """The letters of a text, as `spelling` gives it: [height, width] uint8, 0..255."""
    if _missing(text, _has_pillow):
        return _draw_opencv(text, height)
    return _draw_pillow(text, height)


def _on_one_line(name):
    """The name in composed letters, with spaces for ends of lines and the like."""
    letters = unicodedata.normalize("NFC", name)
    return "".join(" " if letter in _CONTROLS else letter for letter in letters)


_CONTROLS = {chr(code) for code in (*range(0x20), 0x7F, 0x2028, 0x2029)}


def _missing(text, has):
    return [letter for letter in text if not (letter.isascii() or has(letter))]


def _latin(letter):
    """(Latin letters, whether they replace the a of the letter before) by the name in Unicode."""
    plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    if plain:
        return plain, False
    name = unicodedata.name(letter, "")
    # THAI CHARACTER KO KAI is a k, ETHIOPIC SYLLABLE GLOTTAL A is an a.
    thai = re.search(r"CHARACTER (?:SARA )?(\w+)", name)
    sound = re.search(r"(LETTER|SYLLABLE|VOWEL SIGN) (?:\w+ )*(\w+)", name)
    if thai or sound:
        return (thai[1] if thai else sound[2]).lower(), bool(sound) and sound[1] == "VOWEL SIGN"
    if unicodedata.category(letter)[0] == "M":  # a mark on the letter before
        return "", name.endswith(("VIRAMA", "HALANT"))
    if unicodedata.category(letter) in ("So", "Sk"):  # a picture
        return name.lower(), False
    return f"U+{ord(letter):04X}", False


# ------------------------------------------------------------------------------------------------
# Pillow and DejaVu Sans


def _font_file():
    import matplotlib  # late, because most names are ASCII

    return str(pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@functools.cache
def _charmap():
    from matplotlib import ft2font

    return ft2font.FT2Font(_font_file()).get_charmap()


def _has_pillow(letter):
    return ord(letter) in _charmap()


@functools.lru_cache(maxsize=8)
def _dejavu(px):
    from PIL import ImageFont

    return ImageFont.truetype(_font_file(), px)


def _draw_pillow(text, height):
    from PIL import Image, ImageDraw

    font = _dejavu(max(6, round(0.78 * height)))
    ascent, descent = font.getmetrics()
    image = Image.new("L", (int(np.ceil(font.getlength(text))) + 2, height))
    baseline = round(height * ascent / (ascent + descent))
    ImageDraw.Draw(image).text((1, baseline), text, fill=255, font=font, anchor="ls")
    return np.array(image)


# ------------------------------------------------------------------------------------------------
# OpenCV 5


@functools.cache
def _has_opencv(letter):
    if not hasattr(cv2, "FontFace"):  # before OpenCV 5
        return False
    if unicodedata.category(letter) == "Cs":  # half of a pair in UTF-16, which ends the process
        return False
    # It draws a question mark for what it lacks.
    return not np.array_equal(_draw_opencv(letter, 24), _draw_opencv("?", 24))


def _draw_opencv(text, height):
    font, px = cv2.FontFace("uni"), max(6, round(0.85 * height))
    _, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), font, px, 400)
    image = np.zeros((height, width + 4, 3), np.uint8)
    cv2.putText(image, text, (1, round(0.8 * height)), (255, 255, 255), font, px, 400)
    return image[..., 0]
