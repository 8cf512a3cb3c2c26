from .common_pairs import (
    differing as differing,
    scored_side as scored_side,
    wanted_columns as wanted_columns,
)
from .compared import (
    Compared as Compared,
    is_below_reference as is_below_reference,
    withholding as withholding,
)
from .comparing import compare as compare
from .comparison_result import (
    COMPARED as COMPARED,
    COMPARISON_VERSION as COMPARISON_VERSION,
    FLIP_COLUMNS as FLIP_COLUMNS,
    REWARD_ACCURACY_HALF as REWARD_ACCURACY_HALF,
    SUBSET_FIGURES as SUBSET_FIGURES,
    Comparison as Comparison,
    McNemar as McNemar,
    Side as Side,
)
from .differences import clusters_in_words as clusters_in_words
from .paired_arrays import (
    Buffers as Buffers,
    SideArrays as SideArrays,
    hashes_of as hashes_of,
)
from .side_sums import (
    ClusterSums as ClusterSums,
    SideSums as SideSums,
    clusters_of as clusters_of,
)
from .sides import (
    Table as Table,
    bound_tables as bound_tables,
    key_asked as key_asked,
    lacking as lacking,
    named as named,
    names_of as names_of,
    refuse_options as refuse_options,
)
