"""Show what a run is doing, from its results folder alone, until it is over.

    python scripts/watch.py                          the run on results/
    python scripts/watch.py my-results --once        a look, then the end
    python scripts/watch.py --configfile my.yaml     also before the first run, once something is planned

Runs beside a local or a Slurm run, in the same terminal or on another host that sees the folder.
"""

import argparse
import sys
import time
from pathlib import Path

from darkroom.config.load import read_config_file
from darkroom.jobs.runtime import job
from darkroom.tools.watch import Watch, open_workflow, table

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"))
    parser.add_argument("--configfile", type=Path, help="the config of the run, in place of the folder")
    parser.add_argument("--once", action="store_true", help="look once")
    parser.add_argument("--every", type=float, default=5, metavar="SECONDS", help="between two looks (5)")
    arguments = parser.parse_args()
    with job(None):
        watch(arguments)


def watch(arguments: argparse.Namespace) -> None:
    """Print the state, again and again where it changes, until nothing works on the folder any more."""
    config = read_config_file(arguments.configfile) if arguments.configfile else None
    looking, shown = None, ""
    while True:
        if looking is None or looking.superseded:
            looking = Watch(open_workflow(arguments.results, config, [Path.cwd(), REPOSITORY]))
        state = looking.look()
        text = table(state)
        if sys.stdout.isatty() and shown:
            sys.stdout.write(f"\x1b[{len(shown.splitlines())}F\x1b[J")
        elif shown:
            print()
        print(text, flush=True)
        shown = text
        if arguments.once or not state.alive:
            return
        time.sleep(arguments.every)


if __name__ == "__main__":
    main()
