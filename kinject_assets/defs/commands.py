"""What the command line does with Dagster: run a profile, serve the UI, audit."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NoReturn

import dagster as dg
import psutil
from filelock import FileLock, Timeout
from rich.console import Console

from kinject_assets.config import Profile, home, local_or_hub
from kinject_assets.core.carry import followers, out_of_date, rolling_corpora
from kinject_assets.core.corpus.releases import read_releases
from kinject_assets.core.errors import DiskFull, KinjectError, MissingArtefact, is_disk_full
from kinject_assets.core.estimate import keep_estimate
from kinject_assets.core.history import dagster_folder
from kinject_assets.core.lake.opening import open_store
from kinject_assets.core.lineage.ancestry import trace
from kinject_assets.core.lineage.audit import audit
from kinject_assets.core.lineage.cells import trace_cell
from kinject_assets.core.llm.ledger import Ledger
from kinject_assets.core.manifest import write_atomically
from kinject_assets.core.plan import CODE_VERSIONS, Plan
from kinject_assets.core.process import Owner, this_process
from kinject_assets.core.progress import Report
from kinject_assets.core.store import Cell, Store
from kinject_assets.defs.compute import LIBRARIES, compute_mode, load_libraries
from kinject_assets.defs.drive import Outcome, drive
from kinject_assets.defs.instance import (
    logged,
    open_history,
    open_instance,
    recover,
    served_elsewhere,
)
from kinject_assets.defs.partitions import add_corpus_keys
from kinject_assets.display import TerminalDisplay

INTERRUPTED = 130

AUDIT_SECONDS = 2.0
"""Seconds between two lines of progress of the audit."""

LAB_PORT = 8471
"""Port that the lab's wiki states as its own."""


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise KinjectError(
            f"another `kinject run` is working in {root}; wait for it, stop it, or use another "
            "profile (or KINJECT_HOME)"
        ) from error
    try:
        yield
    finally:
        lock.release()


def run_profile(
    profile: Profile, selection: str | None, corpora: Sequence[str], models: Sequence[str]
) -> int:
    """Makes what a profile asks for; the exit code of `kinject run`."""
    with _Session(profile) as session:
        plan = session.plan()
        _known(plan.profile, "corpus", corpora, plan.profile.corpora)
        _known(plan.profile, "model", models, plan.profile.models)
        session.recover()
        cells = _chosen(plan, session.defs, selection, corpora, models)
        cells = _without_homeless_damage(plan, cells, session.console)
        session.make(plan, cells)
    return session.exit_code


def refresh_profile(profile: Profile, corpora: Sequence[str]) -> int:
    """Looks at sources again and makes what follows; the exit code of `kinject refresh`."""
    rolling = rolling_corpora(profile)
    _known(profile, "corpus", corpora, profile.corpora)
    if not corpora and not rolling:
        raise KinjectError(
            f"{profile.path}: no corpus is a window of current events (source kind `events` with "
            "until `now`), so none is looked at by itself. Name those to read again, e.g. kinject "
            f"refresh --corpus {next(iter(profile.corpora))}"
        )
    chosen = list(corpora) or rolling
    with _Session(profile) as session:
        session.recover()
        plan = session.plan()
        known = {r.key for r in read_releases(plan.store.lake)}
        look = [Cell("articles", (corpus,)) for corpus in chosen]
        session.make(plan, look, again=look)
        if not session.stopped:
            # A month that has closed is a corpus more.
            plan = session.plan()
            new = [r for r in read_releases(plan.store.lake) if r.key not in known]
            for release in new:
                _say(session.console, f"frozen: {release.key}, {release.pages} articles")
            # What could not be looked at does not hold up the others.
            seen = [cell.parts[0] for cell in look if cell not in session.outcome.failed]
            session.make(plan, followers(plan, seen))
            _say_changes(session, seen + [r.key for r in new])
    return session.exit_code


def catch_up(profile: Profile) -> int:
    """Makes what changes have put out of date; the exit code of `kinject refresh --no-look`."""
    with _Session(profile) as session:
        session.recover()
        plan = session.plan()
        session.make(plan, list(out_of_date(plan)))
    return session.exit_code


