"""The command `darkroom`: what can be asked about, or done to, the results of a config.

Each command is a function that takes the parsed arguments and returns the exit code: 0, or 1 where something is wrong.
What it works with is imported inside it, so that `--help` and `watch` start at once.
"""

import argparse
import json
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from darkroom import __version__
from darkroom.config import home
from darkroom.config.load import DEMONSTRATION, names_rows, read_config_file
from darkroom.errors import DarkroomError, RowError
from darkroom.jobs.runtime import job

if TYPE_CHECKING:
    from darkroom.run.workflow import Workflow

Arguments = argparse.Namespace


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns its exit code; a DarkroomError is one line on stderr and exit code 1."""
    given = _parser().parse_args(arguments)
    try:
        with job(None, online=given.run is fetch):
            # At once, where a job would finish the image in hand; and quietly where the reader of a pipe has gone.
            for number in (signal.SIGTERM, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            return given.run(given)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def plan(arguments: Arguments) -> int:
    """Print what a run would do and what it would cost: time, GPU-hours, what jobs ask for, disk."""
    from darkroom.tools.costs import costs, text
    from darkroom.tools.forecast import forecast
    from darkroom.tools.prune import superseded_line

    workflow = _workflow(arguments)
    stages = forecast(workflow)
    print(text(costs(workflow, stages, arguments.records), stages, arguments.gpus, arguments.jobs))
    if line := workflow.trial_line():
        print(line)
    for told in workflow.rejected_lines():
        print(f"{told}; `darkroom failures` lists them")
    if line := superseded_line(workflow):
        print(line)
    return 0


def trial(arguments: Arguments) -> int:
    """Write the config of a trial with some of the rows, in a results folder of its own, and print how to run it."""
    from darkroom.run.workflow import NothingDrawn, Workflow
    from darkroom.tools.trial import next_steps, trial_config, write_config

    files = arguments.files + arguments.configfile
    if not files:
        raise DarkroomError("name the config of the whole set: darkroom trial my.yaml --rows 50")
    whole, demonstration = read_config(files, arguments.config)
    if demonstration:
        print(DEMONSTRATION, file=sys.stderr)
    config = trial_config(whole, arguments.rows, arguments.results)
    path = arguments.to or files[-1].with_name(f"{files[-1].stem}-trial.yaml")
    try:
        workflow = Workflow.open(config, unpinned=True)
    except NothingDrawn:
        print("no edit starts from one of these rows: the trial is one of prompts alone (edits: null)")
        config["edits"] = None
        workflow = Workflow.open(config, unpinned=True)
    write_config(path, config, [str(file) for file in files])
    print(f"{path}: {workflow.trial_line()}")
    for told in workflow.rejected_lines():
        print(f"{told}; `darkroom failures --configfile {path}` lists them")
    print(next_steps(path, workflow.config, [str(file) for file in files], arguments.config))
    return 0


def preview(arguments: Arguments) -> int:
    """Print the first rows as a run would read them, made ones too."""
    from darkroom.config.load import load_config
    from darkroom.tools.preview import preview_lines

    config, demonstration = read_config(arguments.files + arguments.configfile, arguments.config)
    if demonstration:
        print(DEMONSTRATION, file=sys.stderr)
    for line in preview_lines(load_config(config), arguments.rows):
        print(line)
    return 0


def watch(arguments: Arguments) -> int:
    """Print the state of a run, again and again where it changes, until nothing works on the results any more."""
    import time

    from darkroom.tools.watch import Watch, open_last_run, table

    looking, shown = None, ""
    while True:
        if looking is None or looking.overtaken:
            by_config = arguments.configfile or arguments.config
            looking = Watch(
                _workflow(arguments, planned=True, unpinned=True) if by_config else open_last_run(arguments.results)
            )
        state = looking.look()
        text = table(state)
        if sys.stdout.isatty() and shown:
            sys.stdout.write(f"\x1b[{len(shown.splitlines())}F\x1b[J")
        elif shown:
            print()
        print(text, flush=True)
        shown = text
        if arguments.once or not state.alive:
            return 0
        time.sleep(arguments.every)


def verify(arguments: Arguments) -> int:
    """Read all results once more and fail where anything is wrong."""
    from darkroom.tools.verify import report_lines
    from darkroom.tools.verify import verify as read_again

    report = read_again(_workflow(arguments))
    print(report_lines(report), flush=True)
    if report.problems:
        raise DarkroomError(f"{len(report.problems)} problems, listed above")
    return 0


def prune(arguments: Arguments) -> int:
    """List what is no longer planned, and remove it where that is agreed to."""
    from darkroom.files import remove, size_of
    from darkroom.jobs.terminal import size
    from darkroom.tools.prune import unplanned_files

    workflow = _workflow(arguments)
    workflow.hold()  # a run may be about to take images over from them
    files = unplanned_files(workflow)
    what = f"{len(files):,} files and folders that are no longer planned, {size(sum(map(size_of, files)))}"
    print("".join(f"{path}\n" for path in files), end="", flush=True)
    if arguments.dry_run:
        print(f"would remove {what}")
        return 0
    if files and not arguments.yes and not _agreed(f"remove {what}? [y/N] "):
        print("nothing was removed")
        return 1
    for path in files:
        remove(path)
    print(f"removed {what}")
    return 0


def _agreed(question: str) -> bool:
    """Whether the user, or what is piped in, answers a question with y. Raises DarkroomError where nobody answers."""
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        print()
        raise DarkroomError("nothing was removed, for nobody answered; --yes agrees beforehand") from None


def replay(arguments: Arguments) -> int:
    """Make one image again from its own record and compare the pixels; exit code 1 where they differ."""
    from darkroom.jobs.devices import Devices
    from darkroom.tools.replay import find_record
    from darkroom.tools.replay import replay as make_again

    workflow = _workflow(arguments, planned=True)
    stages = [stage for stage in workflow.plans if arguments.kind in (None, stage)]
    files = [
        Path(workflow.lineage.image_file(stage, shard)) for stage in stages for shard in workflow.plans[stage].names
    ]
    path, position = find_record(files, arguments.key, arguments.row, arguments.item, arguments.sample)
    try:
        result = make_again(path, position, workflow.config, workflow.models, Devices())
    except RowError as error:
        raise DarkroomError(f"{path}: {error}") from error
    for name, (then, now) in result.versions.items():
        print(f"{name}: made with {then}, now {now}")
    record = result.record
    print(
        f"{path}: row {record['row']}, item {record['item']}, sample {record['sample']}, key {record['key']}",
        flush=True,
    )
    if not result.equal:
        raise DarkroomError(f"{result.pixels} pixels differ, by at most {result.greatest} of 255")
    print("equal: every pixel is the one that is stored")
    return 0


def failures(arguments: Arguments) -> int:
    """List every rejected row, failed request and unreadable reply, then how often each reason was given."""
    from darkroom.jobs.terminal import columns
    from darkroom.tools.failures import find_failures

    counts: Counter[tuple[str, str]] = Counter()
    for failure in find_failures(_workflow(arguments, unpinned=True)):
        print(json.dumps(failure.record(), ensure_ascii=False) if arguments.json else failure.text())
        counts[failure.reason_class] += 1
    if not arguments.json:
        rows = [(f"{stage}: {reason}", str(number)) for (stage, reason), number in counts.most_common()]
        print("\n" + columns(rows) if rows else "no rejected rows, failed requests or unreadable replies")
    return 0


def summary(arguments: Arguments) -> int:
    """Print what the results hold: counts, scores, time, and where to look."""
    from darkroom.tools.summary import summary as text

    print(text(_workflow(arguments, planned=True, unpinned=True)))
    return 0


def fetch(arguments: Arguments) -> int:
    """Bring the models of the hub that the config names into the hub's cache, and print the commits to pin."""
    from darkroom.models import hub

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # at once, not at the end of a file of many gigabytes
    models = _workflow(arguments, unpinned=True).models
    lines = [hub.report_lines(name, hub.fetch(model)) for name, model in models.items()]
    print("\n".join(lines) or "nothing to fetch: the config names no model of the hub")
    return 0


