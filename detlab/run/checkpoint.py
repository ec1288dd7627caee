"""Checkpoints with orbax, and initialisation from other weights.

A workdir holds `checkpoints/<step>` (the last n) and `best/<step>` (the best by the metric).  Each
step has three items:

- `weights`: {"params", "state"} for evaluation: the average if there is one;
- `training`: {"step", "opt_state"}, and with an average also {"params", "state"} as trained;
- `config`: JSON of the resolved config, class names, metrics.

Evaluation, or a run that starts from a checkpoint, reads only `weights`.  A weights folder written
by `detlab convert` is one such step without `training`.

A step has a temporary name until it is complete, and older steps are deleted only after that.  A
kill or a full disk therefore never costs a complete checkpoint.

Orbax is imported where it is used, so programs start and report wrong commands without it.
"""

import contextlib
import ctypes
import errno
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from detlab import errors, types
from detlab import text as text_lib
from detlab.run import packed


class Weights(NamedTuple):
    """The part of a checkpoint that inference needs."""

    params: Any  # nested dict of NumPy arrays
    state: Any
    info: dict  # may have "config", "class_names", "step", "metrics", and the keys of `may_differ`
    path: pathlib.Path


class Checkpoints:
    """The checkpoints of one workdir: the last n and the best.

    Raises:
      UserError: a checkpoint cannot be written or read.  The last checkpoints are written in the
        background, so a later call may raise the error, at the latest `close`.
    """

    def __init__(self, workdir: str | pathlib.Path, keep_last: int = 2):
        self.workdir = pathlib.Path(workdir).absolute()
        self._kept = {"checkpoints": keep_last, "best": 1}  # number of steps in each folder
        self._managers = {}
        for name in self._kept:
            with self._writing(name):
                (self.workdir / name).mkdir(parents=True, exist_ok=True)
                _remove_unfinished(self.workdir / name)

    @property
    def _last(self):
        return self._manager("checkpoints", in_background=True)

    @property
    def _best(self):
        return self._manager("best", in_background=False)

    def _manager(self, name: str, in_background: bool):
        """The manager of a folder, made for its first use: a new run starts without orbax."""
        if name not in self._managers:
            import orbax.checkpoint as ocp

            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._kept[name], enable_async_checkpointing=in_background
            )
            self._managers[name] = ocp.CheckpointManager(self.workdir / name, options=options)
        return self._managers[name]

    def latest_step(self) -> int | None:
        return self._last.latest_step()

    def best(self) -> dict | None:
        """The `info` of the best checkpoint so far, with its "step" and "score"."""
        step = self._best.latest_step()
        return None if step is None else _read_info(self.workdir / "best" / str(step))

    def best_score(self) -> float | None:
        """The score of the best checkpoint so far."""
        info = self.best()
        return None if info is None else info["score"]

    def save(self, state: types.TrainState, info: Mapping[str, Any]) -> None:
        """Writes the last checkpoint in the background; a step is written only once."""
        step = int(state.step)
        if self._last.latest_step() != step:
            with self._writing("checkpoints"):
                self._last.wait_until_finished()
                _return_memory()
                self._last.save(step, args=_items(state, info))

    def save_best(self, state: types.TrainState, info: Mapping[str, Any], score: float) -> None:
        """Replaces the best checkpoint, which is kept until the new one is complete.

        The new one is complete on return.  Otherwise a kill could leave a log with the evaluation,
        which is then not repeated, but no checkpoint of it.
        """
        step = int(state.step)
        if self._best.latest_step() != step:
            with self._writing("best"):
                self._best.save(step, args=_items(state, {**info, "score": score}))

    def restore(self, state: types.TrainState) -> types.TrainState:
        """Reads the latest checkpoint, sharded like `state`, whose leaves are arrays or shapes."""
        import orbax.checkpoint as ocp

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
                else "there is no older one, so start again with another --workdir"
            )
            raise errors.UserError(
                f"checkpoint {self.workdir / 'checkpoints' / str(step)} cannot be read"
                f" ({errors.first_line(error)}); {remedy}."
            ) from error
        # A best checkpoint after `step` belongs to steps that will be trained again.
        for later in [s for s in self._best.all_steps() if s > step]:
            self._best.delete(later)
        # Steps that newer ones replaced: a kill may have interrupted their deletion.
        for manager, kept in ((self._last, self._kept["checkpoints"]), (self._best, 1)):
            for replaced_step in sorted(manager.all_steps())[:-kept]:
                manager.delete(replaced_step)
        return _join(restored["weights"], restored["training"])

    def wait(self) -> None:
        """Waits until everything is on disk."""
        with self._writing("checkpoints"):
            for manager in self._managers.values():
                manager.wait_until_finished()

    def close(self) -> None:
        with self._writing("checkpoints"), contextlib.ExitStack() as stack:
            for name in self._kept:  # these run last, even if closing fails
                stack.callback(_remove_unfinished, self.workdir / name)
            for manager in self._managers.values():
                stack.callback(manager.close)
            for manager in self._managers.values():
                manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self, name: str):
        """Turns an error of the operating system into a `UserError` that says what is kept."""
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise many types
            code = _os_error(error)
            if code is None:
                raise
            step = latest_step(self.workdir)
            if step is None:
                kept, way = "there is no checkpoint yet", "start again with another --workdir"
            else:
                kept = f"the checkpoint of step {step} is complete and kept"
                way = "move the run to another --workdir, then resume with the same command"
            raise errors.UserError(
                f"cannot write a checkpoint into {self.workdir / name}: {os.strerror(code)};"
                f" {kept}; {_REMEDIES.get(code, 'fix that')}, or {way}."
            ) from error


