"""Writes the tables of README and docs from detectors, experiments, published files and results.

    python -m benchmarks.pages

A table replaces the text between `<!-- NAME: begin -->` and `<!-- NAME: end -->` of a page:

    detectors   README.md            first sentences of the files of detlab/detectors
    overview    docs/models.md       the same, converters/models.json, experiments, results
    names       docs/models.md       the list of 25 detectors: release_parity, overfit, shapes
    published   docs/models.md       converters/models.json, converters/published.py, parity
    backbones   docs/models.md       converters/models.json
    cases       docs/parity.md       benchmarks/results/release_parity.json
    overfit     docs/performance.md  benchmarks/results/overfit_*_cpu.json
    shapes      docs/performance.md  benchmarks/results/shapes_cpu.json
    models      docs/performance.md  benchmarks/results/models_cpu.json
    loader      docs/performance.md  benchmarks/results/loader_cpu.json
    compilation docs/performance.md  benchmarks/results/compilation_cpu.json
    test times  docs/performance.md  benchmarks/results/tests_cpu.json
    accelerators docs/performance.md benchmarks/results/accelerators_*.json
    exchanged, network, gathered, read  docs/scale_on_paper.md  results/scale.json, loader_cpu.json

An everyday test fails if a page differs from what this command writes.
"""

import ast
import pathlib
import re
import urllib.parse
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from benchmarks import accelerator_tables, command, scale_tables, test_times
from detlab import cli, errors, files, listing, paths
from detlab.converters import published as published_files

_RESULTS = pathlib.PurePath("benchmarks", "results")


def main(arguments: Sequence[str]) -> None:
    """The command line; raises `UserError` for what a user can fix."""
    parser = cli.program("benchmarks.pages", __doc__)
    parser.add_argument(
        "--tree", type=paths.path, default=command.REPOSITORY, help="checkout to write"
    )
    args = parser.parse_args(arguments)
    pages = {page: (read(args.tree, page), rewritten(args.tree, page)) for page in BLOCKS}
    for page, (old, new) in pages.items():
        if new != old:
            files.write_text(args.tree / page, new)
        print(f"{page}: {'unchanged' if new == old else 'written'}")