def _workflow(arguments: Arguments, planned: bool = False, unpinned: bool = False) -> "Workflow":
    from darkroom.run.workflow import Workflow

    config, demonstration = read_config(arguments.configfile, arguments.config)
    workflow = Workflow.open(config, planned=planned, unpinned=unpinned)
    if demonstration:
        print(DEMONSTRATION, file=sys.stderr)
    return workflow


def read_config(files: list[Path], settings: list[str]) -> tuple[dict[str, Any], bool]:
    """The config that `snakemake --configfile FILES --config SETTINGS` would use, and whether it is the demonstration's.

    files: each is merged over those before it, section by section.
    settings: "key=value" with the value in YAML, merged over them.
    A config that names no rows goes over config/config.yaml of the repository, the demonstration. Raises DarkroomError.
    """
    config: dict[str, Any] = {}
    for file in files:
        _merge(config, read_config_file(file))
    for setting in settings:
        key, value = _setting(setting)
        try:
            _merge(config, {key: yaml.safe_load(value)})
        except yaml.YAMLError as error:
            raise DarkroomError(f"--config {setting}: {' '.join(str(error).split())}") from error
    if names_rows(config, has_file=bool(files)):
        return config, False
    demonstration = home() / "config/config.yaml"
    if not demonstration.exists():
        raise DarkroomError("name the config: --configfile FILE")
    return _merge(read_config_file(demonstration), config), True


