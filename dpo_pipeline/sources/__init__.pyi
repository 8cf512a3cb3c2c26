from .dataset import (
    Dataset as Dataset,
    Part as Part,
    Shard as Shard,
    ranges_in_step as ranges_in_step,
)
from .files import SourcePath as SourcePath
from .formats import (
    FORMATS as FORMATS,
    LM_EVAL as LM_EVAL,
    PARQUET as PARQUET,
    REWARDBENCH as REWARDBENCH,
    checked_parquet_name as checked_parquet_name,
    guess as guess,
    layout_of as layout_of,
)
from .frames import dumps_apart as dumps_apart, lazily as lazily
from .joining import (
    EqualColumns as EqualColumns,
    join_reference as join_reference,
    open_reference as open_reference,
    reference_columns_of as reference_columns_of,
    tokenised_apart as tokenised_apart,
    with_reference as with_reference,
)
from .keys import (
    KEY as KEY,
    Counts as Counts,
    OrderedRows as OrderedRows,
    OutOfStep as OutOfStep,
    Partitions as Partitions,
    UniqueKeys as UniqueKeys,
    checked_on as checked_on,
    count_keys as count_keys,
    in_step as in_step,
    joined as joined,
    key_of as key_of,
)
from .opening import (
    format_of as format_of,
    open_pairs as open_pairs,
    open_texts as open_texts,
    publication_of as publication_of,
    read as read,
)
