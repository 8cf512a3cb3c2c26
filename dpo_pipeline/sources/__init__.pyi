from .dataset import Dataset as Dataset, Shard as Shard, open_dataset as open_dataset
from .files import Part as Part, SourcePath as SourcePath
from .formats import (
    FORMATS as FORMATS,
    PARQUET as PARQUET,
    checked_parquet_name as checked_parquet_name,
    guess as guess,
)
from .joining import (
    KEY as KEY,
    Counts as Counts,
    check_reference_roles as check_reference_roles,
    checked_on as checked_on,
    count_keys as count_keys,
    join_reference as join_reference,
    joined as joined,
    key_of as key_of,
    reference_columns_of as reference_columns_of,
    with_reference as with_reference,
)
from .opening import (
    FrameLike as FrameLike,
    as_dataset as as_dataset,
    as_lazy as as_lazy,
    convert as convert,
    dataset_of as dataset_of,
    known_format as known_format,
    label_of as label_of,
    opened as opened,
    read as read,
    useful_mapping as useful_mapping,
)
