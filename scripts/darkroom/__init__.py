"""The library behind Darkroom's rules. It does not use Snakemake: every function can be called from a test.

Importing what the Snakefile needs to plan a run loads nothing heavy: torch, diffusers, transformers and vLLM are
imported only by the modules and functions that run a model. docs/architecture.md shows the rooms.
"""

__version__ = "0.1.0"