class _Session:
    """One command that makes cells: alone in its profile, with an instance, and a summary."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.root = home(profile)
        self.store = open_store(profile)
        self.console = Console(stderr=True)
        self.began = datetime.now(UTC)
        self.outcome = Outcome()
        self.stopped = False
        self._born = psutil.Process().create_time()
        self._imports = 0.0
        self._starting: float | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "_Session":
        # Ended by a service manager, it stops as on Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        self._open.enter_context(_alone(self.root))
        from kinject_assets.definitions import defs

        self.defs = defs
        self.instance = open_instance(self.profile)
        self._open.callback(self.instance.dispose)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._open.close()
        self.store.push()
        if kind is None and not self.stopped:
            self._summary()

    @property
    def exit_code(self) -> int:
        """0 when all that was asked for is there."""
        if self.stopped:
            return INTERRUPTED
        return 1 if self.outcome.failed or self.outcome.waiting else 0

    def plan(self) -> Plan:
        """The cells of the profile and of the releases that there are now."""
        return Plan(self.profile, self.store)

    def recover(self) -> None:
        """Puts right what a crash left behind, and says what that was."""
        served = _served(self.instance, self.root)
        _recover(self.instance, self.store, self.console, served)

    def make(self, plan: Plan, cells: list[Cell], again: Sequence[Cell] = ()) -> None:
        """Makes cells where they are not complete, and those of `again` anyway."""
        if self.stopped:
            return
        _check_models(plan.profile, cells)
        keep_estimate(self.profile, self.store)
        add_corpus_keys(self.instance)
        open_cells = _open(plan, cells, again)
        heavy = {cell.asset for cell in open_cells} & LIBRARIES.keys()
        if compute_mode() == "inline" and heavy:
            began = time.monotonic()
            _say(self.console, "loading heavy libraries (once for this command)")
            load_libraries(heavy)
            self._imports += time.monotonic() - began
        if self._starting is None:
            self._starting = time.time() - self._born - self._imports
        try:
            done = len(cells) - len(open_cells)
            with TerminalDisplay(len(cells), self.console, done) as display:
                made = drive(plan, self.defs, self.instance, cells, display, again)
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
            _say(self.console, "stopped; start the same command again to go on")
            self.stopped = True
            return
        except Exception as error:
            if not is_disk_full(error):
                raise
            raise DiskFull.at("kinject", self.root) from error
        self.outcome.made |= made.made
        self.outcome.failed |= made.failed
        self.outcome.waiting += made.waiting
        self.outcome.kept += made.kept

    def _summary(self) -> None:
        starting = self._starting or 0.0
        total = time.time() - self._born
        _summary(self.console, self.outcome, starting, self._imports, total, self.root)


def _open(plan: Plan, cells: Sequence[Cell], again: Sequence[Cell]) -> list[Cell]:
    """Cells that are not complete, or whose inputs are going to be made."""
    found: list[Cell] = []
    for cell in cells:
        above = {upstream for upstream, _ in plan.inputs(cell)}
        if cell in again or plan.state(cell) != "complete" or not above.isdisjoint(found):
            found.append(cell)
    return found


def _say_changes(session: _Session, corpora: Sequence[str]) -> None:
    """What a refresh found and what it cost, corpus by corpus."""
    store = session.store
    for corpus in corpora:
        made = {cell.asset: cell for cell in session.outcome.made if cell.parts[:1] == (corpus,)}
        counts = {
            asset: manifest.counts
            for asset, cell in made.items()
            if (manifest := store.manifest(cell)) is not None
        }
        parts: list[str] = []
        articles, chunks = counts.get("articles"), counts.get("chunks")
        if articles:
            visited = articles.get("months_visited")
            parts.append(
                f"{articles['articles']} articles, {articles['bodies_fetched']} texts fetched in "
                f"{articles['requests']} requests" + (f" ({visited} visited)" if visited else "")
            )
        if chunks:
            parts.append(f"{chunks['new']} chunks new, {chunks['gone']} gone")
        if embeddings := counts.get("embeddings"):
            parts.append(f"{embeddings['chunks'] - embeddings['reused']} embedded")
        if questions := counts.get("questions"):
            parts.append(
                f"{questions.get('chunks_asked', 0)} chunks asked about, "
                f"{questions.get('questions_retired', 0)} questions retired so far"
            )
        if articles and Cell("chunks", (corpus,)) not in session.outcome.failed and not chunks:
            parts.append("no text has changed")
        _say(session.console, f"{corpus}: {'; '.join(parts)}")
    bill = Ledger(store.lake / "llm_ledger").bill(session.began, session.profile.llm.prices)
    _say(
        session.console,
        f"language model: {bill['requests']:.0f} requests, {bill['input_tokens']:.0f} + "
        f"{bill['output_tokens']:.0f} tokens, {bill['cost_usd']:.4f} USD",
    )


def _served(instance: dg.DagsterInstance, root: Path) -> bool:
    """Whether a code server of the profile runs, here or on another machine."""
    return _ui_owner(root) is not None or served_elsewhere(instance)


def _recover(instance: dg.DagsterInstance, store: Store, console: Console, ui_alive: bool) -> None:
    """Puts right what a crash left behind, and says what that was."""
    found = recover(instance, store, ui_alive)
    if found.runs:
        _say(console, f"{len(found.runs)} runs had died with their process: marked as failed")
    if found.slots:
        _say(console, f"{found.slots} pool slots were held by dead runs: freed")
    if found.drafts:
        _say(console, f"unfinished parts were removed: {', '.join(found.drafts)}")
    if found.events:
        _say(
            console,
            f"{len(found.events)} artefacts of the lake were new to Dagster's log: reported",
        )
    # A ledger may be long: it is read only after a crash.
    if not (found.runs or found.drafts):
        return
    ledger = Ledger(store.lake / "llm_ledger")
    if lost := ledger.lost():
        _say(
            console,
            f"{lost} requests to the language model were in flight in crashes so far: possibly "
            "paid, lost (`generations`, state 'in flight')",
        )
    if batches := ledger.open_batches():
        _say(console, f"{len(batches)} batches are open at the language model service: collected")


def _known(profile: Profile, what: str, names: Sequence[str], allowed: dict) -> None:
    for name in names:
        if name not in allowed:
            raise KinjectError(
                f"{profile.path}: no {what} is called `{name}`; there are: {', '.join(allowed)}"
            )


def _chosen(
    plan: Plan,
    defs: dg.Definitions,
    selection: str | None,
    corpora: Sequence[str],
    models: Sequence[str],
) -> list[Cell]:
    cells = list(plan.cells)
    if selection:
        names = _selected(defs, selection)
        cells = [cell for cell in cells if cell.asset in names]
    if corpora:
        cells = [cell for cell in cells if not cell.parts or cell.parts[0] in corpora]
    if models:
        cells = [c for c in cells if len(c.parts) < 2 or plan.model_of(c) in models]
    if not cells:
        raise KinjectError("the selection holds no cell that the profile asks for")
    return cells


def _without_homeless_damage(plan: Plan, cells: list[Cell], console: Console) -> list[Cell]:
    """Leaves out damage whose probes are of corpora that were not chosen and are not there."""
    chosen = set(cells)
    left_out = [
        cell
        for cell in cells
        if cell.asset == "damage" and not chosen.issuperset(plan.input_versions(cell)[1])
    ]
    if left_out:
        probes = sorted(
            {p for c in left_out for ps in plan.probes(c.parts[0]).values() for p in ps}
        )
        _say(
            console,
            f"{len(left_out)} cells of damage are left out: they need answers of "
            f"{', '.join(probes)}, which were not chosen",
        )
    return [cell for cell in cells if cell not in left_out]


def _selected(defs: dg.Definitions, selection: str) -> set[str]:
    """Assets of a selection: plain names with commas, or Dagster's selection syntax."""
    names = {word.strip() for word in selection.split(",")}
    if names <= set(CODE_VERSIONS):
        return names
    try:
        chosen = dg.AssetSelection.from_string(selection).resolve(defs.resolve_asset_graph())
    except dg.DagsterError as error:
        raise KinjectError(
            f"--select {selection!r}: {error}. Give asset names ({', '.join(CODE_VERSIONS)}) with "
            "commas between, or Dagster's syntax, e.g. 'group:a_corpus' or '+key:answers_rag'"
        ) from error
    return {key.to_user_string() for key in chosen}


