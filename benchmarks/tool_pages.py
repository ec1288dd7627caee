"""Runs the commands of docs/tools.md and writes its pictures to docs/pictures/tools.

    python -m benchmarks.tool_pages
    python -m benchmarks.tool_pages --only speed --folder /tmp/tools

Commands with a --workdir look at short training runs or converted weights, made first and kept in
--folder, as are the results.  Data and photographs are those of --shared; commands on the generated
shapes need none.  About 10 minutes on 2 CPU cores.
"""

import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks import command
from detlab import cli, errors, paths

PICTURES = pathlib.PurePath("docs", "pictures", "tools")
LARGEST = 120_000  # bytes of a picture


class Tool(NamedTuple):
    """A documented command, and the picture of its results that the page shows."""

    name: str
    arguments: str  # without --output
    picture: str  # of the tool's folder
    saved: str = (
        ""  # the name of the picture on the page, without suffix; default: that of the tool
    )

    @property
    def target(self) -> pathlib.PurePath:
        """The picture of the page, in the checkout."""
        suffix = pathlib.PurePath(self.picture).suffix
        return PICTURES / f"{self.saved or self.name}{suffix}"


# What commands read -> where it is in the folder --shared.
LINKS = {
    "bccd": "data/bccd",
    "coco_mini": "data/coco_mini",
    "person.jpg": "images/person.jpg",
    "dog.jpg": "images/dog.jpg",
    "yolov5n.pt": "weights/yolov5n-v6.pt",
}
# Folder of converted weights -> arguments of `detlab convert`.
CONVERTED = {"weights/yolov5n": "--source yolov5 --config yolov5_coco --input yolov5n.pt"}
# Experiment -> arguments of the training whose workdir is runs/EXPERIMENT.
RUNS = {
    name: "--config.train.steps=400 --config.train.eval_every=100 --config.optim.warmup_steps=50"
    for name in ("retinanet_shapes", "fcos_shapes")
}
_PERSON = (
    "--input person.jpg"
    ' --objects "person 190 98 273 380; dog 61 263 205 351; horse 399 136 605 347"'
)
_BCCD = "--config retinanet_bccd --config.data.root=bccd"
TOOLS = (
    Tool("losses", "--losses bce,focal,qfl,ghm", "losses.png"),
    Tool("curves", "runs/retinanet_shapes runs/fcos_shapes --smooth 0.8", "curves.png"),
    Tool("anchors", "--config retinanet_shapes --limit 300", "anchors.png"),
    Tool("receptive_field", "--workdir runs/retinanet_shapes --before", "receptive_field.png"),
    Tool("speed", "--workdir runs/retinanet_shapes --batch 1,8", "speed.png"),
    Tool("positives", f"--config retinanet_coco {_PERSON}", "person_main.jpg"),
    Tool(
        "positives",
        f"--config yolov3_coco --compare yolov5_coco:n {_PERSON}",
        "person.jpg",
        saved="positives_compare",
    ),
    Tool(
        "feature_maps",
        "--workdir weights/yolov5n --input dog.jpg --method layercam --class dog",
        "dog.jpg",
    ),
    Tool("dataset", _BCCD, "train.png"),
    Tool(
        "browse",
        f"{_BCCD} --steps --start 1 --count 1 --seed 1 --config.data.augment.photometric=1.0"
        " --config.data.augment.crop=min_iou --config.data.augment.affine=1.0",
        "BloodImage_00001.jpg",
    ),
    Tool(
        "visualize",
        "--images coco_mini/val2017 --annotations coco_mini/annotations/instances_val2017.json"
        " --start 16 --count 1",
        "000000000086.jpg",
    ),
    Tool("errors", "--workdir runs/retinanet_shapes", "kinds.png"),
    Tool("average_precision", "--boxes boxes.csv", "curves.png"),
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
        "--shared",
        type=paths.path,
        default=command.REPOSITORY.parent / "shared",
        help="folder with data, images and weights (default: ../shared)",
    )
    parser.add_argument(
        "--tree", type=paths.path, default=command.REPOSITORY, help="checkout to write"
    )
    args = parser.parse_args(arguments)
    wanted = command.choose(args.only, {tool.name: tool for tool in TOOLS}, "tool")
    command.make_folder(args.folder)
    link(args.folder, {name: args.shared / place for name, place in LINKS.items()})
    link(args.folder, {"boxes.csv": args.tree / PICTURES / "boxes.csv"})
    for tool in TOOLS:
        if tool.name in wanted:
            print(f"{tool.name}: {write(tool, args.folder, args.tree)}", flush=True)


def link(folder: pathlib.Path, files: Mapping[str, pathlib.Path]) -> None:
    """Puts links to what commands read into their folder; what does not exist is left out."""
    for name, path in files.items():
        if path.exists() and not (folder / name).is_symlink():
            (folder / name).symlink_to(path.resolve())


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
    for name, options in CONVERTED.items():
        if name in words and not (folder / name).exists():
            words_of = ("--output", name, *shlex.split(options))
            command.run_module("detlab.converters.convert", *words_of, folder=folder)
    output = tool.saved or tool.name
    command.run_module(f"detlab.tools.{tool.name}", *words, "--output", output, folder=folder)
    made = folder / output / tool.picture
    target = tree / tool.target
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
