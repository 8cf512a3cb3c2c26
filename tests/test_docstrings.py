"""Every public call has an example in its docstring, and each prints what it says."""

from __future__ import annotations

import doctest
import inspect

import pytest

import dpo_pipeline

CALLS = [
    name
    for name in dpo_pipeline.__all__
    if callable(getattr(dpo_pipeline, name)) and not inspect.isclass(getattr(dpo_pipeline, name))
]


@pytest.mark.filterwarnings("ignore::dpo_pipeline.DataWarning")
@pytest.mark.parametrize("name", CALLS)
def test_examples_print_what_they_say(name):
    call = inspect.unwrap(getattr(dpo_pipeline, name))
    examples = doctest.DocTestParser().get_examples(call.__doc__)
    assert examples
    scope = {"dpo_pipeline": dpo_pipeline}
    test = doctest.DocTest(examples, scope, name, None, None, None)
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0
