"""The flags of the programs, apart from them: --help is printed without importing jax.

Each function takes the docstring of its program, which --help shows above the flags.
"""

import argparse
import pathlib


def train(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m detlab.train`."""
    parser = program("detlab.train", docstring)
    _add_config(parser, required=True)
    parser.add_argument("--workdir", help="folder of the run; default runs/<config name>")
    parser.add_argument(
        "--dry_run", action="store_true", help="build everything, run two steps, write no run"
    )
    parser.add_argument(
        "--draw", help="with --dry_run: draw the first training images into this folder"
    )
    _add_distributed(parser)
    return parser


def evaluation(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m detlab.eval`."""
    parser = program("detlab.eval", docstring)
    _add_model(parser)
    parser.add_argument("--predictions", help="write predictions here; without a model, read them")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--draw", help="draw pictures into this folder")
    parser.add_argument("--draw_limit", type=int, default=0, help="number of pictures; 0: all")
    parser.add_argument("--threshold", type=float, default=0.3, help="lowest score that is drawn")
    _add_distributed(parser)
    return parser


def demo(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m detlab.demo`."""
    parser = program("detlab.demo", docstring)
    _add_model(parser)
    parser.add_argument("--input", required=True, help="image, folder, 'glob' or video")
    parser.add_argument("--output", required=True, help="folder for pictures and JSON")
    parser.add_argument("--threshold", type=float, default=0.3, help="lowest score that is shown")
    parser.add_argument("--top_k", type=int, default=100, help="objects an image at the most")
    return parser


def fit_anchors(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m detlab.tools.fit_anchors`."""
    parser = program("detlab.tools.fit_anchors", docstring)
    _add_config(parser, required=True)
    parser.add_argument("--anchors", type=int, help="number of all; by default as many as now")
    parser.add_argument("--ratio", type=float, help="of sides, by default the detector's, or 4")
    parser.add_argument("--generations", type=int, default=1000, help="of changes after k-means")
    parser.add_argument("--output", type=pathlib.Path, help="JSON with the anchors and figures")
    return parser


def program(module: str, docstring: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """The parser of `python -m MODULE`, without flags: --help shows the docstring as it stands."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=docstring,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_config(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--config",
        required=required,
        help="path of a config or name of a shipped experiment, `:variant` appended",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    """--workdir, or --config with --checkpoint: where the detector comes from."""
    parser.add_argument("--workdir", help="folder of a training run")
    _add_config(parser, required=False)
    parser.add_argument(
        "--checkpoint",
        help="with --workdir best (default), last or a step; with --config the folder of weights",
    )


def _add_distributed(parser: argparse.ArgumentParser) -> None:
    """--distributed, and what it needs where no cluster is recognised."""
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="join the other processes of this run (docs/scaling.md)",
    )
    parser.add_argument("--coordinator", help="host:port of the first process")
    parser.add_argument("--num_processes", type=int, help="of the whole run")
    parser.add_argument("--process_id", type=int, help="0 is the first, which writes all files")
