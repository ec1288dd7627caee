"""Contact sheets of what training may do to a picture, boxes and all, for a person to look at.

    python -m benchmarks.augmentations --output DIR [--images FOLDER --annotations COCO_JSON]

Each transform gets a sheet of one picture under several seeds, as the training stream gives it, and
`augmentations.jpg` has a row for each.  Without --images the picture is one of the shapes; this
made the picture of docs/data.md, with --image 3.
"""

import argparse
import pathlib

import cv2
import numpy as np

from detlab.data import coco
from detlab.data import loader
from detlab.data import shapes
from detlab.viz import boxes as draw_lib

CANVAS = (300, 400)  # height, width px
PAD_VALUE = (124, 116, 104)
CELL = (120, 160)  # height, width px of the pictures in the sheet of all
IN_ALL = 5  # pictures of a transform there

OFF = loader.Augment()
SSD = OFF._replace(photometric=1.0, expand=0.5, crop="min_iou")
SHEETS = {  # name: what differs from a stream without anything random
    "fit": {},
    "letterbox": dict(resize="letterbox"),
    "multi-scale": dict(
        multiscale=loader.MultiScale(limits=((150, 100), (400, 300)), mode="range")
    ),
    "flips": dict(flip_horizontal=0.5, flip_vertical=0.5),
    "photometric": dict(augment=OFF._replace(photometric=1.0)),
    "expand": dict(augment=OFF._replace(expand=1.0)),
    "random crop": dict(augment=OFF._replace(crop="random")),
    "min-IoU crop": dict(augment=OFF._replace(crop="min_iou")),
    "cut-out": dict(augment=OFF._replace(cutout=1.0)),
    "as SSD": dict(augment=SSD, resize="stretch", flip_horizontal=0.5),
    "all in letterbox": dict(
        augment=SSD._replace(cutout=1.0), resize="letterbox", flip_horizontal=0.5
    ),
}


class Single:
    """A source of one record."""

    def __init__(self, record):
        self._record = record

    def __len__(self):
        return 1

    def __getitem__(self, i):
        return self._record

    def size(self, i):
        return self._record["image"].shape[:2]


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.augmentations", description=__doc__)
    parser.add_argument("--output", required=True, type=pathlib.Path)
    parser.add_argument("--images", type=pathlib.Path, help="a folder of COCO")
    parser.add_argument("--annotations", type=pathlib.Path, help="the annotations of --images")
    parser.add_argument("--image", type=int, default=0, help="number of the picture in its source")
    parser.add_argument("--seeds", type=int, default=8, help="pictures of each transform")
    args = parser.parse_args(arguments)
    if (args.images is None) != (args.annotations is None):
        parser.error("--images and --annotations go together")
    if args.seeds < IN_ALL:
        parser.error(f"--seeds is {args.seeds}; the sheet of all needs {IN_ALL}")
    if args.images is None:
        source = shapes.Shapes(size=320)
    else:
        source = coco.Coco(args.images, args.annotations)

    rows = []
    for name, changes in SHEETS.items():
        pictures = draw_stream(Single(source[args.image]), source.class_names, args.seeds, changes)
        sheet = draw_lib.contact_sheet(pictures, columns=4, cell=(480, 640))
        draw_lib.save(args.output / f"{name.replace(' ', '_')}.png", sheet)
        rows += [heading(name), *pictures[:IN_ALL]]
    combined = draw_lib.contact_sheet(rows, columns=1 + IN_ALL, cell=CELL)
    # A picture of a page, not to measure anything on: a third of the bytes of OpenCV's 95.
    bgr = cv2.cvtColor(combined, cv2.COLOR_RGB2BGR)
    path = str(args.output / "augmentations.jpg")
    cv2.imwrite(path, bgr, [cv2.IMWRITE_JPEG_QUALITY, 70])


def draw_stream(source, class_names, count, changes):
    """Pictures of one batch of the training stream: the source's record with `count` seeds."""
    arguments = dict(
        batch_size=count,
        canvases=(CANVAS,),
        seed=0,
        max_boxes=100,
        pad_value=PAD_VALUE,
        num_steps=1,
        flip_horizontal=0.0,
        read_threads=0,
    )
    batch = next(loader.train_batches(source, **{**arguments, **changes})).batch
    pictures = []
    for image, boxes, labels, valid, ignore in zip(*batch[:5], strict=True):
        shown = valid | ignore
        pictures.append(
            draw_lib.draw(
                image, boxes[shown], labels[shown], class_names, ignored=ignore[shown], min_side=480
            )
        )
    return pictures


def heading(text):
    """A dark cell with the text."""
    blank = np.full((*CELL, 3), draw_lib.BACKGROUND, np.uint8)
    return cv2.putText(
        blank, text, (8, CELL[0] // 2), draw_lib.FONT, 0.5, (255, 255, 255), 1, cv2.LINE_AA
    )


if __name__ == "__main__":
    main()
