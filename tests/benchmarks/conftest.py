"""What the benchmarks share: the timing, and embedded eyes with and without noise."""

import pytest
import torch

from rr.data.photo import to_tensor
from rr.data.synthetic import fundus


@pytest.fixture
def timed(benchmark):
    """timed(group, call, work, unit) calls once to warm up and five times on the clock.

    It returns the result of the last call and records the median rate in units of work per second.
    pytest-benchmark prints one table for each group.
    """

    def run(group, call, work, unit):
        benchmark.group = group
        result = benchmark.pedantic(call, rounds=5, warmup_rounds=1)
        rate = work / benchmark.stats.stats.median
        benchmark.extra_info.update({"work": work, "unit": unit, f"{unit}/s": rate})
        return result

    return run


@pytest.fixture(scope="session")
def noisy_pairs():
    """noisy_pairs(n, size): eyes (n, 3, size, size) in [0, 1], and the same eyes with noise."""

    def make(n, size):
        x = torch.cat([to_tensor(fundus(0, i % 16, size).image) for i in range(n)])
        epsilon = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        return x, (x + 0.05 * epsilon).clamp(0, 1)

    return make
