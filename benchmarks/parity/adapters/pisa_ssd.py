"""mmdet's SSD with ISR-P and CARL: PISASSDHead on a VGG16."""

from benchmarks.parity import configs
from benchmarks.parity.adapters import ssd
from detlab.converters.tables import mmdet_pisa_ssd


def fields(info: dict) -> dict:
    """Fields of `detectors.pisa_ssd.PISASSD`: those of SSD, and those of the weights."""
    with configs.readers(info) as (model, train, test):
        isr, carl = train.child("isr"), train.child("carl")
        return {
            **ssd.of_parts(info, model, configs.head(model, "PISASSDHead", info), train, test),
            "isr_k": isr.take("k"),
            "isr_bias": isr.take("bias"),
            "carl_k": carl.take("k"),
            "carl_bias": carl.take("bias"),
        }


ADAPTER = ssd.ADAPTER._replace(
    parts={**ssd.ADAPTER.parts, "model_cfg.bbox_head.type": "PISASSDHead"},
    detector="pisa_ssd",
    fields=fields,
    table=mmdet_pisa_ssd.table,
    losses={**ssd.ADAPTER.losses, "loss_carl": "loss/carl"},
)
