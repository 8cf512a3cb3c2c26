"""Statistics of other libraries, imported when a test first asks: all of them take seconds."""

from __future__ import annotations

import importlib


class Lazily:
    """A module, or a function of it."""

    def __init__(self, module, name=None):
        self._module, self._name = module, name

    def __getattr__(self, attribute):
        if attribute.startswith("_") or "pytest" in attribute:  # which pytest asks every object for
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._module), attribute)

    def __call__(self, *arguments, **more):
        return getattr(importlib.import_module(self._module), self._name)(*arguments, **more)


optimize = Lazily("scipy.optimize")
stats = Lazily("scipy.stats")
expit = Lazily("scipy.special", "expit")
sm = Lazily("statsmodels.api")
mcnemar = Lazily("statsmodels.stats.contingency_tables", "mcnemar")
multipletests = Lazily("statsmodels.stats.multitest", "multipletests")
proportion_confint = Lazily("statsmodels.stats.proportion", "proportion_confint")
