"""The library behind Darkroom's rules. It knows nothing of Snakemake: every function can be called from a test.

Importing the package, and the modules that the Snakefile needs at parse time (`config`, `plan`, `recipe`,
`rubric`), loads nothing heavy: torch, diffusers, transformers and vLLM are imported inside the functions that
use them.
"""

__version__ = "0.1.0"
