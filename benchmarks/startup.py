"""Time what a person waits for before anything happens: `import perwatt` and `perwatt --help`.

Prints the median and the fastest of 20 fresh processes each, in milliseconds, the interpreter's own start included,
and one line of JSON for programs. Goals: 150 ms and 300 ms.
"""

import json
import statistics
import subprocess
import sys
import time

RUNS = 20
COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "import perwatt": ("-c", "import perwatt"),
    "perwatt --help": ("-m", "perwatt", "--help"),
}


def milliseconds(arguments: tuple[str, ...]) -> list[float]:
    """Return the wall time of fresh processes, in milliseconds."""
    taken = []
    for _ in range(RUNS + 1):  # the first one fills the disk cache and is dropped
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
        taken.append(1000 * (time.perf_counter() - start))
    return taken[1:]


def main() -> None:
    """Measure and print."""
    found = {name: milliseconds(arguments) for name, arguments in COMMANDS.items()}
    for name, taken in found.items():
        print(f"{name:16} median {statistics.median(taken):6.1f} ms, fastest {min(taken):6.1f} ms")
    print(json.dumps({name: {"median_ms": statistics.median(taken)} for name, taken in found.items()}))


if __name__ == "__main__":
    main()
