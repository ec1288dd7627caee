"""Every table in `converters/tables`, on the tiny detectors that it fits."""

import importlib
import pkgutil
import sys

import pytest
import tables as table_runs
import tiny

from detlab.converters import mapping, named, sources, tables


def fits(source, entry):
    """Whether the source fits the detector; a ResNet backbone fits every detector with one."""
    return source.detector == entry.detector or not source.detector and "depth" in entry.fields


EVERY = pytest.mark.parametrize(
    "source, entry",
    [
        pytest.param(source, entry, id=f"{source.description}-{name}")
        for source in named.SOURCES
        for name, entry in tiny.TINY.items()
        if fits(source, entry)
    ],
)


def table_of(source, entry, bgr=False):
    if source.family == "yolov5":
        return source.table(entry.fields)
    return source.table(bgr)


def whole(table, shapes):
    """The leaves of a file with all weights; what losses keep between steps may not be in it."""
    return {
        path
        for path in shapes
        if mapping.inside(path, table.subtrees) or not path.startswith("loss_state/")
    }


def file_of(source, entry):
    """The tensors of a file, with random values."""
    table = table_of(source, entry)
    return table_runs.there_and_back(table, entry.detector, entry.fields)[1]


@EVERY
def test_a_table_fills_every_leaf_and_runs_backwards(source, entry):
    table = table_of(source, entry, bgr=True)
    leaves, _ = table_runs.there_and_back(table, entry.detector, entry.fields)
    part = {path for path in leaves if path.split("/")[1] == "backbone"}
    shapes = table_runs.shapes(entry.detector, entry.fields)
    assert set(leaves) == (whole(table, shapes) if table.class_leaves else part)


@EVERY
def test_other_classes_leave_exactly_the_leaves_that_they_change(source, entry):
    tensors = file_of(source, entry)
    fields = {**entry.fields, "num_classes": entry.fields["num_classes"] + 2}
    before = table_runs.shapes(entry.detector, entry.fields)
    after = table_runs.shapes(entry.detector, fields)
    tree, rows = mapping.convert(tensors, table_of(source, entry), after, reset_classes=True)
    anew = {row.target for row in rows if row.status == mapping.ANEW}
    changed = {path for path, shape in after.items() if before[path] != shape}
    table = table_of(source, entry)
    if table.class_leaves:
        assert anew == changed == whole(table, after) - mapping.flatten(tree).keys()
    else:
        assert not anew and not changed & mapping.flatten(tree).keys()


@EVERY
def test_a_file_is_known_by_its_names_in_whatever_order_the_tables_are(source, entry):
    names = file_of(source, entry)
    for order in (named.SOURCES, named.SOURCES[::-1]):
        fitting = sources.fitting(order, names)
        mine = [s for s in fitting if (s.family, s.detector) == (source.family, source.detector)]
        assert {other.table for other in mine} == {source.table}
        assert source in fitting or mine, "another release, or another form of the detector"


def test_every_table_but_that_of_files_without_names_is_found():
    modules = [
        importlib.import_module(f"detlab.converters.tables.{found.name}")
        for found in pkgutil.iter_modules(tables.__path__)
    ]
    with_sources = {module for module in modules if getattr(module, "SOURCES", ())}
    unnamed = {m.__name__ for m in modules if hasattr(m, "table") and m not in with_sources}
    assert unnamed == {"detlab.converters.tables.darknet"}
    assert set(named.SOURCES) == {source for module in with_sources for source in module.SOURCES}


def test_a_new_file_in_the_folder_is_found(tmp_path, monkeypatch):
    text = "from detlab.converters.tables import mmdet_ghm\n\nSOURCES = mmdet_ghm.SOURCES[:1]\n"
    (tmp_path / "mmdet_new.py").write_text(text)
    monkeypatch.setattr(tables, "__path__", [*tables.__path__, str(tmp_path)])
    assert len(sources.collect()) == len(named.SOURCES) + 1
    del sys.modules["detlab.converters.tables.mmdet_new"]


def source(description, *marks, detector="retinanet"):
    return sources.Source("mmdet", description, marks, lambda bgr: None, detector)


@pytest.mark.parametrize("turned", [False, True])
def test_the_source_with_more_marks_is_taken_and_equals_stay(turned):
    plain, more = source("plain", "a", "b"), source("more", "a", "b", "c")
    twin, other = source("twin", "b", "a", detector="ghm"), source("other", "d")
    known = [plain, more, twin, other][:: -1 if turned else 1]

    def fitting(names):
        return {found.description for found in sources.fitting(known, names)}

    assert fitting("abc") == {"more"}
    assert fitting("ab") == {"plain", "twin"}, "the detector decides between them"
    assert fitting("abcd") == {"more", "other"}, "neither has all marks of the other"
    assert fitting("a") == set()
