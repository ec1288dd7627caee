"""Records mmdet 3.3.0 (Apache-2.0) on shared cases whose images lose their objects.

    python tests/data/no_objects/record.py ../shared/parity

Weights, images and settings are those of the shared case; `NAME.json` and `NAME.npz` hold what
differs: the number of objects, targets, losses, gradients and buffers, in the same format.  There
are no gradients for batches without any object, and none for YOLOv3.  Each shared case is first
run unchanged and must reproduce its recording.

Not run by the tests.  It needs mmdet 3.3.0, mmengine, torch, torchvision, and mmcv or mmcv-lite
2.1.0: mmcv's compiled operators are replaced by torchvision's, on CPUs.
"""

import importlib.machinery
import json
import pathlib
import sys
import types

import numpy as np
import torch
import torchvision

FOLDER = pathlib.Path(__file__).parent
CASES = (
    "small/retinanet_r50_fpn_small",
    "small/retinanet_ghm_r50_fpn_small",
    "small/fcos_r50_caffe_fpn_gn_head_small",
    "small/fcos_r50_caffe_fpn_gn_head_center_normbbox_centeronreg_giou_small",
    "small/reppoints_moment_r50_fpn_gn_small",
    "small/reppoints_bbox_r50_grid_center_fpn_gn_small",
    "small/faster_rcnn_r50_fpn_small",
    "small/cornernet_hourglass104_small",
    "yolov3_d53",
)
COUNTS = ((3, 0), (0, 0))  # of objects that the two images of each case keep
NUDGES = 6


class Compiled(types.ModuleType):
    """Stands in for mmcv's compiled operators; those in use are replaced below."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*args, **kwargs):
            raise RuntimeError(f"mmcv's operator {name} is called, but nothing here replaces it")

        return absent


def nms(boxes, scores, iou_threshold, offset):
    assert offset == 0
    return torchvision.ops.nms(boxes, scores, iou_threshold)


def roi_align(self, x, rois):
    size, scale, ratio = self.output_size, self.spatial_scale, self.sampling_ratio
    return torchvision.ops.roi_align(x, rois, size, scale, ratio, self.aligned)


def deform_conv(self, x, offset):
    where = self.stride, self.padding, self.dilation
    return torchvision.ops.deform_conv2d(x, offset, self.weight, None, *where)


compiled = Compiled("mmcv._ext")
compiled.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
compiled.__file__ = __file__
compiled.nms = nms
sys.modules["mmcv._ext"] = compiled

from mmcv.ops import DeformConv2d, RoIAlign  # noqa: E402
from mmdet.registry import MODELS  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.config import ConfigDict  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

RoIAlign.forward = roi_align
DeformConv2d.forward = deform_conv


def main(fixtures: pathlib.Path) -> None:
    sys.path.insert(0, str(fixtures))
    register_all_modules()
    torch.set_num_threads(1)
    for name in CASES:
        info = json.loads((fixtures / f"{name}.json").read_text())
        with np.load(fixtures / f"{name}.npz") as file:
            arrays = dict(file)
        check(info, arrays)
        for counts in COUNTS:
            record(info, arrays, counts)


def check(info, arrays) -> None:
    """The shared case itself reproduces its recording."""
    found, targets = run(info, arrays, info["gt_counts"], arrays["image"])
    for key, value in info["losses"].items():
        assert abs(found["losses"][key] - value) <= 2e-5 * abs(value), (key, value)
    ours = ("train_targets", "train_assign", "train_rois")
    names = [k for k in arrays if k.startswith(ours) and not k.endswith("max_overlaps")]
    assert names and set(names) == set(targets)
    for key in names:
        assert arrays[key].shape == targets[key].shape
        np.testing.assert_allclose(targets[key], arrays[key], rtol=1e-4, atol=1e-3)


def record(info, arrays, counts) -> None:
    found, targets = run(info, arrays, counts, arrays["image"])
    drift = {"norms": {}, "dots": {}, "vectors": {}, "runs": NUDGES, "relative_change": 1e-6}
    losses = dict.fromkeys(found["losses"], 0.0)
    with_gradients = any(counts) and not info["batch_norm_in_train"]["batch_statistics"]
    for seed in range(NUDGES):
        change = np.random.default_rng(seed).uniform(-1, 1, arrays["image"].shape)
        image = (arrays["image"] * (1 + 1e-6 * change)).astype(np.float32)
        other, _ = run(info, arrays, counts, image)
        for key, value in other["losses"].items():
            of = found["losses"][key]
            losses[key] = max(losses[key], abs(value - of) / max(abs(of), 1e-12))
        for key, gradient in other["gradients"].items():
            moved = {
                "norms": abs(other["grad_norms"][key] - found["grad_norms"][key]),
                "dots": abs(other["grad_dots"][key] - found["grad_dots"][key]),
                "vectors": float((gradient - found["gradients"][key]).norm()),
            }
            for kind, value in moved.items():
                drift[kind][key] = max(drift[kind].get(key, 0.0), value)
    del found["gradients"]
    if not with_gradients:
        found |= {"grad_norms": {}, "grad_dots": {}}
        drift = drift | {"norms": {}, "dots": {}, "vectors": {}}
    found |= {
        "gt_counts": list(counts),
        "grad_drift": drift,
        "drift": {**info["drift"], "losses": losses},
    }
    name = "_".join([info["name"], *map(str, counts)])
    (FOLDER / f"{name}.json").write_text(json.dumps(rounded(found), separators=(",", ":")) + "\n")
    np.savez_compressed(FOLDER / f"{name}.npz", **targets)
    print(name, found["losses"])


def rounded(value):
    """A tree with its numbers rounded to seven digits."""
    if isinstance(value, dict):
        return {key: rounded(x) for key, x in value.items()}
    return float(f"{value:.7g}") if isinstance(value, float) else value


def run(info, arrays, counts, image):
    """(numbers for the JSON and `gradients`, arrays) of one step."""
    model, arrays_of_run = build(info), {}
    tap(model, arrays_of_run)
    losses = model.loss(torch.tensor(image), samples(arrays, counts, image.shape[2:]))
    tensors = {k: v if isinstance(v, (list, tuple)) else [v] for k, v in losses.items()}
    sums = {key: sum(x.mean() for x in levels) for key, levels in tensors.items()}
    total = sum(value for key, value in sums.items() if "loss" in key)
    total.backward()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    state, params = model.state_dict(), dict(model.named_parameters())
    found = {
        "losses": {key: value.item() for key, value in sums.items()},
        "total_loss": total.item(),
        "grad_norms": {k: g.double().norm().item() for k, g in gradients.items()},
        "grad_dots": {
            k: (g.double() * params[k].detach().double()).sum().item() for k, g in gradients.items()
        },
        "unused": [k for k, p in params.items() if p.requires_grad and p.grad is None],
        "buffers_after_train": {
            k: state[k].double().norm().item() for k in info["buffers_after_train"]
        },
        "gradients": gradients,
    }
    return found, arrays_of_run


def build(info):
    """The model of a case in training mode, with weights by the case's rule."""
    import weights  # of the fixtures

    config = ConfigDict(info["model_cfg"])
    config.train_cfg, config.test_cfg = info["train_cfg"], info["test_cfg"]
    config.data_preprocessor = None
    config.backbone.pop("init_cfg", None)
    model = MODELS.build(config)
    state = model.state_dict()
    for key, shape, _ in info["state_dict"]:
        if key not in info["kept"]:
            state[key] = torch.tensor(np.asarray(weights.make(key, shape, info["seed"])))
    model.load_state_dict(state)
    model.train()
    if not info["batch_norm_in_train"]["batch_statistics"]:
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()
    return model


