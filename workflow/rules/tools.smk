# Commands on a results folder; nothing else depends on them, and they make nothing of what the other rules make.
#   snakemake -j1 plan      what a run would do, and how long it would take
#   snakemake -j1 verify    read everything once more: counts, digests, hashes
#   snakemake -j1 prune     list, then remove, files that are no longer planned


rule plan:
    log:
        f"{RESULTS}/logs/plan.log",
    localrule: True
    conda:
        "../../envs/tables.yaml"
    message:
        "plan: what a run would do"
    script:
        "../../scripts/show_plan.py"


rule verify:
    log:
        f"{RESULTS}/logs/verify.log",
    localrule: True
    conda:
        "../../envs/tables.yaml"
    message:
        "verify all results"
    script:
        "../../scripts/verify.py"


rule prune:
    log:
        f"{RESULTS}/logs/prune.log",
    localrule: True
    conda:
        "../../envs/tables.yaml"
    message:
        "remove what is no longer planned"
    script:
        "../../scripts/prune.py"
