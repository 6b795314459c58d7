"""Which plots and pages the report has, and where they lie; `plots` draws them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from darkroom.plan.stages import Stage


@dataclass
class Plot:
    """A plot of the report, or a page: its caption is workflow/report/<name>.rst; kind: of which images, None for all."""

    name: str
    category: str
    images: str
    figure: str
    kind: str | None = None
    page: bool = False
    folder: Path = Path("plots")

    @property
    def path(self) -> Path:
        """The file that the report shows."""
        stem = f"{self.kind}_{self.name}" if self.kind else self.name
        return self.folder / (stem + (".html" if self.page else ".svg"))

    @property
    def files(self) -> list[Path]:
        return [self.path] if self.page else [self.path, self.path.with_suffix(".png")]


def several(stages: list[Stage]) -> dict[str, list[Stage]]:
    """Stage of the table -> its stages, one for each of several models, where the config names several."""
    found: dict[str, list[Stage]] = {}
    for stage in stages:
        if stage.model is not None:
            found.setdefault(stage.like, []).append(stage)
    return {name: those for name, those in found.items() if len(those) > 1}


def figures(
    stages: list[Stage], scores: Mapping[str, int], labelled: bool, folder: Path, compared: Collection[str] = ()
) -> list[Plot]:
    """The plots and pages of the report, in its order, below `folder`.

    scores: stage -> how many scores its pictures have: one alone is compared with nothing. labelled: there are labels. compared: the
    stages whose pictures are searched for duplicates.
    """
    found = [
        Plot("yield", "1 Overview", "all", "rows to kept images"),
        Plot("failures", "1 Overview", "all", "failures by reason"),
        Plot("recipe", "1 Overview", "all", "recipe", page=True),
        Plot("steps", "1 Overview", "all", "selection in steps", page=True),
    ]
    found += [Plot("models", "1 Overview", of, "models compared", of) for of in several(stages)]
    for number, stage in enumerate(stages, 2):
        category = f"{number} {stage.title or stage.name}"
        found += [
            Plot("examples", category, stage.name, "best and worst", stage.name),
            Plot("scores", category, stage.name, "score distributions", stage.name),
        ]
        if stage.like in compared:
            found.append(Plot("diversity", category, stage.name, "diversity and duplicates", stage.name))
        if scores[stage.name] > 1:
            found.append(Plot("agreement", category, stage.name, "agreement of the scores", stage.name))
        if scores[stage.name] > (0 if labelled else 1):
            found.append(Plot("disagreement", category, stage.name, "where scores disagree", stage.name))
    after = len(stages) + 2
    found.append(Plot("labels", f"{after} Judge and people", "all", "scores and labels"))
    found.append(Plot("time", f"{after + 1} Time", "all", "time and images/s of each job"))
    for plot in found:
        plot.folder = folder
    return found
