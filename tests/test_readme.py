"""Every command of the README that a CPU machine can run is run here, or by `.ci/run`.

A command without a test fails `test_every_command_is_run_somewhere`.
"""

import contextlib
import importlib
import io
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import jax
import numpy as np
import pth_writer
import pytest

from detlab import config as config_lib
from detlab import contract
from detlab.converters import mapping, published
from detlab.converters.readers import darknet, files
from detlab.converters.tables import mmdet_retinanet, torchvision_resnet
from detlab.darknet import networks as darknet_networks
from detlab.data import shapes
from detlab.viz import boxes

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
README = REPOSITORY / "README.md"

# Small models and canvases, so that a command with real data takes seconds.
SMALL = (
    "--config.model.depth=18 --config.model.backbone_width=8 --config.model.neck_width=16"
    " --config.model.backbone_stages=(1,1,1,1) --config.model.head_width=16"
    " --config.model.head_convs=1 --config.data.canvases=((96,128),) --config.data.size_limits=()"
    " --config.train.batch_size=2 --config.optim.warmup_steps=1"
).split()


def commands():
    """The shell commands in the README's code blocks, in order, continued lines joined."""
    text = README.read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [
        line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()
    ]


def only(start: str, containing: str = "") -> str:
    found = [c for c in commands() if c.startswith(start) and containing in c]
    assert len(found) == 1, (start, containing, found)
    return found[0]


def run(command: str, folder: pathlib.Path, *more: str) -> str:
    """Runs a README command in `folder`, which is not the checkout; returns what it printed.

    In this process, which has everything imported: `run_process` is the command itself.
    """
    words = shlex.split(command)
    assert words[:2] == ["python", "-m"], command
    main = importlib.import_module(words[2]).main
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as output:
        main([*words[3:], *more])
    return output.getvalue()


