"""Evaluation during a run, and the results that a finished run writes."""

from typing import Any, NamedTuple

import tqdm
from ml_collections import config_dict

from detlab import config as config_lib
from detlab import contract, data_sets, distributed, evaluation, files, types
from detlab import predictions as predictions_lib
from detlab.run import checkpoint
from detlab.run import log as log_lib
from detlab.run import setup as setup_lib
from detlab.run import state as state_lib
from detlab.run import workdir as workdir_lib
from detlab.viz import curves


class Outcome(NamedTuple):
    """The result of one evaluation."""

    figures: dict  # see `evaluation.score`
    predictions: list[dict]


class Evaluation:
    """Evaluates a state, logs the metrics, and keeps the best checkpoint.

    Attributes:
      truth: the annotations, see `evaluation.ground_truth`.
    """

    def __init__(
        self,
        setup: setup_lib.Setup,
        log: log_lib.RunLog,
        checkpoints: checkpoint.Checkpoints,
        info: dict,
    ):
        """`info` is saved with each checkpoint, see `checkpoint.Weights`."""
        self.truth = evaluation.ground_truth(setup.eval_source)
        self._no_objects = evaluation.report_no_objects(self.truth)
        self._measure = measure(setup.config, setup.eval_source)
        self._predictor = evaluation.Predictor(setup.detector, setup.mesh)
        self._source, self._config, self._mesh = setup.eval_source, setup.config, setup.mesh
        self._log, self._checkpoints, self._info = log, checkpoints, info

    @property
    def compile_seconds(self) -> float:
        return self._predictor.compile_seconds

    def __call__(
        self, state: types.TrainState, stop: distributed.StopSignals, bar: tqdm.tqdm
    ) -> Outcome | None:
        """Returns None if `stop()` became True before the end."""
        with self._log.not_training():
            params, model_state = state_lib.evaluated(state)
            predictions, bounds = evaluation.predict(
                self._predictor, params, model_state, self._source, self._config, self._mesh, stop
            )
            if stop():
                return None
            result = evaluation.score(self.truth, predictions, self._source.class_names, bounds)
            figures = evaluation.scalars(result)
            score = figures[self._config.eval.best_by]
            if self._is_best(score, bar):
                info = {**self._info, "metrics": figures, "measure": self._measure}
                self._checkpoints.save_best(state, info, score)
            step = int(state.step)
            self._log.evaluation(step, figures)
            bar.write(f"step {step}: {predictions_lib.summary(figures)}")
        return Outcome(result, predictions)

    def _is_best(self, score: float, bar: tqdm.tqdm) -> bool:
        """Whether the checkpoint replaces the best; without objects, the last one is the best."""
        best = self._checkpoints.best()
        if best is None or self._no_objects:
            return True
        before = best.get("measure", self._measure)
        others = [key for key, value in self._measure.items() if before.get(key) != value]
        if others:
            bar.write(
                f"the best checkpoint so far, of step {best['step']}, was measured otherwise"
                f" ({', '.join(others)}); this one replaces it"
            )
        return bool(others) or score > best["score"]


# Keys of the config that figures depend on, beside the data and the weights.
MEASURE = (
    "data.eval_shrink",
    "eval.best_by",
    "eval.rectangles",
    "eval.views",
    *workdir_lib.PREDICTION,
)


def measure(config: config_dict.ConfigDict, source: Any) -> dict[str, Any]:
    """What the figures of a run depend on beside its weights; equal for comparable figures."""
    values = config_lib.to_json(contract.with_defaults(config))
    keys = {key: key.split(".") for key in MEASURE}
    found = {key: values[block].get(name) for key, (block, name) in keys.items()}
    return {**found, "images": data_sets.fingerprint(source)}


def write_results(
    workdir: workdir_lib.Workdir,
    outcome: Outcome,
    truth: list[dict],
    source: Any,
    config: config_dict.ConfigDict,
) -> None:
    """Writes predictions, curves, pictures and metrics of a finished run and prints their paths.

    The metrics are written last: their file marks the run as finished.
    """
    predictions_lib.write(workdir.predictions, outcome.predictions, source.class_names)
    rows = log_lib.read_rows(workdir.log)
    with files.writing(workdir.curves):
        curves.plot_run(rows, workdir.curves)
    if config.eval.pictures:
        predictions_lib.draw(
            workdir.pictures,
            source,
            truth,
            outcome.predictions,
            config.eval.threshold,
            config.eval.pictures,
        )
    files.write_json(workdir.figures, outcome.figures)
    print(f"curves:       {workdir.curves} (numbers in {workdir.log}, and tensorboard/)")
    print(f"figures:      {workdir.figures}")
    print(f"predictions:  {workdir.predictions}")
    if config.eval.pictures:
        print(f"pictures:     {workdir.pictures} (left: ground truth, right: predictions)")
