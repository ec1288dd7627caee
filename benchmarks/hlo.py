"""What a compiled program does, read from XLA's text of it (HLO): calls, moves, loops, exchanges.

Pure functions of text.  `parse` reads the instructions; the others count.  Needs only the standard
library.  The form of the text is that of XLA's printer for scheduled programs:

    %name = TYPE opcode(%operand, ...), attribute=..., metadata={op_name="..." stack_frame_id=7}

A TYPE is `bf16[8,64]{1,0}`: dimensions, then the axes from the fastest in memory to the slowest.
"""

import collections
import functools
import math
import re
from collections.abc import Iterable, Iterator, Set
from typing import Any, NamedTuple

MIB = 2**20
_SMALL = MIB  # bytes; smaller arrays (boxes, scores, lists) are not listed as moved


class Array(NamedTuple):
    """One array of a result."""

    dtype: str  # bf16, f32, s32, pred, ...
    shape: tuple[int, ...]
    order: tuple[int, ...]  # axes, the fastest first

    @property
    def bytes(self) -> int:
        bits = 8 if self.dtype == "pred" else int((re.findall(r"\d+", self.dtype) or ["0"])[0])
        return math.prod(self.shape) * bits // 8

    @property
    def dimensions(self) -> tuple[int, ...]:
        """The lengths above one, sorted: the same for all transposes and reshapes by ones."""
        return tuple(sorted(n for n in self.shape if n > 1))


class Instruction(NamedTuple):
    """A line of a computation."""

    opcode: str
    arrays: tuple[Array, ...]  # of the result, in order
    operands: tuple[str, ...]
    attributes: str  # the rest of the line


class Program(NamedTuple):
    """A whole program."""

    entry: str
    computations: dict[str, dict[str, Instruction]]  # name -> name of a result -> instruction
    frames: dict[int, str]  # stack_frame_id -> file of this project that asked for it, or ""


class Runs(NamedTuple):
    """How often a computation runs."""

    times: int  # with one round of each loop of unknown length
    in_loop: bool


# ------------------------------------------------------------------------------------------------
# Reading

_LINE = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*))?")
_BRACKET = re.compile(r"[()]")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|condition|body|true_computation|false_computation)=%?([\w.\-]+)"
    r"|\b(?:branch_computations|called_computations)=\{([^}]*)\}"
)


def parse(text: str) -> Program:
    """Reads the text of a compiled program (`compiled.as_text()`)."""
    entry, computations, current = "", {}, None
    for line in text.splitlines():
        if current is not None and (found := _LINE.match(line)):
            current[found[1]] = _instruction(found[2])
        elif line.startswith("}"):
            current = None
        elif not line.startswith("HloModule") and (found := _HEAD.match(line)):
            current = computations[found[2]] = {}
            entry = found[2] if found[1] else entry
    return Program(entry, computations, _frames(text))


def _instruction(text: str) -> Instruction:
    """`TYPE opcode(operands), attributes`; types and operands may hold brackets."""
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    end = _closing(rest, len(opcode))
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[len(opcode) : end]))
    return Instruction(opcode, arrays(shape), operands, rest[end:])


def arrays(text: str) -> tuple[Array, ...]:
    """The arrays of a type, such as `(bf16[8,64]{1,0}, u8[0]{0})`; tokens are none."""
    found = []
    for dtype, shape, order in _ARRAY.findall(text):
        if dtype != "token":
            found.append(Array(dtype, _numbers(shape), _numbers(order)))
    return tuple(found)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, filter(None, text.split(","))))


def _closing(text: str, start: int) -> int:
    """The position after the bracket that closes the one at `start`."""
    depth = 0
    for found in _BRACKET.finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.end()
    return len(text)


def _frames(text: str) -> dict[int, str]:
    """stack_frame_id -> the innermost file of detlab on that stack, from the tables of the head."""
    tables, name = collections.defaultdict(dict), ""
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            name = line
        elif name and (found := re.match(r"(\d+) (.*)", line)):
            tables[name][int(found[1])] = found[2]
        elif line.startswith(("%", "ENTRY")):
            break

    def number(line: str, key: str) -> int:
        return int((re.findall(rf"{key}=(\d+)", line) or ["0"])[0])

    @functools.cache
    def file_of(frame: int) -> str:
        line = tables["StackFrames"].get(frame, "")
        place = tables["FileLocations"].get(number(line, "file_location_id"), "")
        path = tables["FileNames"].get(number(place, "file_name_id"), "").strip('"')
        if "/detlab/" in path:
            return path.rpartition("/detlab/")[2]
        parent = number(line, "parent_frame_id")
        return "" if parent in (0, frame) else file_of(parent)  # the outermost names itself

    return {frame: file_of(frame) for frame in tables["StackFrames"]}


