"""The command `detlab`: one entry point for all programs.

    detlab list retinanet                       # shipped experiments: time, memory, AP
    detlab train --config retinanet_shapes      # needs no data; about 8 minutes on 2 CPU cores
    detlab train --config retinanet_voc --config.data.root=VOCdevkit --dry_run
    detlab eval --workdir runs/retinanet_shapes --json figures.json
    detlab demo --workdir runs/retinanet_shapes --input photos --output found
    detlab convert --inspect resnet50-0676ba61.pth
    detlab tools positives --config retinanet_shapes --output shown
    detlab env --config retinanet_shapes        # for a bug report

`detlab train` is `python -m detlab.train`, and so on.  `detlab SUBCOMMAND --help` shows its flags.
"""

import ast
import difflib
import inspect
import pathlib
import runpy
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from detlab import cli, errors, files, listing, paths
from detlab import config as config_lib


class Subcommand(NamedTuple):
    """What `detlab NAME` runs: a program, or a function of the arguments."""

    run: str | Callable[[Sequence[str]], None]
    line: str


def main() -> None:
    """Runs the subcommand named in `sys.argv`."""
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
        # Like `python -m`: --help is answered before jax is imported.  Child processes of the
        # program get this file as their main module, which imports little.
        runpy.run_module(run, run_name="__main__")


def _help() -> str:
    lines = [f"  {name:9} {subcommand.line}" for name, subcommand in SUBCOMMANDS.items()]
    return "\n".join(
        ["usage: detlab SUBCOMMAND ...", "", __doc__.strip(), "", "subcommands:", *lines]
    )


def _refuse(name: str) -> None:
    close = difflib.get_close_matches(name, SUBCOMMANDS, n=1)
    hint = f"Did you mean {close[0]}?" if close else f"Choose from: {', '.join(SUBCOMMANDS)}."
    raise errors.UserError(f"detlab has no subcommand {name!r}. {hint}")


def _tools(arguments: Sequence[str]) -> None:
    """Runs a tool that shows what a detector does, or what its data and predictions are.

        detlab tools positives --config retinanet_shapes --output shown

    `detlab tools NAME` is `python -m detlab.tools.NAME`; --help after the name shows its flags.
    """
    name, *rest = arguments or ["--help"]
    known = _tool_lines()
    if name in ("-h", "--help"):
        lines = [f"  {tool:20} {line}" for tool, line in known.items()]
        usage = ["usage: detlab tools NAME ...", "", inspect.getdoc(_tools), "", "tools:", *lines]
        print("\n".join(usage))
        return
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"Choose from: {', '.join(known)}."
        raise errors.UserError(f"detlab has no tool {name!r}. {hint}")
    sys.argv = [f"detlab tools {name}", *rest]
    runpy.run_module(f"detlab.tools.{name}", run_name="__main__")


def _tool_lines() -> dict[str, str]:
    """{name: first line of its docstring} of all tools, which are not imported for it.

    A module of the folder is a tool if it has a `main`.
    """
    folder = pathlib.Path(__file__).parent / "tools"
    trees = {path.stem: ast.parse(path.read_text()) for path in sorted(folder.glob("*.py"))}
    return {
        name: (ast.get_docstring(tree) or "").partition("\n")[0]
        for name, tree in trees.items()
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
    }


def _list(arguments: Sequence[str]) -> None:
    """Lists the shipped experiments: variants, data, expected time, memory and figure.

        detlab list
        detlab list voc

    Pass a name to --config, with `:variant` appended if wanted.  All numbers are for the experiment
    without a variant.  Memory is what the arrays of one training step take, summed over devices.
    The figure is an AP, either published for the reference code or measured with detlab.
    """
    parser = cli.program("detlab list", inspect.getdoc(_list))
    parser.add_argument("text", nargs="?", default="", help="show only names that contain this")
    args, overrides = cli.parse(arguments, parser)
    if overrides:
        raise errors.UserError(f"detlab list takes no --config.{next(iter(overrides))}; remove it.")
    print(listing.table(listing.find(args.text)))


def _env(arguments: Sequence[str]) -> None:
    """Prints versions, devices, environment variables and caches for a bug report.

        detlab env
        detlab env --config retinanet_shapes --config.optim.lr=0.005 --json env.json

    The output names neither the user nor the host; the home folder is shown as ~.  --config adds
    the hash of the config, which is the same for equal configs.
    """
    parser = cli.program("detlab env", inspect.getdoc(_env))
    parser.add_argument("--config", type=paths.expand, help="config to hash, as for `detlab train`")
    parser.add_argument("--json", type=paths.path, help="also write the output to this file")
    args, overrides = cli.parse(arguments, parser)
    if overrides and not args.config:
        raise errors.UserError(f"--config.{next(iter(overrides))} needs --config; add it.")
    from detlab import environment  # imported late because it imports jax

    config = config_lib.load(args.config, overrides) if args.config else None
    environment.use_compilation_cache(config)
    found = environment.describe(config)
    print(environment.text(found))
    if args.json:
        files.write_json(args.json, found)


SUBCOMMANDS = {
    "train": Subcommand("detlab.train", "train a detector, or resume a run"),
    "eval": Subcommand("detlab.eval", "evaluate a run, weights, or saved predictions"),
    "demo": Subcommand("detlab.demo", "detect objects in images and videos and draw them"),
    "convert": Subcommand("detlab.converters.convert", "convert weights from and to other code"),
    "tools": Subcommand(_tools, "show what a detector does, its data and its errors"),
    "list": Subcommand(_list, "list the shipped experiments and what to expect of them"),
    "env": Subcommand(_env, "print versions, devices and caches for a bug report"),
}


if __name__ == "__main__":
    main()
