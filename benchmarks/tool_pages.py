"""Runs the commands of docs/tools.md and writes its pictures to docs/pictures/tools.

    python -m benchmarks.tool_pages
    python -m benchmarks.tool_pages --only speed --folder /tmp/tools

Every command works on the generated shapes, so no data are needed.  Those with a --workdir look at
short training runs, made first and kept in --folder, as are the results.  About 10 minutes on 2 CPU
cores.
"""

import pathlib
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks import command
from detlab import cli, errors, paths

PICTURES = pathlib.PurePath("docs", "pictures", "tools")
LARGEST = 120_000  # bytes of a picture


class Tool(NamedTuple):
    """A documented command, and the picture of its results that the page shows."""

    name: str
    arguments: str  # without --output
    picture: str  # of the tool's folder; the page has it as NAME.png or NAME.jpg


# Experiment -> arguments of the training whose workdir is runs/EXPERIMENT.
RUNS = {
    name: "--config.train.steps=400 --config.train.eval_every=100 --config.optim.warmup_steps=50"
    for name in ("retinanet_shapes", "fcos_shapes")
}
TOOLS = (
    Tool("losses", "--losses bce,focal,qfl,ghm", "losses.png"),
    Tool("curves", "runs/retinanet_shapes runs/fcos_shapes --smooth 0.8", "curves.png"),
    Tool("anchors", "--config retinanet_shapes --limit 300", "anchors.png"),
    Tool("receptive_field", "--workdir runs/retinanet_shapes --before", "receptive_field.png"),
    Tool("speed", "--workdir runs/retinanet_shapes --batch 1,8", "speed.png"),
)


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for what a user can fix."""
    parser = cli.program("benchmarks.tool_pages", __doc__)
    parser.add_argument("--only", action="append", default=[], help="run this tool, repeatable")
    parser.add_argument(
        "--folder",
        type=paths.path,
        default=pathlib.Path("tool_pages"),
        help="of runs and results (default: tool_pages)",
    )
    parser.add_argument(
        "--tree", type=paths.path, default=command.REPOSITORY, help="checkout to write"
    )
    args = parser.parse_args(arguments)
    wanted = command.choose(args.only, [tool.name for tool in TOOLS], "tool")
    command.make_folder(args.folder)
    for tool in TOOLS:
        if tool.name in wanted:
            print(f"{tool.name}: {write(tool, args.folder, args.tree)}", flush=True)


def write(tool: Tool, folder: pathlib.Path, tree: pathlib.Path) -> pathlib.Path:
    """Runs a command in a folder and copies its picture into the checkout; returns its path."""
    words = shlex.split(tool.arguments)
    for name, options in RUNS.items():
        if f"runs/{name}" in words and not (folder / "runs" / name / "eval.json").exists():
            command.run_module(
                *("detlab.train", "--config", name, "--workdir", f"runs/{name}"),
                *shlex.split(options),
                folder=folder,
            )
    command.run_module(f"detlab.tools.{tool.name}", *words, "--output", tool.name, folder=folder)
    made = folder / tool.name / tool.picture
    target = tree / PICTURES / f"{tool.name}{made.suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    copy(made, target)
    return target


def copy(made: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a picture; a PNG gets a palette of 256 colours, which makes it small.

    Raises:
      UserError: there is none, or it is larger than `LARGEST`.
    """
    from PIL import Image  # imported late: --help needs no pictures

    if not made.exists():
        raise errors.UserError(f"{made} was not written; correct its line in TOOLS.")
    if made.suffix == ".png":
        Image.open(made).convert("RGB").quantize(256).save(target, optimize=True)
    else:
        target.write_bytes(made.read_bytes())
    size = target.stat().st_size
    if size > LARGEST:
        raise errors.UserError(f"{target} has {size} bytes, more than {LARGEST}; draw less.")


if __name__ == "__main__":
    errors.run_main(main)
