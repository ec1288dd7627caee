"""The flags of the benchmarks that import jax, apart from them: --help is printed without it.

Each function takes the docstring of its program, which --help shows above the flags.
"""

import argparse
import pathlib
import sys

from detlab import cli

CASES = pathlib.Path("../shared/parity")  # recorded runs of references
KILLS = 24  # of a run, by default and for a release


def devices(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.devices`."""
    parser = cli.program("benchmarks.devices", docstring)
    parser.add_argument("--config", required=True)
    parser.add_argument("--devices", type=int, nargs="+", default=(1, 2, 4))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser


def kills(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.kills`."""
    parser = cli.program("benchmarks.kills", docstring)
    parser.add_argument("--config", default="retinanet_shapes")
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path, help="file for the table and the counts")
    return parser


def memory(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.memory`."""
    parser = cli.program("benchmarks.memory", docstring)
    parser.add_argument("--config", required=True)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between samples")
    parser.add_argument("--json", type=pathlib.Path, help="file for figures and samples")
    parser.add_argument("--picture", type=pathlib.Path, help="PNG of the curves")
    return parser


def models(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.models`."""
    parser = cli.program("benchmarks.models", docstring)
    parser.add_argument("--only", action="append", default=[], help="a name; may be repeated")
    parser.add_argument("--side", type=int, help="px of a square canvas instead of the default")
    parser.add_argument("--batch", type=int, default=1, help="images of a step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=pathlib.Path, help="JSON of the figures")
    parser.add_argument("--peer_python", default=sys.executable, help="that has the peers")
    parser.add_argument("--serve", help=argparse.SUPPRESS)  # a process of one program
    return parser


def parity(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.parity`."""
    parser = cli.program("benchmarks.parity", docstring)
    _cases(parser, CASES)
    parser.add_argument("--all", action="store_true", help="a case without a model is a failure")
    parser.add_argument("--seed", type=int, default=0, help="of what the check itself draws")
    parser.add_argument("--quick", action="store_true", help="compile in a fraction of the time")
    parser.add_argument("--json", type=pathlib.Path, help="file for the lines")
    return parser


def parity_errors(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.parity.errors`."""
    parser = cli.program("benchmarks.parity.errors", docstring)
    _cases(parser, CASES / "small")
    parser.add_argument("--seed", action="append", type=int, default=[], help="may be repeated")
    parser.add_argument("--kernels", type=int, default=3, help="of each part; 0 for all")
    parser.add_argument("--json", type=pathlib.Path, help="file for the runs")
    return parser


def _cases(parser: argparse.ArgumentParser, folder: pathlib.Path) -> None:
    """Flags of where cases and what they need are, and of which are meant."""
    parser.add_argument("--fixtures", type=pathlib.Path, default=folder, help="folder of cases")
    parser.add_argument("--case", action="append", default=[], help="a name; may be repeated")
    for name in ("weights", "images", "data"):
        parser.add_argument(
            f"--{name}",
            type=pathlib.Path,
            help=f"of cases with published weights; default: `{name}` beside the folder `parity`",
        )


def release(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.release`."""
    parser = cli.program("benchmarks.release", docstring)
    parser.add_argument("--only", action="append", default=[], help="STEP or STEP/NAME; repeatable")
    parser.add_argument("--again", action="append", default=[], help="the same, though it passed")
    parser.add_argument("--list", action="store_true", help="say what is there and what would run")
    parser.add_argument("--fixtures", type=pathlib.Path, default=CASES, help="of parity")
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("benchmarks/results"), help="folder"
    )
    parser.add_argument("--kills", type=int, default=KILLS, help=f"at least {KILLS}")
    parser.add_argument("--peer_python", default=sys.executable, help="see benchmarks.models")
    return parser


def step_memory(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.step_memory`."""
    parser = cli.program("benchmarks.step_memory", docstring)
    parser.add_argument(
        "--only", action="append", default=[], help="an experiment, `:variant` appended; repeatable"
    )
    parser.add_argument("--output", type=pathlib.Path, help="JSON of the figures")
    parser.add_argument("--optimised", action="store_true", help="compile as users do, and slowly")
    return parser


def train_step(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m benchmarks.train_step`."""
    parser = cli.program("benchmarks.train_step", docstring)
    parser.add_argument("--config", required=True)
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--repeats", type=int, default=9)
    return parser
