"""The flags of the tools that measure a detector; no jax is imported, so --help answers at once."""

import argparse
from collections.abc import Sequence

from detlab import cli, errors, paths

FAMILIES = ("classification", "box", "embedding")  # of losses
AXES = ("probability", "logit", "shift", "iou", "distance")


def losses(docstring: str) -> argparse.ArgumentParser:
    """The flags of `detlab tools losses`."""
    parser = cli.tool("losses", docstring)
    parser.add_argument("--losses", help="names, separated by commas (default: all of --family)")
    parser.add_argument(
        "--family", choices=FAMILIES, default=FAMILIES[0], help="default: classification"
    )
    parser.add_argument("--x", choices=AXES, help="default: probability, shift or distance")
    parser.add_argument("--points", type=int, default=501, help="of each curve (default: 501)")
    parser.add_argument("--gamma", help="focusing exponents, separated by commas")
    parser.add_argument("--alpha", help="weights of the objects, separated by commas")
    parser.add_argument("--beta", help="where smooth L1 becomes a line, separated by commas")
    parser.add_argument("--quality", help="targets of an object in qfl, varifocal ... (default: 1)")
    parser.add_argument(
        "--scales", default="1", help="sides of the box, in those of the object (default: 1)"
    )
    parser.add_argument(
        "--label", type=int, choices=(0, 1), default=1, help="1: object (default), 0: background"
    )
    parser.add_argument("--term", help="of the detector's loss, such as loss/cls")
    return parser


def check_losses(args: argparse.Namespace) -> None:
    """Rejects flags of `losses` that are out of range or have no effect."""
    if args.points < 2:
        raise errors.UserError(f"--points is {args.points}; it must be at least 2.")
    if args.term and not (args.config or args.workdir):
        raise errors.UserError("--term is that of a detector; give --workdir or --config too.")
    if args.label == 0 and args.quality:
        raise errors.UserError("--quality is the target of an object; leave it out with --label 0.")


def curves(docstring: str) -> argparse.ArgumentParser:
    """The flags of `detlab tools curves`."""
    parser = cli.tool("curves", docstring, reads="")
    parser.add_argument("runs", nargs="+", type=paths.path, help="folders, or files metrics.jsonl")
    parser.add_argument(
        "--keys",
        default="train/loss,eval/AP",
        help="separated by commas (default: train/loss,eval/AP)",
    )
    parser.add_argument(
        "--smooth",
        type=float,
        default=0.0,
        help="weight of earlier values of train/, below 1 (default: 0)",
    )
    return parser


def check_curves(args: argparse.Namespace) -> None:
    """Rejects flags of `curves` that are out of range."""
    if not 0 <= args.smooth < 1:
        raise errors.UserError(f"--smooth is {args.smooth:g}; it must be at least 0 and below 1.")


def anchors(docstring: str) -> argparse.ArgumentParser:
    """The flags of `detlab tools anchors`."""
    parser = cli.tool("anchors", docstring)
    parser.add_argument(
        "--ratio", type=float, help="largest ratio of sides of a match (default: detector's, or 4)"
    )
    parser.add_argument(
        "--worth",
        type=float,
        default=0.01,
        help="least gain of recall that is worth other anchors (default: 0.01)",
    )
    parser.add_argument(
        "--generations", type=int, default=1000, help="rounds of mutation (default: 1000)"
    )
    return parser


def check_anchors(args: argparse.Namespace) -> None:
    """Rejects flags of `anchors` that are out of range."""
    if args.ratio is not None and args.ratio <= 1:
        raise errors.UserError(f"--ratio is {args.ratio:g}; it must be above 1.")
    if args.generations < 0:
        raise errors.UserError(f"--generations is {args.generations}; it must be at least 0.")
    if not 0 <= args.worth <= 1:
        raise errors.UserError(f"--worth is {args.worth:g}; it must be from 0 to 1.")


def receptive_field(docstring: str) -> argparse.ArgumentParser:
    """The flags of `detlab tools receptive_field`."""
    parser = cli.tool("receptive_field", docstring)
    parser.set_defaults(limit=16)
    parser.add_argument(
        "--taps",
        metavar="REGEX",
        help="paths of modules, such as 'backbone/stage._block0' (default: the pyramid's levels)",
    )
    parser.add_argument(
        "--images",
        choices=("data", "random"),
        default="data",
        help="training images (default) or noise",
    )
    parser.add_argument(
        "--before", action="store_true", help="also measure the initial weights, before training"
    )
    parser.add_argument("--position", metavar="X,Y", help="px on the canvas (default: its middle)")
    return parser


def position(text: str | None, canvas: tuple[int, int]) -> tuple[float, float]:
    """The place x, y px that --position names.

    Raises:
      UserError: it is none, or lies outside the canvas.
    """
    if text is None:
        return canvas[1] / 2, canvas[0] / 2
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise errors.UserError(f"--position is {text!r}; it must be x,y px.") from None
    if not (0 <= x < canvas[1] and 0 <= y < canvas[0]):
        raise errors.UserError(
            f"--position {text} lies outside the canvas, which is {canvas[1]} px wide and"
            f" {canvas[0]} px high."
        )
    return x, y


def speed(docstring: str) -> argparse.ArgumentParser:
    """The flags of `detlab tools speed`."""
    parser = cli.tool("speed", docstring)
    parser.add_argument("--batch", default="1,8", help="batch sizes (default: 1,8)")
    parser.add_argument("--runs", type=int, default=50, help="of each stage (default: 50)")
    parser.add_argument(
        "--images",
        default="data",
        help="data (evaluation images, default), random, or a folder of images",
    )
    return parser


def batch_sizes(text: str) -> Sequence[int]:
    """The numbers of --batch.

    Raises:
      UserError: they are none.
    """
    try:
        sizes = [int(word) for word in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise errors.UserError(
            f"--batch is {text!r}; it must be numbers of images separated by commas, such as 1,8."
        )
    return sizes


def check_speed(args: argparse.Namespace) -> None:
    """Rejects flags of `speed` that are out of range."""
    batch_sizes(args.batch)
    if args.runs < 2:
        raise errors.UserError(f"--runs is {args.runs}; it must be at least 2.")
