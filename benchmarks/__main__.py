"""Benchmarks: `python -m benchmarks run`, and the others."""

import sys
from importlib import import_module

BENCHMARKS = {
    "run": "every stage beside the reference implementation and the machine's limit",
    "memory": "peak memory of an evaluation at SOP's full size",
    "processes": "rates of several ranks beside those of one process",
    "reproduce": "the published evaluations beside the published recalls",
}


def main() -> int | None:
    """Run the benchmark that is named; its own options follow, `--help` among them. Returns the exit code."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHMARKS:
        print("usage: python -m benchmarks NAME ...", *(f"  {n:<10} {BENCHMARKS[n]}" for n in BENCHMARKS), sep="\n")
        return 0 if name in ("-h", "--help") else 2
    sys.argv[:2] = [f"python -m benchmarks {name}"]
    return import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    sys.exit(main())
