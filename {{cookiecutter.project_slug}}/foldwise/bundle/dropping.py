"""What still predicts, and what goes first where time is short.

Views go first, then snapshots, then members (a run's model of one fold); within each of the three, what is worth least
out of fold for the seconds that it takes. One view and snapshot of each run stay, and one member.
"""

from typing import NamedTuple

from foldwise.bundle.recipe import Recipe
from foldwise.inference.views import View

Network = tuple[int, int, int]  # number of the run, fold, place of the snapshot


class Unit(NamedTuple):
    """Something that can be dropped: "view", "snapshot" or "member"; its run, and its place there or its fold."""

    kind: str
    run: int
    place: int


class Active:
    """Views, snapshots and members of a bundle that still predict."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.views = [list(range(len(run.views))) for run in recipe.runs]
        self.snapshots = [list(range(run.snapshots)) for run in recipe.runs]
        self.members = list(recipe.members)

    @property
    def networks(self) -> list[Network]:
        """The networks that still predict, those of a member one after the other."""
        return [(run, fold, snapshot) for run, fold in self.members for snapshot in self.snapshots[run]]

    def next_unit(self, seconds: dict[Network, float]) -> Unit | None:
        """What goes next; of equal ones the last. None where nothing can go.

        Args:
            seconds: an image of each network takes, all its views.
        """
        units = self._droppable_views() or self._droppable_snapshots() or self._droppable_members()
        costs = {unit: self.cost(unit, seconds) for unit in units}
        return min(reversed(units), key=lambda unit: self.value(unit) / max(costs[unit], 1e-9), default=None)

    def drop(self, unit: Unit, seconds: dict[Network, float]) -> dict[Network, float]:
        """Take a unit out; what an image of each network that is left takes."""
        share = 1 - self._view_share(unit) if unit.kind == "view" else 1.0
        if unit.kind == "view":
            self.views[unit.run].remove(unit.place)
        elif unit.kind == "snapshot":
            self.snapshots[unit.run].remove(unit.place)
        else:
            self.members.remove((unit.run, unit.place))
        return {network: seconds[network] * (share if network[0] == unit.run else 1) for network in self.networks}

    def cost(self, unit: Unit, seconds: dict[Network, float]) -> float:
        """The seconds an image that dropping it saves."""
        own = [network for network in self.networks if network[0] == unit.run]
        if unit.kind == "view":
            return self._view_share(unit) * sum(seconds[network] for network in own)
        place = 2 if unit.kind == "snapshot" else 1
        return sum(seconds[network] for network in own if network[place] == unit.place)

    def value(self, unit: Unit) -> float:
        """What the out-of-fold score loses without it; 0 where nobody knows. Members of a run share its value."""
        run = self.recipe.runs[unit.run]
        if unit.kind == "member":
            return (run.value or 0.0) / len(run.weights)
        values = run.view_values if unit.kind == "view" else run.snapshot_values
        return (values[unit.place] if values else None) or 0.0

    def name(self, unit: Unit) -> str:
        """For people."""
        run = self.recipe.runs[unit.run]
        what = {"view": "", "snapshot": f"snapshot {unit.place}", "member": f"fold {unit.place}"}[unit.kind]
        return f"{run.name} {what or run.views[unit.place]}"

    def _droppable_views(self) -> list[Unit]:
        units = []
        for number, places in enumerate(self.views):
            names = self.recipe.runs[number].views
            whole = [place for place in places if View.from_name(names[place]).crop is None]
            # A crop's map does not cover the picture: of masks a whole view must stay.
            kept = whole if self.recipe.meaning.kind == "maps" else places
            units += [Unit("view", number, place) for place in places if len(places) > 1 and kept != [place]]
        return units

    def _droppable_snapshots(self) -> list[Unit]:
        return [
            Unit("snapshot", number, place)
            for number, places in enumerate(self.snapshots)
            for place in places
            if len(places) > 1
        ]

    def _droppable_members(self) -> list[Unit]:
        return [Unit("member", run, fold) for run, fold in self.members if len(self.members) > 1]

    def _view_share(self, unit: Unit) -> float:
        """The share of a view in the pixels of its run's views."""
        names = self.recipe.runs[unit.run].views
        pixels = {place: View.from_name(names[place]).scale ** 2 for place in self.views[unit.run]}
        return pixels[unit.place] / sum(pixels.values())
