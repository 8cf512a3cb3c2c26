from .curve import (
    CURVE_FIGURES as CURVE_FIGURES,
    SHARES as SHARES,
    Change as Change,
    Curve as Curve,
)
from .leaderboard import (
    LEADERBOARD_VERSION as LEADERBOARD_VERSION,
    Leaderboard as Leaderboard,
    Policy as Policy,
)
from .policies_plan import plan_of as plan_of
