from .catalogue import LOSSES as LOSSES, unit_of_loss as unit_of_loss
from .dialects import DIALECTS as DIALECTS, OTHERS as OTHERS, Rewards as Rewards
from .divergences import F_DIVERGENCES as F_DIVERGENCES
from .dpo import (
    is_correct as is_correct,
    logratio as logratio,
    sigmoid_loss as sigmoid_loss,
    softplus as softplus,
)
from .from_lists import dpo_loss as dpo_loss
from .loss_row import Loss as Loss
from .objective import (
    TOKEN_ARGUMENTS as TOKEN_ARGUMENTS,
    LossArguments as LossArguments,
    LossLike as LossLike,
    CheckedObjective as CheckedObjective,
)
from .pairwise import sigmoid as sigmoid
from .scored_columns import (
    WithinBatches as WithinBatches,
    scores_of as scores_of,
    with_scores as with_scores,
    with_scores_if as with_scores_if,
)
from .token_sums import (
    clamped_logratio as clamped_logratio,
    k1 as k1,
    k2 as k2,
    k3 as k3,
    kept_tokens as kept_tokens,
    length_desensitised as length_desensitised,
    number_of_tokens as number_of_tokens,
    sum_of_tokens as sum_of_tokens,
)
