"""What all tools share: their flags, the detector they look at, and the folder they write.

A tool is a module with `main(arguments)`.  It computes results, draws pictures of them, and ends
with `Output.close`, which writes `NAME.json` with every number that was drawn, prints a table, and
prints the path last.

    args, overrides = frame.parse(arguments, flags())
    loaded = frame.load(args, overrides)
    output = frame.Output("speed", args, loaded.config)
    output.figure(figure, "stages")  # stages.png
    output.close(results, table)
"""

import argparse
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import config_dict

import detlab
from detlab import (
    checks,
    cli,
    contract,
    data_sets,
    environment,
    errors,
    files,
    sharding,
    trained,
    types,
)
from detlab import config as config_lib
from detlab.data import augment, loader, plan, wrappers
from detlab.data import batch as batch_lib
from detlab.data import settings as settings_lib
from detlab.run import checkpoint
from detlab.run import state as state_lib
from detlab.viz import boxes as draw_lib

DPI = 120
JPEG_QUALITY = 80


def parse(
    arguments: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[argparse.Namespace, dict[str, str]]:
    """Splits a tool's command line as `cli.parse` does, and checks the flags that tools share.

    Raises:
      UserError: any mistake, also an --output that is a file.
    """
    args, overrides = cli.parse(arguments, parser)
    if getattr(args, "limit", None) is not None and args.limit < 1:
        raise errors.UserError(f"--limit is {args.limit}; it must be at least 1.")
    if getattr(args, "seed", 0) < 0:
        raise errors.UserError(f"--seed is {args.seed}; it must be at least 0.")
    if args.output.exists() and not args.output.is_dir():
        raise errors.UserError(f"--output {args.output} is a file; give a folder.")
    return args, overrides


class Loaded(NamedTuple):
    """A detector, built as it is trained, and its variables on the devices."""

    config: config_dict.ConfigDict
    detector: contract.Detector
    params: Any
    state: Any
    class_names: tuple[str, ...] | None  # those of the weights
    weights: str | None  # folder of the weights; None: they are initial ones


def config_of(args: argparse.Namespace, overrides: Mapping[str, str]) -> config_dict.ConfigDict:
    """The config of --workdir or --config; no weights are read."""
    return _find(args, overrides)[0]


def load(args: argparse.Namespace, overrides: Mapping[str, str]) -> Loaded:
    """The detector of --workdir, or of --config with --checkpoint or with initial weights.

    Initial weights are those of a training run with `config.seed`, published ones of a backbone
    included; a sentence says that the detector is untrained.
    """
    config, weights = _find(args, overrides)
    environment.use_compilation_cache(config)
    detector = contract.build(config)
    if weights is None:
        state_lib.check_init_from(config)
        print("no weights given (--workdir or --checkpoint): the detector is untrained")
        params, state = state_lib.variables(detector, config)
        params, state = jax.device_put((params, state), sharding.replicated(sharding.make_mesh()))
        return Loaded(config, detector, params, state, None, None)
    params, state = trained.fit(detector, config, weights, sharding.make_mesh())
    names = weights.info.get("class_names")
    return Loaded(
        config, detector, params, state, tuple(names) if names else None, str(weights.path)
    )


def _find(
    args: argparse.Namespace, overrides: Mapping[str, str]
) -> tuple[config_dict.ConfigDict, checkpoint.Weights | None]:
    if args.config and not args.workdir and not getattr(args, "checkpoint", None):
        config = config_lib.load(args.config, overrides)
        checks.check_config(config)
        return config, None
    if not args.config and not args.workdir:
        raise errors.UserError("no detector given; give --workdir or --config.")
    return trained.load(args, overrides)


def open_data(
    config: config_dict.ConfigDict,
    part: str,
    limit: int | None = None,
    class_names: Sequence[str] | None = None,
) -> Any:
    """The source of a part, "train" or "eval"; of its images, the first `limit`."""
    source = data_sets.open_source(config, part, class_names)
    if limit is None or limit >= len(source):
        return source
    return wrappers.Filtered(source, np.arange(limit), "--limit")


def batches(
    source: Any, config: config_dict.ConfigDict, part: str, batch_size: int
) -> Iterator[types.Batch]:
    """Every image of a source once on its canvas, resized but not changed at random.

    Rows that pad the last batch of a canvas have `real` False.
    """
    settings = settings_lib.of(config.data, "eval")
    settings = settings._replace(skip_broken=config.data.skip_broken and part == "train")
    loaded = loader.eval_batches(source, settings, batch_size=batch_size)
    for one in data_sets.user_errors(loaded, part):
        yield one.batch


def rounded(values: Any, digits: int = 6) -> Any:
    """Arrays and numbers as lists and numbers for JSON, with this many significant digits.

    NaN and infinity, which JSON lacks, become None.
    """
    if isinstance(values, Mapping):
        return {key: rounded(value, digits) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [rounded(value, digits) for value in values]
    if isinstance(values, (str, bool, type(None))):
        return values
    values = np.asarray(values)
    if values.ndim:
        return [rounded(value, digits) for value in values]
    if values.dtype.kind in "biu":
        return values.item()
    return float(f"{values:.{digits}g}") if math.isfinite(values) else None


def on_canvas(record: dict[str, Any], settings: settings_lib.Settings) -> types.Batch:
    """A batch of one record, on the canvas that suits it best, without anything random."""
    settings = settings_lib.without_chance(settings)
    canvas = plan.canvas_of(record["image"].shape[:2], settings)
    fitted = augment.resizer(settings)(record, *canvas)
    return batch_lib.to_batch(
        [fitted], canvas, settings.max_boxes, settings.pad_value, settings.dtype
    )


class Output:
    """The folder that a tool writes: a JSON of everything that was drawn, and pictures beside it.

    Args:
      tool: its name, which is that of the JSON.
      args: the command line; its values are the JSON's `settings`.
      config: the config that was looked at, if any; the JSON has its hash.
      inputs: what was read, such as the name of the data and the number of images.
    """

    def __init__(
        self,
        tool: str,
        args: argparse.Namespace,
        config: config_dict.ConfigDict | None = None,
        inputs: Mapping[str, Any] | None = None,
    ):
        self.tool, self.folder, self.config = tool, args.output, config
        self.inputs = dict(inputs or {})
        self._settings = {name: _plain(value) for name, value in sorted(vars(args).items())}

    def path(self, name: str) -> pathlib.Path:
        """The path of a file in the folder."""
        return self.folder / name

    def figure(self, figure: Any, name: str) -> None:
        """Saves a matplotlib Figure as NAME.png, or as NAME if that ends in .jpg (photographs)."""
        path = self.path(name if name.endswith(".jpg") else f"{name}.png")
        options = {"pil_kwargs": {"quality": JPEG_QUALITY}} if path.suffix == ".jpg" else {}
        with files.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=DPI, **options)

    def image(self, image: Any, name: str) -> None:
        """Saves an image, uint8 RGB [H, W, 3]; the name has the suffix, .png or .jpg (smaller)."""
        path = self.path(name)
        with files.writing(path):
            draw_lib.save(path, image, JPEG_QUALITY)

    def close(self, results: Any, table: str) -> None:
        """Writes the JSON, prints the table and, last, the path of the JSON."""
        content = {
            "tool": self.tool,
            "detlab": detlab.__version__,
            "config_hash": environment.config_hash(self.config) if self.config else None,
            "inputs": self.inputs,
            "settings": self._settings,
            "results": results,
        }
        path = self.path(f"{self.tool}.json")
        files.write_json(path, content)
        print(table)
        print(path)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, pathlib.PurePath) else value
