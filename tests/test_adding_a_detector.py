"""The templates of docs/adding_a_detector.md work as they are, filled in a copy of the checkout.

A new detector needs only its own files: no other file of the copy differs from the checkout.
"""

import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from detlab.run import log as log_lib

pytestmark = pytest.mark.slow

PACKAGES = ("benchmarks", "converters", "detlab", "experiments", "tests")
# Heading of the template -> names of the detector and its class.
TEMPLATES = {
    "Template: a change to another detector": ("smooth_boxes", "SmoothBoxes"),
    "Template: a new detector": ("plain_points", "PlainPoints"),
}
NAMES = [name for name, _ in TEMPLATES.values()]
OWN_FILES = (
    "benchmarks/parity/adapters/{}.py",
    "converters/tables/mmdet_{}.py",
    "detlab/detectors/{}.py",
    "experiments/{}_coco.py",
    "experiments/{}_shapes.py",
    "tests/detectors/test_{}.py",
)


def filled(repository: pathlib.Path, heading: str) -> dict[str, str]:
    """Path -> text of the files of a template."""
    text = (repository / "docs" / "adding_a_detector.md").read_text()
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^`(\S+)`\n\n```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    name, class_name = TEMPLATES[heading]

    def fill(part):
        return re.sub("Name(?!d)", class_name, part.replace("NAME", name))  # no NamedTuple

    return {fill(path): fill(code) for path, code in blocks}


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Path -> bytes of the files of the packages."""
    files = (path for package in PACKAGES for path in (folder / package).rglob("*"))
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def copy(repository, tmp_path_factory):
    """A copy of the checkout with both templates filled."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(repository / package, folder / package, ignore=ignored)
    shutil.copy(repository / "setup.cfg", folder)
    for heading in TEMPLATES:
        for path, text in filled(repository, heading).items():
            (folder / path).write_text(text)
    return folder


def run(copy: pathlib.Path, *words: str) -> str:
    """Runs `python WORDS` in the copy, with its packages; returns the output."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_detector_is_entered_in_its_own_files_only(copy, repository):
    before, now = contents(repository), contents(copy)
    touched = {path for path in before.keys() | now.keys() if before.get(path) != now.get(path)}
    for name in NAMES:
        print(f"{name}:", *sorted(path for path in touched if name in path), sep="\n  ")
    assert touched == {path.format(name) for name in NAMES for path in OWN_FILES}


TESTS = (
    "tests/detectors",
    "tests/converters/test_tables.py",
    "tests/experiments",
    "tests/test_layering.py",
    "tests/programs/test_repetition.py",
)
# Parts of the names of tests that cover all detectors.
FOR_ALL = ("layering", "repetition", "every_detector", "every_file", "every_variant", "every_table")


def test_new_detectors_pass_what_is_asked_of_every_detector_and_its_table(copy):
    chosen = " or ".join((*NAMES, *FOR_ALL))
    text = run(copy, "-m", "pytest", "-q", "-rA", "-m", "not slow", *TESTS, "-k", chosen)
    assert not re.search(r"^(SKIPPED|XFAIL|XPASS)", text, re.MULTILINE), text

    def passed(pattern):
        return len(re.findall(rf"^PASSED tests/{pattern}", text, re.MULTILINE))

    asked = (copy / "tests" / "detectors" / "test_contract.py").read_text()
    asked = re.findall(r"\n\n\ndef test_\w+\(subject", asked)  # tests without a mark
    sources = 2  # the whole detector, and torchvision's backbone
    for name in NAMES:
        assert passed(rf"detectors/test_contract.py::.*\[{name}\]") == len(asked) > 5
        assert passed(rf"converters/test_tables.py::.*-{name}\]") == 3 * sources
        assert passed(rf"experiments/test_configs.py::.*\[{name}_(coco|shapes)") > 10
        assert passed(rf"detectors/test_{name}.py::") == 1


def test_new_detectors_give_the_same_from_given_maps_bit_for_bit(copy):
    words = ("-q", "-m", "slow", TESTS[0], "-k", f"({' or '.join(NAMES)}) and from_given_maps")
    assert re.search(r"\b2 passed\b", run(copy, "-m", "pytest", *words))


# In one process, to import once: the programs that find detectors, and a short training of each.
PROGRAM = """
import json, pathlib, sys

import detlab
from benchmarks import models, overfit, pages
from benchmarks.parity import mmdet
from detlab import train

print(detlab.__file__)
table = pages.detectors(pathlib.Path())
for name, info in json.loads(sys.argv[1]).items():
    assert name in overfit.OVERFIT and name in models.MODELS and f"[`{name}`]" in table
    plan = mmdet.plan(info)
    assert plan.adapter.detector == plan.config.detector == name
    words = ["--config", f"experiments/{name}_shapes.py", "--workdir", f"runs/{name}"]
    train.main([*words, *sys.argv[2:]])
"""
SHORT = (
    *("--config.data.canvases=((64,64),)", "--config.train.batch_size=4"),
    *("--config.train.steps=10", "--config.train.eval_every=10", "--config.optim.warmup_steps=2"),
    *("--config.train.checkpoint_every=10", "--config.eval.batch_size=100"),
    *("--config.model.backbone_width=8", "--config.model.backbone_stages=(1,1,1,1)"),
    *("--config.model.neck_width=16", "--config.model.head_width=16"),
    *("--config.model.candidates_per_level=50", "--config.model.max_detections=20"),
)


def recorded(repository: pathlib.Path) -> dict[str, dict]:
    """The configurations of cases that the adapters recognise, derived from RetinaNet's."""
    text = (repository / "tests" / "data" / "parity" / "retinanet_r50_fpn.json").read_text()
    change, own = json.loads(text), json.loads(text)
    change["model_cfg"]["bbox_head"]["loss_bbox"] = {"type": "SmoothL1Loss", "beta": 0.11}
    head = own["model_cfg"]["bbox_head"]
    kept = {"num_classes", "in_channels", "stacked_convs", "feat_channels", "loss_cls"}
    own["model_cfg"]["bbox_head"] = {
        **{key: head[key] for key in kept},
        "type": "PlainPointsHead",
        "strides": head["anchor_generator"]["strides"],
        "loss_bbox": {"type": "GIoULoss", "loss_weight": 1.0},
    }
    own["model_cfg"]["type"], own["train_cfg"] = "PlainPoints", None
    return dict(zip(NAMES, (change, own)))


def test_new_detectors_are_found_and_train(copy, repository):
    text = run(copy, "-c", PROGRAM, json.dumps(recorded(repository)), *SHORT)
    assert text.startswith(str(copy / "detlab"))
    for name in NAMES:
        rows = log_lib.read_rows(copy / "runs" / name / "metrics.jsonl")
        losses = [row["train/loss"] for row in rows if "train/loss" in row]
        assert losses and all(map(math.isfinite, losses)) and rows[-1]["step"] == 10
        assert "AP" in json.loads((copy / "runs" / name / "eval.json").read_text())
    assert text.count("AP50") >= len(NAMES)
