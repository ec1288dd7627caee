"""The layer order of docs/architecture.md, read from the imports of every module."""

import ast
import pathlib
import re

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

# The folders and files of detlab from the ground to the top: each may import what it names, and a
# name covers what is below it in its folder.
OPS = {"types", "ops"}
LEAVES = OPS | {"assign", "losses"}
PARTS = OPS | {"layers"}
MODELS = LEAVES | PARTS | {"backbones", "necks", "heads", "detectors", "bounds", "fields"}
MODELS |= {"sharding", "darknet"}
DATA = {"types", "data"}
SERVICES = (
    MODELS | DATA | {"contract", "checks", "config", "distributed", "metrics", "viz", "views"}
)
SERVICES |= {"experiments", "errors"}
# Rooms that the programs share, each above those before it.
ROOMS = ("environment", "progress", "files", "data_sets", "evaluation", "predictions", "detect")
ROOMS += ("media", "run", "trained")
PROGRAMS = SERVICES | set(ROOMS) | {"cli"}
ALLOWED = {
    "__init__": set(),
    "types": set(),
    "errors": set(),
    "bounds": set(),
    "fields": set(),
    "experiments": set(),
    "darknet": {"errors", "darknet"},
    "ops": OPS,
    "assign": OPS | {"assign"},
    "losses": OPS | {"losses"},
    "layers": OPS,
    "backbones": PARTS | {"backbones"},
    "necks": PARTS | {"necks"},
    "heads": PARTS | {"heads"},
    "detectors": MODELS,
    "contract": {"types", "errors", "bounds", "views", "detectors"},
    "views": {"types", "ops"},
    "data": DATA,
    "metrics": {"types", "metrics"},
    "viz": {"types", "viz"},
    "sharding": {"types", "errors"},
    "cli": {"errors"},
    "checks": {"errors", "data"},
    "config": {"errors", "checks", "experiments"},
    "distributed": {"errors", "sharding"},
    **{room: SERVICES | set(ROOMS[: i + 1]) for i, room in enumerate(ROOMS)},
    "train": PROGRAMS,
    "eval": PROGRAMS,
    "demo": PROGRAMS,
    "listing": {"errors", "config", "experiments"},
    "tools": PROGRAMS | {"tools"},
    "__main__": {"errors", "cli", "config", "files", "listing", "environment", "experiments"},
}
NO_JAX = {"types", "errors", "fields", "cli", "checks", "config", "data", "metrics", "viz"}
NO_JAX |= {"darknet", "experiments", "listing", "__main__"}
NO_FLAX = NO_JAX | {"ops", "assign", "losses", "sharding", "views"}


def python_files(*folders):
    return [p for folder in folders for p in sorted((REPOSITORY / folder).rglob("*.py"))]


def imports(path):
    """Dotted names that a file imports, `from a import b` as `a.b`."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def group(path):
    relative = path.relative_to(REPOSITORY / "detlab")
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", python_files("detlab"), ids=lambda p: "/".join(p.parts[-2:]))
def test_detlab_modules_import_only_from_layers_below(path):
    name = group(path)
    if name == "__init__":
        return
    for imported in imports(path):
        top, *rest = imported.split(".")
        assert top not in ("converters", "experiments", "tests", "benchmarks"), imported
        assert rest[:1] != ["converters"], imported
        if top == "detlab" and rest:
            assert rest[0] in ALLOWED[name], f"{path} imports {imported}"
        if name in NO_JAX:
            assert top not in ("jax", "jaxlib", "flax", "optax", "orbax"), f"{path}: {imported}"
        if name in NO_FLAX:
            assert top != "flax", f"{path} imports {imported}"


@pytest.mark.parametrize(
    "folder, forbidden",
    [
        ("converters", {"experiments", "tests", "benchmarks"}),
        ("benchmarks", {"tests"}),  # parity runs on converted weights
    ],
)
def test_converters_stand_on_detlab_and_benchmarks_on_both(folder, forbidden):
    for path in python_files(folder):
        for imported in imports(path):
            top, *rest = imported.removeprefix("detlab.").split(".")
            assert top not in forbidden, f"{path} imports {imported}"


def test_experiments_import_only_ml_collections_and_what_they_share():
    for path in python_files("experiments"):
        for imported in imports(path):
            shared = re.match(r"detlab\.(experiments\.(common|recipes)|data\.settings)\b", imported)
            assert shared or imported.split(".")[0] == "ml_collections", f"{path}: {imported}"


def test_nothing_imports_tensorflow_or_pytorch():
    for path in python_files("detlab", "experiments", "converters", "benchmarks"):
        for imported in imports(path):
            assert imported.split(".")[0] not in ("tensorflow", "torch", "torchvision"), path


def test_a_detector_file_imports_another_one_level_deep():
    files = {p.stem: p for p in python_files("detlab/detectors") if p.stem != "__init__"}

    def others(name):
        return [i.split(".")[2] for i in imports(files[name]) if i.startswith("detlab.detectors.")]

    for name in files:
        for other in others(name):
            assert not others(other), f"{name} imports {other}, which imports {others(other)}"
