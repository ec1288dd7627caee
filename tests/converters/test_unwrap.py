"""Where the weights of a file are: entries, prefixes of wrappers, averaged copies."""

import numpy as np
import pytest

from detlab.converters import named, unwrap
from detlab.converters.readers import contents
from detlab.converters.tables import mmdet_retinanet, torchvision_resnet, yolov5
from detlab.converters.writers import safetensors_file

YOLOV5 = (*yolov5.SOURCES[1].marks, "model.24.m.0.weight")
RETINANET = (*mmdet_retinanet.MARKS, "neck.lateral_convs.0.conv.weight")
RESNET = (*torchvision_resnet.MARKS, "fc.bias")


@pytest.fixture
def save(pth, tmp_path):
    """`save({"entry": {"name": number}})` -> a file; each number is a tensor of one value."""

    def push(value):
        if isinstance(value, dict):
            return pth.dict({key: push(inner) for key, inner in value.items()})
        if isinstance(value, float):
            return pth.tensor(np.full(1, value, np.float32))
        return pth.integer(value)  # any other value that pickles by itself

    return lambda value: pth.write(tmp_path / "x.pt", push(value))


def names(kind, prefix="", value=1.0):
    return {f"{prefix}{name}": value for name in kind}


def values(path, entry=""):
    tensors = unwrap.read(path, named.SOURCES, entry).tensors
    return {name: float(array[0]) for name, array in tensors.items()}


def refused(path, entry=""):
    with pytest.raises(contents.ReadError) as info:
        values(path, entry)
    assert str(info.value).startswith(f"{path}: ")
    return str(info.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("kind", [YOLOV5, RETINANET, RESNET], ids=["yolov5", "retinanet", "resnet"])
@pytest.mark.parametrize(
    "prefix",
    [
        *("", "module.", "_orig_mod.", "model.", "model.model.", "net.", "detector."),
        *("module._orig_mod.", "_orig_mod.module.", "model._orig_mod.", "module.module."),
        *("_fsdp_wrapped_module.", "my_own.network.", "0."),
    ],
)
def test_a_prefix_of_all_names_is_taken_off(save, kind, prefix):
    assert values(save(names(kind, prefix))) == names(kind)
    assert values(save({"state_dict": names(kind, prefix)})) == names(kind)


def test_other_formats_lose_their_prefixes_too(tmp_path):
    tensors = {f"model.{name}": np.ones(1, np.float32) for name in YOLOV5}
    safetensors_file.write(tmp_path / "x.safetensors", tensors)
    np.savez(tmp_path / "x.npz", **tensors)
    for suffix in ("safetensors", "npz"):
        assert values(tmp_path / f"x.{suffix}") == names(YOLOV5)


def test_wrappers_inside_a_model_are_taken_off(save):
    parts = {"backbone._orig_mod.conv1.weight": 1.0, "bbox_head.retina_cls.weight": 2.0}
    assert list(values(save(parts))) == ["backbone.conv1.weight", "bbox_head.retina_cls.weight"]
    both = {"a.weight": 1.0, "_orig_mod.a.weight": 2.0}
    assert values(save(both)) == both, "two tensors stay two"


def test_a_model_saved_without_its_own_prefix_gets_it(save):
    path = save({name.removeprefix("model."): 1.0 for name in YOLOV5})
    assert values(path) == names(YOLOV5)
    (note,) = unwrap.read(path, named.SOURCES).notes
    assert note == "model. is put before the names of 4 tensors"


def test_the_backbone_of_a_detector_is_not_taken_for_a_file_of_its_own(save):
    """A two-stage detector that no table knows, with the names of a ResNet in it."""
    cascade = {**names(RESNET, "backbone."), "roi_head.bbox_head.2.fc_cls.weight": 1.0}
    assert values(save(cascade)) == cascade


def test_tensors_outside_the_prefix_are_counted(save):
    extra = {"criterion.weight": 3.0, "loss_fn.scale": 3.0}
    path = save({"state_dict": {**names(RETINANET, "model."), **extra}})
    file = unwrap.read(path, named.SOURCES)
    assert set(file.tensors) == {*RETINANET}
    assert file.notes == (
        "the prefix model. of 3 tensors is taken off, and 2 without it are left out:"
        " criterion.weight, loss_fn.scale",
    )


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"model_state_dict": ..., "optimizer_state_dict": {"m": 5.0}, "loss": 0.5, "epoch": 3},
        {"epoch": 3, "net": ..., "acc": 0.5},
        {"weights": ...},
        {"params": ...},
        {"best_net": ..., "best_loss": 0.5},
        {"checkpoint": {"model": ..., "iteration": 7}},
        {"a": {"b": {"c": ...}}},
        {"ema": {"decay": 0.9}, "model": ...},
        {"optimizer": {"state": names(YOLOV5, value=5.0)}, "state_dict": ...},
        {"state_dict": {"module": ...}},
    ],
    ids=lambda checkpoint: "-".join(checkpoint),
)
def test_weights_are_found_in_any_entry(save, checkpoint):
    def filled(value):
        if value is ...:
            return names(YOLOV5)
        return {k: filled(v) for k, v in value.items()} if isinstance(value, dict) else value

    assert values(save(filled(checkpoint))) == names(YOLOV5)


