"""The flags of the tools that look at data; no jax is imported, so --help answers at once."""

import argparse

from detlab import cli, paths

SIZES = {"small": (0.0, 32.0), "medium": (32.0, 96.0), "large": (96.0, float("inf"))}  # px
IOUS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))  # COCO's thresholds


def _data(name: str, docstring: str, part: str | None) -> argparse.ArgumentParser:
    """The flags of a tool that reads data; `part` is the default of --part, None: no such flag."""
    parser = cli.tool(name, docstring, reads="")
    parser.add_argument(
        "--config",
        type=paths.expand,
        help="path of a config or name of a shipped experiment, whose data are read",
    )
    parser.add_argument("--images", type=paths.expand, help="folder of images, instead of --config")
    parser.add_argument(
        "--annotations", type=paths.expand, help="with --images: the file in COCO format"
    )
    if part is not None:
        parser.add_argument(
            "--part", choices=("train", "eval"), default=part, help=f"of the data ({part})"
        )
    return parser


def _add_choice(parser: argparse.ArgumentParser, count: int) -> None:
    """Adds the flags that choose images and objects."""
    parser.add_argument("--count", type=int, default=count, help=f"images to draw ({count})")
    parser.add_argument("--start", type=int, default=0, help="images to pass over first (0)")
    parser.add_argument("--every", type=int, default=1, help="draw each n-th image (1)")
    parser.add_argument("--class", dest="class_name", help="only images with this class")
    parser.add_argument("--size", choices=SIZES, help="only images with objects of COCO's size")
    parser.add_argument(
        "--only_ignored", action="store_true", help="only images with crowd or difficult objects"
    )


def dataset(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m detlab.tools.dataset`."""
    parser = _data("dataset", docstring, None)
    parser.add_argument("--splits", default="train,eval", help="parts to read (train,eval)")
    parser.add_argument(
        "--augmented", type=int, default=200, help="images of the training stream; 0: none (200)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="read annotations only: no unreadable or equal images"
    )
    return parser


def browse(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m detlab.tools.browse`."""
    parser = _data("browse", docstring, "train")
    _add_choice(parser, 16)
    parser.add_argument(
        "--steps", action="store_true", help="draw each image after each step of the pipeline"
    )
    return parser


def visualize(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m detlab.tools.visualize`."""
    parser = _data("visualize", docstring, "eval")
    _add_choice(parser, 16)
    parser.add_argument(
        "--boxes_only", action="store_true", help="no outlines and keypoints of COCO's files"
    )
    parser.add_argument(
        "--predictions", type=paths.expand, help="file of detlab.eval, or COCO's results"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.3, help="lowest score of a drawn prediction (0.3)"
    )
    return parser


def convert_dataset(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m detlab.tools.convert_dataset`."""
    parser = _data("convert_dataset", docstring, None)
    parser.add_argument("--to", required=True, choices=("coco", "voc", "yolo"), help="the form")
    parser.add_argument("--splits", default="train,eval", help="parts to convert (train,eval)")
    parser.add_argument(
        "--files",
        choices=("link", "copy", "none"),
        default="link",
        help="what becomes of the image files (link)",
    )
    parser.add_argument(
        "--check", action="store_true", help="read the result back and compare all boxes"
    )
    return parser


def average_precision(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m detlab.tools.average_precision`."""
    parser = _data("average_precision", docstring, None)
    parser.add_argument(
        "--predictions", type=paths.expand, help="file of detlab.eval, or COCO's results"
    )
    parser.add_argument(
        "--boxes", type=paths.expand, help="JSON or CSV of objects and detections, instead of data"
    )
    parser.add_argument(
        "--class", dest="class_name", help="one class, or all (that with most objects)"
    )
    parser.add_argument(
        "--iou", type=float, default=0.5, help="least IoU of a match: .5, .55, ... .95 (0.5)"
    )
    parser.add_argument("--count", type=int, default=8, help="images to draw (8)")
    return parser
