"""Sources made of other sources: filtered, repeated, joined, and with other classes.

All are sources as `detlab.data.records` describes them, so they can be nested.  Counts and problems
are those of the inner sources plus what the wrapper itself drops.
"""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from detlab.data import records as records_lib


class _Wrapper:
    """The images at `places` of other sources.

    Args:
      sources: sequence of sources.
      places: [n, 2] number of the source and position in it, one row per image.
      class_names: of the result.
    """

    def __init__(self, sources, places, class_names):
        self.class_names = tuple(class_names)
        self.max_objects = max(source.max_objects for source in sources)
        self.problems = tuple(problem for source in sources for problem in source.problems)
        self.dropped_boxes = sum(source.dropped_boxes for source in sources)
        self.clipped_boxes = sum(source.clipped_boxes for source in sources)
        self.skipped_records = sum(source.skipped_records for source in sources)
        self.filtered_records = sum(source.filtered_records for source in sources)
        self._sources = tuple(sources)
        self._places = np.asarray(places, np.int64).reshape(-1, 2)

    def __len__(self):
        return len(self._places)

    def __getitem__(self, i):
        i = range(len(self))[i]
        source, position = self._place(i)
        return {**self._adapt(source[position]), "index": i}

    def annotation(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        source, position = self._place(i)
        return {**self._adapt(source.annotation(position)), "index": i}

    def size(self, i: int) -> tuple[int, int]:
        source, position = self._place(i)
        return source.size(position)

    def name(self, i: int) -> str:
        source, position = self._place(i)
        return source.name(position)

    def path(self, i: int) -> str | None:
        source, position = self._place(i)
        return source.path(position)

    def image_id(self, i: int) -> int | str:
        source, position = self._place(i)
        return source.image_id(position)

    def _place(self, i):
        number, position = self._places[i].tolist()
        return self._sources[number], position

    def _adapt(self, record):
        """A record of an inner source, as this wrapper shows it."""
        return record


def _in_one_source(positions):
    """`places` for a wrapper around a single source."""
    positions = np.asarray(positions, np.int64)
    return np.stack([np.zeros_like(positions), positions], axis=1)


# ------------------------------------------------------------------------------------------------
# Fewer or more images


class Filtered(_Wrapper):
    """The images of another source at the positions `keep`, in that order."""

    def __init__(self, source, keep, reason="not selected"):
        super().__init__([source], _in_one_source(keep), source.class_names)
        left_out = len(source) - len(self)
        self.filtered_records += left_out
        if left_out:
            sentence = f"{left_out} of {len(source)} images are filtered out: {reason}"
            # If no image is left, the first sentence must be the cause: this filter or an earlier
            # loss, such as that of all objects because of a misspelt class.
            is_cause = not len(self) and not source.dropped_boxes and not source.skipped_records
            self.problems = (sentence, *self.problems) if is_cause else (*self.problems, sentence)


def for_training(source: Any, min_side: int = 32, keep_empty: bool = False) -> Filtered:
    """The images worth training on: both sides at least `min_side` px, with an object to learn.

    The rule of mmdetection's `CocoDataset._filter_imgs`; ignored objects do not count here.
    `keep_empty` also keeps images without objects (its `filter_empty_gt=False`): pure background.
    """
    large = [i for i in range(len(source)) if min(source.size(i)) >= min_side]
    keep = large
    if not keep_empty:
        keep = [i for i in large if not source.annotation(i)["ignore"].all()]
    reason = f"{len(source) - len(large)} with a side under {min_side} px"
    if not keep_empty:
        reason += f", {len(large) - len(keep)} without an object to learn"
    return Filtered(source, keep, reason)


class SmallIgnored(_Wrapper):
    """A source whose objects with a side under `least` px become `ignore`; for training.

    The `min_size` of mmdetection's `WIDERFaceDataset`; px are those of the original image.
    """

    def __init__(self, source, least):
        super().__init__([source], _in_one_source(np.arange(len(source))), source.class_names)
        self._least = least
        count = sum(
            int((self.annotation(i)["ignore"] & ~source.annotation(i)["ignore"]).sum())
            for i in range(len(self))
        )
        if count:
            sentence = f"objects with a side under {least} px are ignored: {count}"
            self.problems = (*self.problems, sentence)

    def _adapt(self, record):
        sides = record["boxes"][:, 2:] - record["boxes"][:, :2]
        return {**record, "ignore": record["ignore"] | (sides < self._least).any(axis=1)}


class Repeated(_Wrapper):
    """A source repeated `times` times, so that an epoch shows each image that often; for training.

    An image has the same `image_id` in each repeat.  The counts are those of the source, not
    multiplied.
    """

    def __init__(self, source, times):
        if times < 1:
            raise ValueError(f"times is {times}; it must be at least 1")
        positions = np.tile(np.arange(len(source)), times)
        super().__init__([source], _in_one_source(positions), source.class_names)


class Concatenated(_Wrapper):
    """Several sources of the same classes, one after another.

    If sources share an id, all ids become "0/id", "1/id" and so on, by the number of the source.
    Records have the entries that all sources have: `flags` only if every source has them.

    Raises:
      DataError: the classes differ.
    """

    def __init__(self, sources):
        first = sources[0]
        for source in sources[1:]:
            if source.class_names != first.class_names:
                raise records_lib.DataError(
                    "data sets with different classes cannot be joined: "
                    f"{', '.join(first.class_names)} and {', '.join(source.class_names)}; "
                    "set class_names and rename_classes so that both have the same classes in the "
                    "same order"
                )
        places = [(k, i) for k, source in enumerate(sources) for i in range(len(source))]
        super().__init__(sources, places, first.class_names)
        ids = [{source.image_id(i) for i in range(len(source))} for source in sources]
        self._clash = len(set().union(*ids)) < sum(map(len, ids))
        entries = [set(source.annotation(0)) for source in sources if len(source)]
        self._entries = {"image"}.union(set.intersection(*entries) if entries else ())

    def image_id(self, i: int) -> int | str:
        number = self._places[i][0]
        image_id = super().image_id(i)
        return f"{number}/{image_id}" if self._clash else image_id

    def _adapt(self, record):
        return {name: value for name, value in record.items() if name in self._entries}


# ------------------------------------------------------------------------------------------------
# Other classes


def choose_classes(
    source: Any, class_names: Sequence[str] = (), rename: Sequence[tuple[str, str]] = ()
) -> Any:
    """Selects, renames and reorders the classes of a source.

    Args:
      source: any source.
      class_names: the classes to keep, by their new names, in label order; objects of other classes
        are dropped, and classes that the source lacks have no objects.  () keeps all.
      rename: pairs (name in the source, new name), applied before `class_names`.  Classes that get
        the same name are merged.
    Returns:
      `source` itself if nothing changes.
    Raises:
      DataError: the source has none of `class_names`, or lacks a class of `rename` or
        `class_names` that looks misspelt.
    """
    new_names = dict(rename)
    renamed = [new_names.get(name, name) for name in source.class_names]
    chosen = tuple(class_names) or tuple(dict.fromkeys(renamed))
    lacking = _lacking("class_names", chosen, renamed)
    if len(lacking) == len(chosen):
        raise records_lib.DataError(
            f"class_names has {chosen[0]!r}, but the data set has no such class; its classes: "
            f"{', '.join(renamed)}"
        )
    problems = [
        *(
            f"rename_classes has {name!r}, but the data set has no such class"
            for name in _lacking("rename_classes", new_names, source.class_names)
        ),
        *records_lib.lacking_classes("the data set", lacking, renamed),
    ]
    if chosen == source.class_names and not any(old != new for old, new in rename):
        return source
    labels = [chosen.index(name) if name in chosen else -1 for name in renamed]
    return _Relabelled(source, chosen, labels, problems)


def _lacking(key, names, there):
    """The classes that a key names and the source does not have; a misspelt one raises.

    A name that would be changed to one that is there is no misspelling: `rename_classes` is for the
    files of training and evaluation, and one of them may have the new name already.
    """
    lacking = [name for name in names if name not in there]
    for name in lacking:
        if isinstance(names, dict) and names[name] in there:
            continue
        others = [other for other in there if other not in names]
        meant = records_lib.meant_class(name, others, cutoff=0.6)
        if meant:
            raise records_lib.DataError(
                f"{key} has {name!r}, but the data set has no such class; did you mean {meant!r}?"
            )
    return lacking


class _Relabelled(_Wrapper):
    """A source whose label k becomes new_labels[k]; objects whose label becomes -1 are dropped."""

    def __init__(self, source, class_names, new_labels, problems):
        super().__init__([source], _in_one_source(np.arange(len(source))), class_names)
        self.problems += tuple(problems)
        self._new_labels = np.array(new_labels, np.int32)
        if hasattr(source, "category_labels"):
            self.category_labels = {
                key: new_labels[label] if label >= 0 else -1
                for key, label in source.category_labels.items()
            }
        if (self._new_labels >= 0).all():
            return
        count = collections.Counter()
        for i in range(len(source)):
            count.update(source.annotation(i)["labels"].tolist())
        left_out = [label for label in sorted(count) if new_labels[label] < 0]
        self.dropped_boxes += sum(count[label] for label in left_out)
        sentences = records_lib.dropped_classes(
            {source.class_names[label]: count[label] for label in left_out}
        )
        if len(left_out) == len(count):  # then this explains any later failure
            nothing = f"there are no objects of class {', '.join(self.class_names)} in the data set"
            self.problems = (nothing, *sentences, *self.problems)
        else:
            self.problems += tuple(sentences)

    def _adapt(self, record):
        record = {**record, "labels": self._new_labels[record["labels"]]}
        return records_lib.select_objects(record, record["labels"] >= 0)
