"""Fewer cases than a full product of parameters has, and every pair of values."""

import itertools

import pytest


def pairwise(**axes):
    """`parametrize` by cases in which any two values of two axes come together.

    What fails for one value, or for two together, fails in one of the cases. They are
    found greedily, and always the same.
    """
    values = [list(axis) for axis in axes.values()]

    def pairs(case):
        return set(itertools.combinations(enumerate(case), 2))

    every = list(itertools.product(*(range(len(axis)) for axis in values)))
    left, chosen = set().union(*map(pairs, every)), []
    while left:
        chosen.append(max(every, key=lambda case: len(pairs(case) & left)))
        left -= pairs(chosen[-1])
    cases = [
        tuple(axis[i] for axis, i in zip(values, case, strict=True)) for case in chosen
    ]
    return pytest.mark.parametrize(tuple(axes), cases)
