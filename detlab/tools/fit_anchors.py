"""Fits the anchors of an experiment's detector to the objects in its training data.

    python -m detlab.tools.fit_anchors --config experiments/yolov5_voc.py --output anchors.json

Prints how well the current and the fitted anchors match the objects, then the fitted ones as a
value for the config or as a line for a darknet cfg.  Objects are measured on the canvases of the
config.
"""

from detlab import cli
from detlab import config as config_lib

if __name__ == "__main__":
    cli.answer_first(cli.fit_anchors(__doc__))  # --help needs no import below

import numpy as np
from ml_collections import config_dict

from detlab import checks, contract, data_sets, errors, files
from detlab.darknet import networks as darknet_networks
from detlab.data import anchor_fit, settings


def main(arguments: list[str]) -> None:
    """Runs the program."""
    args, overrides = cli.parse(arguments, cli.fit_anchors(__doc__))
    config = config_lib.load(args.config, overrides)
    checks.check_config(config)
    now, levels = current(config)
    count = len(now) if args.anchors is None else args.anchors
    ratio = args.ratio or contract.field(config, "anchor_ratio") or 4.0
    if count < 1 or count % (levels or 1):
        raise errors.UserError(
            f"--anchors is {count}; it must be at least 1 and a multiple of the detector's number"
            f" of levels, {levels or 1}."
        )
    if ratio <= 1 or args.generations < 0:
        raise errors.UserError("--ratio must be above 1, and --generations at least 0.")

    source = data_sets.open_source(config, "train")
    resize = settings.of(config.data, "train").resize
    sizes = anchor_fit.object_sizes(source, config.data.canvases, resize)
    try:
        fitted = anchor_fit.fit(
            sizes, count, np.random.default_rng(config.seed), ratio, args.generations
        )
    except ValueError as error:
        raise errors.UserError(f"train data: {error}.") from error
    fitted = np.round(fitted, 1)  # as printed
    width, height = np.median(sizes, axis=0)
    print(f"{len(sizes)} objects in {len(source)} images, median {width:.0f} x {height:.0f} px")
    before, after = (anchor_fit.check(sizes, anchors, ratio) for anchors in (now, fitted))
    for name, quality in (("now", before), ("fitted", after)):
        print(
            f"{name + ':':8} best possible recall {quality.best_recall:.4f}, "
            f"{quality.anchors_per_object:.2f} anchors per object, fitness {quality.fitness:.4f}"
        )
    print(as_config(fitted, levels))
    if args.output:
        result = {
            "anchors": fitted.tolist(),
            "ratio": ratio,
            "objects": len(sizes),
            "now": before._asdict(),
            "fitted": after._asdict(),
        }
        files.write_json(args.output, result)
        print(f"written to {args.output}")


def current(config: config_dict.ConfigDict) -> tuple[np.ndarray, int | None]:
    """The detector's anchors [k, 2] width, height px, and number of levels; None for a cfg."""
    anchors = contract.field(config, "anchor_sizes")
    if anchors is not None:
        return np.array([size for level in anchors for size in level], float), len(anchors)
    cfg = contract.field(config, "cfg")
    if cfg is None:
        raise errors.UserError(
            f"detector {config.detector} has no list of anchor sizes; use a detector with the field"
            " anchor_sizes or cfg, such as yolov3, yolov5 or darknet."
        )
    network = darknet_networks.resolve(cfg)
    head = network.layers[darknet_networks.heads(network)[0]]
    if head.kind == "region":
        raise errors.UserError(
            f"{network.name} has a [region], whose anchors are in cells; this program fits anchors"
            " in px, as those of [yolo]."
        )
    return np.array(head.anchors, float), None


def as_config(anchors: np.ndarray, levels: int | None) -> str:
    """The text for a config, finest level first, or for each [yolo] section of a cfg.

    Args:
      anchors: [k, 2] width, height px.
      levels: number of levels of the detector; None for a cfg.
    """
    if levels is None:
        pairs = ",  ".join(f"{w:g},{h:g}" for w, h in anchors)
        return f"for each [yolo] section of the cfg:\nanchors = {pairs}"
    value = tuple(tuple(map(tuple, level)) for level in anchors.reshape(levels, -1, 2).tolist())
    return f'--config.model.anchor_sizes="{value}"'


if __name__ == "__main__":
    errors.run_main(main)
