"""mmdet's SSD trained with prime sample attention -> detector `pisa_ssd`.

Tensors and leaves are those of SSD.
"""

from detlab.converters import sources
from detlab.converters.tables import mmdet_ssd

table = mmdet_ssd.table
SOURCES = tuple(
    sources.Source("mmdet", f"{name} with PISA", marks, its_table, "pisa_ssd")
    for name, marks, its_table in (
        ("an mmdet SSD", mmdet_ssd.MARKS, mmdet_ssd.table),
        ("an mmdet SSD of before 2.14", mmdet_ssd.OLD_MARKS, mmdet_ssd.old_table),
    )
)
