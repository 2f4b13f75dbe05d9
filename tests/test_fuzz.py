"""A few cases of each attack of fuzz.py, always the same; see there for hours of them."""
import math

import pytest

import fuzz
from helpers import LONG, only_long

CASES = 10 if LONG else 1  # of each


@pytest.mark.parametrize('names', [
    pytest.param([name for name in fuzz.ATTACKS if name != 'kills'], id='all'),
    pytest.param(['kills'], id='kills', marks=only_long)])  # must not have imported TensorFlow
def test_attacks_do_no_harm(names):
    if names == ['kills'] and not hasattr(fuzz.sys, 'addaudithook'):
        pytest.skip('Python 3.7 has no audit hooks')
    outcome = fuzz.run_attacks(names, 0, 0, CASES * len(names), math.inf)
    assert outcome.cases == CASES * len(names)
    assert not outcome.failures, '\n'.join(
        f'{names[number % len(names)]}, case {number}: {problem}'
        for number, problem in outcome.failures)
