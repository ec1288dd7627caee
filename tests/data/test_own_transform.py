"""The transform of one's own that docs/data.md adds: its lines work as the page says."""

import pathlib
import re
import shutil
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

PROGRAM = """
import numpy as np
from detlab import config as config_lib
from detlab.data import loader, settings, shapes

def batch(probability):
    flag = {"data.augment.remove_colour": str(probability)}
    config = config_lib.load("retinanet_shapes", flag)
    stream = settings.of(config.data, "train")
    source = shapes.Shapes(num_images=8)
    (loaded,) = loader.train_batches(source, stream, batch_size=8, seed=0, num_steps=1)
    return loaded.batch

def is_grey(images):
    return (images == images[..., :1]).all(axis=(1, 2, 3))

never, always, some = map(batch, (0, 1, 0.5))
assert not is_grey(never.images).any() and is_grey(always.images).all()
assert 0 < is_grey(some.images).sum() < 8
np.testing.assert_array_equal(always.boxes, never.boxes)
print("all as the page says")
"""


def test_the_lines_of_the_page_add_a_transform_to_every_experiment(tmp_path):
    page = (REPOSITORY / "docs" / "data.md").read_text()
    section = page.partition("### A transform of your own\n")[2].partition("\n## ")[0]
    function, key, place = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert (
        sum(bool(line.strip()) for text in (function, key, place) for line in text.split("\n")) < 13
    )
    for folder in ("detlab", "experiments"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=ignored)

    def edit(name, change):
        path = tmp_path / "detlab" / "data" / name
        path.write_text(change(path.read_text()))

    edit("transforms.py", lambda text: f"{text}\n\n{function}")
    first = "    photometric: float"
    edit("settings.py", lambda text: text.replace(first, key + first))
    last = "    return tuple(before), tuple(after)"
    edit("augment.py", lambda text: text.replace(last, place + last))
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all as the page says\n"
