"""Whether what a row says of its pictures reaches what makes them."""

from dataclasses import dataclass, replace
from typing import Any

from darkroom.config.models import StageSection
from darkroom.engines import SETTINGS, family
from darkroom.plan.stages import makers_of


@dataclass(frozen=True)
class Reach:
    """What the family of a section does with the settings of rows.

    section: of the stage that makes the pictures of the rows; rows: "prompts" or "edits". model: its name, where it is one of several.
    """

    section: StageSection
    rows: str
    model: str | None = None

    @property
    def state(self) -> list[Any]:
        """What the refusals depend on besides the rows, as plain JSON."""
        return [self.section.family, family(self.section.family).unread(self.section.sampling) is None]

    def refusal(self, row: dict[str, Any]) -> str | None:
        """Why a normal row (`darkroom.rows.read`) cannot be made as it says, "field: reason", or None.

        Rows whose pictures are all there already are only judged, whatever they say.
        """
        options = row["options"]
        if not options or all("given" in item for item in row["items"]):
            return None
        kind = family(self.section.family)
        for name in options:
            if name in SETTINGS - kind.settings:
                return f"{name}: has no effect on a model of the family {kind.name}; {self._remedy(name)}"
        if "negative_prompt" in options:
            own = {name: options[name] for name in ("width", "height", "steps", "guidance") if name in options}
            if reason := kind.unread(replace(self.section.sampling, **own)):
                reason = reason.removesuffix("; leave it out")
                return f"negative_prompt: {reason}; {self._remedy('negative_prompt')}"
        return None

    def _remedy(self, name: str) -> str:
        key = f"{name}: []" if self.rows == "prompts" else f"edits: {{{name}: []}}"
        other = "" if self.model is None else f" (that is {self.model}; the row's `models` can name others)"
        return f"leave it out, or pass it over in all rows with `rows: {{{key}}}`{other}"


@dataclass(frozen=True)
class ReachOfSeveral:
    """The same for rows that go to several models: each setting has to reach all those that a row goes to."""

    each: dict[str, Reach]

    @property
    def state(self) -> list[Any]:
        """As `Reach.state`."""
        return [[name, *reach.state] for name, reach in self.each.items()]

    def refusal(self, row: dict[str, Any]) -> str | None:
        """As `Reach.refusal`."""
        makers = makers_of(row, list(self.each))
        return next(filter(None, (self.each[name].refusal(row) for name in makers)), None)
