from .catalogue import (
    COMPLETION_LOSSES as COMPLETION_LOSSES,
    EVERY_LOSS as EVERY_LOSS,
    LOSSES as LOSSES,
    no_such_loss as no_such_loss,
    unit_of_loss as unit_of_loss,
)
from .dialects import DIALECTS as DIALECTS, OTHERS as OTHERS, Rewards as Rewards
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
    CheckedObjective as CheckedObjective,
    LossArguments as LossArguments,
    LossLike as LossLike,
)
from .pairwise import F_DIVERGENCES as F_DIVERGENCES, sigmoid as sigmoid
from .scored_columns import (
    FIRST_OF_BATCH as FIRST_OF_BATCH,
    NO_KL as NO_KL,
    WithinBatches as WithinBatches,
    completion_reward as completion_reward,
    linear_rewards as linear_rewards,
    name_of_score as name_of_score,
    scores_to_check as scores_to_check,
    with_scores as with_scores,
    with_scores_of as with_scores_of,
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
