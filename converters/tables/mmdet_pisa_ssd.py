"""mmdet's SSD trained with prime sample attention -> detector `pisa_ssd`.

Tensors and leaves are those of SSD; so is the pretrained VGG16.
"""

from detlab.converters.tables import mmdet_ssd

table = mmdet_ssd.table
SOURCES = tuple(
    source._replace(description=f"{source.description}, for PISA", detector="pisa_ssd")
    for source in mmdet_ssd.SOURCES
)
