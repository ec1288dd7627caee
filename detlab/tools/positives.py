r"""Shows which anchors, points or RoIs learn which object, level by level.

    detlab tools positives --config retinanet_shapes --output shown
    detlab tools positives --config fcos_coco --output shown --points \
        --input dog.jpg --objects "bicycle 119 128 570 425; dog 131 220 309 540"
    detlab tools positives --config retinanet_coco --compare atss_coco fcos_coco \
        --input dog.jpg --objects "dog 131 220 309 540" --output shown

It asks the detector for its training targets, so it shows what the loss sees, for every detector.
Images are those of the training data, resized as for training but not augmented, or a photograph of
your own with the boxes that you give.  Weights are read only if the assignment depends on them.
"""

from detlab import cli
from detlab.tools import detector_flags

if __name__ == "__main__":
    cli.answer_first(detector_flags.positives(__doc__))  # --help needs no import below

import argparse
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core
from ml_collections import config_dict

from detlab import config as config_lib
from detlab import contract, data_sets, detect, errors, files, types
from detlab.data import records
from detlab.data import settings as settings_lib
from detlab.run import state as state_lib
from detlab.tools import assignments, frame
from detlab.viz import assignments as draw_lib


def main(arguments: list[str]) -> None:
    """Runs the program."""
    args, overrides = frame.parse(arguments, detector_flags.positives(__doc__))
    detector_flags.check_positives(args)
    config = frame.config_of(args, overrides)
    class_names, images = open_images(config, args)
    images = list(images)
    asked = [(args, overrides), *(other(name, config) for name in args.compare)]
    subjects = [subject(*who, images[0].batch, args.seed) for who in asked]
    inputs = {
        "data": args.input or described(config, args),
        "images": len(images),
        "weights": {one.name: one.weights for one in subjects},
    }
    output = frame.Output("positives", args, config, inputs)

    found = [[jax.device_get(one.targets(image.batch)) for image in images] for one in subjects]
    results, tables = [], []
    for one, of_images in zip(subjects, found, strict=True):
        parts = {}
        for name in of_images[0]:
            batches = [image.batch for image in images]
            parts[name] = assignments.summary(
                [of_image[name] for of_image in of_images],
                batches,
                class_names,
                [image.name for image in images],
            )
            tables.append(f"{one.name}, {name}: {assignments.table(parts[name])}")
        results.append({"detector": one.name, "weights": one.weights, "assignments": parts})

    stems = files.unique_names(pathlib.Path(image.name).stem for image in images)
    for i, (image, stem) in enumerate(zip(images[: args.pictures], stems, strict=False)):
        objects = objects_of(image.batch, class_names)
        rows = [
            draw_lib.Row(
                f"{one.name}, {name}", assignments.panels(name, of_images[i], image.batch, args)
            )
            for one, of_images in zip(subjects, found, strict=True)
            for name in of_images[i]
        ]
        together = [(stem, rows)]
        if not args.compare:
            together = [(f"{stem}_{row.heading.rpartition(' ')[2]}", [row]) for row in rows]
        for name, rows in together:
            output.figure(picture(image, objects, rows, config, args), f"{name}.jpg")
    output.close({"detectors": results}, "\n\n".join(tables))


# ------------------------------------------------------------------------------------------------
# Images


class Image(NamedTuple):
    """An image on its canvas."""

    name: str
    batch: types.Batch  # of this image alone