def _check_models(profile: Profile, cells: Sequence[Cell]) -> None:
    """Says at once that a model's folder is missing, not after an hour of other work."""
    used = {Plan.model_of(cell) for cell in cells if len(cell.parts) == 2}
    for name in sorted(used):
        source = local_or_hub(profile, profile.models[name].source)
        looks_like_path = source.startswith((".", "/", "~"))
        if (looks_like_path or source.count("/") > 1) and not Path(source).is_dir():
            mend = (
                "run `kinject lab pretrain`"
                if profile.models[name].source.startswith("lab:")
                else "give a folder that exists, relative to the profile, or a hub id"
            )
            raise KinjectError(
                f"{profile.path}: models.{name}.source: no model at {source}; {mend}"
            )


def _summary(
    console: Console,
    outcome: Outcome,
    starting: float,
    imports: float,
    total: float,
    root: Path,
) -> None:
    if outcome.made:
        stages: dict[str, float] = defaultdict(float)
        for cell, seconds in outcome.made.items():
            stages[cell.asset] += seconds
        _say(console, "seconds by stage:")
        for asset, seconds in stages.items():
            _say(console, f"  {asset:24} {seconds:7.1f}")
        between = total - sum(stages.values()) - imports - starting
        _say(console, f"  {'process start':24} {starting:7.1f}")
        _say(console, f"  {'heavy imports':24} {imports:7.1f}")
        _say(console, f"  {'orchestration':24} {between:7.1f}")
        _say(console, f"  {'all':24} {total:7.1f}")
    _say(
        console,
        f"{len(outcome.made)} made, {outcome.kept} were complete, {len(outcome.failed)} failed, "
        f"{len(outcome.waiting)} wait for what is not there",
    )
    if outcome.waiting:
        _say(console, f"waiting: {', '.join(map(str, outcome.waiting))}")
    for cell, message in outcome.failed.items():
        _say(console, f"FAILED {cell}: {message}")
    if outcome.failed:
        _say(console, "mend the cause and start the same command again: what is complete is kept")
    report = root / "report.html"
    if report.exists():
        _say(console, f"report: {report}")


