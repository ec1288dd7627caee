r"""Shows what the levels and heads of a detector respond to, in all or for one detection.

    detlab tools feature_maps --workdir runs/retinanet_voc --input photos --output shown
    detlab tools feature_maps --workdir weights/yolov5n --input dog.jpg --output shown \
        --method layercam --class dog

Writes one picture an image: its detections, then one map a level.  `--method` says what a cell
shows: the mean size, the norm or the largest of its channels; the channels of the largest mean;
three principal components as colours; or, by gradients of its score before suppression, what speaks
for one detection (gradcam, layercam).  `--taps` chooses other modules, `--list` prints them.
"""

from detlab import cli
from detlab.tools import detector_flags

if __name__ == "__main__":
    cli.answer_first(detector_flags.feature_maps(__doc__))  # --help needs no import below

import argparse
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from detlab import data_sets, detect, errors, files, media, types
from detlab.data import records
from detlab.data import settings as settings_lib
from detlab.run import state as state_lib
from detlab.tools import frame, heat, taps
from detlab.viz import boxes as boxes_lib
from detlab.viz import heat as draw_lib

GRADIENT = ("gradcam", "layercam")
SUM = "sum of all levels"


def main(arguments: list[str]) -> None:
    """Runs the program."""
    args, overrides = frame.parse(arguments, detector_flags.feature_maps(__doc__))
    detector_flags.check_feature_maps(args)
    loaded = frame.load(args, overrides)
    known = taps.listing(
        loaded.detector, loaded.params, loaded.state, state_lib.example_images(loaded.config)
    )
    # A head of 1 x 1 convolutions sees one cell of the neck: its gradients say nothing more.
    order = ("backbone", "neck") if args.method in GRADIENT else ("neck", "backbone")
    pattern = taps.choose(known, args.taps, order)
    names, images = open_images(loaded, args)
    look = Look(loaded, pattern, names, args)
    inputs = {"data": args.input or f"eval data of {loaded.config.data.source}"}
    inputs |= {"weights": loaded.weights or "initial"}
    output = frame.Output("feature_maps", args, loaded.config, inputs)
    if args.list:
        listed = {name: list(shape[1:]) for name, shape in known.items()}
        lines = [f"{name:60} {' x '.join(map(str, shape))}" for name, shape in listed.items()]
        output.close({"maps": listed}, "\n".join(lines))
        return

    seen = [look(*image) for image in images]
    stems = files.unique_names(pathlib.Path(one.name).stem for one in seen)
    for one, stem in zip(seen, stems, strict=True):
        output.figure(one.figure, f"{stem}.jpg")
        if args.arrays:
            with files.writing(output.path(f"{stem}.npz")):
                np.savez_compressed(output.path(f"{stem}.npz"), **one.arrays)
    output.inputs["images"] = len(seen)
    results = [one.result for one in seen]
    output.close({"method": args.method, "images": results}, table(results))


# ------------------------------------------------------------------------------------------------
# Images


def open_images(
    loaded: frame.Loaded, args: argparse.Namespace
) -> tuple[Sequence[str], Iterator[tuple[str, types.Batch]]]:
    """(class names, names and batches of the images that the flags ask for)."""
    config = loaded.config
    if not args.input:
        source = data_sets.open_source(config, "eval", loaded.class_names)
        settings = settings_lib.of(config.data, "eval", config.eval)
        count = range(min(args.limit, len(source)))
        read = ((str(source.image_id(i)), lambda i=i: source[i]) for i in count)
        return source.class_names, _batches(read, settings)
    found = media.find_inputs(args.input, args.output)
    pictures = [path for path in found.files if path.suffix.lower() not in media.VIDEOS]
    if not pictures:
        raise errors.UserError(f"--input {args.input} has no images; name an image or a folder.")
    settings = settings_lib.of(config.data, "demo", config.predict)
    exif = config.data.exif
    read = (
        (path.name, lambda path=path: records.without_objects(records.read_image(path, exif)))
        for path in pictures[: args.limit]
    )
    return detect.names_of(loaded.class_names, config), _batches(read, settings)


def _batches(read: Iterator[tuple[str, Callable[[], dict]]], settings: settings_lib.Settings):
    for name, record in read:
        try:
            yield name, frame.on_canvas(record(), settings)
        except records.DataError as error:
            raise errors.UserError(f"{str(error).removesuffix('.')}.") from error


# ------------------------------------------------------------------------------------------------
# One image


class Seen(NamedTuple):
    """What the tool says of an image."""

    name: str
    figure: Any
    result: dict[str, Any]  # of the JSON
    arrays: dict[str, np.ndarray]


