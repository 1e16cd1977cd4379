from typing import Any

import pytest

from kinject_assets.config import Profile, load_profile
from kinject_assets.core.doctor import examine


def profile(**changes: Any) -> Profile:
    return load_profile("lab").model_copy(update=changes)


def said(found: Profile, word: str) -> list[str]:
    return [str(finding) for finding in examine(found) if word in finding.text]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "KINJECT_COMPUTE", "KINJECT_POSTGRES_URL"):
        monkeypatch.delenv(name, raising=False)


def test_a_study_of_this_machine_needs_no_cluster() -> None:
    assert said(profile(compute="local"), "Ray cluster") == []


@pytest.mark.parametrize(
    ("address", "begins", "says"),
    [
        ("", "ok", "a cluster of this machine is started for each command"),
        ("http://head:8265", "ok", "http://head:8265"),
        ("head:6379", "MEND", "give the dashboard's"),
    ],
)
def test_the_clusters_address_is_one_that_takes_jobs(
    address: str, begins: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    (line,) = said(profile(compute="ray"), "Ray cluster")
    assert line.startswith(begins)
    assert says in line


def test_a_lake_elsewhere_is_named() -> None:
    assert said(profile(lake="s3://bucket/study"), "lake:") == [
        "ok   lake: s3://bucket/study, up to 100 GB of it kept here"
    ]
