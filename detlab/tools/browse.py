"""Draws images as training or evaluation sees them, on a sheet, also after each transform.

    python -m detlab.tools.browse --config retinanet_bccd --config.data.root=BCCD --output shown
    python -m detlab.tools.browse --config yolov5_shapes --output shown --count 4 --steps

Each image is drawn as it occurs first in epoch 0 of the run with `config.seed` = --seed, with the
boxes that the network gets.  A step that changed nothing is told.  --class, --size and
--only_ignored choose images, whose objects are all drawn.
"""

from detlab import cli
from detlab.tools import data_flags

if __name__ == "__main__":
    cli.answer_first(data_flags.browse(__doc__))  # --help needs no import below

import pathlib
from typing import Any, NamedTuple

import numpy as np
from ml_collections import config_dict

from detlab import data_sets, errors, files
from detlab.data import augment, loader, plan, records, transforms
from detlab.data import batch as batch_lib
from detlab.data import settings as settings_lib
from detlab.metrics import tables
from detlab.tools import frame, images
from detlab.viz import boxes as draw_lib

CELL = (240, 320)  # height, width px of a picture on a sheet


def main(arguments: list[str]) -> None:
    """Runs the tool."""
    args, overrides = frame.parse(arguments, data_flags.browse(__doc__))
    config = images.config_of(args, overrides)
    source = images.open_part(config, args.part, whole=False)
    data_sets.report_problems(source, args.part)
    positions = images.choose(source, args)
    stream = Stream(source, config, args.part, args.seed)
    name = images.describe(config, args.part)
    output = frame.Output("browse", args, config, {"data": name, "images": len(source)})

    shown, cells, rows = [], [], []
    names = files.unique_names(images.file_names(source, positions))
    for i, file in zip(positions, names, strict=True):
        try:
            seen = stream(i)
        except records.DataError as error:
            print(f"not drawn: {error}")
            continue
        picture = seen.draw(source.class_names)
        steps = [draw_step(step, source.class_names) for step in seen.steps]
        if args.steps:
            rows.append([*steps, heading("on the canvas", picture)])
            alone = draw_lib.contact_sheet(rows[-1], 4, rows[-1][0].shape[:2])
            output.image(alone, f"{file}.jpg")
        else:
            cells.append(heading(pathlib.PurePath(source.name(i)).name, picture))
            output.image(picture, f"{file}.jpg")
        shown.append(
            {"name": source.name(i), "id": source.image_id(i), "picture": f"{file}.jpg"}
            | seen.facts(source.class_names)
        )
    if not shown:
        raise errors.UserError(f"none of the {len(positions)} chosen images can be read.")
    if args.steps:
        columns = max(map(len, rows))
        blank = np.full_like(rows[0][0], draw_lib.BACKGROUND)
        cells = [cell for row in rows for cell in row + [blank] * (columns - len(row))]
    else:
        columns = 4
    output.image(draw_lib.contact_sheet(cells, columns, cells[0].shape[:2]), "browse.jpg")
    output.close({"images": shown}, report(shown))


class Step(NamedTuple):
    """An image after a transform."""

    name: str
    record: dict[str, Any]  # with its window drawn
    applied: bool  # False: nothing changed


