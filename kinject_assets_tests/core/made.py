"""Artefacts as a run would have published them, without the work."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from kinject_assets.core.manifest import fingerprint
from kinject_assets.core.plan import CODE_VERSIONS, Plan
from kinject_assets.core.store import Cell


def make(
    grid: Plan,
    cell: Cell,
    version: str = "v",
    checks: Sequence[Mapping[str, object]] = (),
    **counts: object,
) -> None:
    """Publishes an artefact with the fingerprint that it would get now."""
    inputs, _ = grid.input_versions(cell)
    with grid.store.draft(cell) as draft:
        (draft / "a.json").write_text("{}")
        grid.store.publish(
            cell,
            draft,
            partition="/".join(cell.parts),
            logical_version=version,
            fingerprint=fingerprint(CODE_VERSIONS[cell.asset], grid.config(cell), inputs),
            code_version=CODE_VERSIONS[cell.asset],
            inputs=inputs,
            config=grid.config(cell),
            started_at=datetime.now(UTC),
            counts=counts,
            checks=checks,
        )
