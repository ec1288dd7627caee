"""Evaluates a detector: COCO's 12 metrics and PASCAL VOC mAP on any source.

    python -m detlab.eval --workdir runs/retinanet_shapes
    python -m detlab.eval --config experiments/retinanet_voc.py --checkpoint weights/retinanet_voc
    python -m detlab.eval --config experiments/retinanet_voc.py --predictions saved.json

The last form evaluates saved predictions without a model: those that this program wrote, or a
results file of COCO's tools.  `--format coco` writes such a file.

Objects marked as crowd (COCO) or difficult (VOC) are ignored: detecting or missing them changes no
metric.  An unreadable image ends the evaluation; with `--config.data.eval_skip_broken=True` it
counts as an image without detections.  If more candidates passed the score threshold than a bound
of the model keeps, such as config.model.num_candidates, a sentence after the metrics says on how
many images.
"""

import time
from collections.abc import Sequence

from detlab import cli

if __name__ == "__main__":
    cli.answer_first(cli.evaluation(__doc__))  # --help needs no import below

from detlab import config as config_lib
from detlab import (
    contract,
    data_sets,
    distributed,
    environment,
    evaluation,
    files,
    sharding,
    trained,
)
from detlab import predictions as predictions_lib


def main(arguments: Sequence[str]) -> None:
    """Runs the program."""
    args, overrides = cli.parse(arguments, cli.evaluation(__doc__))
    cli.check_evaluation(args)
    distributed.join(args)
    if args.config and not args.checkpoint and args.predictions:
        config, weights = config_lib.load(args.config, overrides), None
    else:
        config, weights = trained.load(args, overrides)
        environment.use_compilation_cache(config)
    written = [args.json] if weights is None else [args.json, args.predictions]
    files.check_outputs(files=filter(None, written), folders=filter(None, [args.draw]))
    if weights is None:
        saved = predictions_lib.load(args.predictions)
        class_names = saved.class_names
    else:
        class_names = weights.info.get("class_names")
    source = data_sets.open_source(config, "eval", class_names)
    truth = evaluation.ground_truth(source)

    bounds = {}  # unknown for saved predictions
    if weights is None:
        print(f"evaluating the predictions in {args.predictions}")
        predictions = predictions_lib.match(saved, source, truth)
    else:
        distributed.check_same(config=config_lib.to_json(config), checkpoint=str(weights.path))
        data_sets.check_same_images(data=source)
        print(f"evaluating {weights.path} on {len(source)} images")
        mesh = sharding.make_mesh()
        sharding.check_batch_size("eval.batch_size", config.eval.batch_size)
        detector = contract.build(config)
        params, state = trained.fit(detector, config, weights, mesh)
        predictor = evaluation.Predictor(detector, mesh)
        start = time.time()
        predictions, bounds = evaluation.predict(predictor, params, state, source, config, mesh)
        seconds = time.time() - start - predictor.compile_seconds
        for (height, width), taken in predictor.compiled_in.items():
            print(f"compiled prediction for {height}x{width} in {taken:.1f} s")
        print(f"{len(source) / seconds:.1f} img/s after compilation")
        if not distributed.is_first():
            return
        if args.predictions:
            if args.format == "coco":
                predictions_lib.write_coco(args.predictions, predictions, source)
            else:
                predictions_lib.write(args.predictions, predictions, source.class_names)
            print(f"predictions:   {args.predictions}")

    result = evaluation.score(truth, predictions, source.class_names, bounds)
    print(predictions_lib.report(result))
    if args.json:
        files.write_json(args.json, result)
        print(f"figures:       {args.json}")
    if args.draw:
        count = predictions_lib.draw(
            args.draw, source, truth, predictions, args.threshold, args.draw_limit
        )
        print(f"{count} pictures:   {args.draw} (with a contact sheet of the first 16)")


if __name__ == "__main__":
    distributed.run_main(main)