def _setting(text: str) -> tuple[str, str]:
    """Key and value of a setting of --config. Raises DarkroomError where it is none."""
    key, equals, value = text.partition("=")
    if not equals:
        raise DarkroomError(f"--config {text}: expected KEY=VALUE")
    return key, value


def stop_at_unreadable(arguments: list[str]) -> None:
    """End the process with one line where the command line of Snakemake names a config that cannot be read.

    Snakemake reads it before the Snakefile, and would end in a traceback. The profile that every run reads calls this before.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_config(parser)
    given, _ = parser.parse_known_args(arguments)
    try:
        for file in given.configfile:
            read_config_file(file)
        for setting in given.config:
            key, _ = _setting(setting)
            if not re.fullmatch(r"[A-Za-z_][\w-]*\w", key):  # what Snakemake takes
                raise DarkroomError(f"--config {setting}: {key!r} is no key of the config")
    except DarkroomError as error:
        sys.exit(f"error: {error}")


def _merge(config: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            _merge(config[key], value)
        else:
            config[key] = value
    return config


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def _add_config(parser: argparse.ArgumentParser) -> None:
    """Let a command take a config as Snakemake does."""
    parser.add_argument(
        "--configfile",
        "--configfiles",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="the config; of several, each is merged over those before it (default: config/config.yaml)",
    )
    parser.add_argument(
        "--config",
        "-C",
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="keys that are merged over the config, values in YAML",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="darkroom", description="What there is to do for a set of images, what is being done, and what was done."
    )
    parser.add_argument("--version", action="version", version=f"darkroom {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(run: Callable[[Arguments], int]) -> argparse.ArgumentParser:
        text = (run.__doc__ or "").rstrip(".")
        command = commands.add_parser(run.__name__, help=text[0].lower() + text[1:], description=f"{text}.")
        command.set_defaults(run=run)
        _add_config(command)
        return command

    command = add(plan)
    command.add_argument(
        "--gpus", type=_count, nargs="+", default=[], metavar="N", help="say the time on N GPUs (1 8 32)"
    )
    command.add_argument(
        "-j",
        "--jobs",
        type=_count,
        default=0,
        metavar="N",
        help="jobs without a GPU that run at a time (the CPUs of this machine)",
    )
    command.add_argument(
        "--records",
        type=Path,
        metavar="RESULTS",
        help="take the speeds from the jobs of another results folder, such as a trial's",
    )
    command = add(trial)
    command.add_argument("files", type=Path, nargs="*", metavar="CONFIG", help="the config of the whole set")
    command.add_argument("--rows", type=int, default=50, help="how many rows of the prompts to take (50)")
    command.add_argument(
        "--results", metavar="FOLDER", help="where the trial's results go (those of the config, with -trial)"
    )
    command.add_argument(
        "--to", type=Path, metavar="FILE", help="the config to write (beside the last one, with -trial.yaml)"
    )
    command = add(preview)
    command.add_argument("files", type=Path, nargs="*", metavar="CONFIG", help="the config")
    command.add_argument("--rows", type=_count, default=20, help="how many rows of each file (20)")
    command = add(watch)
    command.add_argument(
        "results",
        type=Path,
        nargs="?",
        default=Path("results"),
        help="without a config: the results of the run (results)",
    )
    command.add_argument("--once", action="store_true", help="look once")
    command.add_argument("--every", type=float, default=5, metavar="SECONDS", help="between two looks (5)")
    add(verify)
    command = add(prune)
    what = command.add_mutually_exclusive_group()
    what.add_argument("-n", "--dry-run", action="store_true", help="list only")
    what.add_argument("-y", "--yes", action="store_true", help="remove without a question, as in a script")
    command = add(replay)
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--key", help="the image's key, as the tables have it")
    which.add_argument("--row", help="or its row id")
    command.add_argument("--item", type=int, default=0, help="with --row: which of its prompts (0)")
    command.add_argument("--sample", type=int, default=0, help="with --row: which sample (0)")
    command.add_argument("--kind", metavar="STAGE", help="where to look, such as edited; everywhere unless told")
    command = add(failures)
    command.add_argument("--json", action="store_true", help="a JSON object per line, without the counts")
    add(summary)
    add(fetch)
    return parser
