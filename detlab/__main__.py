"""One command for all programs of detlab.

    detlab list retinanet                       # shipped experiments, what to expect of them
    detlab train --config retinanet_shapes      # needs no data: about 8 minutes on 2 CPU cores
    detlab train --config retinanet_voc --config.data.root=VOCdevkit --dry_run
    detlab eval --workdir runs/retinanet_shapes --json figures.json
    detlab demo --workdir runs/retinanet_shapes --input photos --output found
    detlab convert --inspect resnet50-0676ba61.pth
    detlab env --config retinanet_shapes        # for a bug report

`detlab train` is `python -m detlab.train`, and so on; `detlab SUBCOMMAND --help` tells the rest.
"""

import difflib
import inspect
import pathlib
import runpy
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from detlab import cli, errors, files, listing
from detlab import config as config_lib


class Subcommand(NamedTuple):
    """What `detlab NAME` runs: a program, or a function of the arguments of its own."""

    run: str | Callable[[Sequence[str]], None]
    line: str


def main() -> None:
    """The command line, of `sys.argv`."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        errors.run_main(lambda _: print(_help()))
    elif name not in SUBCOMMANDS:
        errors.run_main(lambda _: _refuse(name))
    else:
        _run(name, rest)


def _run(name: str, arguments: Sequence[str]) -> None:
    sys.argv = [f"detlab {name}", *arguments]  # cli.program reads the first
    run = SUBCOMMANDS[name].run
    if callable(run):
        errors.run_main(run)
    else:
        # As `python -m` does, with the answer to --help before jax is imported; but processes that
        # the program starts find this file as their main, which imports little.
        runpy.run_module(run, run_name="__main__")


def _help() -> str:
    lines = [f"  {name:9} {subcommand.line}" for name, subcommand in SUBCOMMANDS.items()]
    return "\n".join(
        ["usage: detlab SUBCOMMAND ...", "", __doc__.strip(), "", "subcommands:", *lines]
    )


def _refuse(name: str) -> None:
    close = difflib.get_close_matches(name, SUBCOMMANDS, n=1)
    hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(SUBCOMMANDS)}."
    raise errors.UserError(f"detlab has no subcommand {name!r}. {hint}")


def _list(arguments: Sequence[str]) -> None:
    """Shipped experiments: variants, data, expected time, memory and figure.

        detlab list
        detlab list voc

    A name is what --config takes, with `:variant` appended if wanted; the figures are those without
    a variant.  Memory is that of the arrays of a training step, on all devices together.  The
    figure is published for the reference of the experiment, or that of a run of detlab.
    """
    parser = cli.program("detlab list", inspect.getdoc(_list))
    parser.add_argument("text", nargs="?", default="", help="part of the names to show")
    args, overrides = cli.parse(arguments, parser)
    if overrides:
        raise errors.UserError(f"--config.{next(iter(overrides))} does not go with detlab list.")
    print(listing.table(listing.find(args.text)))


def _env(arguments: Sequence[str]) -> None:
    """Versions, devices, variables and caches, for a bug report.

        detlab env
        detlab env --config retinanet_shapes --config.optim.lr=0.005 --json env.json

    Neither the user nor the host is named, and the home folder is ~.  With a config its hash is
    told, which equal configs share.
    """
    parser = cli.program("detlab env", inspect.getdoc(_env))
    parser.add_argument("--config", help="whose hash is wanted, as of `detlab train`")
    parser.add_argument("--json", type=pathlib.Path, help="write it here too")
    args, overrides = cli.parse(arguments, parser)
    if overrides and not args.config:
        raise errors.UserError(f"--config.{next(iter(overrides))} needs --config.")
    from detlab import environment  # here, as the lines above need no jax

    config = config_lib.load(args.config, overrides) if args.config else None
    environment.use_compilation_cache(config)
    found = environment.describe(config)
    print(environment.text(found))
    if args.json:
        files.write_json(args.json, found)


SUBCOMMANDS = {
    "train": Subcommand("detlab.train", "train a detector, or resume a run"),
    "eval": Subcommand("detlab.eval", "evaluate a run, weights, or saved predictions"),
    "demo": Subcommand("detlab.demo", "find objects on images and videos, and draw them"),
    "convert": Subcommand("detlab.converters.convert", "weights of other code bases, and back"),
    "list": Subcommand(_list, "the shipped experiments, and what to expect of them"),
    "env": Subcommand(_env, "versions, devices and caches, for a bug report"),
}


if __name__ == "__main__":
    main()
