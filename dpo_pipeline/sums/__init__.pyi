from .batches import (
    BATCHES_PER_GROUP as BATCHES_PER_GROUP,
    AsTrainer as AsTrainer,
    Batching as Batching,
    BatchTable as BatchTable,
    as_trainer as as_trainer,
    batch_table as batch_table,
)
from .cells import (
    ExactSums as ExactSums,
    Grid as Grid,
    WholeSums as WholeSums,
    bins_of as bins_of,
    coded as coded,
    exact_sums as exact_sums,
    mixed_array as mixed_array,
    numbered as numbered,
    numbered_up_to as numbered_up_to,
    whole_quanta as whole_quanta,
)
from .doubts import doubts_of as doubts_of, not_looked_for as not_looked_for
from .moments import (
    SQUARED as SQUARED,
    of_bits as of_bits,
    square_sums as square_sums,
    variance as variance,
)
from .named_figures import (
    FIGURES as FIGURES,
    TRL_METRICS as TRL_METRICS,
    Figure as Figure,
    in_words as in_words,
)
from .pair_arrays import (
    KEY_BITS as KEY_BITS,
    PairArrays as PairArrays,
    same_numbers as same_numbers,
)
from .pair_sums import (
    CELL as CELL,
    COARSE as COARSE,
    PRECISIONS as PRECISIONS,
    VALID as VALID,
    cell_of as cell_of,
    coarse_bin as coarse_bin,
    coarse_middle as coarse_middle,
    longer_by as longer_by,
    pair_count as pair_count,
    split_cells as split_cells,
)
from .roll_ups import (
    CLUSTER as CLUSTER,
    IS_CORRECT as IS_CORRECT,
    ClusterCounts as ClusterCounts,
    ClusterTable as ClusterTable,
    Partial as Partial,
    RollUps as RollUps,
    across_subsets as across_subsets,
)
from .sense import (
    N_COMPARED as N_COMPARED,
    N_UNMOVED as N_UNMOVED,
    RepeatedKeys as RepeatedKeys,
    Repeats as Repeats,
    Sense as Sense,
    equal as equal,
    hashed_ids as hashed_ids,
    sampled as sampled,
    sense_columns as sense_columns,
)
from .summary import (
    BETA as BETA,
    BIN as BIN,
    N_CLEAN as N_CLEAN,
    OBJECTIVE as OBJECTIVE,
    SUMMARY_FIGURES as SUMMARY_FIGURES,
    Form as Form,
    Summary as Summary,
    counts_in as counts_in,
    figures as figures,
    form_of as form_of,
    merge as merge,
    neighbours_of as neighbours_of,
    reward_sums as reward_sums,
    rolled_up as rolled_up,
    sense_of as sense_of,
    suffix_of as suffix_of,
    tally as tally,
    totals as totals,
    with_objectives as with_objectives,
)