# ------------------------------------------------------------------------------------------------
# Walking


def called(instruction: Instruction) -> list[str]:
    """The computations that an instruction runs."""
    found = []
    for one, several in _CALLED.findall(instruction.attributes):
        found += [one] if one else re.findall(r"%?([\w.\-]+)", several)
    return found


def everything(program: Program) -> Iterator[tuple[str, str, Instruction]]:
    """(computation, name, instruction) of all instructions."""
    for computation, lines in program.computations.items():
        for name, instruction in lines.items():
            yield computation, name, instruction


def operand(program: Program, computation: str, instruction: Instruction, i: int) -> Array | None:
    """The first array of operand i."""
    if i >= len(instruction.operands):
        return None
    source = program.computations[computation].get(instruction.operands[i])
    return source.arrays[0] if source and source.arrays else None


def trip_count(instruction: Instruction) -> int | None:
    """The rounds of a `while`; None if the compiler does not know them."""
    found = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.attributes)
    return int(found[1]) if found else None


def runs(program: Program) -> dict[str, Runs]:
    """How often each computation runs in one run of the program; those never run are left out."""
    found = {program.entry: Runs(1, False)}
    for computation in _callers_first(program):
        own = found[computation]
        for instruction in program.computations[computation].values():
            loop = instruction.opcode == "while"
            count = trip_count(instruction) if loop else 1
            for name in called(instruction):
                before = found.get(name, Runs(0, False))
                found[name] = Runs(
                    before.times + own.times * (count or 1), before.in_loop or own.in_loop or loop
                )
    return found


def _callers_first(program: Program) -> list[str]:
    """The computations that run, each after all that call it."""
    order, seen = [], set()

    def visit(name: str) -> None:
        if name in seen or name not in program.computations:
            return
        seen.add(name)
        for instruction in program.computations[name].values():
            for other in called(instruction):
                visit(other)
        order.append(name)

    visit(program.entry)
    return order[::-1]


def source(program: Program, instruction: Instruction) -> str:
    """The file of detlab that asked for an instruction, such as `ops/nms.py`; "" if unknown."""
    found = re.search(r"stack_frame_id=(\d+)", instruction.attributes)
    return program.frames.get(int(found[1]), "") if found else ""


# ------------------------------------------------------------------------------------------------
# Counting

_CALLS = {
    "__cudnn$convForward": "convolution forward",
    "__cudnn$convBiasActivationForward": "convolution forward",
    "__cudnn$convBackwardFilter": "convolution kernel gradient",
    "__cudnn$convBackwardInput": "convolution input gradient",
    "__cublas$gemm": "product, cuBLAS",
    "__cublas$lt$matmul": "product, cuBLAS",
}


def calls(program: Program) -> dict[str, int]:
    """Library calls, convolutions and products by kind and type of the first operand.

    On a GPU, convolutions are calls of cuDNN, and products are calls of cuBLAS or fusions that
    Triton compiles.  On a TPU, all of them are convolutions inside fusions.  Each line counts once,
    however often it runs.  Other library calls have the name of their target.
    """
    counts = collections.Counter()
    for computation, _, instruction in everything(program):
        first = operand(program, computation, instruction, 0)
        dtype = first.dtype if first else ""
        if instruction.opcode == "custom-call":
            target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
            name = target[1] if target else "custom-call"
            counts[f"{_CALLS[name]} {dtype}" if name in _CALLS else name] += 1
        elif instruction.opcode == "dot":
            counts[f"product {dtype}"] += 1
        elif instruction.opcode == "convolution":
            counts[f"{_kind(instruction)} {dtype}"] += 1
    return dict(sorted(counts.items()))


def _kind(instruction: Instruction) -> str:
    """What a `convolution` computes, by the name of the operation that jax gave it."""
    name = re.search(r'op_name="([^"]*)"', instruction.attributes)
    path = name[1] if name else ""
    if path and "conv_general_dilated" not in path:
        return "product"
    return "convolution gradient" if "transpose(" in path else "convolution forward"


