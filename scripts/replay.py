"""Make one image again from its own record and compare the pixels; exit 1 where they differ.

    python scripts/replay.py --key KEY
    python scripts/replay.py --row ROW --sample 1 --configfile my.yaml

The record says what to make; the config says where the model and the results lie.
"""

import argparse
import sys
from pathlib import Path

from darkroom.config.load import read_config_file
from darkroom.errors import DarkroomError, RowError
from darkroom.jobs.devices import Devices
from darkroom.jobs.runtime import job
from darkroom.run.workflow import Workflow
from darkroom.tools.replay import find_record, replay

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configfile", type=Path, default=REPOSITORY / "config/config.yaml")
    parser.add_argument("--key", help="the image's key, as the tables have it")
    parser.add_argument("--row", help="or its row id")
    parser.add_argument("--kind", choices=("images", "edited"), help="where to look; both unless told")
    parser.add_argument("--item", type=int, default=0)
    parser.add_argument("--sample", type=int, default=0)
    arguments = parser.parse_args()
    if bool(arguments.key) == bool(arguments.row):
        parser.error("give --key or --row")
    with job(None):
        workflow = Workflow.open(read_config_file(arguments.configfile), [Path.cwd(), REPOSITORY], planned=True)
        lineage = workflow.lineage
        stages = [s.name for s in workflow.stages if arguments.kind in (None, s.name)]
        files = [Path(lineage.image_file(name, shard)) for name in stages for shard in workflow.plans[name].names]
        found = (path for path in files if path.exists())
        place = find_record(found, arguments.key, arguments.row, arguments.item, arguments.sample)
        try:
            result = replay(*place, workflow.config, workflow.models, Devices())
        except RowError as error:
            raise DarkroomError(f"{place[0]}: {error}") from error
        for name, (then, now) in result.versions.items():
            print(f"{name}: made with {then}, now {now}")
        record = result.record
        print(f"{place[0]}: row {record['row']}, item {record['item']}, sample {record['sample']}, key {record['key']}")
        if not result.equal:
            raise DarkroomError(f"{result.pixels} pixels differ, by at most {result.greatest} of 255")
        print("equal: every pixel is the one that is stored")


if __name__ == "__main__":
    sys.exit(main())
