from .callback import LogProbsCallback as LogProbsCallback
from .scoring_texts import ScoredTexts as ScoredTexts, logps as logps
from .verifying import Verification as Verification, verify_logps as verify_logps