class Look:
    """Computes and draws the maps of an image; one program is compiled a canvas."""

    def __init__(
        self,
        loaded: frame.Loaded,
        pattern: str,
        class_names: Sequence[str],
        args: argparse.Namespace,
    ):
        self.class_names, self.args = class_names, args
        self.threshold = loaded.config.predict.threshold
        detector, variables = loaded.detector, (loaded.params, loaded.state)

        @jax.jit
        def forward(params, state, images, image_size):
            found = taps.candidates(detector, params, state, images, image_size)
            maps = taps.maps(detector, params, state, images, pattern)
            return maps, found, detector.suppress(found)

        @jax.jit
        def backward(params, state, images, image_size, maps, candidate):
            given = params, state, images, image_size, maps, candidate
            return taps.gradients(detector, *given)

        self._forward = lambda *inputs: forward(*variables, *inputs)
        self._backward = lambda *inputs: backward(*variables, *inputs)

    def __call__(self, name: str, batch: types.Batch) -> Seen:
        inputs = batch.images, batch.image_size
        maps, candidates, detections = jax.device_get(self._forward(*inputs))
        detections, candidates = (
            types.Detections(*(x[0] for x in found)) for found in (detections, candidates)
        )
        rank = self.chosen(name, detections)
        box = None if rank is None else detections.boxes[rank]
        arrays = {k: np.asarray(x[0], np.float32) for k, x in taps.in_order(maps).items()}
        result = {"image": name, "detections": self.listed(detections), "looked_at": None}
        if rank is not None:
            result["looked_at"] = self.as_json(detections, rank) | {"rank": rank}
        if self.args.method in GRADIENT:
            of_rank = dict(box=box, score=detections.scores[rank], label=detections.labels[rank])
            candidate = heat.own_candidate(of_rank, candidates._asdict())
            result["looked_at"]["candidate_score"] = round(float(candidates.scores[candidate]), 4)
            slopes = jax.device_get(self._backward(*inputs, maps, candidate))
            slopes = {name: np.asarray(x[0], np.float32) for name, x in slopes.items()}
            if not any(x.any() for x in slopes.values()):
                print(
                    f"image {name}: all gradients of the score {candidates.scores[candidate]:.4f}"
                    " are zero, as those of a saturated score are; look at another detection"
                )
            panels, result["maps"], heats = self._activation(arrays, slopes, batch, box)
            arrays |= {f"gradient of {name}": x for name, x in slopes.items()}
            arrays |= {f"heat of {name}": x for name, x in heats.items()}
        else:
            panels, result["maps"] = self._reductions(arrays, batch, box)
        height, width = (int(x) for x in batch.image_size[0])
        content = np.asarray(batch.images[0][:height, :width]).astype(np.uint8)
        title = f"{self.args.method} of feature maps: image {name}, {width} x {height} px"
        if rank is not None:
            result["area_of_box"] = round(_area(box, (height, width)), 4)
            text = f"{self.class_names[detections.labels[rank]]} {detections.scores[rank]:.2f}"
            title += f", white box: {text}, {100 * result['area_of_box']:.1f} % of the image"
        drawn = self._drawn(content, detections, rank)
        figure = draw_lib.draw(content, drawn, panels, batch.images.shape[1:3], title, box)
        return Seen(name, figure, result, arrays)

    def chosen(self, name: str, found: types.Detections) -> int | None:
        """The rank of the detection to look at; None if there is none and none is needed."""
        args, count = self.args, int(found.valid.sum())
        if args.class_name:
            if args.class_name not in self.class_names:
                raise errors.UserError(
                    f"--class {args.class_name} is no class of the detector; its classes are"
                    f" {', '.join(self.class_names[:8])}"
                    f"{', ...' if len(self.class_names) > 8 else ''}."
                )
            label = self.class_names.index(args.class_name)
            ranks = np.flatnonzero(found.valid & (found.labels == label))
            if not len(ranks):
                raise errors.UserError(f"image {name} has no detection of {args.class_name}.")
            return int(ranks[0])
        if args.detection is not None and args.detection >= count:
            raise errors.UserError(
                f"--detection is {args.detection}, but image {name} has {count} detections, of rank"
                " 0 and up."
            )
        if not count and args.method in GRADIENT:
            raise errors.UserError(
                f"image {name} has no detection, which --method {args.method} explains; lower"
                " --config.model.score_threshold, or give weights."
            )
        return (args.detection or 0) if count else None

    def _reductions(self, arrays, batch, box) -> tuple[list[draw_lib.Panel], list[dict]]:
        """(panels, entries of the JSON) of methods that need no gradient."""
        canvas, size = batch.images.shape[1:3], batch.image_size[0]
        panels, entries = [], []
        for name, values in arrays.items():
            if self.args.method == "pca":
                components, shares = heat.principal(values)
                ends = np.percentile(components, heat.PERCENTILES, axis=(0, 1))
                spread = np.where(ends[1] > ends[0], ends[1] - ends[0], 1)
                colours = np.clip((components - ends[0]) / spread, 0, 1)
                note = "variance " + ", ".join(f"{100 * share:.0f} %" for share in shares)
                panels.append(draw_lib.Panel(_heading(name, values, canvas), note, colours, None))
                numbers = heat.figures(components[..., 0], canvas, size, box)
                numbers["variance_shares"] = [round(float(x), 4) for x in shares]
                entries.append({"map": name, "channels": values.shape[-1], **numbers})
                continue
            if self.args.method == "topk":
                chosen = heat.largest(values, self.args.channels)
                shown = {f"channel {channel}": values[..., channel] for channel in chosen}
            else:
                shown = {"": heat.reduce(values, self.args.method)}
            for label, one in shown.items():
                numbers = heat.figures(one, canvas, size, box)
                heading = f"{label} of {name}" if label else _heading(name, values, canvas)
                panels.append(self._panel(heading, one, numbers))
                extra = {"channel": int(label.split()[1])} if label else {}
                entries.append({"map": name, "channels": values.shape[-1], **extra, **numbers})
        return panels, entries

    def _activation(self, arrays, slopes, batch, box):
        """(panels, entries of the JSON, heat maps) of Grad-CAM and LayerCAM; first their sum."""
        canvas, size = batch.images.shape[1:3], batch.image_size[0]
        heats = {
            name: heat.cam(values, slopes[name], self.args.method)
            for name, values in arrays.items()
        }
        total = heat.over_levels(list(heats.values()), canvas)
        panels, entries = [], []
        for name, one in {SUM: total, **heats}.items():
            numbers = heat.figures(one, canvas, size, box)
            numbers["share_of_sum"] = None if name == SUM else _part(one.sum(), total.sum())
            heading = name if name == SUM else _heading(name, one, canvas)
            panels.append(self._panel(heading, one, numbers, overlay=True))
            entries.append({"map": name, **numbers})
        return panels, entries, heats

    def _panel(self, heading, values, numbers, overlay=False) -> draw_lib.Panel:
        notes = []
        if numbers.get("share_of_sum") is not None:
            notes.append(f"{100 * numbers['share_of_sum']:.0f} % of the sum")
        if numbers["share_in_box"] is not None:
            notes.append(f"{100 * numbers['share_in_box']:.0f} % of it in the box")
        ends = None if numbers["constant"] else heat.scale(values)
        return draw_lib.Panel(heading, ", ".join(notes), values, ends, overlay)

    def listed(self, found: types.Detections) -> list[dict]:
        """The detections that the demo would show."""
        keep = np.flatnonzero(found.valid & (found.scores >= self.threshold))
        return [self.as_json(found, i) for i in keep]

    def as_json(self, found: types.Detections, rank: int) -> dict[str, Any]:
        return {
            "class": self.class_names[found.labels[rank]],
            "score": round(float(found.scores[rank]), 4),
            "box": [round(float(x), 2) for x in found.boxes[rank]],
        }

    def _drawn(self, image, found: types.Detections, rank: int | None) -> np.ndarray:
        """The image with the detections that the demo would show, and the one looked at."""
        keep = found.valid & (found.scores >= self.threshold)
        if rank is not None:
            keep[rank] = True
        return boxes_lib.draw(
            image, found.boxes[keep], found.labels[keep], self.class_names, found.scores[keep]
        )