def read(tree: pathlib.Path, page: str) -> str:
    """The text of a page.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return (tree / page).read_text()
    except OSError as error:
        raise errors.UserError(f"{tree / page} cannot be read: {error.strerror}.") from error


def rewritten(tree: pathlib.Path, page: str) -> str:
    """The text of a page with its blocks written anew.

    Raises:
      UserError: the page lacks marks, or a file of results cannot be read.
    """
    text = read(tree, page)
    for name, table in BLOCKS[page].items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, found, rest = text.partition(begin)
        _, ends, after = rest.partition(end)
        if not found or not ends:
            raise errors.UserError(
                f"{tree / page} lacks the marks {begin} and {end}; put them where it belongs."
            )
        text = f"{before}{begin}\n\n{table(tree)}\n\n{end}{after}"
    return text


def detectors(tree: pathlib.Path) -> str:
    """A line for each detector file: the first sentence of its docstring."""
    return "\n".join(
        f"- [`{name}`](detlab/detectors/{name}.py): {_title(tree, name)}"
        for name in command.detector_files(tree)
    )


def overview(tree: pathlib.Path) -> str:
    """A row for each detector file: its paper, configs, parity, size and own results."""
    measured = _results(tree, "models_cpu.json")["models"]
    parity_of = _results(tree, "release_parity.json")["cases"]
    listed = _models(tree)["models"]
    rows = []
    data = _data_of(tree)
    for name in data:
        cases = {row["parity"] for row in listed if row["detector"] == name and "parity" in row}
        passed = sum(_case(parity_of, case)["status"] == "passed" for case in cases)
        sizes = [x["parameters_m"] for key, x in measured.items() if _owner(data, key) == name]
        paper = re.findall(r"arXiv:(\d+\.\d+)", _first_sentence(tree, name))
        rows.append(
            (
                f"[`{name}`](../detlab/detectors/{name}.py)",
                ", ".join(f"[{x}](https://arxiv.org/abs/{x})" for x in paper),
                " ".join(data[name]),
                f"{passed} of {len(cases)}",
                " to ".join(f"{size:.1f}" for size in sorted({min(sizes), max(sizes)}))
                if sizes
                else "",
                _on_shapes(tree, name) if "shapes" in data[name] else "",
            )
        )
    head = ("detector", "paper, arXiv", "configs for", "parity", "parameters, M")
    return command.table((*head, "our AP on shapes"), rows)


class Listed(NamedTuple):
    """A name of the list of detectors, and what shows that it works."""

    name: str
    files: tuple[str, ...]  # of detlab/detectors
    cases: tuple[str, ...]  # of parity
    overfit: tuple[str, ...]  # results of benchmarks.overfit
    shapes: tuple[str, ...]  # experiments


def _simple(name: str, file: str, *cases: str) -> Listed:
    return _several(name, (file,), *cases)


def _of_darknet(name: str, network: str, *cases: str) -> Listed:
    overfit = (f"darknet_{network}",)
    return Listed(name, ("darknet",), cases, overfit, ("darknet_shapes",))


def _several(name: str, files: Sequence[str], *cases: str) -> Listed:
    return Listed(name, tuple(files), cases, tuple(files), tuple(f"{x}_shapes" for x in files))


_REPPOINTS = ("bbox_r50_grid_center", "minmax_r50", "moment_r50", "partial_minmax_r50")
_SABL = ("sabl_retinanet_r50_fpn", "sabl_faster_rcnn_r50_fpn", "sabl_cascade_rcnn_r50_fpn")
# The 25 detectors of the edition that this project learned from.
LIST = (
    _simple("RetinaNet", "retinanet", "retinanet_r50_fpn"),
    _simple("YOLOv3 (mmdetection)", "yolov3", "yolov3_d53"),
    _of_darknet("YOLOv3 (darknet)", "yolov3", "yolo/yolov3"),
    _of_darknet("YOLOv4", "yolov4", "yolo/yolov4"),
    _of_darknet("tiny-YOLOv3", "yolov3_tiny", "yolo/yolov3-tiny"),
    _of_darknet("tiny-YOLOv4", "yolov4_tiny", "yolo/yolov4-tiny"),
    _simple(
        "YOLOv5 s, m, l, x",
        "yolov5",
        *(f"yolo/yolov5{size}-v3.0" for size in "smlx"),
        "yolo/yolov5s-v7.0",
    ),
    _simple(
        "FCOS",
        "fcos",
        "fcos_r50_caffe_fpn_gn_head",
        "fcos_r50_caffe_fpn_gn_head_center_normbbox_centeronreg_giou",
    ),
    _simple("ATSS", "atss", "atss_r50_fpn"),
    _simple("GHM", "ghm", "retinanet_ghm_r50_fpn"),
    _simple("GFL", "gfl", "gfl_r50_fpn"),
    _several(
        "PISA",
        ("pisa_retinanet", "pisa_rcnn", "pisa_ssd"),
        *("pisa_retinanet_r50_fpn", "pisa_faster_rcnn_r50_fpn", "pisa_ssd300"),
    ),
    _simple("PAA", "paa", "paa_r50_fpn"),
    _simple("Faster R-CNN", "faster_rcnn", "faster_rcnn_r50_fpn"),
    _simple("Cascade R-CNN", "cascade_rcnn", "cascade_rcnn_r50_fpn"),
    _several(
        "Libra R-CNN",
        ("libra_rcnn", "libra_retinanet"),
        *("libra_faster_rcnn_r50_fpn", "libra_retinanet_r50_fpn"),
    ),
    _simple("Dynamic R-CNN", "dynamic_rcnn", "dynamic_rcnn_r50_fpn"),
    _simple("SSD", "ssd", "ssd300", "ssd512"),
    _simple("VFNet", "vfnet", "vfnet_r50_fpn"),
    _several(
        "Guided Anchoring",
        ("ga_retinanet", "ga_rcnn"),
        *("ga_retinanet_r50_fpn", "ga_faster_rcnn_r50_fpn"),
    ),
    _several("SABL", ("sabl_retinanet", "sabl_rcnn"), *_SABL),
    _simple("RepPoints", "reppoints", *(f"reppoints_{form}_fpn_gn" for form in _REPPOINTS)),
    _simple("RepPointsV2", "reppoints_v2", "reppoints_v2_r50_fpn"),
    _simple("CornerNet", "cornernet", "cornernet_hourglass104"),
    _simple("CentripetalNet", "centripetalnet", "centripetalnet_hourglass104"),
)


def names(tree: pathlib.Path) -> str:
    """A row for each name of the list: its files, and what shows that it works.

    Raises:
      UserError: a name lacks a file, a passed case, an overfitted form or a run on shapes.
    """
    parity_of = _results(tree, "release_parity.json")["cases"]
    of_shapes = _results(tree, "shapes_cpu.json")["rows"]
    detectors, rows = command.detector_files(tree), []
    for name, of_files, of_cases, of_overfit, experiments in LIST:
        lacking = [f"detlab/detectors/{x}.py" for x in of_files if x not in detectors]
        passed = [x for x in of_cases if parity_of.get(x, {}).get("status") == "passed"]
        lacking += [f"a passed case {x}" for x in of_cases if x not in passed]
        found = {x: tree / _RESULTS / f"overfit_{x}_cpu.json" for x in of_overfit}
        lacking += [path.name for path in found.values() if not path.exists()]
        lacking += [f"a run of {x}" for x in experiments if "figures" not in of_shapes.get(x, {})]
        if lacking:
            raise errors.UserError(f"the list of detectors: {name} lacks {', '.join(lacking)}.")
        learned = [_results(tree, path.name)["AP50"] for path in found.values()]
        reached = [of_shapes[x]["figures"]["AP"] for x in experiments]
        rows.append(
            (
                name,
                ", ".join(f"[`{x}`](../detlab/detectors/{x}.py)" for x in of_files),
                f"{len(passed)} of {len(of_cases)}",
                ", ".join(f"{x:.3f}" for x in learned),
                ", ".join(f"{x:.3f}" for x in reached),
            )
        )
    return command.table(("name", "file", "cases passed", "overfit AP50", "AP on shapes"), rows)


def published(tree: pathlib.Path) -> str:
    """A section for each detector with published files: a table of files, and a command a row."""
    content = _models(tree)
    parity_of = _results(tree, "release_parity.json")["cases"]
    sections = []
    for name in command.detector_files(tree):
        rows, commands = [], []
        for row in content["models"]:
            if row["detector"] != name:
                continue
            case = row.get("parity")
            rows.append(
                (
                    row["model"],
                    f"{row['published']}, {row['measured_on']}; {row['origin']}",
                    f"`{row['config']}`" + (f" `{row['options']}`" if "options" in row else ""),
                    *_file(content, row),
                    f"`{case}`: {_verdict(_case(parity_of, case))}" if case else "",
                )
            )
            commands.append(_convert(row))
        if rows:
            head = ("model", "published", "config")
            block = "\n".join(["```bash", *commands, "```"])
            table = command.table((*head, *_FILE, "parity"), rows)
            sections.append(f"### {_title(tree, name)}\n\n{table}\n\n{block}")
    return "\n\n".join(sections)


def backbones(tree: pathlib.Path) -> str:
    """A row for each file of a backbone that a config starts from."""
    content = _models(tree)
    rows = [
        (
            row["model"],
            row.get("used_by", "any detector on a ResNet: `--config.model.depth`"),
            f"`--source {row['source']}`",
            *_file(content, row),
        )
        for row in content["backbones"]
    ]
    return command.table(("backbone", "used by", "convert with", *_FILE), rows)


_FILE = ("file", "SHA-256", "licence")


def _file(content: dict[str, Any], row: dict[str, Any]) -> tuple[str, str, str]:
    """The cells of `_FILE`; a row with `file` names what a page, its url, lets a browser save."""
    url = row["url"]
    checksum = published_files.checksum(url)
    licence = next((x["licence"] for x in content["licences"] if x["publisher"] in url), None)
    if licence is None:
        raise errors.UserError(
            f"converters/models.json: no publisher in `licences` is part of {url}."
        )
    size = f", {row['mb']:g} MB" if "mb" in row else ""
    by_hand = ", by hand" if "file" in row else ""
    file = f"[{pathlib.PurePosixPath(row.get('file', url)).suffix}{size}{by_hand}]({url})"
    return file, f"`{checksum}`" if checksum else "not published", licence


def _convert(row: dict[str, Any]) -> str:
    """The command that converts the file of a row; its folder is named after the file."""
    url = row["url"]
    path = pathlib.PurePosixPath(row.get("file", urllib.parse.unquote(url)))
    return " \\\n    ".join(
        [
            f"detlab convert --config {row['config']}"
            + (f" {row['options']}" if "options" in row else "")
            + f" --output weights/{published_files.name(row)}",
            f"--input {url if published_files.checksum(url) else path.name}",
        ]
    )


def _case(cases: dict[str, Any], name: str) -> dict[str, Any]:
    """The recorded result of a case that a row of models.json names."""
    if name not in cases:
        raise errors.UserError(
            f"converters/models.json: no result of parity for the case {name!r}."
        )
    return cases[name]


def _first_sentence(tree: pathlib.Path, name: str) -> str:
    docstring = ast.get_docstring(ast.parse(read(tree, f"detlab/detectors/{name}.py"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split()).removesuffix(".")


def _title(tree: pathlib.Path, name: str) -> str:
    """The first sentence without the papers."""
    return re.sub(r" \((arXiv|[^)]*no paper)[^)]*\)", "", _first_sentence(tree, name))


def _data_of(tree: pathlib.Path) -> dict[str, list[str]]:
    """Detector -> the data sets that it has experiments for."""
    data = {name: [] for name in command.detector_files(tree)}
    for path in sorted((tree / "experiments").glob("*.py")):
        if owner := _owner(data, path.stem):
            data[owner].append(path.stem.removeprefix(f"{owner}_"))
    return data


def _owner(detectors: Iterable[str], name: str) -> str:
    """The detector of an experiment or a measured model: `reppoints_v2_coco` is not reppoints'."""
    return max((x for x in detectors if name.startswith(x)), key=len, default="")


