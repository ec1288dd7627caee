"""Checkpoints with orbax, and starting from weights that something else has written.

A workdir holds `checkpoints/<step>` (the last n), `best/<step>` (the best by the metric), each with
three items: `weights` ({"params", "state"}), `training` ({"step", "opt_state", "ema"}) and `config`
(JSON: the resolved config, class names, metrics).  A weights folder, as `converters.convert` writes
it, is one such step without `training`.
"""

import pathlib
import re
from typing import Any, Mapping, NamedTuple, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from detlab import errors
from detlab import types


class Weights(NamedTuple):
    """What a checkpoint holds for inference."""

    params: Any  # nested dict of NumPy arrays
    state: Any
    info: dict  # {"config", "class_names", "step", "metrics"}; a key may be absent
    path: pathlib.Path


class Checkpoints:
    """The checkpoints of one workdir: the last n, and the best."""

    def __init__(self, workdir: str | pathlib.Path, keep_last: int = 2):
        self.workdir = pathlib.Path(workdir).absolute()
        for name in ("checkpoints", "best"):
            try:
                (self.workdir / name).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise errors.UserError(
                    f"cannot make the folder {self.workdir / name}: {error.strerror}."
                ) from error
        self._last = ocp.CheckpointManager(
            self.workdir / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep_last, enable_async_checkpointing=True
            ),
        )
        self._best = ocp.CheckpointManager(
            self.workdir / "best",
            options=ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=True),
        )

    def latest_step(self) -> int | None:
        return self._last.latest_step()

    def best_score(self) -> float | None:
        """The score of the best checkpoint so far."""
        self._best.wait_until_finished()
        step = self._best.latest_step()
        if step is None:
            return None
        info = self._best.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
        return info["config"]["score"]

    def save(self, state: types.TrainState, info: Mapping[str, Any]) -> None:
        """Writes the last checkpoint in the background; the same step is written once."""
        step = int(state.step)
        if self._last.latest_step() != step:
            self._last.save(step, args=_items(state, info))

    def save_best(self, state: types.TrainState, info: Mapping[str, Any], score: float) -> None:
        """Replaces the best checkpoint; it stays until the new one is complete."""
        step = int(state.step)
        if self._best.latest_step() != step:
            self._best.save(step, args=_items(state, {**info, "score": score}))

    def restore(self, state: types.TrainState) -> types.TrainState:
        """The latest checkpoint, laid out on devices as `state`, arrays or shapes, says."""

        weights, training = _split(state)
        step = self._last.latest_step()
        try:
            restored = self._last.restore(
                step,
                args=ocp.args.Composite(
                    weights=ocp.args.StandardRestore(weights),
                    training=ocp.args.StandardRestore(training),
                ),
            )
        except (ValueError, FileNotFoundError, KeyError) as error:
            others = [s for s in self._last.all_steps() if s != step]
            remedy = (
                f"delete that folder to resume from step {max(others)}"
                if others
                else "there is no other, so start again with another --workdir"
            )
            raise errors.UserError(
                f"checkpoint {self.workdir / 'checkpoints' / str(step)} cannot be read"
                f" ({_first_line(error)}); {remedy}."
            ) from error
        return types.TrainState(**restored["weights"], **restored["training"])

    def wait(self) -> None:
        """Until everything is on disk."""
        self._last.wait_until_finished()
        self._best.wait_until_finished()

    def close(self) -> None:
        self.wait()
        self._last.close()
        self._best.close()


def latest_step(workdir: str | pathlib.Path) -> int | None:
    """The last step that the workdir has a checkpoint of."""
    return max(_steps(pathlib.Path(workdir) / "checkpoints"), default=None)


def find(path: str | pathlib.Path, which: str = "best") -> pathlib.Path:
    """The folder of one step.

    Args:
      path: a workdir, a step's folder or a weights folder.
      which: for a workdir, "best", "last" or the number of a step; best falls back to last while
        there was no evaluation.
    Raises:
      UserError: nothing there, or not that step.
    """
    path = pathlib.Path(path).absolute()
    if (path / "weights").is_dir():
        return path
    last, best = _steps(path / "checkpoints"), _steps(path / "best")
    if not last and not best:
        kinds = {path.is_dir(): "holds no checkpoint", path.is_file(): "is a file"}
        what = kinds.get(True, "does not exist")
        raise errors.UserError(
            f"{path} {what}; give the workdir of a run, a checkpoint's folder, or a folder written"
            " by converters.convert."
        )
    if which == "best":
        steps = best or last
        return steps[max(steps)]
    if which == "last":
        steps = last or best
        return steps[max(steps)]
    known = {**best, **last}
    if not which.isdigit() or int(which) not in known:
        steps = ", ".join(str(s) for s in sorted(known))
        raise errors.UserError(
            f"{path} has no checkpoint {which!r}: best, last, or one of {steps}."
        )
    return known[int(which)]


