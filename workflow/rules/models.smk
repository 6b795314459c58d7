# REQUIRED INPUTS: none; this rule alone goes to the internet, from the host that snakemake runs on
# OUTPUTS: {results}/.darkroom/models/{section}.json: says what lies in the hub's cache; the jobs of the section need it
# `darkroom fetch` brings every model of the hub that the config names, and prints the commits to pin.


wildcard_constraints:
    section="|".join(DARKROOM.models) or "none",


# update(): the marker remembers the commit of a revision that names none, also where a fetch fails.
rule fetch_model:
    input:
        again=again(f"{RESULTS}/.darkroom/models/{{section}}.json"),
    output:
        update(f"{RESULTS}/.darkroom/models/{{section}}.json"),
    log:
        f"{RESULTS}/logs/fetch_model/{{section}}.log",
    retries: 0
    localrule: True
    conda:
        "../../envs/hub.yaml"
    message:
        "fetch the model of {wildcards.section} from the hub"
    script:
        "../../scripts/fetch_model.py"
