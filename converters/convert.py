r"""Converts weights of other code bases to a detlab weights folder, and back.

    detlab convert --source torchvision --config retinanet_voc \
        --input resnet50-0676ba61.pth --output weights/resnet50_torchvision
    detlab convert --reverse --input runs/retinanet_voc --output retinanet.pth
    detlab convert --pack runs/retinanet_voc --output retinanet_voc
    detlab convert --inspect FILE

`config.init_from`, eval and demo read the folder; its `report.json` lists every tensor of the file
and every leaf of the detector.  A torchvision file fills only the backbone, an mmdet file the whole
detector; a yolov5 file also sets the detector's size and release.  `--input` may be a URL.

A packed folder is safetensors, JSON and a card: what others can load with `detlab.load`.
"""

from collections.abc import Mapping, Sequence

from detlab import cli
from detlab.converters import flags as flags_lib

if __name__ == "__main__":
    cli.answer_first(flags_lib.convert(__doc__))  # --help needs no import below

from detlab import environment, errors
from detlab.converters import export_weights, hub, import_weights, inspect_file


def main(arguments: Sequence[str]) -> None:
    """Runs the command line; raises `UserError` for mistakes that a user can fix."""
    parser = flags_lib.convert(__doc__)
    flags, overrides = cli.parse(arguments, parser)
    modes = ("inspect", "pack", "reverse")
    mode = next((f"--{name}" for name in modes if getattr(flags, name)), "--input")
    given = {name for name, value in vars(flags).items() if value != parser.get_default(name)}
    _check_flags(mode, given, overrides)
    if mode == "--inspect":
        inspect_file.run(flags)
        return
    if mode == "--pack":
        hub.pack(flags)
        return
    environment.check_devices()
    if mode == "--reverse":
        export_weights.run(flags, overrides)
    else:
        import_weights.run(flags, overrides)


# Flags of each mode: the required ones, then the optional ones.
_MODES = {
    "--inspect": (("inspect",), ("cfg", "entry", "sha256")),
    "--pack": (("pack", "output"), ("checkpoint",)),
    "--reverse": (("input", "output"), ("reverse", "source", "config", "checkpoint", "bgr")),
    "--input": (
        ("input", "output", "config"),
        ("source", "sha256", "bgr", "reset_classes", "cfg", "names", "entry"),
    ),
}


def _check_flags(mode: str, given: set[str], overrides: Mapping[str, str]) -> None:
    """Rejects missing flags, and flags that the mode would ignore."""
    needed, optional = _MODES[mode]
    for name in needed:
        if name not in given:
            raise errors.UserError(
                f"--{name} is missing: use --input FILE --output FOLDER --config EXPERIMENT, or"
                " --reverse --input FOLDER --output FILE, --pack FOLDER --output FOLDER, or"
                " --inspect FILE."
            )
    for name in sorted(given - {*needed, *optional}):
        raise errors.UserError(f"--{name} cannot be used with {mode}; remove one of them.")
    if overrides and "config" not in given:
        raise errors.UserError(
            f"--config.{next(iter(overrides))} needs --config EXPERIMENT, which it overrides."
        )


if __name__ == "__main__":
    errors.run_main(main)
