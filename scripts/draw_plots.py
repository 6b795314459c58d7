"""Draw the plots of the report from the final tables and the records of the jobs (rule draw_plots)."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.jobs.runtime import job, say
from darkroom.run.workflow import Workflow
from darkroom.store.manifest import write_manifest
from darkroom.tables.yields import read_yields
from darkroom.views import plots
from darkroom.views.figures import several
from darkroom.views.report import read_shared, read_table, read_times
from darkroom.views.steps import write_steps

if TYPE_CHECKING:
    from snakemake.iocontainers import snakemake


with job(snakemake.log[0]):
    workflow = Workflow.of_job(snakemake.config)
    of_kind = {kind.name: kind for kind in workflow.kinds()}
    rows = {name: (kind.rows, kind.rows_expected) for name, kind in of_kind.items()}
    table, rejected = workflow.results("scores.parquet"), workflow.results("rejected.jsonl")
    kinds = read_table(table, rejected, workflow.catalogue, workflow.config.select, rows)
    times = read_times(workflow.history_folders())
    compared = several(workflow.stages)
    alike = workflow.duplicates_file()
    varied = alike.diversity() if alike else {}
    drawn = {
        "yield": lambda _: plots.yield_of_stages(list(kinds.values())),
        "failures": lambda _: plots.failure_reasons(list(kinds.values())),
        "examples": lambda kind: plots.example_sheet(kinds[kind], of_kind[kind].image_file),
        "scores": lambda kind: plots.score_distributions(kinds[kind]),
        "models": lambda like: plots.models_compared(
            read_shared(table, workflow.catalogue, [kinds[stage.name] for stage in compared[like]])
        ),
        "agreement": lambda kind: plots.score_agreement(kinds[kind]),
        "diversity": lambda kind: plots.diversity(kind, varied[kind]),
        "disagreement": lambda kind: plots.disagreement_sheet(kinds[kind], of_kind[kind].image_file),
        "labels": lambda _: plots.label_agreement(list(kinds.values())),
        "time": lambda _: plots.job_times(times),
    }
    for plot in workflow.figures:
        if plot.name == "steps":
            write_steps(plot.path, read_yields(workflow.results("yield.csv")))
        elif plot.page:
            questions = {kind: workflow.catalogue.questions(kind) for kind in workflow.catalogue.kinds}
            plots.RecipePage(workflow.settings(), questions).write(plot.path)
        else:
            plots.draw(plot.path, partial(drawn[plot.name], plot.kind), text=plot.name in ("examples", "disagreement"))
    write_manifest(Path(snakemake.output.manifest), workflow.plots.manifest())
    say(f"drawn: {len(workflow.figures)} plots of {sum(kind.requests for kind in kinds.values())} images")
