# REQUIRED INPUTS: the final tables, the image shards, the records of the jobs
# OUTPUTS: {results}/plots/: what `snakemake --report report.zip` shows, each plot as SVG and PNG


if PLOTS:

    rule draw_plots:
        input:
            reads(TABLES, makes=PLOTS[0]),
        output:
            [
                report(
                    str(plot.path),
                    category=plot.category,
                    labels={"images": plot.images, "figure": plot.figure},
                    caption=f"../report/{plot.name}.rst",
                )
                for plot in DARKROOM.plots()
            ],
            [str(path) for plot in DARKROOM.plots() for path in plot.files[1:]],
        log:
            f"{RESULTS}/logs/draw_plots.log",
        benchmark:
            f"{RESULTS}/benchmarks/draw_plots.tsv"
        conda:
            "../../envs/report.yaml"
        resources:
            **asks_for("draw_plots"),
        params:
            digest=DARKROOM.plots_digest(),
        message:
            f"draw the plots of {RESULTS}/scores.parquet"
        script:
            "../../scripts/draw_plots.py"