def run_process(command: str, folder: pathlib.Path, *more: str) -> str:
    """The same in a process of its own, whose programs are compiled as users do, not quickly."""
    words = shlex.split(command)
    assert words[:2] == ["python", "-m"], command
    done = subprocess.run(
        [sys.executable, *words[1:], *more], cwd=folder, capture_output=True, text=True, env=ENV
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


ENV = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
ENV["PYTHONPATH"] = str(REPOSITORY)
RUN = "python -m detlab."
CONVERT = "python -m converters.convert"


def test_every_command_is_run_somewhere():
    tests = 'python -m pytest -m "not slow" -n 2 --dist worksteal'
    by_ci = [f'pip install -e ".[test]" && {tests}']
    needs_network = ["git clone REPOSITORY_URL detlab && cd detlab"]
    needs_gpu = ['pip install -e ".[cuda]"']
    tested = [
        only("pip install -e . &&"),
        *SHAPES_COMMANDS,
        *(only(RUN + "train", words) for words in DATA_COMMANDS),
        only(RUN + "train", "--dry_run"),
        only(RUN + "train", "path/to/VOCdevkit"),
        *(only(CONVERT, words) for words in ("torchvision", "mmdet", "--inspect", REVERSE)),
        *DARKNET_COMMANDS,
        only(RUN + "demo", "retinanet_coco"),
    ]
    assert sorted(commands()) == sorted(by_ci + needs_network + needs_gpu + tested)


REVERSE = "--reverse --input runs"
DARKNET_COMMANDS = [c for c in commands() if "yolov4_tiny" in c]
SHAPES_COMMANDS = [
    c
    for c in commands()
    if c.startswith((RUN + "eval", RUN + "demo")) and "_coco" not in c and "yolov4" not in c
]


@pytest.mark.slow
def test_command_1_with_30_steps_then_evaluate_predict_and_resume(tmp_path):
    install, train = only("pip install -e . &&").split(" && ")
    assert install == "pip install -e ."  # what .ci/run does, with the test extra
    short = ["--config.train.steps=30", "--config.optim.warmup_steps=5"]
    output = run_process(train, tmp_path, *short, "--config.train.eval_every=30")
    workdir = tmp_path / "runs" / "retinanet_shapes"
    assert f"pictures:     {workdir.relative_to(tmp_path) / 'pictures'}" in output
    assert len(list((workdir / "pictures").glob("[0-9]*.png"))) == 16
    assert "AP50" in output

    photos = tmp_path / "photos"
    for i in range(2):
        boxes.save(photos / f"{i}.png", shapes.Shapes("val")[i]["image"])
    for command in SHAPES_COMMANDS:
        run(command, tmp_path)
    assert len(list((tmp_path / "pictures").glob("[0-9]*.png"))) == 200
    assert (tmp_path / "found" / "0.png").exists() and (tmp_path / "found.json").exists()

    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    values = {}
    with contextlib.chdir(tmp_path):
        exec(block, values)
    assert (tmp_path / "found.png").exists()
    assert values["predictor"].class_names == shapes.CLASS_NAMES

    again = run(train, tmp_path, *short, "--config.train.eval_every=30")
    assert "is finished" in again

    run(only(RUN + "train", "--dry_run"), tmp_path)
    assert (tmp_path / "look" / "batches.png").exists()


# What makes each command with own data unique -> the data that stand for it.
DATA_COMMANDS = {
    "path/to/BCCD": ("bccd", ["--dry_run"]),
    "path/to/cats": ("bccd", ["--dry_run"]),
    "path/to/WIDERFACE": ("wider_mini", ["--dry_run"]),
    "path/to/data": ("coco_mini", ["--dry_run", "--config.model.num_classes=80"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("words", DATA_COMMANDS)
def test_commands_with_own_data(words, shared_dir, tmp_path):
    name, more = DATA_COMMANDS[words]
    command = only(RUN + "train", words)
    data = tmp_path / "data"
    shutil.copytree(shared_dir / "data" / name, data)
    if "cats" in words:  # these data, under the names of the README
        for file in (data / "Annotations").glob("*.xml"):
            text = file.read_text().replace("<name>RBC<", "<name>cat<")
            text = re.sub("<name>(WBC|Platelets)<", "<name>kitten<", text)
            file.write_text(text)
        split = data / "ImageSets" / "Main" / "val.txt"  # evaluation refuses its box of no area
        split.write_text(split.read_text().replace("BloodImage_00338\n", ""))
    if name == "coco_mini":  # in the form that the README describes
        (data / "val2017").rename(data / "images")
        for part in ("train", "val"):
            shutil.copy(data / "annotations" / "instances_val2017.json", data / f"{part}.json")
    output = run(command.replace(words, str(data)), tmp_path, *SMALL, *more)
    assert "dry run: all is well" in output


@pytest.mark.slow
def test_commands_that_start_from_weights(shared_dir, tmp_path):
    """With a file of torchvision's names and shapes: its own is 100 MB of download."""
    command, url = with_a_url(only(CONVERT, "torchvision"))
    write_resnet50(tmp_path / "resnet50.pth")
    output = run_process(command.replace(url, "resnet50.pth"), tmp_path)
    assert "fc.weight" in output and "dropped" in output
    train = only(RUN + "train", "path/to/VOCdevkit")
    data = str(shared_dir / "data" / "voc_mini")
    output = run(
        train.replace("path/to/VOCdevkit", data),
        tmp_path,
        "--dry_run",
        "--config.data.canvases=((96,128),)",
        "--config.data.size_limits=()",
        "--config.train.batch_size=2",
        "--config.optim.warmup_steps=1",
    )
    assert "leaves from" in output and "dry run: all is well" in output


@pytest.mark.slow
def test_from_a_file_of_mmdetection_to_predictions_and_back(shared_dir, tmp_path):
    """With a file of mmdetection's names and shapes in the place of the URL."""
    tensors = random_tensors("retinanet_coco", mmdet_retinanet.table())
    pth_writer.Pth().write_state_dict(tmp_path / "retinanet.pth", tensors)
    command, url = with_a_url(only(CONVERT, "mmdet"))
    output = run(command.replace(url, "retinanet.pth"), tmp_path)
    assert "tensors from retinanet.pth to weights/retinanet_coco" in output
    (tmp_path / "photos").mkdir()
    photo = shared_dir / "data" / "voc_mini" / "VOC2007" / "JPEGImages"
    shutil.copy(sorted(photo.glob("*.jpg"))[0], tmp_path / "photos" / "a.jpg")
    small = ["--config.data.canvases=((96,128),)", "--config.data.size_limits=()"]
    run_process(only(RUN + "demo", "retinanet_coco"), tmp_path, *small)
    assert (tmp_path / "found" / "a.png").exists()

    output = run(only(CONVERT, "--inspect").replace("yolov5n.pt", "retinanet.pth"), tmp_path)
    assert "bbox_head.retina_cls.weight" in output
    command = only(CONVERT, REVERSE).replace("runs/retinanet_voc", "weights/retinanet_coco")
    run(command, tmp_path)
    assert set(files.read(tmp_path / "retinanet_voc.pth").tensors) == set(tensors)


@pytest.mark.slow
def test_darknets_weights_go_in_predict_and_come_out(tmp_path):
    """Made-up values in a file of the published one's size."""
    network = darknet_networks.resolve("yolov4-tiny")
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.uniform(0.01, 0.02, shape).astype(np.float32)
        for name, shape in darknet.tensor_shapes(network).items()
    }
    file = tmp_path / "yolov4-tiny.weights"
    darknet.write(file, network, darknet.Weights(darknet.Header(), tensors))
    (tmp_path / "coco.names").write_text("".join(f"class {i}\n" for i in range(80)))
    boxes.save(tmp_path / "photos" / "a.png", shapes.Shapes("val")[0]["image"])
    first, *others = DARKNET_COMMANDS
    first, url = with_a_url(first)
    for command in (first.replace(url, file.name), *others):
        run(command, tmp_path)
    assert (tmp_path / "found" / "a.png").exists()
    assert (tmp_path / "back.weights").read_bytes() == file.read_bytes()


def with_a_url(command: str) -> tuple[str, str]:
    """A command of the README and its URL, whose checksum is known: it works as it stands."""
    (url,) = re.findall(r"https://\S+", command)
    assert published.checksum(url)
    return command, url


def random_tensors(config_name: str, table: mapping.Table) -> dict[str, np.ndarray]:
    """What a file that the table reads holds, with other values."""
    detector = contract.build(config_lib.load(config_name))
    params, state = jax.eval_shape(detector.init, jax.random.key(0), np.zeros((1, 64, 64, 3)))
    rng = np.random.default_rng(0)
    tree = {"params": params, **state}
    tree = jax.tree.map(lambda s: rng.uniform(0.01, 0.02, s.shape).astype(np.float32), tree)
    return mapping.reverse(tree, table)


def write_resnet50(path: pathlib.Path) -> None:
    tensors = random_tensors("retinanet_voc", torchvision_resnet.table())
    counters = {
        name.replace("running_var", "num_batches_tracked"): np.zeros((), np.int64)
        for name in tensors
        if name.endswith("running_var")
    }
    classifier = {
        "fc.weight": np.zeros((1000, 2048), np.float32),
        "fc.bias": np.zeros(1000, np.float32),
    }
    pth_writer.Pth().write_state_dict(path, {**tensors, **counters, **classifier})