def table(results: Sequence[dict]) -> str:
    """The numbers of all maps as text."""
    lines = [
        f"{'image':24}{'map':32}{'cells':>10}{'min':>11}{'max':>11}{'in the box':>12}"
        f"{'peak x, y':>16}"
    ]
    for one in results:
        for entry in one["maps"]:
            name = entry["map"] + (f" channel {entry['channel']}" if "channel" in entry else "")
            cells = "x".join(map(str, entry["cells"]))
            share = entry["share_in_box"]
            share = "" if share is None else f"{100 * share:.1f} %"
            peak = f"{entry['peak_px']['x']:g}, {entry['peak_px']['y']:g}"
            peak = "constant" if entry["constant"] else peak
            lines.append(
                f"{one['image'][-23:]:24}{name[-31:]:32}{cells:>10}{entry['min']:11.4g}"
                f"{entry['max']:11.4g}{share:>12}{peak:>16}"
            )
    return "\n".join(lines)


def _heading(name, values, canvas):
    rows, columns = values.shape[:2]
    return f"{name}: {rows} x {columns} cells of {canvas[0] / rows:.3g} px"


def _area(box, size):
    """The part of the image that a box covers."""
    box = np.clip(np.asarray(box, float), 0, (size[1], size[0], size[1], size[0]))
    return float((box[2:] - box[:2]).prod() / np.prod(size))


def _part(some, total):
    return round(float(some / total), 4) if total > 0 else None


if __name__ == "__main__":
    errors.run_main(main)
