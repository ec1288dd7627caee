"""The loader's benchmark makes its data and runs; the numbers are not tested."""

import json
import sys
import types

import numpy as np
import pytest

from benchmarks import loader, loader_peers, turns
from detlab import config as config_lib
from detlab import data_sets, errors
from detlab.data import coco


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folder of four made-up images."""
    folder = tmp_path_factory.mktemp("data")
    loader.lay_out(loader.make_up(folder / "made_up", 4), folder)
    return folder


def task(row, data, **changes):
    return loader.Task(row, str(data), 1, 0, 2, 2, one_core=False)._replace(**changes)


@pytest.mark.parametrize("row", ["1x/coco", "yolov5/voc", "shapes/shapes"])
def test_a_row_reads_its_own_data_with_its_own_recipe(row, data):
    config = loader.configured(task(row, data), {"data.max_boxes": "7"})
    source = data_sets.open_source(config, "train")
    assert len(source) == (4000 if row == "shapes/shapes" else 4)
    config.data.read_threads = 0
    batch = next(data_sets.training_batches(source, config, num_steps=1)).batch
    height, width = config.data.canvases[0]
    assert batch.images.shape[1:3] in ((height, width), (width, height))
    assert batch.boxes.shape == (2, 7, 4) and batch.valid.any()


def test_every_layout_has_the_same_objects(data):
    of_coco, of_voc = (
        data_sets.open_source(loader.configured(task(row, data), {}), "train")
        for row in ("1x/coco", "1x/voc")
    )
    for i in range(4):
        found, same = of_coco.annotation(i), of_voc.annotation(i)
        np.testing.assert_array_equal(found["boxes"], same["boxes"])
        np.testing.assert_array_equal(found["labels"] % 20, same["labels"])
        rows = np.loadtxt(data / "yolo" / "labels" / f"{i:06}.txt", ndmin=2)
        centre = (found["boxes"][:, :2] + found["boxes"][:, 2:]) / 2
        np.testing.assert_allclose(rows[:, 1:3] * of_coco.size(i)[::-1], centre, atol=1e-3)


def test_the_first_images_of_a_folder_are_used_instead(data, tmp_path):
    pictures = loader.find(data / "coco", 2)
    source = coco.Coco(
        data / "coco" / "train2017", data / "coco" / "annotations" / "instances_train2017.json"
    )
    assert [picture.size for picture in pictures] == [source.size(0), source.size(1)]
    assert loader.describe(pictures, made_up=False)["images"] == 2
    with pytest.raises(errors.UserError, match="--root .*train2017 does not exist"):
        loader.find(tmp_path, 2)


def test_recipes_are_shipped_and_peers_known():
    for recipe in loader.RECIPES.values():
        assert config_lib.load(recipe.config).data.root
        assert recipe.peer in ("", *loader_peers.PEERS)
    args = types.SimpleNamespace(threads=(1, 2), workers=(0, 2))
    assert loader.forms("1x/coco", args) == [(1, 0), (2, 0), (1, 2)]
    assert loader.forms("1x/voc", args) == [(1, 0)]


def test_the_cores_follow_from_one_thread_and_an_absent_peer_is_said():
    one = dict(threads=1, workers=0, images_s=100.0, cpu_ms=10.0)
    peer = {"version": "torchvision 1, PyTorch 2", "images_s": 50.0, "cpu_ms": 20.0}
    for row, needs in (
        ({**one, "peer": peer, "ratio": 0.5}, {"images_s": 220, "detlab": 2.2, "peer": 4.4}),
        ({**one, "peer": {"absent": "no torch"}}, {"images_s": 220, "detlab": 2.2}),
    ):
        assert loader.cores({"1x/coco": {"measured": [row]}}) == {"1x/coco": needs}
        line = loader.line("1x/coco", row)
        assert line.endswith("torchvision 1: 50.0, 20.00, 0.50" if "ratio" in row else "no torch")


def test_a_missing_peer_is_absent_and_impossible_flags_are_refused(data, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError('none here')")  # hides an installed one
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = loader.start_peer(task("1x/coco", data), sys.executable)
    assert "cannot be imported" in found["absent"] and "pip install torch" in found["absent"]
    assert loader.start_peer(task("1x/coco", data, threads=2), sys.executable) is None
    assert loader.start_peer(task("ssd/coco", data), sys.executable) is None
    for words, message in (
        (["--batches", "1"], "--batches must be at least 2"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--only", "1x/cocoa"], "no such row; did you mean 1x/coco?"),
    ):
        with pytest.raises(errors.UserError, match=message.replace("?", r"\?")):
            loader.main(words)


def test_processor_time_counts_this_process_and_its_children():
    busy = "import time\nwhile time.process_time() < 0.2: pass\nprint('over', flush=True)\ninput()"
    with turns.subprocess.Popen(
        [sys.executable, "-c", busy], stdin=turns.subprocess.PIPE, stdout=turns.subprocess.PIPE
    ) as child:
        assert child.stdout.readline()
        assert turns.processor_seconds() > 0.19
        before = turns.processor_seconds()
        child.communicate(b"\n")
    assert turns.processor_seconds() > before - 0.02  # counted once before and after its end


@pytest.mark.slow
def test_the_loader_is_measured_in_threads_and_workers(tmp_path, capsys):
    output = tmp_path / "loader.json"
    small = ["--count", "4", "--batch", "2", "--batches", "2", "--repeats", "1"]
    words = ["--only", "1x/coco", *small, "--threads", "1", "--workers", "0", "1"]
    loader.main([*words, "--output", str(output)])
    result = json.loads(output.read_text())
    measured = result["rows"]["1x/coco"]["measured"]
    assert [(row["threads"], row["workers"]) for row in measured] == [(1, 0), (1, 1)]
    assert all(row["images_s"] > 0 and row["cpu_ms"] > 0 for row in measured)
    assert result["cores"]["1x/coco"]["detlab"] > 0 and result["data"]["made_up"]
    assert "220 images/s need" in capsys.readouterr().out
    assert str(tmp_path) not in output.read_text()
