"""Weights folders that others can load: `detlab convert --pack`, and the Hugging Face hub."""

import argparse
import inspect
import pathlib
import re

from detlab import config as config_lib
from detlab import contract, errors
from detlab.converters import target
from detlab.run import checkpoint, packed

_ADDRESS = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?/?")

_CAUSES = {
    "RepositoryNotFoundError": "no such repository, or it is not public",
    "RevisionNotFoundError": "no such revision",
}


def is_address(text: str) -> bool:
    """Whether the text means a folder on the hub, well written or not."""
    return text.startswith("hf://")


def fetch(address: str) -> pathlib.Path:
    """The local copy of `hf://owner/name` or `hf://owner/name@revision`; kept by the hub's cache.

    Only the three files of a packed folder are downloaded.

    Raises:
      UserError: no such repository or file, no connection, or the package is missing.
    """
    parts = _ADDRESS.fullmatch(address)
    if not parts:
        raise errors.UserError(
            f"{address} is no address on the hub; write hf://owner/name or hf://owner/name@revision."
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise errors.UserError(
            f'{address} needs the package huggingface_hub; run `pip install "detlab[hub]"`.'
        ) from error
    try:
        folder = huggingface_hub.snapshot_download(
            parts["repo"], revision=parts["revision"], allow_patterns=list(packed.FILES)
        )
    except Exception as error:  # its own errors, those of HTTP, and OSError
        why = _CAUSES.get(type(error).__name__, errors.first_line(error).rstrip("."))
        raise errors.UserError(
            f"{address} cannot be downloaded ({why}); check the name, the connection and, if it is"
            " not public, your token."
        ) from error
    return pathlib.Path(folder)


def pack(flags: argparse.Namespace) -> None:
    """Writes the folder of --pack as one that others can load, to --output."""
    weights = checkpoint.load_weights(flags.pack, flags.checkpoint)
    if "config" not in weights.info:
        raise errors.UserError(
            f"{weights.path} has no config, so nobody could load it; name a run or a folder that"
            " `detlab convert` wrote."
        )
    _check_whole(weights)
    kept = ("config", "class_names", "metrics", "step", "converted_from")
    kept += ("subtrees", "anew", "num_classes", "class_leaves")  # see `checkpoint.may_differ`
    info = {key: weights.info[key] for key in kept if key in weights.info}
    packed.write(flags.output, weights.params, weights.state, info, card(flags.output.name, info))
    size = (flags.output / packed.WEIGHTS).stat().st_size / 1e6
    print(f"wrote {weights.path} to {flags.output}: {', '.join(packed.FILES)}, {size:.1f} MB")
    print(f'load it with detlab.load("{flags.output}"), or detlab demo --workdir {flags.output}')
    print(f"host it with: hf upload OWNER/{flags.output.name} {flags.output}")


def _check_whole(weights: checkpoint.Weights) -> None:
    """Raises unless every leaf that prediction needs is there."""
    there = checkpoint.flat_leaves(weights.params, weights.state)
    missing = [
        path
        for path in target.shapes(config_lib.from_json(weights.info["config"]))
        if path not in there and not path.startswith("loss_state/")
    ]
    if missing:
        raise errors.UserError(
            f"{weights.path} is only a part of a detector ({len(missing)} leaves are missing, such"
            f" as {missing[0]}); train it, and pack the run."
        )


def card(name: str, info: dict) -> str:
    """The text of README.md."""
    config = config_lib.from_json(info["config"])
    module = inspect.getmodule(contract.module_class(config))
    sentence = " ".join(module.__doc__.partition("\n\n")[0].split())
    classes = info.get("class_names") or [f"{contract.num_classes(config)} without names"]
    canvases = ", ".join(f"{width} x {height}" for height, width in config.data.canvases)
    facts = [
        f"- Detector: `{config.detector}`. {sentence}",
        f"- Classes: {', '.join(classes)}.",
        f"- Canvas: {canvases} px.",
    ]
    figures = info.get("metrics", {})
    shown = [f"{key} {figures[key]:.3f}" for key in ("AP", "AP50", "mAP12") if key in figures]
    if shown:
        at = f" at step {info['step']}" if "step" in info else ""
        facts.append(f"- Measured in training{at}: {', '.join(shown)}.")
    if "converted_from" in info:
        facts.append(f"- Converted from `{info['converted_from']['file']}`.")
    return "\n".join(
        [
            "---",
            "library_name: detlab",
            "pipeline_tag: object-detection",
            "---",
            "",
            f"# {name}",
            "",
            *facts,
            "",
            "```python",
            "import detlab",
            "",
            f'predictor = detlab.load("hf://OWNER/{name}")  # or the path of this folder',
            'predictor("photo.jpg").draw("found.png")',
            "```",
            "",
            "The owner of these weights says here which licence they have, and which the data had.",
            "",
        ]
    )
