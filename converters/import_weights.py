"""Foreign weights -> weights folder: `python -m converters.convert --input`."""

import argparse
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from detlab import checks, contract, errors
from detlab import config as config_lib
from detlab import files as files_lib
from detlab.converters import download, mapping, target
from detlab.converters import family as family_lib
from detlab.run import checkpoint


class Converted(NamedTuple):
    """A foreign file as weights of the config's detector."""

    config: ConfigDict
    weights: checkpoint.Weights  # `path` is that of the foreign file
    report: list[mapping.Row]
    counted: str  # what was converted, in words


def run(flags: argparse.Namespace, overrides: Mapping[str, str]) -> None:
    """Writes the folder, and prints one line for each tensor and leaf."""
    _check_output(flags.output)
    config, weights, report, counted = convert(flags, overrides)
    try:
        checkpoint.save_weights(flags.output, weights.params, weights.state, weights.info)
    except OSError as error:
        raise errors.UserError(
            f"{flags.output} cannot be written: {error.strerror or error}."
        ) from error
    rows = [row._asdict() for row in report]
    origin = weights.info["converted_from"]
    files_lib.write_json(flags.output / "report.json", {**origin, "rows": rows})
    print(mapping.format_report(report))
    print(f"wrote {counted} from {weights.path} to {flags.output}")


def convert(flags: argparse.Namespace, overrides: Mapping[str, str]) -> Converted:
    """Converts the file that the flags name, without writing anything.

    Args:
      flags: those of `flags.convert`.
      overrides: of the config.
    Raises:
      UserError: the file, the config and the flags do not fit each other.
    """
    config = config_lib.load(flags.config, overrides)
    checks.check_config(config)
    path = download.local(flags.input, flags.sha256)
    family = family_lib.of_file(path, flags.source)
    _check_flags(flags, family, path)
    foreign = family.read(path, config, flags, overrides)
    try:
        tree, report = _convert(foreign, config, flags)
    except mapping.ConversionError as error:
        _tell_classes(path, config, foreign, error)
        raise errors.UserError(f"{path} and {flags.config}: {error}") from error
    foreign = foreign._replace(class_names=_class_names(path, config, foreign))
    matched = sum(row.status == "matched" for row in report)
    info = _info(config, foreign, path.name, report)
    weights = checkpoint.Weights(tree.pop("params"), tree, info, path)
    return Converted(config, weights, report, foreign.counted.format(matched=matched))


def _convert(
    foreign: family_lib.Foreign, config: ConfigDict, flags: argparse.Namespace
) -> tuple[dict, list[mapping.Row]]:
    """(tree of leaves, report); `follow_classes` lets the file decide on the number of classes."""
    table, reset = foreign.table, flags.reset_classes
    try:
        return mapping.convert(foreign.tensors, table, target.shapes(config), reset)
    except mapping.ConversionError as error:
        count = _num_classes(config, error.class_shapes) if error.only_classes else None
        if count is None or not flags.follow_classes:
            raise
        config.model.num_classes = count
    return mapping.convert(foreign.tensors, table, target.shapes(config), reset)


def _tell_classes(
    path: pathlib.Path,
    config: ConfigDict,
    foreign: family_lib.Foreign,
    error: mapping.ConversionError,
) -> None:
    """Raises the sentence about the number of classes if nothing but that differs."""
    wanted, names = contract.num_classes(config), foreign.class_names
    if not error.only_classes:
        return
    count = _num_classes(config, error.class_shapes)
    if count is None and len(names) in (0, wanted):
        return
    told = f"predicts {count} classes" if count != len(names) else ""
    raise errors.UserError(
        f"{path} {told or f'has {len(names)} class names'}, but config.model.num_classes is"
        f" {wanted}; add --config.model.num_classes={count or len(names)}, or --reset_classes to"
        " train on other classes."
    ) from error


def _num_classes(config: ConfigDict, shapes: Mapping[str, tuple[tuple, tuple]]) -> int | None:
    """The number of classes with which the detector would have the file's shapes.

    Args:
      config: of the detector.
      shapes: path of a leaf -> its shape in the file and in the detector.
    Returns:
      the number; None if no number fits all leaves.
    """
    count = contract.num_classes(config)
    more = config_lib.from_json(config_lib.to_json(config))
    more.model.num_classes = count + 1
    grown, found = target.shapes(more), set()
    for path, (of_file, now) in shapes.items():
        changes = [i for i, (a, b) in enumerate(zip(now, grown[path], strict=True)) if a != b]
        if len(of_file) != len(now) or len(changes) != 1:
            return None
        (axis,) = changes
        classes, rest = divmod(of_file[axis] - now[axis], grown[path][axis] - now[axis])
        same = all(a == b for i, (a, b) in enumerate(zip(of_file, now, strict=True)) if i != axis)
        found.add(count + classes if same and rest == 0 else None)
    return found.pop() if len(found) == 1 else None


def _class_names(
    path: pathlib.Path, config: ConfigDict, foreign: family_lib.Foreign
) -> tuple[str, ...]:
    """The class names of a file that predicts the config's classes; a wrong number is left out."""
    names, count = foreign.class_names, contract.num_classes(config)
    if len(names) in (0, count):
        return names
    print(
        f"{path} has {len(names)} class names, but predicts {count} classes, so they are left out;"
        " give them with --names FILE."
    )
    return ()


def _check_output(output: pathlib.Path) -> None:
    """Checks before the work starts that the folder can be created."""
    if output.exists():
        raise errors.UserError(
            f"--output {output} already exists; choose a new folder or remove it first."
        )
    try:
        output.mkdir(parents=True)
        output.rmdir()  # the checkpoint writer creates it in one step at the end
    except OSError as error:
        raise errors.UserError(
            f"--output {output} cannot be created: {error.strerror or error}."
        ) from error


def _check_flags(flags: argparse.Namespace, family: family_lib.Family, path: pathlib.Path) -> None:
    """Rejects flags that only the files of another family take."""
    for other in family_lib.every():
        for flag in other.flags:
            if getattr(flags, flag) and flag not in family.flags:
                raise errors.UserError(f"{path} is not {other.files}; remove --{flag}.")


def _info(
    config: ConfigDict, foreign: family_lib.Foreign, file_name: str, report: list[mapping.Row]
) -> dict[str, Any]:
    """What the weights folder says of itself."""
    table = foreign.table
    matched = [row.target for row in report if row.status == "matched"]
    info = {
        "config": config_lib.to_json(config),
        "converted_from": {"file": file_name, "table": table.name, **foreign.origin},
        # What training may start from, see `checkpoint.may_differ`.
        "subtrees": list(table.subtrees),
        "anew": [row.target for row in report if row.status == mapping.ANEW],
        "num_classes": contract.num_classes(config),
        "class_leaves": [p for p in matched if mapping.matches_any(table.class_leaves, p)],
    }
    if foreign.class_names:
        info["class_names"] = list(foreign.class_names)
    return info