def moves(program: Program, weights: Set[tuple[int, ...]]) -> dict[str, dict[str, float]]:
    """Transposes and copies of arrays of at least 1 MiB, apart for activations and weights.

    Args:
      program: the compiled program.
      weights: `Array.dimensions` of the parameters; other arrays are activations.
    Returns:
      "transposed activations", "transposed weights", "copied activations", "copied weights" ->
      {"count", "mib" of one run of each line, "from": {file: count}}.  A transpose changes the
      order in memory; a copy between different orders is one too.
    """
    found: dict[str, Any] = {}
    for computation, _, instruction in everything(program):
        if instruction.opcode not in ("transpose", "copy", "copy-start") or not instruction.arrays:
            continue
        result = instruction.arrays[0]
        before = operand(program, computation, instruction, 0)
        if result.bytes < _SMALL or before is None:
            continue
        turned = _turned(instruction, before, result)
        if instruction.opcode == "transpose" and not turned:
            continue  # the same bytes under other names of axes
        what = "weights" if result.dimensions in weights else "activations"
        row = found.setdefault(
            f"{'transposed' if turned else 'copied'} {what}", {"count": 0, "mib": 0.0, "from": {}}
        )
        row["count"] += 1
        row["mib"] = round(row["mib"] + result.bytes / MIB, 1)
        place = source(program, instruction) or "unknown"
        row["from"][place] = row["from"].get(place, 0) + 1
    return dict(sorted(found.items()))


def _turned(instruction: Instruction, before: Array, after: Array) -> bool:
    """Whether the order in memory changes; axes of length one do not count."""
    permutation = range(len(after.shape))
    if instruction.opcode == "transpose":
        found = re.search(r"\bdimensions=\{([\d,]*)\}", instruction.attributes)
        permutation = _numbers(found[1]) if found else permutation
    order = after.order or tuple(reversed(range(len(after.shape))))
    old = before.order or tuple(reversed(range(len(before.shape))))
    new = [permutation[axis] for axis in order]
    return [a for a in new if before.shape[a] > 1] != [a for a in old if before.shape[a] > 1]


def loops(program: Program) -> dict[str, dict[str, int]]:
    """The loops by the file that asked for them.

    Returns:
      "known": {"ROUNDS x FILE": lines}; "unknown": {FILE: how often such a loop starts in a run of
      the program, as in `runs`}.  A GPU asks the host after each round of a loop of unknown length.
    """
    found = {"known": collections.Counter(), "unknown": collections.Counter()}
    times = runs(program)
    for computation, _, instruction in everything(program):
        if instruction.opcode == "while" and computation in times:
            count, place = trip_count(instruction), source(program, instruction) or "unknown"
            if count is None:
                found["unknown"][place] += times[computation].times
            else:
                found["known"][f"{count} x {place}"] += 1
    return {kind: dict(sorted(counts.items())) for kind, counts in found.items()}


_EXCHANGES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def exchanges(program: Program) -> dict[str, dict[str, int]]:
    """What devices exchange: operation -> {"count", "bytes", "in_loops", "largest"}.

    `bytes` are those of the results of a run of the program, a loop of unknown length counted as
    one round; `in_loops` counts the lines inside of loops; `largest` is the largest result.
    """
    found: dict[str, dict[str, int]] = {}
    times = runs(program)
    for computation, _, instruction in everything(program):
        opcode = instruction.opcode.removesuffix("-start")
        if opcode not in _EXCHANGES or computation not in times:
            continue
        results = list(instruction.arrays)
        if instruction.opcode in ("all-gather-start", "collective-permute-start"):
            operands = len(instruction.operands)  # the result lists the operands first
            results = results[operands : 2 * operands]
        size = sum(array.bytes for array in results)
        row = found.setdefault(opcode, {"count": 0, "bytes": 0, "in_loops": 0, "largest": 0})
        row["count"] += 1
        row["bytes"] += size * times[computation].times
        row["in_loops"] += times[computation].in_loop
        row["largest"] = max(row["largest"], size)
    return dict(sorted(found.items()))


def to_host(program: Program) -> dict[str, int]:
    """Lines that talk to the host: callbacks, feeds, sends, and arrays in the host's memory."""
    counts = collections.Counter()
    for _, _, instruction in everything(program):
        if instruction.opcode in ("infeed", "outfeed"):
            counts[instruction.opcode] += 1
        elif "is_host_transfer=true" in instruction.attributes:
            counts[instruction.opcode] += 1
        elif instruction.opcode == "custom-call":
            target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
            if target and re.search(r"callback|MoveToHost|MoveToDevice", target[1]):
                counts[target[1]] += 1
    return dict(sorted(counts.items()))


def report(text: str, shapes: Iterable[tuple[int, ...]]) -> dict[str, Any]:
    """All of the above for one program; `shapes` are those of its parameters."""
    program = parse(text)
    weights = {Array("", shape, ()).dimensions for shape in shapes}
    return {
        "calls": calls(program),
        "moves": moves(program, weights),
        "loops": loops(program),
        "exchanges": exchanges(program),
        "to_host": to_host(program),
    }
