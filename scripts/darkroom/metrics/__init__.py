"""Metrics: what gives pictures scores. The judge is one of them, and always there; the config names the others.

A metric is a class that keeps the promises of `darkroom.metrics.base.Metric`. Those that come with Darkroom are in `METRICS`, with their
sections in `darkroom.config.metrics`; others are added by `register`, from an extension file. The config names what it wants:

    metrics:
      phash: {}
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from darkroom.config import models
from darkroom.errors import DarkroomError
from darkroom.metrics.aesthetic import AestheticMetric
from darkroom.metrics.base import Catalogue, Metric, ModelMetric
from darkroom.metrics.clip import ClipMetric
from darkroom.metrics.judge import JudgeMetric
from darkroom.metrics.nsfw import NsfwMetric
from darkroom.metrics.ocr import OCRMetric
from darkroom.metrics.phash import PHashMetric
from darkroom.metrics.preserved import PreservedMetric
from darkroom.metrics.quality import QualityMetric
from darkroom.metrics.rubric import JUDGE, Rubric

# Name -> the metric; the judge is not among them, for it has a section of the config to itself.
METRICS: dict[str, type[Metric]] = {
    PHashMetric.name: PHashMetric,
    ClipMetric.name: ClipMetric,
    AestheticMetric.name: AestheticMetric,
    NsfwMetric.name: NsfwMetric,
    QualityMetric.name: QualityMetric,
    PreservedMetric.name: PreservedMetric,
    OCRMetric.name: OCRMetric,
}


def register(metric: type[Metric]) -> type[Metric]:
    """Let the config name a metric: `metric.name` is the key below `metrics`.

    What stands there is for the metric to check, unless `darkroom.config.models.allow_metric` was called before, with a model.

    Args:
        metric: the class; its constructor is called with the section below that key, which has what stands there as attributes.

    Raises:
        DarkroomError: its name is no name, or that of another metric.
    """
    name = metric.name
    if not name.isidentifier():
        raise DarkroomError(f"metric {name}: its name must be letters, digits and underscores")
    known = METRICS.get(name, JudgeMetric if name == JUDGE else metric)
    if (known.__module__, known.__qualname__) != (metric.__module__, metric.__qualname__):
        raise DarkroomError(f"metric {name}: there is one of this name already ({known.__module__}); give it another")
    METRICS[name] = metric
    if name not in models.METRICS:  # else the extension has brought a model of its own that checks the section
        models.allow_metric(name)
    return metric


def metrics_of(config: models.Config, rubric: Rubric, located: Callable[[str], Any] | None = None) -> list[Metric]:
    """The metrics of a run: the judge, then those that the config names, in its order.

    Args:
        config: `judge` and `metrics` are read.
        rubric: what the judge asks.
        located: gives the section of a name, "judge" or "metrics.clip", with its model as a folder. Without it, models are folders already.

    Raises:
        DarkroomError: the config names a metric that nothing has registered.
    """
    metrics: list[Metric] = [JudgeMetric(config.judge, rubric, partial(located, JUDGE) if located else None)]
    for name, section in config.metrics.asked.items():
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1)
            hint = f"did you mean {near[0]}?" if near else "name the file that brings it under `extensions`"
            raise DarkroomError(f"config: metrics: there is no metric {name}; {hint}")
        metric = METRICS[name](section)  # type: ignore[call-arg]
        if located and isinstance(metric, ModelMetric):
            metric.located = partial(located, models.metric_section(name))
        metrics.append(metric)
    return metrics


def catalogue_of(metrics: Sequence[Metric], kinds: Iterable[str]) -> Catalogue:
    """The columns of all metrics for each kind of picture, metric by metric. Raises DarkroomError where two clash."""
    return Catalogue.of({kind: [column for metric in metrics for column in metric.columns(kind)] for kind in kinds})
