"""Command lines: flags, parsing, and --help without importing jax.

Each function named after a program returns the parser of its flags.  It takes the docstring of the
program, which --help shows above the flags.
"""

import argparse
import difflib
import sys
from collections.abc import Sequence

from detlab import errors, paths


def program(module: str, docstring: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """The parser of `python -m MODULE`, without flags; --help shows the docstring verbatim.

    If `detlab NAME` runs the program, the usage line says so (detlab/__main__.py).
    """
    part = sys.argv[0].startswith("detlab ")
    return argparse.ArgumentParser(
        prog=sys.argv[0] if part else f"python -m {module}",
        description=docstring,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def parse(
    arguments: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Splits a command line into the parser's flags and the `--config.key=value` overrides.

    Raises:
      UserError: any mistake, instead of argparse's exit; flags may not be abbreviated.
    """
    overrides, own = {}, []
    arguments = list(arguments)
    while arguments:
        word = arguments.pop(0)
        if not word.startswith("--config."):
            own.append(word)
            continue
        key, equals, text = word.removeprefix("--config.").partition("=")
        if not equals:
            if not arguments or arguments[0].startswith("--"):
                raise errors.UserError(f"{word} needs a value: {word}=VALUE.")
            text = arguments.pop(0)
        overrides[key] = text
    _check_flags(own, parser)
    parser.allow_abbrev = False
    parser.error = _refuse
    return parser.parse_args(own), overrides


def answer_first(parser: argparse.ArgumentParser) -> None:
    """Ends the process if its command line asks for --help or has a wrong flag.

    Programs call this before their slow imports: jax alone takes a second.  Ctrl-C then ends them
    without a traceback.
    """
    errors.run_main(lambda arguments: parse(arguments, parser))
    errors.interrupt_quietly()


# ------------------------------------------------------------------------------------------------
# The flags of each program


def train(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m detlab.train`."""
    parser = program("detlab.train", docstring)
    _add_config(parser, required=True)
    parser.add_argument(
        "--workdir", type=paths.expand, help="folder of the run (default: runs/<config name>)"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="build everything and run two steps; write no run"
    )
    parser.add_argument(
        "--draw",
        type=paths.expand,
        help="with --dry_run: folder to draw the first training images into",
    )
    parser.add_argument(
        "--profile", type=int, default=0, metavar="N", help="trace N steps into WORKDIR/profile"
    )
    _add_distributed(parser)
    return parser


def check_train(args: argparse.Namespace) -> None:
    """Rejects flags of `train` that cannot be combined or are out of range."""
    if args.draw and not args.dry_run:
        raise errors.UserError("--draw needs --dry_run; a run draws into its workdir.")
    if args.profile and args.dry_run:
        raise errors.UserError("--profile and --dry_run exclude each other; remove one of them.")
    if args.profile < 0:
        raise errors.UserError(f"--profile is {args.profile}; it must be at least 0 steps.")


def evaluation(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m detlab.eval`."""
    parser = program("detlab.eval", docstring)
    _add_model(parser)
    parser.add_argument(
        "--predictions",
        type=paths.expand,
        help="file to write predictions to; without a model, to read them from",
    )
    parser.add_argument(
        "--format",
        choices=("detlab", "coco"),
        help="of the predictions to write: detlab (default) or coco, the results of COCO's tools",
    )
    parser.add_argument("--json", type=paths.expand, help="file to write the metrics to")
    parser.add_argument("--draw", type=paths.expand, help="folder to draw pictures into")
    parser.add_argument("--draw_limit", type=int, default=0, help="number of pictures (0: all)")
    parser.add_argument("--threshold", type=float, default=0.3, help="lowest score to draw")
    _add_distributed(parser)
    return parser


def check_evaluation(args: argparse.Namespace) -> None:
    """Rejects flags of `evaluation` that are out of range or have no effect."""
    _check_threshold(args.threshold)
    if args.format and not args.predictions:
        raise errors.UserError(
            "--format is that of the predictions to write; name their file with --predictions."
        )
    if args.format and not (args.workdir or args.checkpoint):
        raise errors.UserError(
            "--format is that of the predictions to write, which needs --workdir or --checkpoint;"
            " saved predictions are read in either format."
        )
    if args.draw_limit < 0:
        raise errors.UserError(
            f"--draw_limit is {args.draw_limit}; it must be at least 0, and 0 draws all images."
        )


def demo(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m detlab.demo`."""
    parser = program("detlab.demo", docstring)
    _add_model(parser)
    parser.add_argument(
        "--input",
        type=paths.expand,
        required=True,
        help="image, video, folder (with those in it), or quoted glob",
    )
    parser.add_argument(
        "--output", type=paths.expand, required=True, help="folder for pictures and JSON"
    )
    parser.add_argument(
        "--threshold", type=float, help="lowest score to show (default: config.predict.threshold)"
    )
    parser.add_argument(
        "--top_k", type=int, help="most objects per image (default: config.predict.top_k)"
    )
    return parser


def check_demo(args: argparse.Namespace) -> None:
    """Rejects values of the flags of `demo` that are out of range."""
    if args.threshold is not None:
        _check_threshold(args.threshold)
    if args.top_k is not None and args.top_k < 1:
        raise errors.UserError(f"--top_k is {args.top_k}; it must be at least 1.")


def fit_anchors(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m detlab.tools.fit_anchors`."""
    parser = program("detlab.tools.fit_anchors", docstring)
    _add_config(parser, required=True)
    parser.add_argument("--anchors", type=int, help="total number (default: as many as now)")
    parser.add_argument(
        "--ratio", type=float, help="largest ratio of sides of a match (default: detector's, or 4)"
    )
    parser.add_argument(
        "--generations", type=int, default=1000, help="rounds of mutation after k-means"
    )
    parser.add_argument("--output", type=paths.path, help="JSON file for anchors and metrics")
    return parser


def tool(name: str, docstring: str, reads: str = "detector") -> argparse.ArgumentParser:
    """The flags that every tool has; a tool adds its own.

    Args:
      name: that of the module in detlab/tools.
      docstring: of the module.
      reads: "detector" (--workdir, or --config with or without --checkpoint), "config" (--config
        alone) or "" (neither).
    """
    parser = program(f"detlab.tools.{name}", docstring)
    if reads == "detector":
        _add_model(parser)
    elif reads == "config":
        _add_config(parser, required=True)
    parser.add_argument(
        "--output", type=paths.path, required=True, help="folder for JSON and pictures"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn by lot")
    parser.add_argument("--limit", type=int, help="most images to read")
    return parser


def errors_tool(docstring: str) -> argparse.ArgumentParser:
    """The flags of `python -m detlab.tools.errors`."""
    parser = tool("errors", docstring, reads="")
    _add_predictions(parser)
    parser.add_argument(
        "--threshold", type=float, help="lowest score of confusions and images (default: best F1)"
    )
    return parser


def check_errors_tool(args: argparse.Namespace) -> None:
    """Rejects a threshold of `errors_tool` that is out of range."""
    if args.threshold is not None:
        _check_threshold(args.threshold)


def _add_predictions(parser: argparse.ArgumentParser) -> None:
    """Adds --workdir, or --config with --predictions; see `saved.load`."""
    parser.add_argument("--workdir", type=paths.expand, help="folder of a finished run")
    _add_config(parser, required=False)
    parser.add_argument(
        "--predictions",
        type=paths.expand,
        help="file of predictions, by detlab or of COCO's tools (default: the run's own)",
    )


def _add_config(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--config",
        type=paths.expand,
        required=required,
        help="path of a config or name of a shipped experiment, optionally with `:variant`",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Adds --workdir, or --config with --checkpoint: where the detector comes from."""
    parser.add_argument("--workdir", type=paths.expand, help="folder of a training run")
    _add_config(parser, required=False)
    parser.add_argument(
        "--checkpoint",
        type=paths.expand,
        help="with --workdir: best (default), last or a step; with --config: folder of weights",
    )


def _add_distributed(parser: argparse.ArgumentParser) -> None:
    """Adds --distributed and the flags it needs if jax recognises no cluster."""
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="run as one of several processes (docs/scaling.md)",
    )
    parser.add_argument("--coordinator", help="host:port of the first process")
    parser.add_argument("--num_processes", type=int, help="number of processes of the run")
    parser.add_argument(
        "--process_id", type=int, help="id of this process, from 0; process 0 writes all files"
    )


# ------------------------------------------------------------------------------------------------
# Mistakes


def _check_flags(words: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Reports unknown flags first; argparse would report a missing required flag instead."""
    known = [option for action in parser._actions for option in action.option_strings]
    for word in words:
        flag = word.partition("=")[0]
        if not flag.startswith("--") or flag in known:
            continue
        name, dot, key = flag.partition(".")  # --confg.optim.lr
        close = difflib.get_close_matches(name, known, n=1)
        meant = f"{close[0]}{dot}{key}" if close == ["--config"] else "".join(close)
        hint = f"Did you mean {meant}?" if meant else "--help lists the flags."
        raise errors.UserError(f"unknown flag {flag}. {hint}")


def _refuse(message: str) -> None:
    raise errors.UserError(f"{message}; --help lists the flags.")


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise errors.UserError(f"--threshold is {threshold:g}; it must be from 0 to 1.")
