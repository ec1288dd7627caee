"""Files whose tensors have names, of any family; the names determine the table."""

import argparse
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from detlab import contract, errors
from detlab.converters import family as family_lib
from detlab.converters import mapping, sources, target, unwrap
from detlab.converters.readers import class_names, contents
from detlab.converters.writers import safetensors_file, torch_file
from detlab.run import checkpoint

SOURCES = sources.collect()
SUFFIXES = (".pth", ".pt", ".safetensors")
FLAGS = ("names", "entry")


def read(
    path: pathlib.Path,
    config: config_dict.ConfigDict,
    flags: argparse.Namespace,
    overrides: Mapping[str, str],
) -> family_lib.Foreign:
    """Reads a file by the one table that knows its names and fits the config's detector."""
    file = unwrap.read(path, SOURCES, flags.entry)
    source = _source(flags.source, path, file, flags.config, config.detector)
    for note in file.notes:
        print(f"{note}.")
    family = family_lib.find(source.family)
    family.fill_in(path, file, config, flags, overrides)
    table = family.table(source, config, flags.bgr)
    if flags.reset_classes and not table.class_leaves:
        raise errors.UserError(
            f"remove --reset_classes: {path} is {source.description}, whose class layers are always"
            " dropped."
        )
    if flags.names and not table.class_leaves:
        raise errors.UserError(
            f"remove --names: {path} is {source.description}, which predicts no classes."
        )
    names = file.class_names or ()
    if flags.names:
        names = class_names.read(flags.names, contract.num_classes(config))
    if flags.reset_classes:
        names = ()
    origin = {"bgr": flags.bgr}
    return family_lib.Foreign(file.tensors, table, names, origin, "{matched} tensors")


def write(
    flags: argparse.Namespace,
    config: config_dict.ConfigDict,
    weights: checkpoint.Weights,
    leaves: Mapping[str, Any],
) -> str:
    """Writes a state dict as a `.pth` or `.safetensors` file."""
    bgr = flags.bgr or weights.info.get("converted_from", {}).get("bgr", False)
    source, table = _table_back(flags.source, config, leaves, weights.path, bgr)
    tensors = mapping.reverse(mapping.nest(leaves), table)
    tensors |= family_lib.find(source.family).buffers(config)
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    if flags.output.suffix in (".pth", ".pt"):
        torch_file.write(flags.output, tensors)
    else:
        safetensors_file.write(flags.output, tensors, weights.info.get("class_names"))
    return f"wrote {len(tensors)} tensors from {weights.path} to {flags.output} as {table.name}"


def detectors(path: pathlib.Path, flags: argparse.Namespace) -> list[str]:
    """The detectors whose names a file has, all of their layers; [] if there are none."""
    names = unwrap.read(path, SOURCES, flags.entry).tensors
    known = sources.fitting(SOURCES, names)
    return sorted({source.detector for source in known if source.detector and not source.is_part})


def _source(
    family: str,
    path: pathlib.Path,
    file: contents.Contents,
    config_name: str,
    detector: str,
) -> sources.Source:
    """The kind of file that belongs to the family, has these names and fits the detector."""
    names = file.tensors
    wanted = [source for source in SOURCES if family in ("auto", source.family)]
    known = sources.fitting(wanted, names)
    if not known:
        is_not = _either(_sources_of(family, detector))
        other = sources.fitting(SOURCES, names)
        looks = f"it looks like {_either(other)}" if other else "its names begin with "
        looks += "" if other else contents.printable(", ".join(list(names)[:4]))
        raise errors.UserError(
            f"{path} is not {is_not}; {looks}{_entries(file)}, so give another file, or the"
            " --source and --config that fit it."
        )
    chosen = [source for source in known if source.detector in (None, detector)]
    if not chosen:
        only = " or ".join(sorted({source.detector for source in known}))
        raise errors.UserError(
            f"{path} is {_either(known)} for detector {only}, but --config {config_name} has"
            f" detector {detector}; choose an experiment with detector {only}."
        )
    if len(chosen) > 1:
        raise errors.UserError(f"{path} may be {_either(chosen)}; choose with --source.")
    return chosen[0]


def _entries(file: contents.Contents) -> str:
    """The entries of a checkpoint, for messages."""
    counts = [f"{name} ({count} tensors)" for name, count in file.entries.items()]
    others = [name for name in file.meta if name not in file.entries]
    entries = [*counts, *others[: max(0, 12 - len(counts))]]
    listed = contents.printable(", ".join(entries), 400)
    return f" (the entries of the file: {listed})" if file.entries else ""


def _sources_of(family: str, detector: str) -> list[sources.Source]:
    """The kinds of file that fit the detector."""
    found = [
        source
        for source in SOURCES
        if family in ("auto", source.family) and source.detector in (None, detector)
    ]
    if not found:
        raise errors.UserError(
            f"--source {family} has no table for detector {detector}; choose another --source or"
            " another experiment."
        )
    return found


def _either(known: list[sources.Source]) -> str:
    return " or ".join(sorted({source.description for source in known}))


def _table_back(
    family: str, config, leaves: Mapping, path: pathlib.Path, bgr: bool
) -> tuple[sources.Source, mapping.Table]:
    """The table of the whole detector, else of a backbone, if none of its leaves is missing."""
    shapes, found = target.shapes(config), []
    for source in _sources_of(family, config.detector):
        table = family_lib.find(source.family).table(source, config, bgr)
        wanted = [leaf for leaf in shapes if mapping.inside(leaf, table.subtrees)]
        absent = [p for p in wanted if p not in leaves or leaves[p].shape != shapes[p]]
        found.append((not absent, len(wanted), table.name, source, table, absent))
    complete, size, name, source, table, absent = max(found, key=lambda entry: entry[:2])
    if not complete:
        raise errors.UserError(
            f"{path} is not a complete {name}: {len(absent)} leaves are missing or differ in shape"
            f" from the config's, such as {absent[0]}."
        )
    names = sorted({other[2] for other in found if other[:2] == (complete, size)})
    if len(names) > 1:
        raise errors.UserError(f"{path} may be {' or '.join(names)}; choose with --source.")
    return source, table
