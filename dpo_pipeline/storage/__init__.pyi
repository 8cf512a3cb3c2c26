from .growing_file import GrowingFile as GrowingFile
from .locks import final_name as final_name, identity as identity, size_of as size_of
from .output_checks import METADATA_KEY as METADATA_KEY, PART_KEY as PART_KEY
from .packed_files import (
    copies_among as copies_among,
    is_packed as is_packed,
    unpacked as unpacked,
)
from .publication import writing as writing
from .read_errors import (
    footer_of as footer_of,
    is_arrow as is_arrow,
    reading as reading,
)
from .stores import (
    LOCAL as LOCAL,
    Access as Access,
    CredentialProvider as CredentialProvider,
    glob_regex as glob_regex,
    is_address as is_address,
)
from .targets import (
    Out as Out,
    StagedFile as StagedFile,
    Target as Target,
    without_attempts as without_attempts,
    written_whole as written_whole,
)
from .uploads import Outputs as Outputs
