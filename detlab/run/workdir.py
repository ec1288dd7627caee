"""The folder of a run: its files, and the checks before a run starts or resumes in it."""

import json
import pathlib

from ml_collections import config_dict

from detlab import config as config_lib
from detlab import contract, distributed, environment, errors, files
from detlab.run import checkpoint

# Keys that do not affect the numbers of a run, so a resumed run may change them.
WITHOUT_EFFECT = (
    "compilation_cache",
    "data.demo_rounding",
    "data.read_threads",
    "data.workers",
    "eval.pictures",
    "eval.threshold",
    "init_help",
    "init_skip",  # a resumed run restores all leaves
    "train.keep_last",
)


class Workdir:
    """The paths of a run.  `detlab.run.checkpoint` also keeps `checkpoints` and `best` there."""

    def __init__(self, path: str | pathlib.Path):
        self.path = pathlib.Path(path)
        self.config = self.path / "config.json"
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

    def check(self, config: config_dict.ConfigDict) -> None:
        """Checks that a run of this config can start or resume here; writes nothing.

        Raises:
          UserError: the folder holds a run with another config, or is not a folder.
        """
        if self.path.exists() and not self.path.is_dir():
            raise errors.UserError(f"--workdir {self.path} is a file; name a folder.")
        if not self.config.exists():
            return
        try:
            there = config_lib.from_json(json.loads(self.config.read_text()))
            both = (config_lib.to_json(contract.with_defaults(x)) for x in (there, config))
            different = config_lib.differences(*both, but=WITHOUT_EFFECT)
        except (OSError, ValueError, AttributeError, TypeError, errors.UserError) as error:
            text = str(error).removesuffix(".")
            raise errors.UserError(
                f"{self.config} cannot be read ({text}); give another --workdir."
            ) from error
        if different:
            raise errors.UserError(
                f"{self.path} holds a run whose config differs in {', '.join(different)}; give the"
                " same config to resume it, or another --workdir."
            )

    def open(self, config: config_dict.ConfigDict) -> None:
        """Creates the folder and writes the config and the environment of the run."""
        if distributed.is_first():
            files.write_json(self.config, config_lib.to_json(config))
            files.write_json(self.environment, environment.describe(config))
