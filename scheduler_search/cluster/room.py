"""How many workers a cluster has room for, and what is asked of it for each.

Knows: what a worker needs of its node, the nodes that are alive, and that inside a placement group only its bundles
count. Does not know: workers that run, or why a node is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.util.placement_group import PlacementGroup, get_current_placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from scheduler_search.errors import ClusterError
from scheduler_search.study.definition import StudyDefinition

_NODE_LABEL = "ray.io/node-id"
# Ray counts resources in ten-thousandths.
_SLACK = 1e-4


@dataclass(frozen=True)
class Needs:
    """What one worker needs."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")

    @property
    def bundle(self) -> dict[str, float]:
        """As Ray names resources; GPUs only where some are needed."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    def fits(self, resources: Mapping[str, float]) -> int:
        """How many workers such resources hold."""
        asked = (("CPU", self.cpus), ("GPU", self.gpus))
        return min(int((resources.get(name, 0.0) + _SLACK) / amount) for name, amount in asked if amount > 0)


class Room(Protocol):
    """Where workers of a study can be. ``may_grow``: whether nodes may be added."""

    may_grow: bool

    def places(self, avoided: Collection[str]) -> dict[str, int]:
        """By node how many workers it holds, whoever is there now; nodes to be avoided are left out."""

    def options(self, avoided: Collection[str], bundles: Iterable[int | None]) -> dict[str, Any]:
        """Where Ray shall start one more worker, beside those in ``bundles``."""

    def describe(self) -> str:
        """What there is, for people."""


class ClusterRoom:
    """All nodes of the cluster."""

    may_grow = True

    def __init__(self, needs: Needs) -> None:
        self._needs = needs

    def places(self, avoided: Collection[str]) -> dict[str, int]:
        """Of every node that is alive."""
        nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        return {name: self._needs.fits(found) for name, found in nodes.items() if name not in avoided}

    def options(self, avoided: Collection[str], bundles: Iterable[int | None]) -> dict[str, Any]:
        """Anywhere else."""
        del bundles
        if not avoided:
            return {}
        return {"label_selector": {_NODE_LABEL: f"!in({','.join(sorted(avoided))})"}}

    def describe(self) -> str:
        """The nodes."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        texts = [f"{found.get('CPU', 0):g} CPUs and {found.get('GPU', 0):g} GPUs" for found in nodes]
        return "nodes with " + "; ".join(texts) if texts else "no node"


class GroupRoom:
    """The bundles of the placement group that this process runs in; the first one is its own."""

    may_grow = False

    def __init__(self, group: PlacementGroup, needs: Needs) -> None:
        self._group = group
        self._slots = {index: needs.fits(bundle) for index, bundle in enumerate(group.bundle_specs) if index}

    def places(self, avoided: Collection[str]) -> dict[str, int]:
        """Of the nodes of all bundles."""
        found: Counter[str] = Counter()
        for index, node in self._nodes().items():
            if node not in avoided:
                found[node] += self._slots.get(index, 0)
        return dict(found)

    def options(self, avoided: Collection[str], bundles: Iterable[int | None]) -> dict[str, Any]:
        """In the first bundle that has room."""
        taken = Counter(bundles)
        nodes = self._nodes()
        free = (
            index for index, slots in self._slots.items() if taken[index] < slots and nodes.get(index) not in avoided
        )
        strategy = PlacementGroupSchedulingStrategy(self._group, next(free, -1))
        return {"scheduling_strategy": strategy}

    def describe(self) -> str:
        """The bundles."""
        return f"a placement group of {self._group.bundle_specs}"

    def _nodes(self) -> dict[int, str]:
        return dict(placement_group_table(self._group).get("bundles_to_node_id", {}))


def needs_of(definition: StudyDefinition) -> Needs:
    """What a worker of a study needs: a GPU where the model is to run on one, or may and the cluster has any.

    Raises:
        ClusterError: the study names one GPU of a machine, which is Ray's to choose.
    """
    device = definition.model.device
    if device.startswith("cuda:"):
        raise ClusterError(
            "which GPU a worker of a cluster uses must be left to Ray",
            actual=repr(device),
            place="device of [model]",
            remedy='write device = "cuda"',
        )
    return reserved_for(definition, ray.cluster_resources().get("GPU", 0.0))


def reserved_for(definition: StudyDefinition, gpus_there: float) -> Needs:
    """The same for a cluster with so many GPUs, whichever of them the study names."""
    workers, device = definition.workers, definition.model.device
    gpus = workers.gpus
    if gpus is None:
        gpus = 1.0 if device.startswith("cuda") or (device == "auto" and gpus_there > 0) else 0.0
    return Needs(float(workers.threads) if workers.cpus is None else workers.cpus, gpus)


def room_for(needs: Needs) -> Room:
    """The placement group that this process runs in, or else the whole cluster."""
    group = get_current_placement_group()
    return ClusterRoom(needs) if group is None else GroupRoom(group, needs)
