# Darkroom: prompts -> images -> edited images -> scores -> a selected, exported set, shard by shard.
from snakemake.utils import min_version

min_version("9.19")


# A file named with --configfile stands alone: nothing of the demonstration leaks into it.
if not workflow.overwrite_configfiles:

    configfile: workflow.source_path("config/config.yaml")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/models.smk"
include: "workflow/rules/prompts.smk"
include: "workflow/rules/images.smk"
include: "workflow/rules/scores.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/exports.smk"
include: "workflow/rules/gallery.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/tools.smk"


# Every file of every shard is a target: Snakemake would not miss a deleted image shard whose scores are there.
rule all:
    default_target: True
    input:
        all_files,
        TABLES,
        EXPORTS.values(),
        GALLERY,
        PLOTS,
    message:
        f"done: see {RESULTS}/scores.csv and the exports: {', '.join(EXPORTS) or 'none'}"
        + (f"; and, in a browser, {RESULTS}/gallery/index.html" if GALLERY else "")