def _remove_unfinished(folder: pathlib.Path) -> None:
    """Deletes steps that a kill or a full disk left unfinished."""
    if jax.process_index() == 0:
        for step in folder.glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(step, ignore_errors=True)


def _return_memory() -> None:
    """Returns to the operating system the memory that the writing threads have freed.

    glibc keeps it per thread, up to half the size of the state for each save until it levels off;
    docs/performance.md has the measurement.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


LISTED = 12  # leaves that a sentence names

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on file size",
    errno.EROFS: "make the folder writable",
    errno.EACCES: "make the folder writable",
    errno.EPERM: "make the folder writable",
}


def _os_error(error: BaseException | None) -> int | None:
    """The errno behind an error; tensorstore gives it only in the text of its errors."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        if found := re.search(r"os_error_code='(\d+)'", str(error)):
            return int(found[1])
        error = error.__cause__ or error.__context__
    return None


def latest_step(workdir: str | pathlib.Path) -> int | None:
    """The last step with a checkpoint in the workdir."""
    return max(_steps(pathlib.Path(workdir) / "checkpoints"), default=None)


def find(path: str | pathlib.Path, which: str = "best") -> pathlib.Path:
    """The folder of one step.

    Args:
      path: a workdir, a step's folder or a weights folder.
      which: for a workdir, "best", "last" or the number of a step; "best" falls back to "last"
        before the first evaluation.
    Raises:
      UserError: there is no checkpoint, or not that step.
    """
    path = pathlib.Path(path).absolute()
    if (path / "weights").is_dir():
        return path
    last, best = _steps(path / "checkpoints"), _steps(path / "best")
    if not last and not best:
        kinds = {path.is_dir(): "holds no checkpoint", path.is_file(): "is a file"}
        what = kinds.get(True, "does not exist")
        raise errors.UserError(
            f"{path} {what}; give the workdir of a run, the folder of a checkpoint, or a folder"
            " written by `detlab convert`."
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
            f"{path} has no checkpoint {which!r}; give best, last, or one of {steps}."
        )
    return known[int(which)]


def load_weights(path: str | pathlib.Path, which: str = "best") -> Weights:
    """Reads parameters and state as NumPy arrays; see `find` for the arguments.

    A packed folder (packed.py) is read too.
    """
    path = pathlib.Path(path).absolute()
    if packed.is_packed(path) and not (path / "checkpoints").exists():
        return Weights(*packed.read(path), path)
    folder = find(path, which)
    try:
        values = read_arrays(folder / "weights")
    except Exception as error:  # orbax and tensorstore raise many types
        raise errors.UserError(
            f"checkpoint {folder} is damaged or incomplete ({type(error).__name__}); name another"
            " with --checkpoint."
        ) from error
    return Weights(values["params"], values["state"], _read_info(folder), folder)


