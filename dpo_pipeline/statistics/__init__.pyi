from .association import (
    SUMS as SUMS,
    Line as Line,
    accuracy_by_gap as accuracy_by_gap,
    area_difference as area_difference,
    area_of_clusters as area_of_clusters,
    area_of_counts as area_of_counts,
    area_under_curve as area_under_curve,
    difference_of_means as difference_of_means,
    line_of_clusters as line_of_clusters,
    spearman as spearman,
)
from .calibration import (
    BestScale as BestScale,
    CalibrationError as CalibrationError,
    LabelNoise as LabelNoise,
    best_beta as best_beta,
    calibration_error as calibration_error,
    flip_rate as flip_rate,
    label_noise as label_noise,
    log_loss as log_loss,
    margins_of as margins_of,
    reliability as reliability,
)
from .distributions import (
    checked_probability as checked_probability,
    normal_quantile as normal_quantile,
)
from .groups import (
    DifferencesTest as DifferencesTest,
    Heterogeneity as Heterogeneity,
    differences_test as differences_test,
    heterogeneity as heterogeneity,
)
from .hashing import (
    cluster_hashes as cluster_hashes,
    hashed as hashed,
    mixed as mixed,
    with_hashes as with_hashes,
)
from .intervals import (
    CLUSTERED as CLUSTERED,
    STUDENT as STUDENT,
    Estimate as Estimate,
    Interval as Interval,
    cut_to as cut_to,
    limit_columns as limit_columns,
    macro_mean as macro_mean,
    mean_of_clusters as mean_of_clusters,
    of_independent as of_independent,
    rate_of as rate_of,
    rate_of_clusters as rate_of_clusters,
    rate_with_ties as rate_with_ties,
    student_estimate as student_estimate,
    without_interval as without_interval,
)
from .resampling import bootstrap as bootstrap, delete_a_group as delete_a_group
from .significance import (
    DifferenceTest as DifferenceTest,
    adjusted_for_many as adjusted_for_many,
    agreeing as agreeing,
    fewest_that_reject as fewest_that_reject,
    mcnemar_exact as mcnemar_exact,
    mcnemar_mid_p as mcnemar_mid_p,
    paired_difference as paired_difference,
    rate_difference as rate_difference,
    rate_difference_of_clusters as rate_difference_of_clusters,
    sign_flip_exact as sign_flip_exact,
    smallest_effect as smallest_effect,
    smallest_effect_of_flips as smallest_effect_of_flips,
)
from .step_down import (
    Band as Band,
    ManyPolicies as ManyPolicies,
    PolicyTest as PolicyTest,
    Trends as Trends,
    many_policies as many_policies,
    trends as trends,
)
from .within_prompts import Ranked as Ranked, best_of as best_of, ranked as ranked
from .words import (
    DASH as DASH,
    MINUS as MINUS,
    as_written as as_written,
    between as between,
    count as count,
    counted as counted,
    effect as effect,
    number as number,
    number_with_limits as number_with_limits,
    p_equation as p_equation,
    p_value as p_value,
    percent as percent,
    points as points,
    points_between as points_between,
    points_with_limits as points_with_limits,
    share as share,
    share_with_limits as share_with_limits,
    share_within as share_within,
    short_limits as short_limits,
    short_number as short_number,
    signed_points_within as signed_points_within,
    with_interval as with_interval,
)
