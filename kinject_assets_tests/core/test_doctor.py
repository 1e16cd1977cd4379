from pathlib import Path
from typing import Any

import pytest

from kinject_assets.config import Profile, load_profile
from kinject_assets.core import doctor
from kinject_assets.core.doctor import examine
from kinject_assets_tests.e2e.browsing import free_port


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


def test_a_lake_elsewhere_is_asked() -> None:
    assert said(profile(lake="memory://bucket/study"), "lake:") == [
        "ok   lake: memory://bucket/study answers, up to 100 GB of it kept here"
    ]
    (line,) = said(profile(lake="nowhere://bucket/study"), "lake:")
    assert line.startswith("MEND lake: nowhere://bucket/study: fsspec knows no `nowhere://`")


def test_an_object_store_that_does_not_answer_is_to_mend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra `s3`)")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(doctor, "PATIENCE_SECONDS", 0.2)
    (line,) = said(profile(lake="s3://bucket/study"), "lake:")
    assert line.startswith("MEND lake: list s3://bucket/study/doctor: no answer in")
    assert "is AWS_ENDPOINT_URL right?" in line

    # An address that is none is told by the library, which may repeat what it was given.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "the-secret")
    (line,) = said(profile(lake="s3://bucket/study"), "lake:")
    assert line == "MEND lake: Invalid endpoint: ***"


def test_a_lake_with_a_key_in_its_url_is_not_repeated() -> None:
    (line,) = said(profile(lake="s3://user:the-secret@bucket/study"), "lake:")
    assert line == "MEND lake: its URL holds a key: keys belong into the environment"


def test_a_shared_folder_is_looked_at_and_not_made(tmp_path: Path) -> None:
    folder = tmp_path / "shared lake"
    url = f"file://{str(folder).replace(' ', '%20')}"
    assert said(profile(lake=url), "lake:") == [f"ok   lake: {folder} is writable"]
    assert not folder.exists()
    folder.write_text("a file")
    (line,) = said(profile(lake=url), "lake:")
    assert line.startswith(f"MEND lake: {folder} cannot be written")
