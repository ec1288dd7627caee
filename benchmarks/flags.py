"""The flags of the benchmarks that import jax, kept apart so that --help runs without jax.

Each function takes its program's docstring, which --help shows above the flags.
"""

import argparse
import pathlib
import sys

from detlab import cli, paths

CASES = pathlib.Path("../shared/parity")  # recorded runs of reference implementations
KILLS = 24  # of one run: the default, and the least for a release


def accelerators(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.accelerators`."""
    parser = cli.program("benchmarks.accelerators", docstring)
    parser.add_argument("--platform", choices=("cuda", "tpu"), required=True)
    parser.add_argument(
        "--only", action="append", default=[], help="MODEL or MODEL/PROGRAM; repeatable"
    )
    parser.add_argument(
        "--devices", action="append", type=int, default=[], help="repeatable; default: 1 and 4"
    )
    parser.add_argument(
        "--dtype",
        action="append",
        choices=("bfloat16", "float32"),
        default=[],
        help="repeatable; default: both",
    )
    parser.add_argument(
        "--batch",
        action="append",
        type=int,
        default=[],
        help="images on a device, not the usual number; repeatable",
    )
    parser.add_argument("--side", type=int, help="square canvas of SIDE px, not the default")
    parser.add_argument("--minutes", type=float, default=10.0, help="limit of each program")
    parser.add_argument("--output", type=paths.path, help="folder of the JSON of the rows")
    parser.add_argument("--hlo", type=paths.path, help="folder for the text of each program")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # internal: compiles one program
    return parser


def convolutions(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.convolutions`."""
    parser = cli.program("benchmarks.convolutions", docstring)
    parser.add_argument(
        "--batch", action="append", type=int, default=[], help="repeatable; default: 1, 2 and 8"
    )
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--gflop", type=float, default=6.0, help="skip larger convolutions")
    parser.add_argument("--output", type=paths.path, help="JSON of the figures")
    return parser


def compilation(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.compilation`."""
    parser = cli.program("benchmarks.compilation", docstring)
    parser.add_argument("--only", action="append", default=[], help="a row; may be repeated")
    parser.add_argument("--output", type=paths.path, help="JSON of the rows")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # internal: compiles one program
    return parser


def devices(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.devices`."""
    parser = cli.program("benchmarks.devices", docstring)
    parser.add_argument("--config", type=paths.expand, required=True)
    parser.add_argument("--devices", type=int, nargs="+", default=(1, 2, 4))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=paths.path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser


def gpu(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.gpu`."""
    parser = cli.program("benchmarks.gpu", docstring)
    parser.add_argument("--only", action="append", default=[], help="a row; may be repeated")
    parser.add_argument("--minutes", type=float, default=9.0, help="end after so many")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--output", type=paths.path, help="JSON, written after each row")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # internal: measures one row
    return parser


def kills(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.kills`."""
    parser = cli.program("benchmarks.kills", docstring)
    parser.add_argument("--config", type=paths.expand, default="retinanet_shapes")
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=paths.path, help="JSON of the table and the counts")
    return parser


def loader(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.loader`."""
    parser = cli.program("benchmarks.loader", docstring)
    parser.add_argument("--only", action="append", default=[], help="RECIPE/SOURCE; repeatable")
    parser.add_argument("--root", type=paths.path, help="folder of COCO, not made-up images")
    parser.add_argument("--count", type=int, default=128, help="images of the data set")
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--workers", type=int, nargs="+", default=(0, 1, 2), help="processes")
    parser.add_argument("--batch", type=int, default=8, help="images per batch")
    parser.add_argument("--batches", type=int, default=16, help="per turn")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=paths.path, help="JSON of the figures")
    parser.add_argument(
        "--peer_python", type=paths.expand, default=sys.executable, help="Python that has the peers"
    )
    parser.add_argument("--serve", help=argparse.SUPPRESS)  # internal: runs one program
    return parser


def memory(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.memory`."""
    parser = cli.program("benchmarks.memory", docstring)
    parser.add_argument("--config", type=paths.expand, required=True)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between samples")
    parser.add_argument("--json", type=paths.path, help="JSON of the figures and samples")
    parser.add_argument("--picture", type=paths.path, help="PNG of the curves")
    return parser


def models(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.models`."""
    parser = cli.program("benchmarks.models", docstring)
    parser.add_argument("--only", action="append", default=[], help="a name; may be repeated")
    parser.add_argument("--side", type=int, help="square canvas of SIDE px, not the default")
    parser.add_argument("--batch", type=int, default=1, help="images per step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=paths.path, help="JSON of the figures")
    parser.add_argument(
        "--peer_python", type=paths.expand, default=sys.executable, help="Python that has the peers"
    )
    parser.add_argument("--serve", help=argparse.SUPPRESS)  # internal: runs one program
    return parser


def parity(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.parity`."""
    parser = cli.program("benchmarks.parity", docstring)
    _cases(parser, CASES)
    parser.add_argument("--all", action="store_true", help="fail on a case without a model")
    parser.add_argument("--seed", type=int, default=0, help="seed of the check's random draws")
    parser.add_argument("--quick", action="store_true", help="compile in a fraction of the time")
    parser.add_argument("--json", type=paths.path, help="JSON of the lines")
    return parser


def parity_errors(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.parity.errors`."""
    parser = cli.program("benchmarks.parity.errors", docstring)
    _cases(parser, CASES / "small")
    parser.add_argument("--seed", action="append", type=int, default=[], help="a seed; repeatable")
    parser.add_argument("--kernels", type=int, default=3, help="convolutions per part; 0 for all")
    parser.add_argument("--json", type=paths.path, help="JSON of the runs")
    return parser


def _cases(parser: argparse.ArgumentParser, folder: pathlib.Path) -> None:
    """Flags that locate cases and the files they need, and that choose cases."""
    parser.add_argument("--fixtures", type=paths.path, default=folder, help="folder of cases")
    parser.add_argument("--case", action="append", default=[], help="a name; may be repeated")
    for name in ("weights", "images", "data"):
        parser.add_argument(
            f"--{name}",
            type=paths.path,
            help=f"for published weights; default: the folder `{name}` beside the folder `parity`",
        )


def release(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.release`."""
    parser = cli.program("benchmarks.release", docstring)
    parser.add_argument("--only", action="append", default=[], help="STEP or STEP/NAME; repeatable")
    parser.add_argument("--again", action="append", default=[], help="the same, even if it passed")
    parser.add_argument("--list", action="store_true", help="list results and what would run")
    parser.add_argument("--fixtures", type=paths.path, default=CASES, help="folder of parity cases")
    parser.add_argument(
        "--output",
        type=paths.path,
        default=pathlib.Path("benchmarks/results"),
        help="folder of results",
    )
    parser.add_argument("--kills", type=int, default=KILLS, help=f"at least {KILLS}")
    parser.add_argument(
        "--peer_python", type=paths.expand, default=sys.executable, help="see benchmarks.models"
    )
    return parser


def scale(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.scale`."""
    parser = cli.program("benchmarks.scale", docstring)
    parser.add_argument("--only", action="append", default=[], help="a row; may be repeated")
    parser.add_argument("--output", type=paths.path, help="JSON of the rows; has those before")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # internal: makes one row
    return parser


def step_memory(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.step_memory`."""
    parser = cli.program("benchmarks.step_memory", docstring)
    parser.add_argument(
        "--only", action="append", default=[], help="EXPERIMENT or EXPERIMENT:VARIANT; repeatable"
    )
    parser.add_argument("--output", type=paths.path, help="JSON of the figures")
    parser.add_argument("--optimised", action="store_true", help="compile at full optimisation")
    return parser


def train_step(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.train_step`."""
    parser = cli.program("benchmarks.train_step", docstring)
    parser.add_argument("--config", type=paths.expand, required=True)
    parser.add_argument("--output", type=paths.path)
    parser.add_argument("--repeats", type=int, default=9)
    return parser
