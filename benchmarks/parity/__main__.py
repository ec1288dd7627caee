"""Is a detlab detector, given the weights of a reference detector, that detector?

    python -m benchmarks.parity --case retinanet_r50_fpn
    python -m benchmarks.parity --all

A case is a recorded run of the reference (docs/parity.md).  Its weights are made by its rule and
converted by the table that users' files go through; the detector is built from the configuration
in the case.  One compiled program gives raw maps, targets, losses, gradients and detections, and
each quantity is a line: how far it is off and how far it may be.  Errors of maps are parts of the
largest value, of decisions and labels the number that differ, of boxes pixels, and otherwise
differences.

--quick compiles as the tests do, in a fraction of the time; a release is checked without it.

Without --case every case of the folder --fixtures that has a model is run and the others are
listed as missing.  Exit status 1 where a quantity misses its tolerance, or a case that was asked
for, by name or by --all, has no model.
"""

import math
import pathlib
import sys
import time

from benchmarks import flags
from detlab import cli

if __name__ == "__main__":
    cli.answer_first(flags.parity(__doc__))  # --help needs no import below

import jax

from benchmarks import command, machine
from benchmarks.parity import cases, references, runner
from detlab import errors, files


def main(arguments: list[str]) -> None:
    """The command line; raises `UserError` for whatever a user can mend."""
    args = flags.parity(__doc__).parse_args(arguments)
    options = command.QUICK if args.quick else None
    settings = runner.Settings(cases.folders(args), args.seed, options)
    chosen = cases.choose(cases.find(args.fixtures), args.case)
    lacking = {name: references.lacks(args.fixtures, name, info) for name, info in chosen.items()}
    runners = {name: references.of(info) for name, info in chosen.items() if not lacking[name]}
    for name, found in runners.items():  # before the first program is compiled
        found.check(chosen[name])

    rows = []
    for name, info in chosen.items():
        if lacking[name]:
            reason = lacking[name] + _weights_there(info, settings.folders.weights)
            print(f"missing  {name}: {reason}")
            rows.append({"case": name, "status": "missing", "reason": reason})
            continue
        if any(row["status"] != "missing" for row in rows):
            jax.clear_caches()  # of the case before: its programs are large, and of no use now
        start = time.perf_counter()
        print(f"case {name}: {cases.title(info)}")
        lines, not_compared = runners[name].run(args.fixtures, name, info, settings)
        rows.append(_report(name, lines, not_compared, time.perf_counter() - start))

    counts = {s: sum(r["status"] == s for r in rows) for s in ("passed", "failed", "missing")}
    print(f"{len(rows)} cases: " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    if args.json:
        result = {"machine": machine.describe(), "cases": rows}
        files.write_json(args.json, result)
    if counts["failed"] or (counts["missing"] and (args.all or args.case)):
        sys.exit(1)


def _weights_there(info: dict, folder: pathlib.Path) -> str:
    """Of a case with published weights, whether they are there."""
    if not isinstance(info.get("weights"), str):
        return ""
    there = (folder / info["weights"]).exists()
    return f"; {info['weights']} is {'' if there else 'not '}in {folder}"


def _report(name: str, lines: list, not_compared: list[str], seconds: float) -> dict:
    """Prints the lines of a case; returns its row of the JSON."""
    width = max(len(line.quantity) for line in lines)
    for line in lines:
        print(
            f"{'ok' if line.passed else 'MISS':4}  {line.quantity:{width}}"
            f"  error {line.error:.2e}  tolerance {line.tolerance:.2e}  {line.note}".rstrip()
        )
    missed = [line.quantity for line in lines if not line.passed]
    if not_compared:
        print(f"not compared: {', '.join(not_compared)}")
    verdict = f"{len(missed)} missed" if missed else "all within tolerance"
    print(f"{name}: {len(lines)} quantities, {verdict} ({seconds:.0f} s)")
    return {
        "case": name,
        "status": "failed" if missed else "passed",
        "missed": missed,
        "not_compared": not_compared,
        "seconds": seconds,
        "lines": [
            # JSON has no infinity and no NaN.
            {**line._asdict(), "error": line.error if math.isfinite(line.error) else None}
            for line in lines
        ],
    }


if __name__ == "__main__":
    errors.run_main(main)
