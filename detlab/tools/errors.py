"""Says which images are wrong and why: kinds of errors, confusions, thresholds, calibration.

    detlab tools errors --workdir runs/retinanet_shapes --output errors
    detlab tools errors --config retinanet_voc --predictions saved.json --output errors

Predictions are those of a finished run, or a file that `detlab eval --predictions` wrote, or one of
COCO's results; no model is needed.  docs/tools.md says what each number is.
"""

from detlab import cli

if __name__ == "__main__":
    cli.answer_first(cli.errors_tool(__doc__))  # --help needs no import below

from collections.abc import Mapping, Sequence
from typing import Any

from detlab import errors, saved
from detlab.metrics import errors as errors_lib
from detlab.metrics import tables, tide
from detlab.tools import frame
from detlab.viz import analysis as figures


def main(arguments: Sequence[str]) -> None:
    """Runs the program."""
    args, overrides = frame.parse(arguments, cli.errors_tool(__doc__))
    cli.check_errors_tool(args)
    given = saved.load(args, overrides)
    analysis = errors_lib.analyse(given.truth, given.predictions, given.source.class_names)
    results = errors_lib.results(analysis, args.threshold)

    inputs = {"predictions": str(given.path), "images": results["num_images"]}
    output = frame.Output("errors", args, given.config, inputs)
    title = f"{given.path.name}, {results['num_images']} images"
    output.figure(figures.kinds(results, title), "kinds")
    output.figure(figures.by_threshold(results, title), "thresholds")
    output.figure(figures.precision_recall(results, title), "precision_recall")
    output.figure(figures.confusion(results, title), "confusion")
    output.figure(figures.calibration(results, title), "calibration")
    output.close(results, table(results))


def table(results: Mapping[str, Any]) -> str:
    """The results in short: figures, kinds by size, counts, and the ten worst images."""
    number = tables.number
    figures_line = "  ".join(f"{k} {number(v)}" for k, v in results["figures"].items())
    sizes = list(results["kinds"])
    kinds = [
        [
            name.replace("_", " "),
            str(results["kinds"]["all"][name]["count"]),
            *(number(results["kinds"][size][name]["dAP"], 4) for size in sizes),
        ]
        for name in (*tide.KINDS, *tide.SUMS)
    ]
    header = ["error", "count", "dAP", *(f"dAP {size}" for size in sizes[1:])]
    at = results["at_threshold"]
    counted = (
        f"from score {results['threshold']:.3f} on: {at['true_positives']} true positives,"
        f" {at['false_positives']} false positives, {at['false_negatives']} objects not found,"
        f" precision {at['precision']:.3f}, recall {at['recall']:.3f}, F1 {at['f1']:.3f}"
    )
    worst = [
        [
            str(row["image_id"]),
            *(str(row[f"{k}s"]) for k in ("true_positive", "false_positive", "false_negative")),
            f"{row['f1']:.2f}",
            _worst(row["worst"]),
        ]
        for row in results["images"][:10]
    ]
    parts = [
        figures_line,
        tables.text_table(header, kinds),
        counted,
        tables.text_table(["worst images", "TP", "FP", "FN", "F1", "worst error"], worst),
    ]
    if results["left_out"]:
        parts.append(
            f"left out, as in COCO's figures: {results['left_out']} detections beyond the 100 best"
            " of an image and class"
        )
    return "\n\n".join(parts)


def _worst(worst):
    if worst is None:
        return ""
    score = f" {worst['score']:.2f}" if "score" in worst else ""
    return f"{worst['kind'].replace('_', ' ')}: {worst['class']}{score}"


if __name__ == "__main__":
    errors.run_main(main)
