"""Does the lab's statistics keep its promises? Seeded trials on simulated noisy clocks, where the truth is known.

`python benchmarks/statistics_trials.py [--trials 100] [--out FILE]` prints, for several lengths of a measurement, how
many trials of two equal engines called no difference (at least 95 of 100 are promised), how many found a true
difference of 3 % (at least 90 are promised for a measurement that stops by itself, at intervals within 1.5 %, as the
standard profile does), and how often the interval held the truth.

The simulated machine is a bad one. Engines take turns in blocks of 0.25 s as `schedule.rounds` says. Each run has log-
normal noise of 5 %, each block one of 1 %; bursts come 9 times a minute, with lengths of a Pareto tail (20 ms to 5 s)
and sizes of 20 to 150 %, and hit whatever runs meanwhile, neighbours included; speed drifts by up to 10 % and swings by
3 %; and a neighbour on the same host takes a quarter of the speed for about 5 s, about every 20 s.
"""

import argparse
import itertools
import json
import math
from pathlib import Path

import numpy as np

from perwatt.lab import schedule, statistics

BLOCK_S = 0.25
GAP_S = 0.05
RUNS = 12
TRUE_DIFFERENCE = 1.03


def simulated_speeds(rounds: int, rows: int, seed: int) -> np.ndarray:
    """Return the speeds of `rows` equal engines, shape (rounds, rows), as a noisy machine would show them."""
    generator = np.random.default_rng(seed)
    orders = list(itertools.islice(schedule.rounds(range(rows), seed), rounds))
    count = rounds * rows
    start = np.arange(count) * (BLOCK_S + GAP_S) + np.cumsum(generator.uniform(0, 0.02, count))
    total = float(start[-1]) + BLOCK_S
    slowness = -np.log(np.exp(generator.normal(0, 0.05, (count, RUNS))).mean(axis=1))
    slowness += generator.normal(0, 0.01, count)
    slowness += generator.uniform(-0.1, 0.1) * start / total
    slowness += 0.03 * np.sin(2 * np.pi * (start / total * generator.uniform(0.5, 2) + generator.random()))
    bursts = generator.poisson(0.15 * (total + 2))
    when = generator.uniform(-2, total, bursts)
    length = np.minimum(0.02 * (generator.pareto(1.2, bursts) + 1), 5)
    size = generator.uniform(0.2, 1.5, bursts)
    overlap = np.minimum(start[:, None] + BLOCK_S, when + length) - np.maximum(start[:, None], when)
    slowness += np.log1p((np.clip(overlap, 0, None) / BLOCK_S * size).sum(axis=1))
    busy, step = generator.random() < 0.2, BLOCK_S + GAP_S
    for index in range(count):
        busy = generator.random() < (math.exp(-step / 5) if busy else 1 - math.exp(-step / 20))
        slowness[index] += math.log(4 / 3) if busy else 0.0
    speeds = np.empty((rounds, rows))
    for index, order in enumerate(orders):
        speeds[index, list(order)] = np.exp(-slowness[index * rows : (index + 1) * rows])
    return speeds


def trial(rounds: int, rows: int, difference: float, seed: int) -> statistics.Interval:
    """Return the paired ratio of two engines of `rows`, of which the second is truly `difference` times as fast."""
    speeds = simulated_speeds(rounds, rows, seed)
    first = dict(enumerate(speeds[:, 0].tolist()))
    second = dict(enumerate((speeds[:, 1] * difference).tolist()))
    ratio = statistics.paired_ratio(second, first, seed)
    assert ratio is not None
    return ratio


def trial_until_precise(rounds: int, rows: int, difference: float, seed: int, half_width: float) -> statistics.Interval:
    """Return the paired ratio after the fewest rounds (from 10, even) that bring it within `half_width`."""
    speeds = simulated_speeds(rounds, rows, seed)
    speeds[:, 1] *= difference
    for used in range(10, rounds + 1, 2):
        first, second = (dict(enumerate(speeds[:used, each].tolist())) for each in (0, 1))
        ratio = statistics.paired_ratio(second, first, seed)
        assert ratio is not None
        if (ratio.half_width() or math.inf) <= half_width:
            break
    return ratio


def count(ratios: list[statistics.Interval], truth: float) -> dict[str, float]:
    """Return how many trials gave which verdict, how many intervals held the truth, and their median half width."""
    verdicts = [statistics.verdict(ratio) for ratio in ratios]
    held = sum(each.low is not None and each.high is not None and each.low <= truth <= each.high for each in ratios)
    return {
        "no difference seen": verdicts.count("no difference seen"),
        "faster": verdicts.count("faster"),
        "slower": verdicts.count("slower"),
        "interval holds the truth": held,
        "median half width": round(statistics.median([each.half_width() or math.inf for each in ratios]), 4),
    }


def main() -> None:
    """Run the trials and print them, one line each; with --out write them as JSON too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    seeds = range(asked.trials)
    found = []
    for rows, rounds in itertools.product((2, 8), (6, 8, 10, 16, 24, 32, 40)):
        for difference in (1.0, TRUE_DIFFERENCE):
            ratios = [trial(rounds, rows, difference, 1000 * rounds + seed) for seed in seeds]
            found.append({"rows": rows, "rounds": rounds, "true ratio": difference, **count(ratios, difference)})
            print(found[-1], flush=True)
    for rows, difference in itertools.product((2, 8), (1.0, TRUE_DIFFERENCE)):
        ratios = [trial_until_precise(60, rows, difference, seed, 0.015) for seed in seeds]
        found.append({"rows": rows, "rounds": "until 1.5 %", "true ratio": difference, **count(ratios, difference)})
        print(found[-1], flush=True)
    if asked.out is not None:
        asked.out.write_text(json.dumps({"trials": asked.trials, "results": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
