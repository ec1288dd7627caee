"""mmdet's PAA -> detector `paa`.

Tensors and leaves are those of ATSS; the config decides between the two.
"""

from detlab.converters import sources
from detlab.converters.tables import mmdet_atss

MARKS, table = mmdet_atss.MARKS, mmdet_atss.table
SOURCES = (sources.Source("mmdet", "an mmdet PAA", MARKS, table, "paa"),)
