"""The layer order of docs/architecture.md, checked on the imports of every module."""

import ast
import graphlib
import pathlib
import re

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

# The files and folders of detlab, from the lowest layer up, and what each may import.
OPS = {"types", "ops"}
PARTS = OPS | {"layers"}
MODELS = PARTS | {"bounds", "fields", "darknet", "sharding", "assign", "losses"}
MODELS |= {"backbones", "necks", "heads", "detectors"}
DATA = {"types", "text", "data"}
BELOW = MODELS | DATA | {"errors", "views", "contract", "experiments", "metrics", "viz"}
BELOW |= {"checks", "config", "distributed", "paths"}
# Rooms are shared by the programs; each may import those before it.
ROOMS = ("environment", "progress", "files", "data_sets", "evaluation", "predictions", "detect")
ROOMS += ("media", "run", "trained", "saved")
PROGRAMS = BELOW | set(ROOMS) | {"cli"}
ALLOWED = {
    "__init__": set(),
    "types": set(),
    "errors": set(),
    "text": set(),
    "paths": {"errors"},
    "bounds": set(),
    "fields": set(),
    "darknet": {"errors", "text", "darknet"},
    "sharding": {"types", "errors"},
    "ops": OPS,
    "assign": OPS | {"assign"},
    "losses": OPS | {"losses"},
    "layers": OPS,
    "backbones": PARTS | {"backbones"},
    "necks": PARTS | {"necks"},
    "heads": PARTS | {"heads"},
    "detectors": MODELS,
    "views": OPS,
    "contract": {"types", "errors", "bounds", "views", "detectors"},
    "data": DATA,
    "experiments": {"data"},
    "metrics": {"types", "metrics"},
    "viz": {"types", "viz"},
    "cli": {"errors", "paths"},
    "checks": {"errors"},
    "config": {"errors", "paths", "checks", "experiments"},
    "distributed": {"errors", "sharding"},
    **{room: BELOW | set(ROOMS[: i + 1]) for i, room in enumerate(ROOMS)},
    "environment": {"errors", "paths", "config"},
    "progress": set(),
    "files": {"errors", "text", "viz"},
    "train": PROGRAMS,
    "eval": PROGRAMS,
    "demo": PROGRAMS,
    "tools": PROGRAMS | {"tools"},
    "results": {"errors", "data", "files", "viz"},
    "predictor": BELOW | set(ROOMS) | {"results"},
    "api": PROGRAMS | {"results", "predictor", "converters"},
    "listing": {"errors", "config", "experiments"},
    "__main__": {"errors", "paths", "cli", "config", "files", "listing", "environment"},
}
NO_JAX = {"types", "errors", "text", "fields", "cli", "checks", "config", "data", "metrics", "viz"}
NO_JAX |= {"paths", "darknet", "experiments", "files", "listing", "__main__"}
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
        assert rest[:1] != ["converters"] or name == "api", imported  # the top floor
        if top == "detlab" and rest:
            assert rest[0] in ALLOWED[name], f"{path} imports {imported}"
        if name in NO_JAX:
            assert top not in ("jax", "jaxlib", "flax", "optax", "orbax"), f"{path}: {imported}"
        if name in NO_FLAX:
            assert top != "flax", f"{path} imports {imported}"


# Folder of the checkout -> its name as a package, from the lowest layer up.
PACKAGES = {
    "experiments": "detlab.experiments",
    "detlab": "detlab",
    "converters": "detlab.converters",
    "benchmarks": "benchmarks",  # parity runs on converted weights
    "tests": "tests",
}


@pytest.mark.parametrize("folder", ["converters", "benchmarks"])
def test_converters_stand_on_detlab_and_benchmarks_on_both(folder):
    above = tuple(PACKAGES.values())[list(PACKAGES).index(folder) + 1 :]
    for path in python_files(folder):
        for imported in imports(path):
            assert not imported.startswith((*above, "detlab.__main__")), f"{path}: {imported}"
            if folder == "converters":  # conversion must not depend on shipped experiments
                assert not imported.startswith("detlab.experiments"), f"{path}: {imported}"


def test_all_imports_say_the_names_of_the_installed_package():
    """A file imported under two names would become two modules."""
    short = re.compile(r"(converters|experiments|detlab\.(detlab|benchmarks|tests))\b")
    for path in python_files(*PACKAGES):
        for imported in imports(path):
            assert not short.match(imported), f"{path}: {imported}"


def test_each_room_stands_on_those_before_it():
    """No layer may import one above it."""
    names = list(ALLOWED)
    for i, (name, allowed) in enumerate(ALLOWED.items()):
        above = allowed & set(names[i + 1 :])
        assert not above, f"{name} may import {above}, which comes after it"
        assert allowed - {"converters"} <= set(names), allowed - set(names)


def module_of(path):
    """The dotted name of a file; for an `__init__.py`, of its folder."""
    folder, *rest = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join((PACKAGES[folder], *(part for part in rest if part != "__init__")))


def test_no_file_imports_itself_in_a_circle():
    files = {module_of(path): path for path in python_files(*list(PACKAGES)[:-1])}
    graph = {
        module: {
            name if name in files else name.rpartition(".")[0]
            for name in imports(path)
            if name in files or name.rpartition(".")[0] in files
        }
        for module, path in files.items()
    }
    assert len(graph) > 150 and sum(map(len, graph.values())) > 500
    graphlib.TopologicalSorter(graph).prepare()  # a CycleError names the files


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

    deeper = {}
    for name in files:
        for other in others(name):
            if others(other):
                deeper[name] = [other, *others(other)]
    # SABL changes the box heads of both (docs/architecture.md).
    assert deeper == {"sabl_rcnn": ["cascade_rcnn", "faster_rcnn"]}