def _on_shapes(tree: pathlib.Path, name: str) -> str:
    """What the docstring of the shapes experiment expects."""
    text = read(tree, f"experiments/{name}_shapes.py")
    expected = listing.EXPECTED.search(text)
    if not expected or expected["figure"] == "not run":
        return ""
    return f"{expected['figure'].removeprefix('AP ')}, {expected['time']}"


def _models(tree: pathlib.Path) -> dict[str, Any]:
    return command.read_json(tree / "converters" / "models.json")


def cases(tree: pathlib.Path) -> str:
    """A row for each case of parity with a model, and how many quantities were compared."""
    found = _results(tree, "release_parity.json")["cases"]
    found = {name: row for name, row in found.items() if row["status"] != "missing"}
    twins = {name: f"small/{name}_small" for name in found if f"small/{name}_small" in found}
    rows = []
    for name, row in found.items():
        if name not in twins.values():
            twin = _verdict(found[twins[name]]) if name in twins else ""
            rows.append((f"`{name}`", _verdict(row), twin))
    return command.table(("case", "published size: quantities", "narrow twin: quantities"), rows)


def _verdict(row: dict[str, Any]) -> str:
    if row["status"] == "passed":
        return f"passes: {row['quantities']}"
    missed = len(row.get("missed", ()))
    return f"fails: {missed} of {row['quantities']}" if missed else f"fails: {row['reason']}"


