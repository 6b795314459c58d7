# REQUIRED INPUTS: the final tables, the image shards, the records of the jobs
# OUTPUTS: {results}/plots/: what `snakemake --report report.zip` shows, each plot as SVG and PNG


if DARKROOM.plots:

    rule draw_plots:
        input:
            tables=[ancient(path) for path in DARKROOM.tables.files],
            manifest=timed([DARKROOM.tables.made], DARKROOM.plots.made),
            again=again(DARKROOM.plots.made),
        output:
            [
                report(
                    str(plot.path),
                    category=plot.category,
                    labels={"images": plot.images, "figure": plot.figure},
                    caption=f"../report/{plot.name}.rst",
                )
                for plot in DARKROOM.figures
            ],
            [str(path) for plot in DARKROOM.figures for path in plot.files[1:]],
            manifest=DARKROOM.plots.made,
        log:
            f"{RESULTS}/logs/draw_plots.log",
        benchmark:
            f"{RESULTS}/benchmarks/draw_plots.tsv"
        conda:
            "../../envs/report.yaml"
        resources:
            **asks_for_all("draw_plots"),
        message:
            f"draw the plots of {RESULTS}/scores.parquet"
        script:
            "../../scripts/draw_plots.py"
