"""The flags of `python -m converters.convert`, apart from it: --help is printed without jax."""

import argparse
import pathlib

from detlab import cli
from detlab.converters import families


def convert(docstring: str) -> argparse.ArgumentParser:
    parser = cli.program(
        "converters.convert",
        docstring,
        epilog="Any key of the config is overridden by --config.key=value.",
    )
    parser.add_argument("--source", choices=("auto", *families.NAMES), default="auto")
    parser.add_argument("--config", help="experiment file or name")
    parser.add_argument("--input", help="a weight file (.pth, .pt, .safetensors, .npz) or its URL")
    parser.add_argument("--sha256", default="", help="of a URL whose name does not have it")
    parser.add_argument("--output", type=pathlib.Path, help="a folder to be made")
    parser.add_argument(
        "--bgr",
        action="store_true",
        help="the network was trained on BGR images (caffe-style ResNets): flip its stem to RGB",
    )
    parser.add_argument(
        "--reset_classes",
        action="store_true",
        help="leave the class layers out: to train on other classes than those of the file",
    )
    parser.add_argument(
        "--reverse",
        action="store_true",
        help="from detlab to a .pth, .safetensors, or for detector darknet .weights and .cfg:"
        " --input is a workdir or a weights folder",
    )
    parser.add_argument("--checkpoint", default="best", help="of --reverse: best, last or a step")
    parser.add_argument("--inspect", metavar="FILE", help="print what a weight file holds")
    parser.add_argument("--cfg", help="the network of a darknet .weights file")
    parser.add_argument("--names", help="of a darknet file: a text file, a line a class")
    return parser
