# The workflow is workflow/Snakefile; this one is found first where it is started from here.
include: "workflow/Snakefile"


# include forgets what the file it reads marks as the default target.
workflow.default_target = "all"
