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
from .leaderboard import LEADERBOARD_VERSION as LEADERBOARD_VERSION, Leaderboard as Leaderboard