def read_arrays(item: pathlib.Path) -> Any:
    """Reads an item of a step, `weights` or `training`, as a tree of NumPy arrays."""
    import orbax.checkpoint as ocp

    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    tree = reader.metadata(item).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return reader.restore(item, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def save_weights(
    directory: str | pathlib.Path, params: Any, state: Any, info: Mapping[str, Any]
) -> None:
    """Writes a weights folder for `init_from`, eval and demo.

    `params` and `state` may be part of a detector's tree, such as a backbone; `info` must then say
    so, see `may_differ`.
    """
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
        writer.save(
            pathlib.Path(directory).absolute(),
            args=ocp.args.Composite(
                weights=ocp.args.StandardSave({"params": params, "state": state}),
                config=ocp.args.JsonSave(dict(info)),
            ),
        )


class Merged(NamedTuple):
    """An initial tree with loaded leaves, and the paths of loaded and initialised ones."""

    params: Any
    state: Any
    loaded: tuple[str, ...]
    initialised: tuple[str, ...]


def may_differ(weights: Weights, num_classes: int) -> dict[str, tuple[str, ...]]:
    """The leaves that may differ between weights and model, according to the folder's `info`.

    A converted folder names the subtrees that it fills, such as a backbone; leaves outside them may
    differ.  Inside the subtrees, leaves dropped by `--reset_classes` may differ, and, if the model
    has another number of classes, those that depend on it.  Any other folder must hold a whole
    model.

    Args:
      weights: weights with an `info` of {"subtrees": prefixes of paths, "anew": paths,
        "num_classes": number of the weights, "class_leaves": paths}.
      num_classes: number of classes of the model.
    Returns:
      reason, in words -> regexes of paths that `merge` may skip.
    """
    info, reasons = weights.info, {}
    if "subtrees" in info:
        inside = "|".join(re.escape(f"{subtree}/") for subtree in info["subtrees"])
        outside = f"outside {text_lib.listed(info['subtrees'], LISTED)}, which the weights fill"
        reasons[outside] = (f"(?!{inside}).*",)
    if info.get("anew"):
        reasons["dropped by --reset_classes"] = tuple(map(re.escape, info["anew"]))
    there = info.get("num_classes", num_classes)
    if there != num_classes:
        other = f"for {there} classes in the weights and {num_classes} in the model"
        reasons[other] = tuple(map(re.escape, info.get("class_leaves", ())))
    return reasons


def merge(params: Any, state: Any, weights: Weights, skip: Sequence[str] | None) -> Merged:
    """Puts loaded leaves into an initial tree; neither may have a leaf that the other lacks.

    Args:
      params, state: the result of `detector.init`.
      weights: what to load; every leaf needs a leaf of the same path and shape in the tree.
      skip: regexes of paths such as `params/head/.*` that need not agree: such a leaf stays as
        initialised, and a loaded one is dropped.  None: all must agree.
    Raises:
      UserError: the trees differ; the sentence lists up to 12 leaves for each kind of difference.
    """
    target = flat_leaves(params, state)
    source = flat_leaves(weights.params, weights.state)
    skipped = {p for p in {*target, *source} if any(re.fullmatch(s, p) for s in skip or ())}
    missing = [p for p in target if p not in source and p not in skipped]
    unknown = [p for p in source if p not in target and p not in skipped]
    loaded = [p for p in target if p in source and p not in skipped]
    shapes = [
        f"{p}: {tuple(source[p].shape)} in the file, {tuple(target[p].shape)} in the model"
        for p in loaded
        if source[p].shape != target[p].shape
    ]
    if missing or unknown or shapes:
        parts = [
            ("not in the file", missing),
            ("not in the model", unknown),
            ("of another shape", shapes),
        ]
        text = "; ".join(
            f"{len(found)} {what}: {text_lib.listed(found, LISTED)}"
            for what, found in parts
            if found
        )
        remedy = "to let paths differ, add regexes that match them to config.init_skip"
        if skip is None:
            remedy = "give the config.model that they were trained with"
        elif "converted_from" in weights.info and "subtrees" not in weights.info:
            remedy += ", or convert the file again so that the folder names the paths it fills"
        raise errors.UserError(f"{weights.path} does not fit the model: {text}; {remedy}.")
    merged = {p: source[p].astype(x.dtype) if p in loaded else x for p, x in target.items()}
    tree = traverse_util.unflatten_dict(merged, sep="/")
    initialised = tuple(p for p in target if p not in loaded)
    return Merged(tree.pop("params"), tree, tuple(loaded), initialised)


def replaced(params: Any, state: Any, leaves: Mapping[str, Any]) -> tuple[Any, Any]:
    """(params, state) with the leaves at some paths replaced."""
    tree = traverse_util.unflatten_dict({**flat_leaves(params, state), **leaves}, sep="/")
    return tree.pop("params"), tree


def flat_paths(params: Any, state: Any) -> list[str]:
    """Paths `params/...` and `<collection>/...` of all leaves."""
    return list(flat_leaves(params, state))


def flat_leaves(params: Any, state: Any) -> dict[str, Any]:
    """Path -> leaf, see `flat_paths`."""
    return traverse_util.flatten_dict({"params": params, **state}, sep="/")


def _split(state: types.TrainState):
    """(weights, training): the part to evaluate, and what else a resumed run needs."""
    trained = {"params": state.params, "state": state.state}
    training = {"step": state.step, "opt_state": state.opt_state}
    if state.ema is None:
        return trained, training
    return state.ema, training | trained


def _join(weights, training) -> types.TrainState:
    if "params" in training:
        return types.TrainState(**training, ema=weights)
    return types.TrainState(**weights, **training, ema=None)


def _items(state: types.TrainState, info):
    import orbax.checkpoint as ocp

    weights, training = _split(state)
    return ocp.args.Composite(
        weights=ocp.args.StandardSave(weights),
        training=ocp.args.StandardSave(training),
        config=ocp.args.JsonSave({**info, "step": int(state.step)}),
    )


def _steps(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    """Number -> folder of the complete steps: an unfinished one has a longer name."""
    if not folder.is_dir():
        return {}
    return {int(p.name): p for p in folder.iterdir() if p.name.isdigit()}


def _read_info(folder: pathlib.Path) -> dict:
    import orbax.checkpoint as ocp

    reader = ocp.Checkpointer(ocp.JsonCheckpointHandler())
    try:
        return reader.restore(folder / "config")
    except (ValueError, FileNotFoundError) as error:
        raise errors.UserError(
            f"checkpoint {folder} has no readable config ({errors.first_line(error)}); name another"
            " with --checkpoint."
        ) from error
