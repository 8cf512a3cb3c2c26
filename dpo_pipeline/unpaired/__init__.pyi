from .areas import (
    DOWN as DOWN,
    UP as UP,
    Placements as Placements,
    area_of_bins as area_of_bins,
    counts_of_bins as counts_of_bins,
    reward_bin as reward_bin,
    with_clusters as with_clusters,
)
from .cluster_means import ClusterMeans as ClusterMeans
from .completion_comparison import (
    COMPARED_COMPLETIONS as COMPARED_COMPLETIONS,
    PROMPT as PROMPT,
    CompletionComparison as CompletionComparison,
    CompletionSide as CompletionSide,
    GatheredCompletions as GatheredCompletions,
    PlacedCompletions as PlacedCompletions,
)
from .completion_evaluation import (
    AUC as AUC,
    GATED_OF_COMPLETIONS as GATED_OF_COMPLETIONS,
    CompletionEvaluation as CompletionEvaluation,
)
from .listwise import listwise_sums as listwise_sums, scored_prompts as scored_prompts
from .sums_of_completions import (
    COMPLETION_FIGURES as COMPLETION_FIGURES,
    KTO_METRICS as KTO_METRICS,
    CompletionSummary as CompletionSummary,
    columns_of_completions as columns_of_completions,
    completion_figures as completion_figures,
    completion_sums as completion_sums,
)