class Seen(NamedTuple):
    """An image on its way to the network."""

    step: int  # of the epoch
    row: int  # of the batch
    canvas: tuple[int, int]
    steps: list[Step]
    batch: Any  # `types.Batch` of this image alone
    skipped: list[str]  # unreadable images that others replaced

    @property
    def used(self):
        """[G] bool: the slots of the batch that hold an object."""
        return (self.batch.valid | self.batch.ignore)[0]

    def draw(self, class_names: tuple[str, ...]) -> np.ndarray:
        """The canvas [h, w, 3] uint8 with the boxes of the batch."""
        return draw_lib.draw(
            as_uint8(self.batch.images[0]),
            self.batch.boxes[0][self.used],
            self.batch.labels[0][self.used],
            class_names,
            ignored=self.batch.ignore[0][self.used],
        )

    def facts(self, class_names: tuple[str, ...]) -> dict[str, Any]:
        """What the JSON says of the image."""
        names = ("boxes", "labels", "ignore")
        on_canvas = {name: getattr(self.batch, name)[0][self.used] for name in names}
        return {
            "step": self.step,
            "row": self.row,
            "canvas": list(self.canvas),
            "objects": images.class_and_box(on_canvas, class_names),
            "steps": [
                {
                    "name": step.name,
                    "applied": step.applied,
                    "height": step.record["image"].shape[0],
                    "width": step.record["image"].shape[1],
                    "objects": images.class_and_box(step.record, class_names),
                }
                for step in self.steps
            ],
            "skipped": self.skipped,
        }


class Stream:
    """Position of an image -> `Seen`, as the first epoch of a run, or an evaluation, has it.

    Raises:
      DataError: when called: the image cannot be read, and neither can those in its place.
    """

    def __init__(self, source: Any, config: config_dict.ConfigDict, part: str, seed: int):
        sizes, training = plan.source_sizes(source), part == "train"
        self.settings = settings_lib.of(config.data, part, None if training else config.eval)
        canvases = self.settings.canvases
        if training:
            arguments = (config.train.batch_size, canvases, self.settings.multiscale)
            self._steps = plan.epoch_steps(sizes, seed, 0, *arguments)
        else:
            self._steps = plan.evaluation_steps(sizes, config.eval.batch_size, self.settings)
        self._place = {}
        for number, step in enumerate(self._steps):
            for row, i in enumerate(step.index.tolist()):
                self._place.setdefault(i, (number, row))
        groups = tuple(plan.group_by_canvas(sizes, canvases)) if training else ()
        read = loader.Reader(source, groups, leave_out=False)
        self._make = augment.of(self.settings, read, len(source))

    def __call__(self, i: int) -> Seen:
        number, row = self._place[i]
        steps, skipped = [], []
        pad_value = self.settings.pad_value
        last = None

        def watch(name, record):
            nonlocal last
            drawn = transforms.draw_window(record, pad_value) if "window" in record else record
            steps.append(Step(name, drawn, record is not last))
            last = record

        step = self._steps[number]
        record = self._make(step, row, skipped, watch)
        batch = batch_lib.to_batch(
            [record], step.canvas, self.settings.max_boxes, pad_value, self.settings.dtype
        )
        return Seen(number, row, step.canvas, steps, batch, skipped)


def as_uint8(image):
    """An image [h, w, 3] in 0..255 of any type, as uint8 [h, w, 3]."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def draw_step(step: Step, class_names: tuple[str, ...]) -> np.ndarray:
    """The image after a step with its boxes, on a cell with the name of the step, [h, w, 3]."""
    record = step.record
    picture = draw_lib.draw(
        as_uint8(record["image"])[..., :3],
        record["boxes"],
        record["labels"],
        class_names,
        ignored=record["ignore"],
    )
    height, width = record["image"].shape[:2]
    text = f"{step.name} {width}x{height}" if step.applied else f"{step.name}: not applied"
    return heading(text, picture)


def heading(text: str, picture) -> np.ndarray:
    """A cell with a text above a picture [H, W, 3]: [h, w, 3]."""
    fitted = draw_lib.contact_sheet([picture], 1, CELL)
    return draw_lib.with_heading(fitted, text)


def report(shown: list[dict[str, Any]]) -> str:
    """The images as a table."""
    header = ["image", "step", "row", "canvas", "objects", "applied"]
    rows = [
        [
            image["name"],
            str(image["step"]),
            str(image["row"]),
            "x".join(map(str, image["canvas"][::-1])),
            str(len(image["objects"])),
            ", ".join(step["name"] for step in image["steps"][1:] if step["applied"]),
        ]
        for image in shown
    ]
    return tables.text_table(header, rows)


if __name__ == "__main__":
    errors.run_main(main)
