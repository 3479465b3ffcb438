"""`python -m tests.chaos`: the soak on the command line, as `make chaos` runs it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from tests.chaos.rig import SoakError
from tests.chaos.soak import soak
from train_client.process import ending_on_sigterm


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for everything")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule (default %(default)s)")
    parser.add_argument("--faults", type=int, default=50, help="how many (default %(default)s)")
    parser.add_argument("--steps", type=int, default=320, help="of the run (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=30, help="most that it may take (default %(default)s)")
    given = parser.parse_args()
    if given.out.exists():
        parser.error(f"--out {given.out} exists: remove it, or choose another")
    try:
        with ending_on_sigterm():
            differences = soak(
                given.out.resolve(),
                seed=given.seed,
                num_faults=given.faults,
                num_steps=given.steps,
                minutes=given.minutes,
                console=Console(width=120),
            )
    except SoakError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
