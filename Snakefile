# The workflow is workflow/Snakefile; this one is found first where it is started from here.
include: "workflow/Snakefile"
