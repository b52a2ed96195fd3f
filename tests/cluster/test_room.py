"""What a worker needs, and how many fit; the clusters themselves are those of the integration tests."""

from __future__ import annotations

import pytest

from scheduler_search.cluster import room
from scheduler_search.cluster.room import ClusterRoom, Needs, needs_of
from scheduler_search.errors import ClusterError
from scheduler_search.study import StudyDefinition


def definition(device: str = "auto", **workers: object) -> StudyDefinition:
    return StudyDefinition.model_validate(
        {
            "name": "clustered",
            "model": {"id": "testbed:tiny-llava", "device": device},
            "data": {"source": "testbed", "search": {"samples": 40}},
            "workers": workers,
        }
    )


@pytest.mark.parametrize(
    ("needs", "resources", "expected"),
    [
        (Needs(1, 0), {"CPU": 8.0}, 8),
        (Needs(1, 0), {}, 0),
        (Needs(2, 1), {"CPU": 8.0, "GPU": 2.0}, 2),
        (Needs(2, 1), {"CPU": 3.0, "GPU": 2.0}, 1),
        (Needs(1, 0.5), {"CPU": 8.0, "GPU": 2.0}, 4),
        (Needs(1, 0.3333), {"CPU": 8.0, "GPU": 1.0}, 3),
        (Needs(0.1, 0), {"CPU": 1.0}, 10),
        (Needs(1, 1), {"CPU": 64.0}, 0),
    ],
)
def test_how_many_fit(needs: Needs, resources: dict[str, float], expected: int) -> None:
    assert needs.fits(resources) == expected


@pytest.mark.parametrize(
    ("asked", "gpus_there", "expected"),
    [
        (definition("cpu", threads=4), 2, Needs(4, 0)),
        (definition("auto"), 2, Needs(1, 1)),
        (definition("auto"), 0, Needs(1, 0)),
        (definition("cuda", cpus=2.5), 0, Needs(2.5, 1)),
        (definition("cuda", gpus=0.25), 2, Needs(1, 0.25)),
        (definition("auto", gpus=0), 2, Needs(1, 0)),
    ],
)
def test_what_a_worker_needs(
    monkeypatch: pytest.MonkeyPatch, asked: StudyDefinition, gpus_there: int, expected: Needs
) -> None:
    monkeypatch.setattr(room.ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": float(gpus_there)})
    assert needs_of(asked) == expected


def test_a_gpu_by_number_is_rays_to_choose() -> None:
    with pytest.raises(ClusterError, match=r'must be left to Ray.*write device = "cuda"'):
        needs_of(definition("cuda:1"))


def test_nodes_that_are_dead_or_avoided_have_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        {"NodeID": "a", "Alive": True, "Resources": {"CPU": 2.0}},
        {"NodeID": "b", "Alive": False, "Resources": {}},
        {"NodeID": "c", "Alive": True, "Resources": {"CPU": 3.0}},
    ]
    monkeypatch.setattr(room.ray, "nodes", lambda: found)
    cluster = ClusterRoom(Needs(1, 0))
    assert cluster.places(()) == {"a": 2, "c": 3}
    assert cluster.places({"a"}) == {"c": 3}
    assert cluster.options((), []) == {}
    assert cluster.options({"b", "a"}, []) == {"label_selector": {"ray.io/node-id": "!in(a,b)"}}
    assert cluster.describe() == "nodes with 2 CPUs and 0 GPUs; 3 CPUs and 0 GPUs"
