"""The folder of a run: its files, and the checks before a run starts or resumes in it."""

import contextlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from detlab import config as config_lib
from detlab import contract, data_sets, distributed, environment, errors, files
from detlab.run import checkpoint, lock

# Fields of detectors that change their predictions alone.
PREDICTION = tuple(
    f"model.{field}"
    for field in (
        *("candidates_per_level", "class_agnostic", "max_corners", "max_detections"),
        *("max_tag_distance", "min_score", "multi_label", "nms_iou", "nms_kind", "num_candidates"),
        *("objectness_threshold", "peak_kernel", "score_threshold", "soft_nms_sigma"),
    )
)
# Keys that change nothing that is learned, so a resumed run may change them.
WITHOUT_EFFECT = (
    *PREDICTION,
    "compilation_cache",
    "data.demo_rounding",
    "data.eval_annotations",
    "data.eval_images",
    "data.eval_shrink",
    "data.eval_skip_broken",
    "data.eval_splits",
    "data.read_threads",
    "data.root",  # `check_images` compares the images
    "data.skip_broken",
    "data.train_annotations",
    "data.train_images",
    "data.workers",
    "eval.batch_size",
    "eval.best_by",
    "eval.pictures",
    "eval.rectangles",
    "eval.threshold",
    "eval.views",
    "init_help",
    "init_skip",  # a resumed run restores all leaves
    "model.remat",
    "train.checkpoint_every",
    "train.eval_every",
    "train.keep_last",
    "train.log_every",
)
LENGTH = ("train.epochs", "train.steps")
MOVED = ("data.root", "data.train_images", "data.train_annotations", "data.train_also")

Changes = Mapping[str, tuple[Any, Any]]  # key of the config -> values in the folder and now


class Workdir:
    """The paths of a run.  `detlab.run.checkpoint` also keeps `checkpoints` and `best` there."""

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        self.config = self.path / "config.json"
        self.images = self.path / "images.json"  # which images the last start has opened
        self.log = self.path / "metrics.jsonl"
        self.environment = self.path / "env.json"  # of the last start
        self.curves = self.path / "curves.png"
        self.predictions = self.path / "predictions.json"
        self.pictures = self.path / "pictures"
        self.profile = self.path / "profile"
        self.figures = self.path / "eval.json"  # of the last step; written last, marks the end

    @property
    def finished(self) -> bool:
        return self.figures.exists()

    @property
    def latest_step(self) -> int | None:
        """The step to resume from; None for a new run."""
        return checkpoint.latest_step(self.path)

    def lock(self) -> contextlib.AbstractContextManager:
        """Keeps other runs out; the first process holds the lock for all of a run.

        Raises:
          UserError: another run has the folder, or it cannot be written or is not a folder.
        """
        if self.path.exists() and not self.path.is_dir():
            raise errors.UserError(f"--workdir {self.path} is a file; name a folder.")
        return lock.held(self.path) if distributed.is_first() else contextlib.nullcontext()

    def check(self, config: config_dict.ConfigDict) -> Changes:
        """Checks that a run of this config can start or resume here; writes nothing.

        A finished run may be prolonged, and so may one whose learning rates do not depend on its
        length.

        Returns:
          What has changed and may change; empty for a new run.
        Raises:
          UserError: the folder holds a run with another config.
        """
        if not self.config.exists():
            return {}
        try:
            there = config_lib.from_json(json.loads(self.config.read_text(encoding="utf-8")))
            there, now = (config_lib.to_json(contract.with_defaults(x)) for x in (there, config))
            changed = config_lib.differences(there, now)
        except (OSError, ValueError, AttributeError, TypeError, errors.UserError) as error:
            text = str(error).removesuffix(".")
            raise errors.UserError(
                f"{self.config} cannot be read ({text}); give another --workdir."
            ) from error
        refused = {k: v for k, v in changed.items() if not self._may_change(k, v, there)}
        if refused:
            lines = [f"{k} ({old!r} there, {new!r} now)" for k, (old, new) in refused.items()]
            schedule, why, way = there["optim"]["schedule"], "", ""
            if has_other_length(refused):
                why = f", and the learning rates of its {schedule} schedule depend on the length"
                if schedule == "step":
                    why = ", and its milestones count epochs or steps, as the length does"
            if self.latest_step is not None:
                way = f", with --config.init_from={self.path} to begin with its weights"
            raise errors.UserError(
                f"{self.path} holds a run whose config differs in {', '.join(lines)}{why}; give the"
                f" same config to resume it, or another --workdir{way}."
            )
        return changed

    def _may_change(self, key: str, values: tuple[Any, Any], there: Mapping[str, Any]) -> bool:
        if key == "init_from":  # a resumed run restores all leaves
            return self.latest_step is not None
        if key == "data.train_also":
            return _without_paths(values[0]) == _without_paths(values[1])
        if key in LENGTH:
            schedule = there["optim"]["schedule"]
            if schedule == "step" and 0 in values:  # milestones would count another unit
                return False
            return self.finished or schedule in ("constant", "step")
        return key in WITHOUT_EFFECT or key.startswith("predict.")

    def check_length(self, total: int) -> None:
        """Raises a `UserError` if the run has taken more steps than the config asks for."""
        reached = self.latest_step or 0
        if reached > total:
            raise errors.UserError(
                f"{self.path} has taken {reached} steps, more than the {total} of this config; give"
                " a larger config.train.steps or config.train.epochs, or another --workdir."
            )

    def check_images(self, changed: Changes, **sources: Any) -> None:
        """Compares the images with those of the last start and keeps note of them.

        Args:
          changed: the result of `check`.
          **sources: `training` and `evaluation`.
        Raises:
          UserError: a path of the data has changed, and the training images there are others.
        """
        now = {name: data_sets.fingerprint(source) for name, source in sources.items()}
        try:
            before = json.loads(self.images.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = {}
        if self.latest_step is None:
            before = {}
        for name, found in now.items():
            if before.get(name, found) == found:
                continue
            count = before[name][0]
            others = f"{count} images before, {found[0]} now"
            if count == found[0]:
                others = f"{count} images, with other names or sizes"
            moved = [key for key in MOVED if key in changed]
            if name == "training" and moved:
                raise errors.UserError(
                    f"the training data are not those that the run in {self.path} has learned from:"
                    f" {others}; give those with config.{moved[0]}, or another --workdir, with"
                    f" --config.init_from={self.path} to begin with its weights."
                )
            print(f"the {name} data have changed since the last start: {others}")
        if distributed.is_first():
            files.write_json(self.images, now)

    def open(self, config: config_dict.ConfigDict, changed: Changes) -> None:
        """Writes the config and the environment of the run; prints what has changed."""
        if not distributed.is_first():
            return
        if changed:
            lines = (f"{key} {old!r} -> {new!r}" for key, (old, new) in changed.items())
            print(f"changed since the last start: {', '.join(lines)}")
        if self.finished:  # and is prolonged
            kept = self.path / f"eval_{self.latest_step}.json"
            with files.writing(kept):
                self.figures.replace(kept)
            print(f"the run goes on from step {self.latest_step}; its figures so far: {kept}")
        files.write_json(self.config, config_lib.to_json(config))
        files.write_json(self.environment, environment.describe(config))


def has_other_length(changed: Changes) -> bool:
    """Whether a run is to be prolonged or cut short."""
    return any(key in changed for key in LENGTH)


def _without_paths(also: Any) -> list[dict]:
    """`data.train_also` without the places of its data, which may be moved."""
    return [{k: v for k, v in part.items() if k not in config_lib.PATHS} for part in also]
