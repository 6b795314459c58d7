"""Counts what the real engine is told to make, in whichever process it runs: a line per call in $DARKROOM_COUNT.

Python imports this file at its start where its folder is on PYTHONPATH. It changes nothing of what is made.
"""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec


class _Counting(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "darkroom.diffusion":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            run = module.FluxEngine.run

            def counted(engine, requests, size, sources):
                with open(os.environ["DARKROOM_COUNT"], "a") as out:
                    out.write("".join(f"{request.key}\n" for request in requests))
                return run(engine, requests, size, sources)

            module.FluxEngine.run = counted

        spec.loader.exec_module = exec_module
        return spec


if "DARKROOM_COUNT" in os.environ:
    sys.meta_path.insert(0, _Counting())