def samples(arrays, counts, size):
    """The input of mmdet's loss: the first `counts[i]` objects of image i."""
    made = []
    for i, count in enumerate(counts):
        sample = DetDataSample()
        sample.set_metainfo(
            dict(img_shape=size, batch_input_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
        )
        for name, kept in (("gt_instances", count), ("ignored_instances", 0)):
            objects = InstanceData()
            objects.bboxes = torch.tensor(arrays[f"gt_boxes_{i}"][:kept])
            objects.labels = torch.tensor(arrays[f"gt_labels_{i}"][:kept].astype(np.int64))
            setattr(sample, name, objects)
        made.append(sample)
    return made


def tap(model, found: dict) -> None:
    """Stores the results of assigners and `get_targets`, and the RoIs, in `found`."""

    def wrap(owner, method, write):
        inner, calls = getattr(owner, method), []

        def outer(*args, **kwargs):
            result = inner(*args, **kwargs)
            write(len(calls), result)
            calls.append(None)
            return result

        setattr(owner, method, outer)

    def assigned(name):
        def write(call, result):
            for field in ("gt_inds", "labels"):
                put(found, f"train_assign.{name}.{call}.{field}", getattr(result, field))

        return write

    def targets(name):
        def write(call, result):
            if isinstance(result, dict):
                put(found, f"train_targets.{name}.{call}", result)
            else:
                for j, item in enumerate(result):
                    put(found, f"train_targets.{name}.{call}.{j}", item)

        return write

    for path, module in model.named_modules():
        for name in ("assigner", "init_assigner", "refine_assigner", "bbox_assigner"):
            if hasattr(module, name):
                wrap(getattr(module, name), "assign", assigned(f"{path}.{name}"))
        if path and hasattr(module, "get_targets"):
            wrap(module, "get_targets", targets(f"{path}.get_targets"))
    if getattr(model, "roi_head", None) is not None:
        extractor = model.roi_head.bbox_roi_extractor
        extractor.register_forward_pre_hook(
            lambda module, inputs: put(found, "train_rois_0", inputs[1])
        )


def put(found: dict, name: str, value) -> None:
    """Stores an item of a result by its name in a case; lists by level, dictionaries by key."""
    if isinstance(value, dict):
        for key, item in value.items():
            put(found, f"{name}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            put(found, f"{name}_{i}", item)
    elif value is not None:
        array = np.asarray(value.detach() if torch.is_tensor(value) else value)
        found[name] = array.astype(np.float32 if array.dtype.kind == "f" else np.int32)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
