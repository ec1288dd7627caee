"""Foreign weights -> weights folder: `python -m converters.convert --input`."""

import argparse
import pathlib
from collections.abc import Mapping

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
    try:
        tree, report = mapping.convert(
            foreign.tensors, foreign.table, target.shapes(config), flags.reset_classes
        )
    except mapping.ConversionError as error:
        raise errors.UserError(f"{path} and {flags.config}: {error}") from error
    _save(flags.output, config, foreign, path.name, tree, report)
    print(mapping.format_report(report))
    matched = sum(row.status == "matched" for row in report)
    print(f"wrote {foreign.counted.format(matched=matched)} from {path} to {flags.output}")


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
