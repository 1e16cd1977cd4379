"""What `kinject audit --all` says of a lake whose records are damaged."""

from pathlib import Path

import pytest

from kinject_assets.config import home
from kinject_assets.defs.commands import audit_lake
from kinject_assets_tests.core.results import synthetic


def test_a_torn_record_of_a_release_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KINJECT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    profile = synthetic.profile()
    record = home(profile) / "lake" / "releases" / "events-2031-04" / "release.json"
    record.parent.mkdir(parents=True)
    record.write_text("{")
    text, sound = audit_lake(profile, as_json=False)
    assert not sound
    assert text.startswith("1 broken\n")
    assert f"{record}: not the record of a release" in text
