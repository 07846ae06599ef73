"""How far are the meters' joules from the truth, and how often does the stated interval hold it?

`python benchmarks/meter_trials.py [--trials 100] [--out FILE]` runs every case of `perwatt.lab.virtual.trials`, seeded
simulations, and prints one line each: the median error and half width with a perfect gain (timing, steps, sampling),
then with a gain drawn within the meter's tolerance, and how many of the stated 95 % intervals held the truth (at least
90 of 100 are promised). Cases in which a meter fails in mid-run say how many were refused: every one must be.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from perwatt.lab.virtual.trials import CASES, Outcome, run


def line(outcome: Outcome) -> str:
    """Return one outcome for people."""
    if outcome.median_error is None:
        return f"{outcome.case:30} refused {outcome.refused} of {outcome.trials}: {'; '.join(outcome.reasons)}"
    parts = [f"{outcome.case:30}"]
    for what, error, half, held in (
        ("timing", outcome.timing_median_error, outcome.timing_median_half_width, outcome.timing_covered),
        ("whole", outcome.median_error, outcome.median_half_width, outcome.covered),
    ):
        assert error is not None
        assert half is not None
        parts.append(f"{what} {100 * error:.2f} % (stated ±{100 * half:.2f} %), held {held} of {outcome.trials}")
    return "  ".join(parts)


def main() -> None:
    """Run the trials and print them; with --out write them as JSON too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    outcomes = []
    for case in CASES:
        outcomes.append(run(case, range(asked.trials)))
        print(line(outcomes[-1]), flush=True)
    if asked.out is not None:
        rows = [
            {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(each).items()}
            for each in outcomes
        ]
        asked.out.write_text(json.dumps({"trials": asked.trials, "results": rows}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
