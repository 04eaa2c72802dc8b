"""How often 95 % intervals hold the true change where queries of a class share their fate: `python -m tools.coverage`.

Classes of 2 to 10 queries; each query gains, loses or keeps its result. Two queries of one class correlate by rho: a
query takes its class's draw with probability sqrt(rho), else one of its own.
"""

import numpy as np

from utils.retrieval.intervals import mean_interval
from utils.text import text_table

GAINED, LOST = 0.15, 0.05  # proportions of queries
CLASSES, CORRELATIONS, REPEATS = (12, 40, 100, 200, 500), (0.0, 0.2, 0.5), 1000


def coverage(num_classes: int, correlation: float, repeats: int, clustered: bool = True) -> float:
    """The proportion of intervals that hold the true change; by queries if not `clustered`."""
    rng = np.random.default_rng(num_classes)
    held = 0
    for _ in range(repeats):
        classes = np.repeat(np.arange(num_classes), rng.integers(2, 11, num_classes))
        shares = rng.random(len(classes)) < correlation**0.5
        chosen = np.where(shares, rng.random(num_classes)[classes], rng.random(len(classes)))
        change = (chosen < GAINED).astype(int) - (chosen > 1 - LOST)
        low, high = mean_interval(change, classes if clustered else np.arange(len(classes)))
        held += low <= GAINED - LOST <= high
    return held / repeats


if __name__ == "__main__":
    print(
        text_table(
            [
                {"classes": number, "over": "classes" if clustered else "queries"}
                | {f"rho {rho:g}": 100 * coverage(number, rho, REPEATS, clustered) for rho in CORRELATIONS}
                for clustered in (False, True)
                for number in CLASSES
            ]
        )
    )
