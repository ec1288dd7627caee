"""The wheel: its contents, and that it works without the checkout."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

# Folder of the checkout -> where it is installed.
PACKAGES = {
    "detlab": ("detlab",),
    "converters": ("detlab", "converters"),
    "experiments": ("detlab", "experiments"),
}


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy, because building writes into the tree
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in files:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (repository / name).exists():
            target.write_bytes((repository / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder)]
    subprocess.run([*command, str(source)], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_one_package_and_no_tests(wheel, repository):
    names = [n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n]
    expected = {
        str(pathlib.Path(*installed, path.relative_to(repository / folder)))
        for folder, installed in PACKAGES.items()
        for path in (repository / folder).rglob("*.py")
    }
    expected.add("detlab/converters/models.json")
    assert set(names) == expected
    (entry_points,) = (n for n in zipfile.ZipFile(wheel).namelist() if "entry_points" in n)
    commands = zipfile.ZipFile(wheel).read(entry_points).decode()
    assert commands.split() == ["[console_scripts]", "detlab", "=", "detlab.__main__:main"]


@pytest.mark.slow
def test_the_wheel_trains_a_shipped_experiment_from_any_folder(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    (tmp_path / "elsewhere").mkdir()
    command = [sys.executable, "-P", "-m", "detlab", "train", "--config", "retinanet_shapes"]
    command += ["--dry_run", "--config.model.backbone_width=8", "--config.data.canvases=((64,64),)"]
    done = subprocess.run(
        command,
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "dry run: all is well" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("where", ["checkout", "wheel"])
def test_both_roads_into_the_package_lead_to_one_module(where, wheel, repository, tmp_path):
    """In a checkout, whatever is installed, and in a wheel without a checkout."""
    site = repository
    if where == "wheel":
        site = tmp_path / "site"
        zipfile.ZipFile(wheel).extractall(site)
    (tmp_path / "mine.py").write_text(
        "import experiments.retinanet_shapes as short\n"
        "from detlab.experiments import retinanet_shapes as long\n"
        "def get_config():\n    assert short is long\n    return short.get_config()\n"
    )
    program = (
        "from detlab import config, errors; from detlab.converters import convert;"
        " from detlab.experiments import common; config.load('mine.py');"
        " assert convert.errors is errors; print(convert.__file__, common.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    inside = site / "detlab" if where == "wheel" else site
    expected = [inside / "converters" / "convert.py", inside / "experiments" / "common.py"]
    assert done.stdout.split() == [str(path) for path in expected]
