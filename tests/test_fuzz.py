"""A few seconds of each attack of fuzz.py, always the same; see there for hours of it."""
import time

import pytest

import fuzz


@pytest.mark.parametrize('name', list(fuzz.ATTACKS))
def test_an_attack_does_no_harm(name):
    if name == 'kills' and not hasattr(fuzz.sys, 'addaudithook'):
        pytest.skip('Python 3.7 has no audit hooks')
    outcome = fuzz.run_attack(name, 0, 0, 10**9, time.monotonic() + 3)
    assert outcome.cases > 0
    assert not outcome.failures, '\n'.join(
        f'{name}, case {number}: {problem}' for number, problem in outcome.failures)
