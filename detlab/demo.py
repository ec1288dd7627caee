"""Detects objects in images and videos and draws them.

    python -m detlab.demo --workdir runs/retinanet_shapes --input photos --output found

The input is an image, a video, a folder of both, or a quoted glob pattern.  The output folder gets
a picture or video for each input, and `detections.json`.  It must not be the folder of the input,
which is never written to.

Photos are rotated upright by their EXIF orientation; boxes are in pixels of the upright picture.
"""

import pathlib
from collections.abc import Sequence

from detlab import cli

if __name__ == "__main__":
    cli.answer_first(cli.demo(__doc__))  # --help needs no import below

import jax

from detlab import contract, environment, errors, media, progress, sharding, trained
from detlab import detect as detect_lib
from detlab import files as files_lib
from detlab.data import records, settings


def main(arguments: Sequence[str]) -> None:
    """Runs the program."""
    args, overrides = cli.parse(arguments, cli.demo(__doc__))
    cli.check_demo(args)
    files = media.find_inputs(args.input)
    output = pathlib.Path(args.output)
    targets = [output / name for name in media.output_names(files)]
    listing = output / "detections.json"
    media.check_originals(files, [*targets, listing])
    files_lib.check_outputs(files=[*targets, listing])

    environment.check_devices()
    config, weights = trained.load(args, overrides)
    config = detect_lib.for_pictures(config, overrides)
    threshold = config.predict.threshold if args.threshold is None else args.threshold
    environment.use_compilation_cache(config)
    detector = contract.build(config)
    params, state = trained.fit(detector, config, weights, sharding.make_mesh())
    detect = detect_lib.Detect(
        jax.jit(detector.predict),
        params,
        state,
        settings.of(config.data, "demo", config.predict),
        detect_lib.names_of(weights.info.get("class_names"), config),
        threshold,
        config.predict.top_k if args.top_k is None else args.top_k,
    )
    rows, failed = [], []
    with progress.bar(len(files), "detect", "file") as bar:
        for path, target in zip(files, targets, strict=True):
            try:
                row = media.process(path, target, detect)
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
    print(f"{objects} objects with score >= {threshold:g} in {len(rows)} files{skipped}")
    print(f"pictures:     {output}")
    print(f"detections:   {listing}")


if __name__ == "__main__":
    errors.run_main(main)
