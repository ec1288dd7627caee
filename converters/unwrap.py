"""The weights of a file whose tensors have names, without what wraps them.

Checkpoints hold the weights in an entry of any name.  Wrappers put a prefix before the names of all
tensors: "module." (DataParallel), "_orig_mod." (torch.compile), "model." (a model in a trainer).
Many files hold a second copy, averaged over the training steps (EMA).  The names that the sources
know (`sources.Source.marks`) tell where the weights are, and what is in front of their names.

Of two copies the one is read that the file's own code base loads:

- YOLOv5 and others: the averages, in `ema`, `model_ema`, `state_dict_ema` ...
- mmdet 3 (mmengine's EMAHook): `state_dict`.  The hook exchanges the copies before it saves, so
  `state_dict` holds the averages and `ema_state_dict` the trained values.
- mmdet 2: the plain names.  Its hook, too, exchanges the copies before a checkpoint is saved;
  `ema_backbone_conv1_weight` is the other copy of `backbone.conv1.weight`.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from detlab import text
from detlab.converters import sources as sources_lib
from detlab.converters.readers import contents, files, torch_file

# Parts of names that are always a wrapper's, wherever they are.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_AVERAGES = re.compile(r"(?<![a-z])(ema|swa|averaged?)(?![a-z])", re.IGNORECASE)
_TWINS = "ema_"  # mmdet 2: the copy of a.b is ema_a_b
_MAX_PLACES = 16  # of an entry


class Place(NamedTuple):
    """Where a complete set of weights is."""

    entry: str  # of a checkpoint, such as "model" or "ema/module"; "": the file itself
    prefix: str  # of the names, taken off; with its dot
    added: str = ""  # in front of the names: of a model that was saved without it
    twins: bool = False  # the copies named ema_a_b, not a.b

    @property
    def label(self) -> str:
        """What --entry calls it."""
        if self.twins:
            return _TWINS
        return "/".join(filter(None, (self.entry, self.prefix.rstrip(".")))) or "plain"


def read(
    path: str | os.PathLike, sources: Iterable[sources_lib.Source], entry: str = ""
) -> contents.Contents:
    """Reads the weights of a file as a source names them.

    Args:
      path: as in `readers.files.read`.
      sources: the kinds of files that are known.
      entry: which weights to read, if there are several: the label of a place, or an entry of the
        file.  "": see the file's docstring.
    Returns:
      the contents, with the names that the sources know if any of them fits, else without the
      prefixes of wrappers.  `notes` says what was chosen and what was left out.
    Raises:
      ReadError: see `readers.files.read`; or there is no such entry, or several sets of weights of
        which none comes before the others.
    """
    sources = tuple(sources)
    offered = {}

    def choose(names: Mapping[str, Iterable[str]]) -> str:
        offered.update(names)
        return _chosen(offered, sources, entry)[0].entry

    file = files.read(path, choose=choose)
    if not offered:  # formats without entries
        offered[""] = list(file.tensors)
    with contents.reading(path, "weight file", contents.ReadError):
        place, others = _chosen(offered, sources, entry)
    return _taken(path, file, place, others, bool(entry))


def _chosen(
    offered: Mapping[str, Iterable[str]], sources: tuple[sources_lib.Source, ...], asked: str
) -> tuple[Place, list[Place]]:
    """The place of the weights, and other places that hold such weights too."""
    found = [place for entry, names in offered.items() for place in _places(entry, names, sources)]
    if asked:
        wanted = [place for place in found if asked in (place.label, place.entry)]
        if not wanted and asked not in offered:
            labels = dict.fromkeys([*filter(None, offered), *(place.label for place in found)])
            remedy = f"choose --entry from {_listed(labels)}" if labels else "remove --entry"
            raise contents.ReadError(f"has no weights in {asked!r}; {remedy}")
        place = wanted[0] if wanted else Place(asked, "")
        return place, [other for other in found if other != place]
    if not found:
        return Place(next(iter(offered)), ""), []
    plain = [place for place in found if not _is_average(place)]
    averaged = [place for place in found if _is_average(place)]
    of_mmdet = any(place.twins or place.entry == "ema_state_dict" for place in averaged)
    best = plain if of_mmdet and plain else averaged or plain
    is_usual = best[0].entry.partition("/")[0] in torch_file.USUAL
    same_entry = [place for place in best if place.entry == best[0].entry]
    if len(same_entry) > 1 or (len(best) > 1 and not is_usual):
        raise contents.ReadError(
            f"holds several sets of weights: {_listed(place.label for place in best)}; choose one"
            " with --entry"
        )
    return best[0], [place for place in found if place != best[0]]


def _is_average(place: Place) -> bool:
    return place.twins or _AVERAGES.search(place.label) is not None


def _places(
    entry: str, names: Iterable[str], sources: tuple[sources_lib.Source, ...]
) -> list[Place]:
    """The prefixes with which the names of an entry are those of a source."""
    names = set(_plain_names(names))
    found: dict[Place, None] = {}
    for source in sources:
        first, *others = source.marks
        for prefix in sorted(n.removesuffix(first) for n in names if f".{n}".endswith(f".{first}")):
            # A backbone's names are in a whole detector too, behind a prefix of some of its names.
            shared = not source.is_part or all(name.startswith(prefix) for name in names)
            is_known = shared and names.issuperset(f"{prefix}{mark}" for mark in others)
            if is_known and len(found) < _MAX_PLACES:
                found[Place(entry, prefix)] = None
    for prefix in [place.prefix for place in found]:
        if any(_twin(name, prefix) in names for name in names):
            found[Place(entry, prefix, twins=True)] = None
    if not found:
        for source in sources:
            added = f"{source.marks[0].partition('.')[0]}."
            marks = [mark.removeprefix(added) for mark in source.marks]
            if all(m.startswith(added) for m in source.marks) and names.issuperset(marks):
                found[Place(entry, "", added)] = None
    return list(found)


def _plain_names(names: Iterable[str]) -> list[str]:
    """The names without the parts of wrappers, unless two would become one."""
    names = list(names)
    plain = [".".join(p for p in name.split(".") if p not in _WRAPPERS) for name in names]
    return plain if len(set(plain)) == len(plain) and all(plain) else names


def _twin(name: str, prefix: str) -> str:
    return f"{prefix}{_TWINS}{name.removeprefix(prefix).replace('.', '_')}"


def _taken(
    path: str | os.PathLike,
    file: contents.Contents,
    place: Place,
    others: list[Place],
    is_asked: bool,
) -> contents.Contents:
    """The contents with the tensors of a place under their own names, and notes about the rest."""
    tensors = dict(zip(_plain_names(file.tensors), file.tensors.values(), strict=True))
    inside = {name for name in tensors if name.startswith(place.prefix)}
    twins = {name: _twin(name, place.prefix) for name in inside}
    twins = {name: twin for name, twin in twins.items() if twin in tensors}
    copies = set(twins.values())
    notes = []
    if others and not is_asked:
        why = ""
        if _is_average(place):
            why = ", the averages, as by the code that wrote such files"
        elif any(other.twins or other.entry == "ema_state_dict" for other in others):
            why = " (mmdet exchanges the copies before it saves, so they hold the averages)"
        labels = _listed(dict.fromkeys(other.label for other in others))
        notes.append(
            f"{path} holds such weights in {place.label} and {labels}; those in {place.label} are"
            f" read{why}; --entry chooses others"
        )
    elif place.entry and place.entry not in ("state_dict", "model"):
        notes.append(f"the weights of {path} are in its entry {place.entry}")
    left = set(tensors) - inside - copies
    of_others = tuple(o.prefix for o in others if o.entry == place.entry and not o.twins)
    left = sorted(n for n in left if not of_others or not n.startswith(of_others))
    if place.prefix:
        note = f"the prefix {place.prefix} of {len(inside) - len(copies)} tensors is taken off"
        if left:
            note += f", and {len(left)} without it are left out: {_listed(left)}"
        notes.append(note)
    if place.added:
        notes.append(f"{place.added} is put before the names of {len(inside)} tensors")

    def own(name: str) -> str:
        return place.added + name.removeprefix(place.prefix)

    taken = {
        own(name): tensors[twins[name]] if place.twins and name in twins else tensor
        for name, tensor in tensors.items()
        if name in inside and name not in copies
    }
    modules = dict(zip(_plain_names(file.modules), file.modules.values(), strict=True))
    modules = {own(name): m for name, m in modules.items() if name.startswith(place.prefix)}
    notes = [contents.printable(note, 1000) for note in notes]
    return file._replace(tensors=taken, modules=modules, notes=(*notes, *file.notes))


def _listed(words: Iterable[str]) -> str:
    return text.listed((contents.printable(word, 100) for word in words), 6)
