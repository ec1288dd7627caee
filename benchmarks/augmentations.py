"""Contact sheets of the training augmentations, boxes included, for visual inspection.

    python -m benchmarks.augmentations --output DIR [--images FOLDER --annotations COCO_JSON]

Each transform gets a sheet of one picture under several seeds, taken from the training stream, and
`augmentations.jpg` has a row for each transform.  Transforms that combine several pictures also use
those that follow in the source.  Without --images the source is the shapes data set; that, with
--image 3, made the picture of docs/data.md.
"""

import argparse

import cv2
import numpy as np

from detlab import errors, paths
from detlab.data import coco, loader, settings, shapes
from detlab.viz import boxes as draw_lib

CANVAS = (300, 400)  # height, width px
PAD_VALUE = (124, 116, 104)
CELL = (120, 160)  # height, width px of a picture in the combined sheet
IN_ALL = 5  # pictures per transform in the combined sheet
TOGETHER = 12  # pictures that mosaics and mixup choose from

OFF = settings.Augment()
SSD = OFF._replace(photometric=1.0, expand=0.5, crop="min_iou")
TURNED = OFF._replace(affine=1.0, affine_degrees=30.0, affine_scale=0.3, affine_shear=10.0)
YOLOV5 = OFF._replace(mosaic=1.0, affine=1.0, hsv=1.0)
SHEETS = {  # name: changes to a stream without random transforms
    "fit": {},
    "letterbox": dict(resize="letterbox"),
    "multi-scale": dict(
        multiscale=settings.MultiScale(limits=((150, 100), (400, 300)), mode="range")
    ),
    "flips": dict(flip_horizontal=0.5, flip_vertical=0.5),
    "photometric": dict(augment=OFF._replace(photometric=1.0)),
    "expand": dict(augment=OFF._replace(expand=1.0)),
    "random crop": dict(augment=OFF._replace(crop="random")),
    "min-IoU crop": dict(augment=OFF._replace(crop="min_iou")),
    "jitter": dict(augment=OFF._replace(crop="jitter"), resize="stretch"),
    "affine": dict(augment=OFF._replace(affine=1.0), resize="letterbox"),
    "affine, turned": dict(augment=TURNED, resize="letterbox"),
    "perspective": dict(
        augment=OFF._replace(
            affine=1.0, affine_scale=0.0, affine_translate=0.0, affine_perspective=2e-3
        ),
        resize="letterbox",
    ),
    "hsv, yolov5": dict(augment=OFF._replace(hsv=1.0)),
    "hsv, darknet": dict(
        augment=OFF._replace(hsv=1.0, hsv_form="darknet", hsv_gains=(0.1, 1.5, 1.5))
    ),
    "cut-out": dict(augment=OFF._replace(cutout=1.0)),
    "mosaic of 4": dict(augment=OFF._replace(mosaic=1.0), resize="letterbox"),
    "mosaic of 9": dict(augment=YOLOV5._replace(mosaic_nine=1.0, hsv=0.0), resize="letterbox"),
    "mixup": dict(augment=OFF._replace(mixup=1.0, mixup_beta=8.0), resize="letterbox"),
    "as SSD": dict(augment=SSD, resize="stretch", flip_horizontal=0.5),
    "all in letterbox": dict(
        augment=SSD._replace(cutout=1.0), resize="letterbox", flip_horizontal=0.5
    ),
    "as YOLOv5": dict(augment=YOLOV5, resize="letterbox", flip_horizontal=0.5),
    "YOLOv5, all on": dict(
        augment=YOLOV5._replace(
            affine_degrees=10.0, affine_shear=5.0, affine_perspective=3e-4, mixup=0.3
        ),
        resize="letterbox",
        flip_horizontal=0.5,
        flip_vertical=0.5,
    ),
}


class Some:
    """A source over a list of records."""

    def __init__(self, records):
        self._records = records

    def __len__(self):
        return len(self._records)

    def __getitem__(self, i):
        return self._records[i]

    def size(self, i):
        return self._records[i]["image"].shape[:2]


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.augmentations", description=__doc__)
    parser.add_argument("--output", required=True, type=paths.path)
    parser.add_argument("--images", type=paths.path, help="folder of COCO images")
    parser.add_argument("--annotations", type=paths.path, help="COCO annotations of --images")
    parser.add_argument("--image", type=int, default=0, help="index of the picture in its source")
    parser.add_argument("--seeds", type=int, default=8, help="pictures per transform")
    args = parser.parse_args(arguments)
    if (args.images is None) != (args.annotations is None):
        parser.error("--images and --annotations go together")
    if args.seeds < IN_ALL:
        parser.error(f"--seeds is {args.seeds}; the combined sheet needs at least {IN_ALL}")
    if args.images is None:
        source = shapes.Shapes(size=320)
    else:
        source = coco.Coco(args.images, args.annotations)

    following = [(args.image + k) % len(source) for k in range(min(TOGETHER, len(source)))]
    records = [source[i] for i in following]
    rows = []
    for name, changes in SHEETS.items():
        augment = changes.get("augment", OFF)
        shown = Some(records if augment.mosaic or augment.mixup else records[:1])
        pictures = draw_stream(shown, source.class_names, args.seeds, changes)
        sheet = draw_lib.contact_sheet(pictures, columns=4, cell=(480, 640))
        draw_lib.save(args.output / f"{name.replace(',', '').replace(' ', '_')}.png", sheet)
        rows += [heading(name), *pictures[:IN_ALL]]
    combined = draw_lib.contact_sheet(rows, columns=1 + IN_ALL, cell=CELL)
    # Good enough for a docs page, at a third of the bytes of the default quality.
    draw_lib.save(args.output / "augmentations.jpg", combined, quality=70)


def draw_stream(source, class_names, count, changes):
    """One training batch of `count` images from the source, as pictures with boxes drawn."""
    stream = settings.Settings(
        canvases=(CANVAS,), max_boxes=100, pad_value=PAD_VALUE, flip_horizontal=0.0, read_threads=0
    )._replace(**changes)
    batch = next(loader.train_batches(source, stream, batch_size=count, seed=0, num_steps=1)).batch
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
    errors.run_main(main)
