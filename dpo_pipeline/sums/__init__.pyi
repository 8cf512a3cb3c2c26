from .batches import (
    BATCHES_PER_GROUP as BATCHES_PER_GROUP,
    Batching as Batching,
    BatchTable as BatchTable,
)
from .pair_sums import (
    COARSE as COARSE,
    PRECISIONS as PRECISIONS,
    VALID as VALID,
    cluster_sums as cluster_sums,
    coarse_bin as coarse_bin,
    count as count,
    counted as counted,
    course_sums as course_sums,
    group_sums as group_sums,
    longer_by as longer_by,
    middle_of_coarse as middle_of_coarse,
    parted as parted,
    steps_of as steps_of,
)
from .summary import (
    BETA as BETA,
    BIN as BIN,
    FIGURES as FIGURES,
    OBJECTIVE as OBJECTIVE,
    TRL_METRICS as TRL_METRICS,
    Health as Health,
    Summary as Summary,
    figures as figures,
    merge as merge,
    suffix_of as suffix_of,
    tally as tally,
    with_objectives as with_objectives,
)