def open_images(
    config: config_dict.ConfigDict, args: argparse.Namespace
) -> tuple[Sequence[str], Iterator[Image]]:
    """(class names, the images that the flags ask for)."""
    if args.input:
        class_names = detect.names_of(None, config)
        named = class_names[0] != "class 0"
        record, class_names = photograph(args.input, args.objects, class_names, named)
        settings = settings_lib.of(config.data, "train")
        name = pathlib.Path(args.input).name
        return class_names, iter([Image(name, frame.on_canvas(record, settings))])
    source = data_sets.open_source(config, args.part)
    if args.augmented:
        return source.class_names, _augmented(source, config, args.limit)
    block = config.eval if args.part == "eval" else None
    settings = settings_lib.of(config.data, args.part, block)
    chosen = choose(source, args.image) if args.image else range(min(args.limit, len(source)))

    def read():
        for i in chosen:
            try:
                record = source[i]
            except records.DataError as error:
                raise errors.UserError(f"{str(error).removesuffix('.')}.") from error
            yield Image(str(source.image_id(i)), frame.on_canvas(record, settings))

    return source.class_names, read()


def _augmented(source, config, limit):
    single = config.copy_and_resolve_references()
    single.train.batch_size = 1
    for loaded in data_sets.training_batches(source, single, num_steps=limit):
        yield Image(str(source.image_id(int(loaded.batch.index[0]))), loaded.batch)


def choose(source: Any, wanted: Sequence[str]) -> list[int]:
    """Positions of the images with these ids or names of files.

    Raises:
      UserError: there is no such image.
    """
    positions = {}
    for i in range(len(source)):
        for name in (str(source.image_id(i)), pathlib.Path(source.name(i)).name):
            positions.setdefault(name, i)
    missing = [name for name in wanted if name not in positions]
    if missing:
        raise errors.UserError(
            f"--image {missing[0]} is no image of the data; give its id or the name of its file,"
            f" such as {source.image_id(0)}."
        )
    return [positions[name] for name in wanted]