def overfit(tree: pathlib.Path) -> str:
    """A row for each result of benchmarks.overfit."""
    rows = []
    for path in sorted((tree / _RESULTS).glob("overfit_*_cpu.json")):
        row = _results(tree, path.name)
        first, *_, last = row["curve"]["train"]
        rows.append(
            (
                row["name"],
                f"{row['AP50']:.3f}",
                f"{row['AP']:.3f}",
                f"{first[1]:.3g} -> {last[1]:.3g}",
                str(row["steps"]),
                f"{row['cpu_minutes']:.1f}",
            )
        )
    return command.table(("detector", "AP50", "AP", "loss", "steps", "CPU minutes"), rows)


def models(tree: pathlib.Path) -> str:
    """A row for each model that was measured, with its peer."""
    rows = []
    for name, row in _results(tree, "models_cpu.json")["models"].items():
        of = row["predict"], row["train"]
        ratios = " / ".join(f"{x['ratio']:.2f}" if "ratio" in x else "-" for x in of)
        rows.append(
            (
                name,
                "x".join(map(str, row["canvas"])),
                f"{row['parameters_m']:.1f}",
                " + ".join(f"{x['compile_s']:.0f}" for x in of),
                *(f"{x['ms']:.0f}" for x in of),
                " + ".join(f"{x['peak_mib'] or 0:.0f}" for x in of),
                f"{row['peer']}: {ratios}" if row["peer"] else "",
            )
        )
    head = ("detector", "canvas", "parameters, M", "compile, s: predict + train", "predict, ms")
    return command.table(
        (*head, "train, ms", "peak, MiB: predict + train", "peer, ratio of times"), rows
    )


def shapes(tree: pathlib.Path) -> str:
    """A row for each run of the shapes protocol."""
    rows = []
    for name, row in _results(tree, "shapes_cpu.json")["rows"].items():
        if "figures" not in row:
            raise errors.UserError(
                f"shapes_cpu.json: {name} failed ({row['error']}); run benchmarks.shapes again."
            )
        experiment, _, seed = name.partition("@")
        seconds = row.get("processor_seconds")
        rows.append(
            (
                f"`{experiment}`",
                seed or "0",
                *(f"{row['figures'][key]:.3f}" for key in ("AP", "AP50", "AP75")),
                f"{seconds / 60:.1f}" if seconds else "",
            )
        )
    head = ("experiment", "seed", "AP", "AP50", "AP75", "processor minutes")
    return command.table(head, rows)


