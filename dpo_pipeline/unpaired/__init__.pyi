from .completion_evaluation import (
    GATED_OF_COMPLETIONS as GATED_OF_COMPLETIONS,
    CompletionEvaluation as CompletionEvaluation,
)
from .listwise import Listed as Listed, listwise_sums as listwise_sums
from .sums_of_completions import (
    COMPLETION_FIGURES as COMPLETION_FIGURES,
    KTO_METRICS as KTO_METRICS,
    CompletionSummary as CompletionSummary,
    area_of_bins as area_of_bins,
    columns_of_completions as columns_of_completions,
    completion_figures as completion_figures,
    completion_sums as completion_sums,
    reward_bin as reward_bin,
)
