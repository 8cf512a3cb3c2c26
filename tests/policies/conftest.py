"""Policies whose ranking costs few flips."""

from __future__ import annotations

from functools import partial

import pytest

from dpo_pipeline.policies import curve, policies_plan
from dpo_pipeline.statistics import many_policies, trends


@pytest.fixture(scope="module", autouse=True)
def few_flips():
    """Have `compare` draw few flips of signs: as many as it draws by default cost a third of it.

    Tests of the statistics call them with all flips; so do the pages and commands of other rooms.
    """
    with pytest.MonkeyPatch.context() as patch:
        few = partial(many_policies, flips=999, replicates=50)
        patch.setattr(policies_plan, "many_policies", few)
        patch.setattr(curve, "trends", partial(trends, flips=999))
        yield
