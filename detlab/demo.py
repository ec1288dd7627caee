"""Detects objects in images and videos and draws them.

    python -m detlab.demo --workdir runs/retinanet_shapes --input photos --output found

The input is an image, a video, a folder of both with its sub-folders, or a quoted glob pattern.
The output folder gets a picture or video for each input, and `detections.json`.  It must not be the
folder of the input, which is never written to.

Photos are turned upright by their EXIF orientation, unless config.data.exif is `stored`; boxes are
in pixels of the picture as it is drawn.
"""

import pathlib
from collections.abc import Sequence

from detlab import cli

if __name__ == "__main__":
    cli.answer_first(cli.demo(__doc__))  # --help needs no import below

import jax

from detlab import detect as detect_lib
from detlab import environment, errors, media, progress, trained
from detlab import files as files_lib
from detlab.data import records
from detlab.viz import letters


def main(arguments: Sequence[str]) -> None:
    """Runs the program."""
    args, overrides = cli.parse(arguments, cli.demo(__doc__))
    cli.check_demo(args)
    output, folder = pathlib.Path(args.output), pathlib.Path(args.input)
    inputs = media.find_inputs(args.input, output)
    files = inputs.files
    names = media.output_names(files, folder if folder.is_dir() else None)
    targets = [output / name for name in names]
    listing = output / "detections.json"
    media.check_originals(files, [*targets, listing])
    files_lib.check_outputs(files=[*targets, listing])

    environment.check_devices()
    config, weights = trained.load(args, overrides)
    config, detector, params, state, class_names = trained.for_pictures(config, weights, overrides)
    for sentence in (media.sentence(inputs, folder), letters.sentence(class_names)):
        if sentence:
            print(sentence)
    detect = detect_lib.of(jax.jit(detector.predict), params, state, config, class_names)
    chosen = dict(threshold=args.threshold, top_k=args.top_k)
    detect = detect._replace(**{name: x for name, x in chosen.items() if x is not None})
    rows, failed = [], []
    with progress.bar(len(files), "detect", "file") as bar:
        for path, target in zip(files, targets, strict=True):
            try:
                row = media.process(path, target, detect, config.data.exif)
            except records.DataError as error:
                failed.append(str(error))
                bar.write(f"skipped: {error}")
            else:
                rows.append(row)
                for problem in row.get("problems", []):
                    bar.write(problem)
            bar.update()
    if not rows:
        raise errors.UserError(f"no file could be read; the first error is: {failed[0]}")
    files_lib.write_json(listing, rows)
    objects = sum(len(part) for row in rows for part in row.get("frames", [row.get("objects", [])]))
    skipped = f", {len(failed)} files skipped" if failed else ""
    print(f"{objects} objects with score >= {detect.threshold:g} in {len(rows)} files{skipped}")
    print(f"pictures:     {output}")
    print(f"detections:   {listing}")


if __name__ == "__main__":
    errors.run_main(main)
