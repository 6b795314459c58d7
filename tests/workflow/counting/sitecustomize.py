"""Counts what the real engine is told to make, in whichever process it runs: a line per image in $DARKROOM_COUNT.

And says in $DARKROOM_USED which device it had, in which process, from when to when.

Python imports this file at its start where its folder is on PYTHONPATH. It changes nothing of what is made.
"""

import os
import sys
import time
from importlib.abc import MetaPathFinder
from importlib.util import find_spec


class _Counting(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "darkroom.engines.diffusion":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            run = module.PipelineEngine.run

            def counted(engine, requests, size, sources):
                start = time.monotonic()
                if "DARKROOM_COUNT" in os.environ:
                    with open(os.environ["DARKROOM_COUNT"], "a") as out:
                        out.write("".join(f"{request.key}\n" for request in requests))
                result = run(engine, requests, size, sources)
                if "DARKROOM_USED" in os.environ:
                    with open(os.environ["DARKROOM_USED"], "a") as out:
                        device = os.environ["CUDA_VISIBLE_DEVICES"]
                        out.write(f"{device} {os.getpid()} {start} {time.monotonic()}\n")
                return result

            module.PipelineEngine.run = counted

        spec.loader.exec_module = exec_module
        return spec


if {"DARKROOM_COUNT", "DARKROOM_USED"} & set(os.environ):
    sys.meta_path.insert(0, _Counting())
