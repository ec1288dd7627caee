"""Published weight files: their names, their rows in models.json, and their checksums.

A checksum is known by URL, or from the name that the publisher gives the file.  Sources: `yolov4`
and `yolov4-tiny` in openvinotoolkit/open_model_zoo, `models/public/*/model.yml`; `yolov3` and
`yolov3-tiny` as five independent repositories record them; YOLOv5's as public lists of its releases
record them, `yolov5n` also computed from the file.  docs/models.md lists all files.
"""

import difflib
import json
import pathlib
import re
import urllib.parse
from typing import Any

from detlab import errors

_DARKNET = "https://github.com/AlexeyAB/darknet/releases/download"
_YOLOV5 = "https://github.com/ultralytics/yolov5/releases/download/v7.0"
_YOLOV3 = "523e4e69e1d015393a1b0a441cef1d9c7659e3eb2d7e15f793f060a21b32f297"

SHA256 = {
    "https://pjreddie.com/media/files/yolov3.weights": _YOLOV3,
    "https://github.com/hank-ai/darknet/releases/download/v2.0/yolov3.weights": _YOLOV3,
    "https://pjreddie.com/media/files/yolov3-tiny.weights": (
        "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c"
    ),
    f"{_DARKNET}/darknet_yolo_v3_optimal/yolov4.weights": (
        "e8a4f6c62188738d86dc6898d82724ec0964d0eb9d2ae0f0a9d53d65d108d562"
    ),
    f"{_DARKNET}/darknet_yolo_v4_pre/yolov4-tiny.weights": (
        "cf9fbfd0f6d4869b35762f56100f50ed05268084078805f0e7989efe5bb8ca87"
    ),
    f"{_YOLOV5}/yolov5n.pt": "4f180cf23ba0717ada0badd6c685026d73d48f184d00fc159c2641284b2ac0a3",
    f"{_YOLOV5}/yolov5s.pt": "8b3b748c1e592ddd8868022e8732fde20025197328490623cc16c6f24d0782ee",
    f"{_YOLOV5}/yolov5m.pt": "61d933360ba5a7733a36764996c800287d973889d875227f5beedd2473a97a56",
    f"{_YOLOV5}/yolov5l.pt": "2f603b7354c25454d1270663a14d8ddc1eea98e5eebc1d84ce0c6e3150fa155f",
    f"{_YOLOV5}/yolov5x.pt": "9f27a794fa0308e2606f90565164571d6f0a0ba18a3ce2e5e5d323b71c157859",
}


def checksum(url: str) -> str:
    """The SHA-256 of a published file, or its first digits from the file's name; "" if unknown."""
    # Eight digits that start with 19 or 20 are a date.
    path = urllib.parse.unquote(urllib.parse.urlsplit(url).path)
    in_name = re.search(r"-(?!(?:19|20)\d{6}\.)([0-9a-f]{8,64})\.\w+$", path)
    return SHA256.get(url, in_name[1] if in_name else "")


def models() -> dict[str, dict[str, Any]]:
    """The rows of models.json by name, such as `yolov5n` or `retinanet_r50_fpn_1x_coco`."""
    content = json.loads(pathlib.Path(__file__).with_name("models.json").read_text())
    return {name(row): row for row in content["models"]}


def name(row: dict[str, Any]) -> str:
    """The name of a row: that of its file without date and checksum, or its `folder`."""
    stem = pathlib.PurePosixPath(row.get("file", urllib.parse.unquote(row["url"]))).stem
    return row.get("folder", re.sub(r"(_bbox_mAP.*)?(_\d{8}.*|-[0-9a-f]{8})?$", "", stem))


def find(wanted: str) -> dict[str, Any] | None:
    """The row with this name; None if there is none.

    Raises:
      UserError: there is none, but one with almost the same name.
    """
    known = models()
    if wanted in known:
        return known[wanted]
    close = difflib.get_close_matches(wanted, known, n=1)
    if close:
        raise errors.UserError(
            f"{wanted} does not exist and is no published model; did you mean {close[0]!r}?"
        )
    return None
