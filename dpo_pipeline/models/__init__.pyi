from .scoring_texts import ScoredTexts as ScoredTexts, logps as logps
