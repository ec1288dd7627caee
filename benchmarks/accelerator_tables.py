"""What the rows of benchmarks.accelerators say: findings, the largest batch that fits, tables.

Needs only the standard library, so the pages are written without jax.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import command

GIB = 2**30
MEMORIES = (16, 24, 80, 141)  # GiB of a device
SHARE = 0.9  # of a device's memory, which jax gets with XLA_PYTHON_CLIENT_MEM_FRACTION=0.9
_DIRECTIONS = ("forward", "kernel gradient", "input gradient", "gradient")
_LARGE = 2**20  # bytes; gathered results below it are not of activations
_WEIGHTED = 1.1  # bytes reduced across devices, times those of the parameters: more is a finding

Row = Mapping[str, Any]


class MemoryLine(NamedTuple):
    """The memory of a program as a function of its images: fixed + images * per_image, GiB."""

    fixed: float
    per_image: float

    def at(self, images: int) -> float:
        return self.fixed + images * self.per_image

    def largest(self, memory: float) -> int:
        """The most images that need at most `memory` GiB; 0 if not one fits."""
        return max(0, int((memory - self.fixed) / self.per_image))


def memory_line(rows: Iterable[Row]) -> MemoryLine | None:
    """The line through the rows with the usual batch and with half of it; None if one lacks."""
    points = {x["batch"]: (x["images"], x["total_gib"]) for x in rows if x["status"] == "compiled"}
    if "usual" not in points or "half" not in points:
        return None
    (few, less), (many, more) = points["half"], points["usual"]
    slope = (more - less) / (many - few)
    return MemoryLine(less - few * slope, slope) if slope > 0 else None


def findings(row: Row) -> list[str]:
    """What is not as it should be in a compiled program, a phrase each."""
    if row["status"] != "compiled":
        return [row["status"] + (f": {row['reason']}" if "reason" in row else "")]
    found = []
    if row["dtype"] != "float32":
        wide = {k: n for k, n in row["calls"].items() if "convolution" in k and k.endswith(" f32")}
        found += [f"{n} {kind}" for kind, n in wide.items()]
    for kind in ("transposed activations", "copied activations"):
        if move := row["moves"].get(kind):
            found.append(
                f"{kind}: {move['count']}, {move['mib']:.0f} MiB ({_places(move['from'])})"
            )
    if unknown := row["loops"]["unknown"]:
        found.append(f"loops of unknown length: {_places(unknown)}")
    for kind, x in row["exchanges"].items():
        if kind != "all-reduce" and x["largest"] >= _LARGE:
            found.append(f"{kind}: {x['bytes'] / 2**20:.0f} MiB")
        if kind == "all-reduce" and x["bytes"] > _WEIGHTED * row["parameter_bytes"]:
            times = x["bytes"] / row["parameter_bytes"]
            found.append(f"all-reduce of {times:.2f} times the parameters")
        if x["in_loops"]:
            found.append(f"{x['in_loops']} {kind} in loops")
    found += [f"to the host: {n} {kind}" for kind, n in row["to_host"].items()]
    return found


def _places(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{place} {n}" for place, n in counts.items())


def line(row: Row) -> str:
    """A row in one line."""
    found = findings(row)
    if row["status"] != "compiled":
        return found[0]
    seconds = row["lower"]["s"] + row["compile"]["s"]
    facts = [
        f"{seconds:.0f} s",
        f"{row['argument_gib']:.2f} + {row['temporary_gib']:.2f} GiB",
        " ".join(f"{kind}: {n}" for kind, n in _convolutions(row).items()),
        *found,
    ]
    return "; ".join(filter(None, facts))


def _convolutions(row: Row) -> dict[str, int]:
    """Convolutions of each direction, whatever their type."""
    counts = collections.Counter()
    for kind, n in row["calls"].items():
        if kind.startswith("convolution"):
            counts[kind.rpartition(" ")[0].removeprefix("convolution ")] += n
    return dict(counts)


# ------------------------------------------------------------------------------------------------
# Tables


def page(results: Mapping[str, Mapping[str, Row]]) -> str:
    """The tables of all results: `platform, jax VERSION` -> rows by name."""
    parts = []
    for title, rows in results.items():
        parts += [f"### {title}", *filter(None, (tables(list(rows.values())),))]
    return "\n\n".join(parts)


def tables(rows: Sequence[Row]) -> str:
    """The tables of one platform and version of jax."""
    usual = [x for x in rows if x["batch"] == "usual"]
    parts = [
        on_one_device([x for x in usual if x["devices"] == 1]),
        on_a_mesh([x for x in usual if x["devices"] > 1]),
        batches(rows),
        found(usual),
    ]
    return "\n\n".join(filter(None, parts))


def on_one_device(rows: Sequence[Row]) -> str:
    """A row for each detector: both programs in bfloat16, and their memory in float32."""
    lines = []
    for model, own in _by_model(rows).items():
        of = {(x["program"], x["dtype"]): x for x in own}
        train, predict = of.get(("train", "bfloat16")), of.get(("predict", "bfloat16"))
        first = train or predict or own[0]
        lines.append(
            (
                model,
                f"{first['images']} x {first['canvas'][0]}x{first['canvas'][1]}",
                _compile(train),
                _memory(train),
                _memory(of.get(("train", "float32"))),
                _counts(train),
                _compile(predict),
                _memory(predict),
                _memory(of.get(("predict", "float32"))),
                _counts(predict),
            )
        )
    head = ("detector", "images", "train: compile, s", "GiB", "float32", "convolutions")
    return lines and command.table((*head, "predict: s", "GiB", "float32", "convolutions"), lines)


def on_a_mesh(rows: Sequence[Row]) -> str:
    """A row for each training program on several devices: what they exchange."""
    lines = []
    for row in rows:
        if row["program"] == "predict" or row["status"] != "compiled":
            continue
        mib = {k: f"{x['bytes'] / 2**20:.1f} MiB in {x['count']}" for k, x in _exchanged(row)}
        lines.append(
            (
                f"{row['model']}/{row['program']}",
                row["dtype"],
                str(row["devices"]),
                f"{row['parameter_bytes'] / 2**20:.1f} MiB",
                mib.pop("all-reduce", "none"),
                ", ".join(f"{k} {x}" for k, x in mib.items()) or "nothing",
                _memory(row),
            )
        )
    head = ("program", "type", "devices", "parameters", "all-reduce", "else")
    return lines and command.table((*head, "GiB"), lines)


def _exchanged(row: Row) -> list[tuple[str, Mapping[str, int]]]:
    return [(k, x) for k, x in row["exchanges"].items() if x["bytes"]]


def batches(rows: Sequence[Row]) -> str:
    """A row for each detector: its memory as a line, and the largest batches by it."""
    lines = []
    of_training = [x for x in rows if x["program"] == "train" and x["devices"] == 1]
    for model, own in _by_model(x for x in of_training if x["dtype"] == "bfloat16").items():
        memory = memory_line(own)
        if memory is None:
            continue
        canvas = next(x["canvas"] for x in own if x["batch"] == "usual")
        checks = [
            f"{x['images']}: {memory.at(x['images']):.1f}, {x['total_gib']:.1f}"
            if x["status"] == "compiled"
            else f"{x['images']}: {x['status']}"
            for x in own
            if x["batch"] == "given" and x["canvas"] == canvas
        ]
        lines.append(
            (
                model,
                f"{memory.fixed:.2f} + {memory.per_image:.3f} an image",
                *(str(memory.largest(SHARE * size)) for size in MEMORIES),
                "; ".join(checks),
            )
        )
    sizes = [f"{size} GiB" for size in MEMORIES]
    head = ("detector", "GiB", *sizes, "compiled, images: expected, found GiB")
    return lines and command.table(head, lines)


def found(rows: Sequence[Row]) -> str:
    """The findings, each with the programs that have it."""
    programs = collections.defaultdict(list)
    for row in rows:
        for finding in findings(row):
            programs[finding].append(
                f"{row['model']}/{row['program']} ({row['dtype']}, {row['devices']})"
            )
    lines = [(finding, ", ".join(names)) for finding, names in sorted(programs.items())]
    return lines and command.table(("finding", "programs"), lines)


def _by_model(rows: Iterable[Row]) -> dict[str, list[Row]]:
    models = collections.defaultdict(list)
    for row in rows:
        models[row["model"]].append(row)
    return dict(sorted(models.items()))


def _compile(row: Row | None) -> str:
    if row is None:
        return ""
    if row["status"] != "compiled":
        return row["status"]
    return f"{row['lower']['s'] + row['compile']['s']:.0f}"


def _memory(row: Row | None) -> str:
    if row is None or row["status"] != "compiled":
        return ""
    return f"{row['total_gib']:.1f}"


def _counts(row: Row | None) -> str:
    """Convolutions forward, for gradients of kernels, and of inputs; a TPU's have no direction."""
    if row is None or row["status"] != "compiled":
        return ""
    counts = _convolutions(row)
    return " + ".join(str(counts[x]) for x in _DIRECTIONS if x in counts)
