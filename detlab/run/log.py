"""The log of a run: `metrics.jsonl`, TensorBoard, and the text of the progress bar.

Each row is {"step": n, key: number, ...}: `train/...` keys are means over the steps since the
previous row, `data/...` keys count since the run began, `eval/...` keys are metrics of an
evaluation.
"""

import collections
import contextlib
import json
import pathlib
import time
from collections.abc import Iterator

from tensorboardX import event_file_writer
from tensorboardX.proto import event_pb2, summary_pb2

from detlab import errors


class RunLog:
    """Collects numbers on the host and writes them to the log."""

    def __init__(
        self, workdir: pathlib.Path, first_step: int, counts: dict[str, int], writes: bool = True
    ):
        """Removes rows after `first_step`, which a resumed run writes again.

        `counts` are those of opening the data, see `records.counts`.  `writes` is False in all
        processes but the first.
        """
        self.path = workdir / "metrics.jsonl"
        rows = [row for row in read_rows(self.path) if row["step"] <= first_step]
        self._evaluated = {row["step"] for row in rows if "eval/AP" in row}
        before = {k: v for row in rows for k, v in row.items() if k.startswith("data/")}
        opened = {f"data/{name}": count for name, count in counts.items()}
        read = {"data/no_slot_boxes": 0, "data/skipped_images": 0}
        self._counts = collections.Counter(read | opened | before)
        self._files = contextlib.ExitStack()  # closed by `close`
        self._file = self._board = None
        self._sums = collections.Counter()
        self._steps = 0
        self._since = time.time()
        if not writes:
            return
        with self._writing():
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
            temporary.replace(self.path)
            self._file = self._files.enter_context(self.path.open("a", buffering=1))
            board = _Board(workdir / "tensorboard", first_step + 1)
            self._board = self._files.enter_context(contextlib.closing(board))

    def lost(self, no_slot_boxes: int, skipped_images: int) -> None:
        """Counts boxes and images dropped while a batch was built."""
        self._counts["data/no_slot_boxes"] += no_slot_boxes
        self._counts["data/skipped_images"] += skipped_images

    def step(self, metrics: dict[str, float]) -> None:
        """Adds the metrics of one step."""
        self._sums.update(metrics)
        self._steps += 1

    def write(self, step: int, batch_size: int) -> str:
        """Writes a row for the steps since the last one, if any; returns its short form."""
        if not self._steps:
            return ""
        seconds = time.time() - self._since
        means = {k: v / self._steps for k, v in self._sums.items()}
        speed = self._steps * batch_size / max(seconds, 1e-9)
        self._row(
            step,
            {f"train/{k}": v for k, v in means.items()}
            | {"train/images_per_second": speed}
            | dict(self._counts),
        )
        self._sums.clear()
        self._steps = 0
        self._since = time.time()
        terms = " ".join(f"{k} {v:.3f}" for k, v in means.items() if k.startswith("loss"))
        return f"{speed:.1f} img/s {terms}"

    def has_evaluation(self, step: int) -> bool:
        """Whether this run has evaluated this step, before or after it was resumed."""
        return step in self._evaluated

    def evaluation(self, step: int, figures: dict[str, float]) -> None:
        """Writes the metrics of an evaluation; a step has one such row."""
        if step not in self._evaluated:
            self._row(step, {f"eval/{k}": v for k, v in figures.items()})
            self._evaluated.add(step)

    @contextlib.contextmanager
    def not_training(self) -> Iterator[None]:
        """Excludes the time of its block, such as an evaluation, from the training speed."""
        start = time.time()
        yield
        self._since += time.time() - start

    def close(self) -> None:
        with self._writing():
            self._files.close()

    def _row(self, step: int, values: dict[str, float]) -> None:
        if self._file is None:
            return
        with self._writing():
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._board.add(step, values)

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except OSError as error:
            raise errors.UserError(
                f"cannot write the log of the run in {self.path.parent}: {error.strerror or error};"
                " the checkpoints are kept; fix that and resume with the same command."
            ) from error


class _Board:
    """Scalars for TensorBoard; a row flushes them to disk if the last flush was over 30 s ago.

    `tensorboardX.SummaryWriter` writes in a thread that dies when the disk is full; training then
    fills its queue and hangs.  Here a write error is raised to the caller.
    """

    def __init__(self, folder: pathlib.Path, first_step: int):
        """Hides what an earlier start wrote for `first_step` and later steps."""
        folder.mkdir(exist_ok=True)
        self._writer = event_file_writer.EventsWriter(str(folder / "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.write_event(
            event_pb2.Event(wall_time=time.time(), step=first_step, session_log=start)
        )
        self._flushed = time.time()

    def add(self, step: int, values: dict[str, float]) -> None:
        scalars = [summary_pb2.Summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        now = time.time()
        self._writer.write_event(
            event_pb2.Event(wall_time=now, step=step, summary=summary_pb2.Summary(value=scalars))
        )
        if now > self._flushed + 30:
            self._writer.flush()
            self._flushed = now

    def close(self) -> None:
        self._writer.close()


def read_rows(path: pathlib.Path) -> list[dict]:
    """The rows of a `metrics.jsonl`; a truncated last line, left by a kill, is dropped.

    Raises:
      UserError: any other line is not a row.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row["step"]
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                raise errors.UserError(
                    f"line {number} of {path} is not a row of the log; move the file away, then"
                    " resume."
                ) from error
        else:
            rows.append(row)
    return rows