def loader(tree: pathlib.Path) -> str:
    """The cores that a GPU needs, and a row for each loader that was measured, with its peer."""
    found = _results(tree, "loader_cpu.json")
    needs = [
        f"- `{name}`, {x['images_s']} images/s: **{x['detlab']} cores**"
        + (f"; {found['rows'][name]['peer']} {x['peer']}" if "peer" in x else "")
        for name, x in found["cores"].items()
    ]
    rows = []
    for name, row in found["rows"].items():
        for x in row["measured"]:
            peer = x["peer"] if "ratio" in x else None
            rows.append(
                (
                    name,
                    "x".join(map(str, row["canvas"])),
                    str(x["threads"]),
                    str(x["workers"]),
                    f"{x['images_s']:.0f}",
                    f"{x['cpu_ms']:.1f}",
                    peer["version"].partition(" ")[0] if peer else "",
                    f"{peer['images_s']:.0f}" if peer else "",
                    f"{peer['cpu_ms']:.1f}" if peer else "",
                    f"{x['ratio']:.2f}" if peer else "",
                )
            )
    head = ("recipe/source", "canvas", "threads", "workers", "images/s", "CPU ms per image")
    table = command.table((*head, "peer", "its images/s", "its CPU ms", "ratio"), rows)
    return "\n".join(needs) + f"\n\n{table}"


def compilation_times(tree: pathlib.Path) -> str:
    """Seconds to compile, and to start with and without a compilation cache."""
    rows = _results(tree, "compilation_cpu.json")["rows"]

    def cells(name: str, *parts: str) -> list[str]:
        return [f"{rows[name][part]['s']:.1f} ({rows[name][part]['cpu_s']:.1f})" for part in parts]

    per_model, starts = {}, []
    for name in rows:
        model, _, program = name.partition("/")
        if program:
            per_model.setdefault(model, {})[program] = cells(name, "lower", "compile")
        else:
            starts.append((f"`{name}`", *cells(name, "cold", "warm")))
    none = ["", ""]
    compiled = [(x, *y.get("predict", none), *y.get("train", none)) for x, y in per_model.items()]
    head = ("model", "predict: lower", "compile", "train: lower", "compile")
    first = command.table(head, compiled)
    return f"{first}\n\n{command.table(('program', 'cold', 'warm'), starts)}"


def times(tree: pathlib.Path) -> str:
    """Where the time of the tests goes."""
    return test_times.tables(test_times.read_figures(tree / _RESULTS / "tests_cpu.json"))


_DEVICES = {"cuda": "NVIDIA H200", "tpu": "TPU v5e"}


def accelerators(tree: pathlib.Path) -> str:
    """The tables of what was compiled for devices that were not there."""
    results = {}
    for path in sorted((tree / _RESULTS).glob("accelerators_*_jax*.json")):
        _, platform, version = path.stem.split("_")
        title = f"{_DEVICES[platform]}, {version.replace('jax', 'jax ')}"
        results[title] = _results(tree, path.name)["rows"]
    return accelerator_tables.page(results)


def _scale(tree: pathlib.Path) -> Any:
    return _results(tree, "scale.json")["rows"]


def _results(tree: pathlib.Path, name: str) -> Any:
    return command.read_json(tree / _RESULTS / name)


# Page -> {name of a block: (checkout) -> its Markdown}.
BLOCKS = {
    "README.md": {"detectors": detectors},
    "docs/models.md": {
        "names": names,
        "overview": overview,
        "published": published,
        "backbones": backbones,
    },
    "docs/parity.md": {"cases": cases},
    "docs/performance.md": {
        "overfit": overfit,
        "shapes": shapes,
        "models": models,
        "loader": loader,
        "compilation": compilation_times,
        "test times": times,
        "accelerators": accelerators,
    },
    "docs/scale_on_paper.md": {
        "exchanged": lambda tree: scale_tables.exchanged(_scale(tree)),
        "network": lambda tree: scale_tables.network(_scale(tree)),
        "gathered": lambda tree: scale_tables.gathered(_scale(tree)),
        "read": lambda tree: scale_tables.reading(_scale(tree), _results(tree, "loader_cpu.json")),
    },
}


if __name__ == "__main__":
    errors.run_main(main)