# --- the UI ---


def _ui_file(root: Path) -> Path:
    return root / "ui.json"


def _ui_owner(root: Path) -> Owner | None:
    """The running `kinject ui` of a profile, if there is one."""
    try:
        owner = Owner(**json.loads(_ui_file(root).read_text(encoding="utf-8")))
        return owner if owner.alive else None
    except (OSError, ValueError, TypeError):
        return None


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def serve_ui(profile: Profile, port: int) -> int:
    """Webserver, daemon and the lab's server in one process group, ended together."""
    console = Console(stderr=True)
    root = home(profile)
    if not _free(port):
        raise KinjectError(
            f"port {port} on 127.0.0.1 is taken; end what listens there, or give another: "
            f"kinject ui --port {port + 1}"
        )
    with contextlib.ExitStack() as stack:
        if profile.lab and "KINJECT_LAB_URL" not in os.environ:
            from kinject_assets.lab.clock import lab_now
            from kinject_assets.lab.server import running

            # Articles of the lab name this port in their addresses: there, their links open.
            at = LAB_PORT if _free(LAB_PORT) else 0
            os.environ["KINJECT_LAB_URL"] = stack.enter_context(
                running(profile.lab, port=at, clock=lambda: lab_now(profile))
            )
        instance = open_instance(profile)
        _recover(instance, open_store(profile), console, _served(instance, root))
        instance.dispose()
        workspace = root / "dagster" / "workspace.yaml"
        write_atomically(
            workspace,
            "load_from:\n"
            "  - python_module:\n"
            "      module_name: kinject_assets.definitions\n"
            "      location_name: kinject\n"
            f"      executable_path: {json.dumps(sys.executable)}\n",
        )
        write_atomically(_ui_file(root), json.dumps(asdict(this_process())))
        stack.callback(_ui_file(root).unlink, missing_ok=True)
        where = ["-w", str(workspace)]
        commands = [
            [sys.executable, "-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(port), *where],
            [sys.executable, "-m", "dagster._daemon", "run", *where],
        ]
        processes = [subprocess.Popen(command) for command in commands]
        stack.callback(_end, processes)
        _say(console, f"Dagster UI: http://127.0.0.1:{port}  (profile {profile.name}; Ctrl-C ends)")

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        try:
            while all(process.poll() is None for process in processes):
                time.sleep(0.5)
        except KeyboardInterrupt:
            return 0
        codes = [process.poll() for process in processes]
        _say(console, f"a part of the UI ended by itself (webserver, daemon: {codes})")
        return 1


PORTS = {"code": 4000, "webserver": 3000}


def serve_part(
    profile: Profile, part: str, host: str, port: int | None, code_server: str, read_only: bool
) -> NoReturn:
    """Becomes one of the three processes of a deployment: `code`, `webserver` or `daemon`.

    Args:
        profile: The experiment.
        part: Which of them.
        host: Address to listen on.
        port: Port to listen on; the part's own by default.
        code_server: Host and port of the code server, for the other two.
        read_only: Whether the webserver launches and changes nothing.
    """
    port = port or PORTS.get(part, 0)
    if part == "code":
        _become_code_server(profile, port)
        words = ["dagster", "api", "grpc", "-m", "kinject_assets.definitions", "-h", host]
        words += ["-p", str(port), "--location-name", "kinject"]
    else:
        open_history(profile).dispose()
        where = ["-w", str(_workspace(profile, code_server))]
        words = ["dagster._daemon", "run", *where]
        if part == "webserver":
            words = ["dagster_webserver", "-h", host, "-p", str(port), *where]
            words += ["--read-only"] if read_only else []
    # The service manager's signals, and its looks at memory and exit code, meet Dagster itself.
    os.execv(sys.executable, [sys.executable, "-m", *words])  # noqa: S606


def _become_code_server(profile: Profile, port: int) -> None:
    """Puts right what the code server before this one left behind, and takes its place."""
    console, root = Console(stderr=True), home(profile)
    owner = _ui_owner(root)
    if owner and owner.host == this_process().host:
        raise KinjectError(
            f"{root}: process {owner.pid} serves this profile already (`kinject ui` or `kinject "
            "serve code`); end it first, since runs live in it"
        )
    if not _free(port):
        raise KinjectError(f"port {port} is taken; end what listens there, or give --port")
    instance = open_instance(profile)
    # The one before it is gone, whatever machine it was on, and its runs with it.
    _recover(instance, open_store(profile), console, ui_alive=False)
    instance.dispose()
    write_atomically(_ui_file(root), json.dumps(asdict(this_process())))


def _workspace(profile: Profile, code_server: str) -> Path:
    """Tells webserver and daemon where the code server is."""
    host, _, port = code_server.rpartition(":")
    if not host or not port.isdigit():
        raise KinjectError(f"--code-server {code_server!r}: give HOST:PORT, e.g. 127.0.0.1:4000")
    path = dagster_folder(profile) / "workspace-served.yaml"
    server = {"host": host, "port": int(port), "location_name": "kinject"}
    write_atomically(path, f"load_from:\n  - grpc_server: {json.dumps(server)}\n")
    return path


def _end(processes: Sequence[subprocess.Popen]) -> None:
    """Ends processes and all that they started; nothing is left behind."""
    family = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            family += [parent, *parent.children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGINT)
    _, left = psutil.wait_procs(family, timeout=15)
    for member in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


# --- audit ---


def audit_lake(profile: Profile, as_json: bool, width: int | None = None) -> tuple[str, bool]:
    """Verifies every artefact and the database; the text to print and whether all is sound.

    Args:
        profile: The experiment.
        as_json: Gives JSON.
        width: Columns of the terminal; `None` for a pipe.
    """
    store = open_store(profile)
    if not store.lake.exists():
        raise MissingArtefact(f"{store.lake} does not exist yet; run `kinject run` first")
    # Not `open_instance`: that reads the releases, which may be what is damaged.
    instance = open_history(profile)
    try:
        events = partial(logged, instance, store)
        verdict = audit(store, profile, events, _said_at_times(Console(stderr=True)))
    finally:
        instance.dispose()
    return (verdict.to_json() if as_json else verdict.text(width)), verdict.ok


def _said_at_times(console: Console) -> Report:
    """Reports long work every few seconds."""
    last = time.monotonic()

    def report(message: str, done: int | None = None, total: int | None = None) -> None:
        nonlocal last
        if time.monotonic() - last >= AUDIT_SECONDS:
            last = time.monotonic()
            _say(console, f"{message} {done}/{total}" if total else message)

    return report


def audit_answer(
    profile: Profile, answer: str, as_json: bool, width: int | None = None
) -> tuple[str, bool]:
    """The chain of one answer; the text to print and whether it is whole."""
    chain = trace(open_store(profile).root / "results.duckdb", answer)
    return (chain.to_json() if as_json else chain.text(width)), chain.whole


def audit_cell(
    profile: Profile, cell: str, as_json: bool, width: int | None = None
) -> tuple[str, bool]:
    """What a number of the study's tables rests on; the text to print and whether it is whole."""
    chain = trace_cell(open_store(profile).root / "results.duckdb", cell)
    return (chain.to_json() if as_json else chain.text(width)), chain.whole
