"""Files whose tensors have names, of whatever family: by them the table is found."""

import argparse
import pathlib
from collections.abc import Mapping
from typing import Any

from detlab import contract, errors
from detlab.converters import family as family_lib
from detlab.converters import mapping, sources, target
from detlab.converters.readers import contents, files
from detlab.converters.writers import safetensors_file, torch_file
from detlab.run import checkpoint

SOURCES = sources.collect()
SUFFIXES = (".pth", ".pt", ".safetensors")


def read(
    path: pathlib.Path, config, flags: argparse.Namespace, overrides: Mapping[str, str]
) -> family_lib.Foreign:
    """A file by the one table that has its names and fits the config's detector."""
    file = files.read(path)
    source = _source(flags.source, path, file.tensors, flags.config, config.detector)
    family = family_lib.find(source.family)
    family.fill_in(path, file, config, flags, overrides)
    table = family.table(source, config, flags.bgr)
    if flags.reset_classes and not table.class_leaves:
        raise errors.UserError(
            f"--reset_classes does nothing here: of {source.description} the class layers are left"
            " out always."
        )
    class_names = () if flags.reset_classes else _class_names(path, file, config)
    origin = {"bgr": flags.bgr}
    return family_lib.Foreign(file.tensors, table, class_names, origin, "{matched} tensors")


def write(
    flags: argparse.Namespace, config, weights: checkpoint.Weights, leaves: Mapping[str, Any]
) -> str:
    """A state dict as a `.pth` or `.safetensors` file."""
    bgr = flags.bgr or weights.info.get("converted_from", {}).get("bgr", False)
    source, table = _table_back(flags.source, config, leaves, weights.path, bgr)
    tensors = mapping.reverse(mapping.nest(leaves), table)
    tensors |= family_lib.find(source.family).buffers(config)
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    if flags.output.suffix in (".pth", ".pt"):
        torch_file.write(flags.output, tensors)
    else:
        safetensors_file.write(flags.output, tensors, weights.info.get("class_names"))
    return f"{len(tensors)} tensors of {weights.path} are in {flags.output}, as {table.name}"


def _source(
    family: str, path: pathlib.Path, names: Mapping, config_name: str, detector: str
) -> sources.Source:
    """The kind of the file: of the family, known by its names, and for the detector."""
    wanted = [source for source in SOURCES if family in ("auto", source.family)]
    known = sources.fitting(wanted, names)
    if not known:
        is_not = _either(_sources_of(family, detector))
        other = sources.fitting(SOURCES, names)
        looks = f"it looks like {_either(other)}" if other else "its names begin with "
        looks += "" if other else contents.printable(", ".join(list(names)[:4]))
        raise errors.UserError(f"{path} is not {is_not}; {looks}.")
    chosen = [source for source in known if source.detector in (None, detector)]
    if not chosen:
        only = " or ".join(sorted({source.detector for source in known}))
        raise errors.UserError(
            f"{_either(known)} fits detector {only} only, and {config_name} is of {detector}."
        )
    if len(chosen) > 1:
        raise errors.UserError(f"{path} may be {_either(chosen)}; say which with --source.")
    return chosen[0]


def _sources_of(family: str, detector: str) -> list[sources.Source]:
    """The sources that the detector may have."""
    found = [
        source
        for source in SOURCES
        if family in ("auto", source.family) and source.detector in (None, detector)
    ]
    if not found:
        raise errors.UserError(f"--source {family} has no table for detector {detector}.")
    return found


def _either(known: list[sources.Source]) -> str:
    return " or ".join(sorted({source.description for source in known}))


def _class_names(path: pathlib.Path, file: contents.Contents, config) -> tuple[str, ...]:
    """The file's names, if it has any; as many as the detector has classes."""
    names = file.class_names or ()
    expected = contract.num_classes(config)
    if names and len(names) != expected:
        raise errors.UserError(
            f"{path} knows {len(names)} classes and config.model.num_classes is {expected};"
            f" add --config.model.num_classes={len(names)}, or, to train on other classes,"
            " --reset_classes."
        )
    return names


def _table_back(
    family: str, config, leaves: Mapping, path: pathlib.Path, bgr: bool
) -> tuple[sources.Source, mapping.Table]:
    """The table of the whole detector, else of a backbone, whose every leaf is there."""
    shapes, found = target.shapes(config), []
    for source in _sources_of(family, config.detector):
        table = family_lib.find(source.family).table(source, config, bgr)
        wanted = [leaf for leaf in shapes if mapping.inside(leaf, table.subtrees)]
        absent = [p for p in wanted if p not in leaves or leaves[p].shape != shapes[p]]
        found.append((not absent, len(wanted), table.name, source, table, absent))
    complete, size, name, source, table, absent = max(found, key=lambda entry: entry[:2])
    if not complete:
        raise errors.UserError(
            f"{path} is no complete {name}: {len(absent)} leaves are not there in the shape of the"
            f" config, such as {absent[0]}."
        )
    names = sorted({other[2] for other in found if other[:2] == (complete, size)})
    if len(names) > 1:
        raise errors.UserError(f"{path} may be {' or '.join(names)}; say which with --source.")
    return source, table
