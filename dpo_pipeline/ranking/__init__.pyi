from .ranking_plan import RankingPlan as RankingPlan, rank as rank
from .ranking_result import RANKING_FIGURES as RANKING_FIGURES, Ranking as Ranking
from .rewardbench2 import RewardBench2 as RewardBench2
