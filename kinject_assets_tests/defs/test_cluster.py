import sys

import pytest

from kinject_assets.defs.cluster import ClusterError, cluster_address


@pytest.mark.parametrize("address", ["ray://head:10001", "head:6379", "auto"])
def test_an_address_that_takes_no_jobs_is_refused(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dagster_ray")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=f"RAY_ADDRESS: `{address}` .*http://HEAD:8265"):
        cluster_address()


def test_the_dashboard_of_a_cluster_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dagster_ray")
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    assert cluster_address() == "http://head:8265"


def test_without_rays_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dagster_ray", None)
    with pytest.raises(ClusterError, match=r"pip install 'kinject\[ray\]'"):
        cluster_address()
