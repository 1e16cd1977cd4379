from dataclasses import asdict
from typing import Any

import pytest

from kinject_assets.config import Need
from kinject_assets.workers.cluster import Job, _lacking, _part, _whole
from kinject_assets.workers.entry import read_request


def job(**need: Any) -> Job:
    return Job(worker="train", need=Need(**need).model_dump())


@pytest.mark.parametrize(
    ("need", "bundle"),
    [
        ({}, {"CPU": 1}),
        ({"cpus": 0, "gpus": 0.5}, {"GPU": 0.5}),
        ({"memory_gb": 2}, {"CPU": 1, "memory": 2 * 10**9}),
        (
            {"gpus": 2, "accelerator": "H100", "resources": {"fast_disk": 1}},
            {"CPU": 1, "GPU": 2, "accelerator_type:H100": 0.001, "fast_disk": 1},
        ),
    ],
)
def test_needs_are_said_in_rays_words(need: dict[str, Any], bundle: dict[str, float]) -> None:
    assert job(**need).bundle == bundle


def test_a_job_travels_as_json() -> None:
    made = job(gpus=1)
    assert read_request(Job, asdict(made)) == made


def test_ray_takes_the_options() -> None:
    pytest.importorskip("ray")
    from ray._common.ray_option_utils import validate_task_options

    for need in ({}, {"gpus": 0.5}, {"memory_gb": 2, "accelerator": "H100", "resources": {"a": 1}}):
        validate_task_options(job(**need).options, in_options=True)


def test_what_no_node_has_is_named() -> None:
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 64.0}]
    assert _lacking(job(gpus=1, cpus=4), nodes) == ""
    said = _lacking(job(gpus=1, cpus=8, accelerator="H100"), nodes)
    assert "does not have CPU 8, GPU 1, accelerator H100." in said
    assert "CPU 4, GPU 1, no H100; CPU 64, GPU 0, no H100" in said
    assert "under `cluster`" in said


def test_processes_that_train_together_must_all_have_room() -> None:
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 2.0}]

    def gang(processes: int, **more: Any) -> Job:
        return Job(
            worker="train", need=Need(cpus=1, gpus=1).model_dump(), processes=processes, **more
        )

    assert _lacking(gang(3), nodes) == ""
    assert "does not have 4 times CPU 1, GPU 1" in _lacking(gang(4), nodes)
    lake = {"profile": "p", "url": "s3://bucket/p", "cache_gb": 1}
    assert _lacking(gang(2, lake=lake), nodes) == ""
    assert "3 times on one node CPU 1" in _lacking(gang(3, lake=lake), nodes)


def test_parts_have_folders_of_their_own() -> None:
    request = {"work": "lake:lake/.work/x", "out": "lake:lake/x/v1", "k": [1]}
    parts = [_part("score", request, number, 2, ["earlier"]) for number in range(2)]
    assert [part["part"] for part in parts] == [[0, 2], [1, 2]]
    assert len({part["work"] for part in parts}) == 2
    assert all(part["parts"] == [request["work"], "earlier"] for part in parts)
    assert _whole("score", request, parts) == {
        **request,
        "parts": [*(part["work"] for part in parts), request["work"], "earlier"],
    }
    shares = [_part("embed", request, number, 2, []) for number in range(2)]
    assert all(share["out"].startswith(share["work"]) for share in shares)
    assert _whole("embed", request, shares)["parts"] == [share["out"] for share in shares]
