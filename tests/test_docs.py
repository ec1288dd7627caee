"""The pages: links lead somewhere, lines fit on a screen; models.json fits the code."""

import functools
import json
import pathlib
import re

import pytest

from detlab import config as config_lib
from detlab import contract
from detlab.converters import published
from detlab.converters.families import mmdet

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted(REPOSITORY.glob("*.md")) + sorted((REPOSITORY / "docs").rglob("*.md"))
WIDTH = 120
MODELS = json.loads((REPOSITORY / "converters" / "models.json").read_text())


@functools.cache
def prose(path):
    """[(number of the line, line)] of a page outside its code blocks."""
    lines, fenced = [], False
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            lines.append((number, line))
    return lines


def anchors(path):
    """The fragments that GitHub gives the headings of a page."""
    headings = [re.sub(r"^#+ ", "", line) for _, line in prose(path) if re.match(r"#+ ", line)]
    texts = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts}


def dead_links(path):
    found = []
    for number, line in prose(path):
        for target in re.findall(r"\]\(([^)\s]+)\)", line):
            if re.match(r"https?://", target):
                continue
            file, _, fragment = target.partition("#")
            page = (path.parent / file).resolve() if file else path
            if not page.exists() or (fragment and fragment not in anchors(page)):
                found.append(f"line {number}: {target}")
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_every_link_leads_to_a_file_or_heading_of_the_checkout(path):
    assert not dead_links(path)


def test_a_link_to_nothing_and_to_no_heading_is_reported(tmp_path):
    (tmp_path / "a.md").write_text("# A title, here\n[x](b.md) [y](#a-title-here) [z](a.md#no)\n")
    assert dead_links(tmp_path / "a.md") == ["line 2: b.md", "line 2: a.md#no"]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_lines_outside_tables_and_code_are_no_wider_than_a_screen(path):
    wide = [n for n, line in prose(path) if len(line) > WIDTH and not line.startswith("|")]
    assert not wide


def test_the_picture_of_the_readme_is_small():
    (name,) = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (REPOSITORY / "README.md").read_text())
    assert (REPOSITORY / name).stat().st_size < 200_000


@pytest.mark.parametrize("row", MODELS["models"], ids=lambda row: f"{row['config']}-{row['model']}")
def test_a_published_model_has_a_config_a_licence_and_the_right_order_of_channels(row):
    options = row.get("options", "").split()
    overrides = dict(
        option.removeprefix("--config.").split("=") for option in options if "=" in option
    )
    config = config_lib.load(row["config"], overrides)
    assert config.detector == row["detector"]
    contract.build(config)
    assert sum(x["publisher"] in row["url"] for x in MODELS["licences"]) == 1
    if "mmdetection" in row["url"]:  # the converter refuses the wrong flag
        mmdet.table(AnySource, config, bgr="--bgr" in options)
    assert published.checksum(row["url"]) or "/v3.0/" in row["url"] or "file" in row


def test_every_command_of_a_published_file_writes_its_own_folder():
    text = (REPOSITORY / "docs" / "models.md").read_text()
    folders = re.findall(r"--output (\S+)", text)
    assert len(folders) == len(set(folders)) == len(MODELS["models"])


class AnySource:
    @staticmethod
    def table(bgr):
        return bgr


def test_every_known_checksum_is_whole_and_belongs_to_a_listed_file():
    listed = {row["url"] for row in MODELS["models"]}
    mirrors = {"https://github.com/hank-ai/darknet/releases/download/v2.0/yolov3.weights"}
    assert published.SHA256.keys() - mirrors <= listed
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in published.SHA256.values())


@pytest.mark.parametrize(
    "url, checksum",
    [
        ("https://a/resnet50-0676ba61.pth", "0676ba61"),
        ("https://a/b%2Bc_20200329-4b38409a.pth?x=1", "4b38409a"),
        ("https://a/yolact-20200908.pth", ""),  # a date
        ("https://a/yolov5s.pt", ""),
        (
            "https://pjreddie.com/media/files/yolov3-tiny.weights",
            "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c",
        ),
    ],
)
def test_a_checksum_is_known_by_url_or_from_the_name(url, checksum):
    assert published.checksum(url) == checksum


@pytest.mark.parametrize(
    "config", sorted({r["config"].partition(":")[0] for r in MODELS["models"]})
)
def test_the_figure_that_an_experiment_expects_is_published_for_one_of_its_files(config):
    text = (REPOSITORY / "experiments" / f"{config}.py").read_text()
    expected = re.search(r"\| (?:AP|mAP07) (0\.\d+)[^|]*, published\n", text)
    rows = [r for r in MODELS["models"] if r["config"].partition(":")[0] == config]
    figures = [re.match(r"m?AP(?:50)? (\S+?)(?:,|$)", row["published"])[1] for row in rows]
    assert f"{float(expected[1]) * 100:.1f}" in figures
