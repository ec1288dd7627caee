"""The flags of `python -m converters.convert`, in a file that --help can import without jax."""

import argparse

from detlab import cli, paths
from detlab.converters import families


def convert(docstring: str) -> argparse.ArgumentParser:
    """The parser of `python -m converters.convert`; --help shows the docstring."""
    parser = cli.program(
        "converters.convert",
        docstring,
        epilog="Override any config key with --config.key=value.",
    )
    parser.add_argument("--source", choices=("auto", *families.NAMES), default="auto")
    parser.add_argument("--config", type=paths.expand, help="experiment file or name")
    parser.add_argument(
        "--input",
        type=paths.expand,
        help="a weight file (.pth, .pt, .safetensors, .npz, .weights) or its URL",
    )
    parser.add_argument("--sha256", default="", help="of a URL whose file name lacks it")
    parser.add_argument("--output", type=paths.path, help="a new folder")
    parser.add_argument(
        "--pack",
        type=paths.expand,
        metavar="FOLDER",
        help="a run or weights folder, to be written as a folder that others can load (--output)",
    )
    parser.add_argument(
        "--bgr",
        action="store_true",
        help="the network was trained on BGR images (caffe-style ResNets): flip its stem to RGB",
    )
    parser.add_argument(
        "--reset_classes",
        action="store_true",
        help="drop the class layers, to train on classes other than those of the file",
    )
    parser.add_argument(
        "--reverse",
        action="store_true",
        help="convert a workdir or weights folder (--input) to a .pth or .safetensors file, or to"
        " .weights and .cfg for detector darknet (--output)",
    )
    parser.add_argument(
        "--checkpoint",
        type=paths.expand,
        default="best",
        help="for --reverse: best, last or a step",
    )
    parser.add_argument(
        "--inspect", type=paths.expand, metavar="FILE", help="print what a weight file holds"
    )
    parser.add_argument(
        "--cfg", type=paths.expand, help="the network of a darknet .weights file: its .cfg"
    )
    # `detlab.load` has the number of classes from the file; a command line must say it.
    parser.set_defaults(follow_classes=False)
    parser.add_argument("--names", type=paths.expand, help="class names: a text file, one per line")
    parser.add_argument(
        "--entry",
        default="",
        help="which weights of a file that holds several, such as its entry ema or model;"
        " default: those that its own code loads, averages (EMA) where there are any",
    )
    return parser
