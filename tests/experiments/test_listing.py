"""The last line of an experiment's docstring, and the list made of these lines."""

import json
import re

import pytest

from detlab import config as config_lib
from detlab import errors, experiments, listing

DATA = {"coco": "COCO 2017", "voc": "VOC 07+12", "shapes": "shapes", "wider": "WIDER FACE"}


@pytest.fixture(scope="module")
def memory(repository):
    """Experiment -> memory of its training step, as recorded by benchmarks.step_memory."""
    file = repository / "benchmarks" / "results" / "step_memory_cpu.json"
    return json.loads(file.read_text())["experiments"]


@pytest.mark.parametrize("name", config_lib.shipped())
def test_docstring_ends_with_a_line_that_fits_the_config(name, repository, memory):
    text = (repository / "experiments" / f"{name}.py").read_text()
    (line,) = re.findall("^Expected: .*$", text, re.MULTILINE)
    assert len(line) <= 100
    experiment, config = listing.read(name), config_lib.load(name)
    assert line == "Expected: " + " | ".join(experiment[2:])
    bccd = name.endswith("_bccd")
    assert experiment.data == ("BCCD" if bccd else DATA[config.data.source])
    length, train = experiment.time.split()[:2], config.train
    if "not timed" in experiment.time:
        assert length == [str(train.epochs or train.steps), "epochs," if train.epochs else "steps,"]
    else:
        assert experiment.figure.endswith("seed 0"), "it was run, so it has a figure"
    assert experiment.memory.endswith(f" GB for {train.batch_size} images")
    if name in memory:
        row = memory[name]
        assert row["images"] == train.batch_size
        said = f"{row['gb']:.1f}" if row["gb"] < 10 else f"{row['gb']:.0f}"
        assert experiment.memory.startswith(f"{said} GB")


def test_the_memory_of_all_shipped_experiments_was_computed(memory):
    """`python -m benchmarks.step_memory --only NAME --output` this file recomputes a row."""
    assert sorted(memory) == config_lib.shipped()


def test_figures_are_those_of_the_recorded_runs(repository):
    results = repository / "benchmarks" / "results"
    runs = json.loads((results / "shapes_cpu.json").read_text())["rows"]
    runs["retinanet_bccd"] = json.loads((results / "retinanet_bccd_cpu.json").read_text())
    for name in config_lib.shipped():
        if name in runs:
            assert listing.read(name).figure == f"AP {runs[name]['figures']['AP']:.3f}, seed 0"


def test_variants_are_those_that_a_user_wants():
    assert listing.read("retinanet_coco").variants == ("caffe", "caffe_mstrain", "scratch")
    assert listing.read("retinanet_shapes").variants == ()  # overfit and tiny are for tests
    assert "yolov4_tiny" in listing.read("darknet_shapes").variants


def test_find_filters_by_part_of_the_name_and_suggests():
    assert [row.name for row in listing.find()] == config_lib.shipped()
    retinanets = [name for name in config_lib.shipped() if "retina" in name]
    assert [row.name for row in listing.find("Retina")] == retinanets
    assert {"retinanet_coco", "libra_retinanet_coco"} < set(retinanets)
    with pytest.raises(errors.UserError, match="has 'fsco' in its name. Did you mean fcos?"):
        listing.find("fsco")
    with pytest.raises(errors.UserError, match="`detlab list` shows all"):
        listing.find("0000")


def test_table_has_columns_and_few_variants():
    row = listing.Experiment("name", tuple("abcdefgh"), "COCO", "1 epochs", "2 GB", "not run")
    head, line, other = listing.table([row, row._replace(name="longer_name", variants=())]).split(
        "\n"
    )
    assert head.split() == ["experiment", *listing.Experiment._fields[1:]]
    assert line == "name         a b c d e +3  COCO  1 epochs  2 GB    not run"
    assert other.index("COCO") == line.index("COCO") == head.index("data")


def test_a_docstring_without_the_line_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text('"""Mine.\n\nExpected: much\n"""\n')
    monkeypatch.setattr(experiments, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ValueError, match="mine.py: the docstring must end with a line `Expected:"):
        listing.read("mine")
