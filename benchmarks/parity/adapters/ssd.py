"""mmdet's SSD300 and SSD512: SSDHead on a VGG16."""

from benchmarks.parity import configs
from benchmarks.parity.adapters import adapter, retinanet
from detlab import errors
from detlab.converters.tables import mmdet_ssd

Reader = configs.Reader

# Percent of the input's side of the smallest square, by input size and least ratio; SSDHead knows
# no others.
SMALLEST = {(300, 0.15): 7, (300, 0.2): 10, (512, 0.1): 4, (512, 0.15): 7}


def fields(info: dict) -> dict:
    """Fields of `detectors.ssd.SSD`."""
    with configs.readers(info) as (model, train, test):
        return of_parts(info, model, configs.head(model, "SSDHead", info), train, test)


def of_parts(info: dict, model: Reader, head: Reader, train: Reader, test: Reader) -> dict:
    """The fields that SSDs with other losses share."""
    model.expect("type", "SingleStageDetector")
    anchors = _anchors(head.child("anchor_generator"))
    configs.training(train).child("sampler").expect("type", "PseudoSampler")  # takes every anchor
    assigner = train.child("assigner")
    assigner.expect("gt_max_assign_all", False, default=True)
    _backbone(model.child("backbone"))
    return {
        **configs.inputs(info, model),
        "extra_layers": _extras(model.child("neck")),
        **anchors,
        **configs.delta_coder(head.child("bbox_coder")),
        **configs.max_iou(assigner),
        "negatives_per_positive": float(train.take("neg_pos_ratio")),
        "smooth_l1_beta": train.take("smoothl1_beta"),
        **configs.dense_test(test),
    }


def _backbone(config: Reader) -> None:
    config.expect("type", "SSDVGG")
    config.expect("depth", 16)
    config.expect("with_last_pool", False)
    config.expect("ceil_mode", True)
    config.expect("out_indices", [3, 4])
    config.expect("out_feature_indices", [22, 34])
    config.skip("init_cfg")


def _extras(config: Reader) -> tuple[tuple[int, int, int, int], ...]:
    config.expect("type", "SSDNeck")
    config.expect("l2_norm_scale", 20, default=20.0)
    config.skip("in_channels")  # follows from the backbone; a wrong one fails to convert
    widths, strides = config.take("out_channels")[2:], config.take("level_strides")
    kernels = [3] * (len(strides) - 1) + [config.take("last_kernel_size", 3)]
    return tuple(zip(widths, kernels, strides, config.take("level_paddings"), strict=True))


def _anchors(config: Reader) -> dict:
    config.expect("type", "SSDAnchorGenerator")
    config.expect("scale_major", False, default=True)
    size, (least, most) = config.take("input_size"), config.take("basesize_ratio_range")
    ratios, strides = config.take("ratios"), config.take("strides")
    if (size, least) not in SMALLEST:
        raise errors.UserError(
            f"{config.path} has input_size {size} with a least ratio of {least}; mmdet has none."
        )
    expected = [min(8 * 2**level, size) for level in range(len(strides))]
    if size == 300:
        expected[4:] = 100, 300  # of the levels that do not pad
    if list(strides) != expected:
        raise errors.UserError(f"{config.path}.strides is {strides}; detlab has only {expected}.")
    low, high = int(least * 100), int(most * 100)
    step = (high - low) // (len(ratios) - 2)
    percents = list(range(low, high + 1, step))
    return {
        "input_size": size,
        "side_percents": (SMALLEST[size, least], *percents, percents[-1] + step),
        "level_ratios": tuple(map(tuple, ratios)),
    }


ADAPTER = adapter.Adapter(
    parts={"model_cfg.type": "SingleStageDetector", "model_cfg.bbox_head.type": "SSDHead"},
    detector="ssd",
    fields=fields,
    table=mmdet_ssd.table,
    arrays=retinanet.arrays,
    losses={"loss_cls": "loss/cls", "loss_bbox": "loss/box"},
    not_compared=retinanet.ADAPTER.not_compared,
)