def load_weights(path: str | pathlib.Path, which: str = "best") -> Weights:
    """Parameters and state as NumPy arrays, wherever they were trained; see `find`."""
    folder = find(path, which)
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    try:
        tree = reader.metadata(folder / "weights").item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        values = reader.restore(
            folder / "weights", args=ocp.args.PyTreeRestore(restore_args=as_numpy)
        )
    except Exception as error:  # orbax and tensorstore have many
        raise errors.UserError(
            f"checkpoint {folder} is damaged or was not written completely"
            f" ({type(error).__name__}); name another with --checkpoint."
        ) from error
    return Weights(values["params"], values["state"], _read_info(folder), folder)


def save_weights(
    directory: str | pathlib.Path, params: Any, state: Any, info: Mapping[str, Any]
) -> None:
    """Writes a weights folder that `init_from`, eval and demo read.

    `params` and `state` may be a part of a detector's tree, such as a backbone alone.
    """
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
        writer.save(
            pathlib.Path(directory).absolute(),
            args=ocp.args.Composite(
                weights=ocp.args.StandardSave({"params": params, "state": state}),
                config=ocp.args.JsonSave(dict(info)),
            ),
        )


class Merged(NamedTuple):
    """An initial tree with loaded leaves, and the paths of both kinds."""

    params: Any
    state: Any
    loaded: tuple[str, ...]
    initialised: tuple[str, ...]


def merge(params: Any, state: Any, weights: Weights, skip: Sequence[str] | None) -> Merged:
    """Puts loaded leaves into an initial tree, strictly in both directions.

    Args:
      params, state: as `detector.init` gives them.
      weights: what to load; every leaf must have a place of the same shape.
      skip: regexes of paths such as `params/head/.*` that need not agree: such a leaf stays as
        initialised, and such a loaded leaf is left out.  None: all must agree.
    Raises:
      UserError: with the whole difference.
    """
    target = _flat(params, state)
    source = _flat(weights.params, weights.state)
    skipped = {p for p in {*target, *source} if any(re.fullmatch(s, p) for s in skip or ())}
    missing = [p for p in target if p not in source and p not in skipped]
    unknown = [p for p in source if p not in target and p not in skipped]
    loaded = [p for p in target if p in source and p not in skipped]
    shapes = [
        f"{p}: {tuple(source[p].shape)} there, {tuple(target[p].shape)} here"
        for p in loaded
        if source[p].shape != target[p].shape
    ]
    if missing or unknown or shapes:
        parts = [
            ("not in the file", missing),
            ("not in the model", unknown),
            ("of another shape", shapes),
        ]
        text = "; ".join(f"{len(found)} {what}: {_some(found)}" for what, found in parts if found)
        remedy = (
            "give the config.model that they were trained with"
            if skip is None
            else "paths that may differ are named by regexes in config.init_skip"
        )
        raise errors.UserError(f"{weights.path} does not fit the model: {text}; {remedy}.")
    merged = {p: source[p].astype(x.dtype) if p in loaded else x for p, x in target.items()}
    tree = traverse_util.unflatten_dict(merged, sep="/")
    initialised = tuple(p for p in target if p not in loaded)
    return Merged(tree.pop("params"), tree, tuple(loaded), initialised)


def flat_paths(params: Any, state: Any) -> list[str]:
    """Paths `params/...` and `<collection>/...` of all leaves."""
    return list(_flat(params, state))


def _flat(params, state):
    return traverse_util.flatten_dict({"params": params, **state}, sep="/")


def _split(state: types.TrainState):
    weights = {"params": state.params, "state": state.state}
    training = {"step": state.step, "opt_state": state.opt_state, "ema": state.ema}
    return weights, training


def _items(state: types.TrainState, info):
    weights, training = _split(state)
    return ocp.args.Composite(
        weights=ocp.args.StandardSave(weights),
        training=ocp.args.StandardSave(training),
        config=ocp.args.JsonSave({**info, "step": int(state.step)}),
    )


def _steps(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """Complete steps: an unfinished one has a longer name until it is renamed."""
    if not folder.is_dir():
        return {}
    return {int(p.name): p for p in folder.iterdir() if p.name.isdigit()}


def _read_info(folder: pathlib.Path) -> dict:
    reader = ocp.Checkpointer(ocp.JsonCheckpointHandler())
    try:
        return reader.restore(folder / "config")
    except (ValueError, FileNotFoundError) as error:
        raise errors.UserError(
            f"checkpoint {folder} has no readable config ({_first_line(error)})."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _some(items: Sequence[str], limit: int = 12) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