def wrapped(kind, value):
    return {**names(kind, "module.", value), "steps": 9.0}


COPIES = {  # file -> the values that are read (1: by default; 2: with this --entry)
    "YOLOv5": ({"ema": names(YOLOV5), "model": names(YOLOV5, value=2.0)}, "model"),
    "timm": (
        {"state_dict": names(RESNET, value=2.0), "state_dict_ema": names(RESNET)},
        "state_dict",
    ),
    "torchvision": (
        {"model": names(RESNET, value=2.0), "model_ema": names(RESNET, "module.")},
        "model",
    ),
    "deeper": ({"model": names(YOLOV5, value=2.0), "ema": {"module": names(YOLOV5)}}, "model"),
    "mmengine": (
        {"state_dict": names(RETINANET), "ema_state_dict": wrapped(RETINANET, 2.0)},
        "ema_state_dict",
    ),
    "Lightning": (
        {"state_dict": {**names(YOLOV5, "model.", 2.0), **names(YOLOV5, "ema_model.")}},
        "state_dict/model",
    ),
    "mmdet 2": (
        {
            "state_dict": {
                **names(RETINANET),
                **{f"ema_{name.replace('.', '_')}": 2.0 for name in RETINANET},
            }
        },
        "ema_",
    ),
}


@pytest.mark.parametrize("name", COPIES)
def test_of_two_copies_the_one_is_read_that_its_code_loads_unless_told(save, name):
    checkpoint, other = COPIES[name]
    path = save(checkpoint)
    kind = YOLOV5 if name in ("YOLOv5", "deeper", "Lightning") else RETINANET
    kind = RESNET if name in ("timm", "torchvision") else kind
    assert values(path) == names(kind)
    assert values(path, other) == names(kind, value=2.0)
    (note, *_) = unwrap.read(path, named.SOURCES).notes
    assert note.startswith(f"{path} holds such weights in ") and "--entry chooses others" in note
    assert other in note and ("averages" in note)
    told = unwrap.read(path, named.SOURCES, other).notes
    assert not any("holds such weights" in note for note in told)


def test_the_copies_of_mmdet_are_told_in_full(save):
    path = save(COPIES["mmengine"][0])
    assert unwrap.read(path, named.SOURCES).notes == (
        f"{path} holds such weights in state_dict and ema_state_dict/module; those in state_dict"
        " are read (mmdet exchanges the copies before it saves, so they hold the averages);"
        " --entry chooses others",
    )
    path = save(COPIES["mmdet 2"][0])
    assert unwrap.read(path, named.SOURCES).notes == (
        f"{path} holds such weights in state_dict and ema_; those in state_dict are read (mmdet"
        " exchanges the copies before it saves, so they hold the averages); --entry chooses others",
    )


def test_several_models_are_asked_for(save):
    both = {**names(YOLOV5, "student."), **names(YOLOV5, "teacher.", 2.0)}
    path = save({"state_dict": both})
    assert refused(path) == (
        "holds several sets of weights: state_dict/student, state_dict/teacher; choose one with"
        " --entry."
    )
    assert values(path, "state_dict/teacher") == names(YOLOV5, value=2.0)
    path = save({"first": names(YOLOV5), "second": names(YOLOV5)})
    assert "several sets of weights: first, second; choose one" in refused(path)


def test_an_entry_that_is_not_there_is_refused_with_those_that_are(save):
    path = save(COPIES["YOLOv5"][0])
    assert (
        refused(path, "teacher") == "has no weights in 'teacher'; choose --entry from ema, model."
    )
    assert refused(save({"a": 1, "b": {"c": 2}})) == "holds no tensors (its entries: 'a', 'b')."


def test_entries_are_counted_for_those_who_do_not_find_theirs(save):
    path = save({"generator": {"a.b": 1.0, "a.c": 1.0}, "discriminator": {"d": 1.0}, "epoch": 3})
    file = unwrap.read(path, named.SOURCES)
    assert file.entries == {"generator": 2, "discriminator": 1} and set(file.tensors) == {
        "a.b",
        "a.c",
    }
