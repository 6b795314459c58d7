"""Let torchvision be imported beside a torch build that its compiled ops do not match.

PyPI's torchvision carries ops compiled for CUDA. Beside a CPU build of torch they cannot be loaded, and
the import dies with "operator torchvision::nms does not exist" although nothing here calls those ops:
transformers, vLLM and qwen-vl-utils want torchvision's Python half. Declaring the two schemas that
torchvision's import refers to is enough. Beside a matching pair this module does nothing.

`darkroom_torchvision.pth` imports it at the start of every interpreter of the environment, spawned
workers included, so it must stay cheap: it only adds a finder to `sys.meta_path`.
"""

import importlib.abc
import importlib.util
import sys

_TARGET = "torchvision._meta_registrations"
_library = None  # keeps the declarations alive


def _declare_missing_ops():
    global _library
    from torchvision.extension import _has_ops

    if _has_ops():
        return
    import torch

    _library = torch.library.Library("torchvision", "DEF")
    _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != _TARGET:
            return None
        sys.meta_path.remove(self)
        _declare_missing_ops()
        return importlib.util.find_spec(name)


sys.meta_path.insert(0, _Finder())
