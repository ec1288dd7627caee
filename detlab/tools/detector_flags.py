"""The flags of the tools that look into a detector; no jax is imported, so --help is quick."""

import argparse

from detlab import cli, errors, paths

METHODS = ("mean", "norm", "max", "topk", "pca", "gradcam", "layercam")


def positives(docstring: str) -> argparse.ArgumentParser:
    """The flags of `detlab tools positives`."""
    parser = cli.tool("positives", docstring)
    parser.set_defaults(limit=8)
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        type=paths.expand,
        metavar="CONFIG",
        help="other detectors on the same images: configs, or folders of training runs",
    )
    parser.add_argument(
        "--part", choices=("train", "eval"), default="train", help="which data (default: train)"
    )
    parser.add_argument(
        "--image", nargs="+", default=[], metavar="ID", help="these images of the data, by id"
    )
    parser.add_argument(
        "--augmented", action="store_true", help="images as training sees them, in its order"
    )
    parser.add_argument(
        "--input", type=paths.expand, help="this photograph instead; needs --objects"
    )
    parser.add_argument("--objects", help='its objects, px: "dog 131 220 309 540; cat x1 y1 x2 y2"')
    parser.add_argument(
        "--points",
        action="store_true",
        help="draw points alone; rings are points in an object that do not learn it",
    )
    parser.add_argument("--pictures", type=int, default=8, help="most images to draw (default: 8)")
    return parser


def check_positives(args: argparse.Namespace) -> None:
    """Rejects flags of `positives` that cannot be combined or are out of range."""
    if args.pictures < 0:
        raise errors.UserError(f"--pictures is {args.pictures}; it must be at least 0.")
    if bool(args.input) != bool(args.objects):
        raise errors.UserError(
            "--input and --objects go together: the photograph and the objects in it."
        )
    if args.input and (args.image or args.augmented):
        raise errors.UserError("--image and --augmented choose from the data; remove --input.")
    if args.augmented and (args.image or args.part == "eval"):
        raise errors.UserError(
            "--augmented shows the training data in their order; remove --image and --part."
        )


def feature_maps(docstring: str) -> argparse.ArgumentParser:
    """The flags of `detlab tools feature_maps`."""
    parser = cli.tool("feature_maps", docstring)
    parser.set_defaults(limit=4)
    parser.add_argument(
        "--input", type=paths.expand, help="image, folder or quoted glob (default: the eval data)"
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="mean",
        help="what is drawn of the channels (default: mean, of their sizes)",
    )
    parser.add_argument(
        "--taps",
        metavar="REGEX",
        help="paths of modules, such as 'neck|head' (default: neck; backbone for gradients)",
    )
    parser.add_argument("--list", action="store_true", help="print the maps to choose from")
    parser.add_argument(
        "--channels", type=int, default=5, help="of topk: the largest, of each map (default: 5)"
    )
    parser.add_argument(
        "--detection", type=int, metavar="RANK", help="look at this one (default: 0, the best)"
    )
    parser.add_argument("--class", dest="class_name", help="look at the best of this class")
    parser.add_argument("--arrays", action="store_true", help="also write the maps as npz")
    return parser


def check_feature_maps(args: argparse.Namespace) -> None:
    """Rejects flags of `feature_maps` that cannot be combined or are out of range."""
    if args.channels < 1:
        raise errors.UserError(f"--channels is {args.channels}; it must be at least 1.")
    if args.detection is not None and args.class_name:
        raise errors.UserError("--detection and --class both choose a detection; remove one.")
    if args.detection is not None and args.detection < 0:
        raise errors.UserError(f"--detection is {args.detection}; it must be at least 0.")
