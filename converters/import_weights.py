"""Foreign weights -> weights folder: `python -m converters.convert --input`."""

import argparse
import pathlib
from collections.abc import Mapping

from ml_collections import ConfigDict

from detlab import checks, contract, errors
from detlab import config as config_lib
from detlab import files as files_lib
from detlab.converters import download, mapping, target
from detlab.converters import family as family_lib
from detlab.run import checkpoint


def run(flags: argparse.Namespace, overrides: Mapping[str, str]) -> None:
    """Writes the folder, and prints one line for each tensor and leaf."""
    config = config_lib.load(flags.config, overrides)
    checks.check_config(config)
    _check_output(flags.output)
    path = download.local(flags.input, flags.sha256)
    family = family_lib.of_file(path, flags.source)
    _check_flags(flags, family, path)
    foreign = family.read(path, config, flags, overrides)
    shapes = target.shapes(config)
    try:
        tree, report = mapping.convert(foreign.tensors, foreign.table, shapes, flags.reset_classes)
    except mapping.ConversionError as error:
        _tell_classes(path, config, foreign, error)
        raise errors.UserError(f"{path} and {flags.config}: {error}") from error
    foreign = foreign._replace(class_names=_class_names(path, config, foreign))
    _save(flags.output, config, foreign, path.name, tree, report)
    print(mapping.format_report(report))
    matched = sum(row.status == "matched" for row in report)
    print(f"wrote {foreign.counted.format(matched=matched)} from {path} to {flags.output}")


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


def _save(
    output: pathlib.Path, config, foreign: family_lib.Foreign, file_name: str, tree, report
) -> None:
    """Writes the weights folder with its report."""
    table = foreign.table
    origin = {"file": file_name, "table": table.name, **foreign.origin}
    params = tree.pop("params")
    matched = [row.target for row in report if row.status == "matched"]
    info = {
        "config": config_lib.to_json(config),
        "converted_from": origin,
        # What training may start from, see `checkpoint.may_differ`.
        "subtrees": list(table.subtrees),
        "anew": [row.target for row in report if row.status == mapping.ANEW],
        "num_classes": contract.num_classes(config),
        "class_leaves": [p for p in matched if mapping.matches_any(table.class_leaves, p)],
    }
    if foreign.class_names:
        info["class_names"] = list(foreign.class_names)
    try:
        checkpoint.save_weights(output, params, tree, info)
    except OSError as error:
        raise errors.UserError(f"{output} cannot be written: {error.strerror or error}.") from error
    rows = [row._asdict() for row in report]
    files_lib.write_json(output / "report.json", {**origin, "rows": rows})