def photograph(
    path: str, text: str, class_names: Sequence[str], named: bool = True
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(the record of a photograph with the objects "NAME x1 y1 x2 y2; ...", the names by label).

    Args:
      path: of the photograph.
      text: see above, px of the photograph.
      class_names: of the detector.
      named: whether these are real names, which the objects must have; otherwise the names of the
        objects take their places.
    Raises:
      UserError: the file cannot be read, or the text has another form.
    """
    found = []
    for part in filter(None, map(str.strip, text.split(";"))):
        *words, x1, y1, x2, y2 = ["", "", "", "", *part.split()]
        name = " ".join(filter(None, words))
        try:
            box = [float(x) for x in (x1, y1, x2, y2)]
        except ValueError:
            box = [0.0, 0.0, 0.0, 0.0]
        if not name or not (box[0] < box[2] and box[1] < box[3]):
            raise errors.UserError(
                f"--objects has {part!r}; write a class and a box, NAME x1 y1 x2 y2, with x1 < x2"
                " and y1 < y2, and a semicolon between objects."
            )
        found.append((name, box))
    names = tuple(class_names)
    if not named:
        given = tuple(dict.fromkeys(name for name, _ in found))[: len(names)]
        names = (*given, *names[len(given) :])
    others = [name for name, _ in found if name not in names]
    if others:
        raise errors.UserError(
            f"--objects names {others[0]!r}, which is no class of the detector; its classes are"
            f" {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}."
        )
    try:
        record = records.without_objects(records.read_image(path))
    except records.DataError as error:
        raise errors.UserError(f"{str(error).removesuffix('.')}.") from error
    height, width = record["image"].shape[:2]
    boxes = np.array([box for _, box in found], np.float32).reshape(-1, 4)
    boxes = np.clip(boxes, 0, np.float32([width, height, width, height]))
    return record | {
        "boxes": boxes,
        "labels": np.array([names.index(name) for name, _ in found], np.int32),
        "ignore": np.zeros(len(boxes), bool),
        "area": records.box_areas(boxes),
    }, names


# ------------------------------------------------------------------------------------------------
# Detectors


class Subject(NamedTuple):
    """A detector to look at."""

    name: str
    weights: str  # where they are from, or why they do not matter
    targets: Callable[[types.Batch], dict[str, types.Targets]]


def subject(
    args: argparse.Namespace, overrides: dict[str, str], batch: types.Batch, seed: int
) -> Subject:
    """The detector of some flags; its weights are loaded only if its targets depend on them."""
    config = frame.config_of(args, overrides)
    detector, key = contract.build(config), jax.random.key(seed)
    shapes = jax.eval_shape(detector.init, key, state_lib.example_images(config))
    name = pathlib.Path(args.workdir).name if args.workdir else config_lib.stem(args.config)
    if reads_weights(detector.targets, shapes, batch, key):
        loaded = frame.load(args, overrides)
        variables = loaded.params, loaded.state
        weights = loaded.weights or "initial"
    else:  # jit leaves out what is not read, so these zeros reach no device
        variables = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), shapes)
        weights = "not read: the assignment does not depend on the network"
    compiled = jax.jit(detector.targets)
    return Subject(name, weights, lambda batch: compiled(*variables, batch, key))


def other(name: str, config: config_dict.ConfigDict) -> tuple[argparse.Namespace, dict[str, str]]:
    """Flags and overrides of a detector to compare, on the canvases and classes of the first."""
    folder = pathlib.Path(name).is_dir()
    args = argparse.Namespace(
        workdir=name if folder else None, config=None if folder else name, checkpoint=None
    )
    theirs = frame.config_of(args, {})
    overrides = {"data.canvases": repr(tuple(map(tuple, config.data.canvases)))}
    classes = contract.num_classes(config)
    if contract.num_classes(theirs) != classes:
        overrides["model.num_classes"] = str(classes)
    return args, overrides


def reads_weights(function: Callable, shapes: Any, batch: types.Batch, key: jax.Array) -> bool:
    """Whether the results of `function(params, state, batch, key)` depend on the first two.

    Follows the program backwards from its results; what an inner program reads counts as used.

    Args:
      function: pure.
      shapes: (params, state) as arrays or as shapes.
      batch: see `types.Batch`.
      key: see jax.random.
    """
    jaxpr = jax.make_jaxpr(function)(*shapes, batch, key).jaxpr
    used = {x for x in jaxpr.outvars if isinstance(x, core.Var)}
    for step in reversed(jaxpr.eqns):
        if used & set(step.outvars):
            used |= {x for x in step.invars if isinstance(x, core.Var)}
    return bool(used & set(jaxpr.invars[: len(jax.tree.leaves(shapes))]))


# ------------------------------------------------------------------------------------------------
# Pictures


def objects_of(batch: types.Batch, class_names: Sequence[str]) -> draw_lib.Objects:
    """The objects of a batch of one image in the order of its slots, ignored ones included."""
    there = batch.valid[0] | batch.ignore[0]
    count = int(np.flatnonzero(there).max(initial=-1)) + 1
    names = [class_names[label] for label in batch.labels[0][:count]]
    return draw_lib.Objects(batch.boxes[0][:count], names, batch.ignore[0][:count])


def described(config: config_dict.ConfigDict, args: argparse.Namespace) -> str:
    """Which data the images are from."""
    augmented = " as augmented" if args.augmented else ""
    return f"{args.part} data of {config.data.source}{augmented}"


def picture(
    image: Image,
    objects: draw_lib.Objects,
    rows: Sequence[draw_lib.Row],
    config: config_dict.ConfigDict,
    args: argparse.Namespace,
) -> Any:
    """The figure of some assignments of an image."""
    height, width = (int(x) for x in image.batch.image_size[0])
    data = "" if args.input else f"{described(config, args)}, "
    title = (
        f"Who learns which object: {data}image {image.name}, {len(objects.boxes)} objects, "
        f"{width} x {height} px on the canvas"
    )
    content = np.asarray(image.batch.images[0][:height, :width]).astype(np.uint8)
    return draw_lib.draw(content, objects, rows, title, assignments.legend(rows, args.points))


if __name__ == "__main__":
    errors.run_main(main)
