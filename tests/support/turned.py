"""Image files that a camera stored turned: the same upright picture in each EXIF orientation."""

import struct
import zlib

import cv2
import numpy as np

from detlab.data import records

BOX = (10, 4, 30, 28)  # xyxy px, the white part of the upright picture


def upright(height=40, width=60):
    """A black picture [height, width, 3] with `BOX` white."""
    image = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = BOX
    image[y1:y2, x1:x2] = 255
    return image


def stored(image, orientation):
    """What a camera stores for an upright image: the inverse of `records.turn`."""
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    return np.ascontiguousarray(records.turn(image, inverse))


def encoded(image, orientation, extension=".jpg", order="<"):
    """An image file whose upright picture is `image`."""
    data = cv2.imencode(extension, stored(image, orientation))[1].tobytes()
    exif = tags(orientation, order)
    if extension == ".png":
        # Behind the pixels, which the format allows.
        chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif
        return data[:-12] + chunk + struct.pack(">I", zlib.crc32(chunk[4:])) + data[-12:]
    if extension == ".webp":
        height, width = (image.shape[:2], image.shape[1::-1])[orientation >= 5]
        head = b"VP8X" + struct.pack("<IB3x", 10, 8)
        head += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        body = b"WEBP" + head + data[12:] + b"EXIF" + struct.pack("<I", len(exif)) + exif
        return b"RIFF" + struct.pack("<I", len(body)) + body
    exif = b"Exif\0\0" + exif
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def tags(orientation, order="<"):
    """EXIF's TIFF structure with two tags: image width, and the orientation."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, 2)
    width = struct.pack(f"{order}HHII", 0x0100, 4, 1, 60)
    return head + width + struct.pack(f"{order}HHIHHI", 0x0112, 3, 1, orientation, 0, 0)
