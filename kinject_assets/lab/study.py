"""The lab's study: the profile `lab-study` on several worlds, pooled. `docs/lab.md` reports it."""

import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from kinject_assets.config import home, load_profile, profile_path
from kinject_assets.core.errors import KinjectError
from kinject_assets.core.manifest import write_atomically
from kinject_assets.core.report.plots import (
    Point,
    accuracy_by_paraphrases,
    gain_by_damage,
)
from kinject_assets.core.results.loader import DATABASE
from kinject_assets.lab.analysis import (
    BEST,
    COMMON,
    Pooled,
    Study,
    accuracies,
    compare,
    compare_damage,
    read_study,
    write_raw,
)

PROFILE = "lab-study"

WORLDS = (101, 102, 103, 104, 105)
"""World seeds of the study. Nothing was tuned on them: tuning used seeds below 100."""

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def world_profile(world: int, folder: Path) -> Path:
    """Writes the profile of one world and returns its path."""
    raw = yaml.safe_load(profile_path(PROFILE).read_text(encoding="utf-8"))
    raw["name"] = f"{PROFILE}-{world}"
    raw["lab"]["seed"] = world
    path = folder / f"{raw['name']}.yaml"
    write_atomically(
        path,
        f"# World {world} of the profile {PROFILE}; written by `kinject lab study`.\n"
        + yaml.safe_dump(raw, sort_keys=False),
    )
    return path


def run_worlds(worlds: Sequence[int], folder: Path, jobs: int, say: Callable[[str], None]) -> None:
    """Runs `kinject run` for each world, some side by side; what is complete is not done again.

    Args:
        worlds: World seeds.
        folder: Where profiles and logs are written.
        jobs: Worlds at once; the processor's cores are shared out among them.
        say: Told when a world begins, how far it is, and when it ends.

    Raises:
        KinjectError: If a run failed; its log is named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    # Each world has a server and an instance of its own, whatever the caller's shell names.
    own = {k: v for k, v in os.environ.items() if k not in {"KINJECT_LAB_URL", "DAGSTER_HOME"}}
    environment = {**own, "OMP_NUM_THREADS": str(threads)}

    def one(world: int) -> int:
        log = folder / f"{PROFILE}-{world}.log"
        began = time.monotonic()
        command = [sys.executable, "-m", "kinject_assets.cli", "run", "--profile"]
        with log.open("w", encoding="utf-8") as sink:
            say(f"world {world}: started, log {log}")
            code = subprocess.run(
                [*command, str(world_profile(world, folder))],
                env=environment,
                stdout=sink,
                stderr=sink,
                stdin=subprocess.DEVNULL,
                check=False,
            ).returncode
        say(f"world {world}: exit code {code} after {time.monotonic() - began:.0f} s")
        return code

    with ThreadPoolExecutor(jobs) as pool:
        codes = dict(zip(worlds, pool.map(one, worlds), strict=True))
    if failed := [world for world, code in codes.items() if code]:
        raise KinjectError(
            f"{len(failed)} of {len(worlds)} worlds are not complete; see the logs "
            f"{folder}/{PROFILE}-{failed[0]}.log, ..., mend the cause and start the same command "
            "again: what is complete is kept"
        )


def collect(worlds: Sequence[int], folder: Path, page: Path) -> Study:
    """Pools the worlds: raw figures and plots beside the page, tables into it.

    Args:
        worlds: World seeds.
        folder: Where the worlds' profiles lie.
        page: `docs/lab.md`; what stands between its marks is replaced.

    Raises:
        MissingArtefact: If a world has no results yet.
        KinjectError: If the page has no marks.
    """
    databases = {
        world: home(load_profile(str(world_profile(world, folder)))) / DATABASE for world in worlds
    }
    study = read_study(databases)
    beside = page.with_suffix("")
    write_raw(study, beside)
    pictures = write_plots(study, beside)
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise KinjectError(f"{page}: has no lines `{BEGIN}` and `{END}` to put the tables between")
    head, rest = text.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    write_atomically(page, f"{head}{BEGIN}\n\n{results_text(study, pictures)}\n{END}{tail}")
    write_atomically(beside / "tables.md", tables_text(study))
    return study


# --- plots


def _rows(study: Study) -> dict[tuple[str, str, str], dict[Any, Mapping[str, Any]]]:
    found: dict[tuple[str, str, str], dict[Any, Mapping[str, Any]]] = defaultdict(dict)
    for row in accuracies(study):
        found[row["model"], row["method"], row["recipe"]][row["world"]] = row
    return found


def _recipe(kind: str, n: int, setting: str) -> str:
    return f"full.{kind}{n:02d}" + (f".{COMMON}" if setting == COMMON else "")


NUMBERS = (0, 1, 2, 4, 6, 8, 10)


def write_plots(study: Study, folder: Path) -> list[tuple[str, str]]:
    """Draws accuracy against n beside the control, and gain against damage.

    Returns:
        File name and what it shows, of each picture.
    """
    rows = _rows(study)
    models = sorted({model for model, _, _ in rows})
    pictures: list[tuple[str, str]] = []

    def keep(name: str, title: str, image: bytes) -> None:
        (folder / f"{name}.png").write_bytes(image)
        pictures.append((f"{name}.png", title))

    for model in models:
        for setting in (BEST, COMMON):
            kinds = {"paraphrases": "p", "control": "r"}
            names = {
                name: {
                    n: rows[model, "ft", _recipe("p" if n == 0 else kind, n, setting)]
                    for n in NUMBERS
                }
                for name, kind in kinds.items()
            }
            title = f"{model}, {'own best' if setting == BEST else 'common'} learning rate"
            keep(
                f"accuracy-by-n-{model}-{setting}",
                f"Accuracy against the number of paraphrases, {title}; thin: each world",
                accuracy_by_paraphrases(
                    {
                        name: {
                            n: Point(r["all"]["accuracy"], r["all"]["ci_low"], r["all"]["ci_high"])
                            for n, r in by_n.items()
                        }
                        for name, by_n in names.items()
                    },
                    faint={
                        name: [
                            {n: r[world]["accuracy"] for n, r in by_n.items()}
                            for world in study.worlds
                        ]
                        for name, by_n in names.items()
                    },
                    levels={
                        "base": rows[model, "base", ""]["all"]["accuracy"],
                        "RAG": rows[model, "rag", ""]["all"]["accuracy"],
                    },
                    title=title,
                ),
            )
        for probe in sorted({row["probe"] for row in study.damage if row["n"]}):
            keep(
                f"gain-by-damage-{model}-{probe.replace(':', '-')}",
                f"Gain against the change of {probe}, {model}",
                gain_by_damage(
                    _gains(study, rows, model, probe),
                    x_label=f"change of {probe}",
                    title=f"{model}: gain against damage",
                ),
            )
    return pictures


def _gains(
    study: Study, rows: Mapping[tuple[str, str, str], Any], model: str, probe: str
) -> dict[str, list[tuple[float, float, str]]]:
    changes: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for row in study.damage:
        if (row["model"], row["probe"]) == (model, probe):
            changes[row["recipe"]][0] += row["won"] - row["lost"]
            changes[row["recipe"]][1] += row["n"]
    base = rows[model, "base", ""]["all"]["accuracy"]
    found: dict[str, list[tuple[float, float, str]]] = {}
    for name, kind, setting in (
        ("paraphrases, own best", "p", BEST),
        ("control, own best", "r", BEST),
        ("paraphrases, common", "p", COMMON),
        ("control, common", "r", COMMON),
    ):
        found[name] = [
            (
                changes[recipe][0] / changes[recipe][1],
                rows[model, "ft", recipe]["all"]["accuracy"] - base,
                str(n),
            )
            for n in NUMBERS
            if (recipe := _recipe(kind, n, setting)) in changes
        ]
    return found


# --- text


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _accuracy_table(study: Study) -> str:
    by_system = _rows(study)
    header = ["model", "method", "recipe", "pooled [95 %]", *(f"world {w}" for w in study.worlds)]
    lines: list[list[str]] = []
    for (model, method, recipe), worlds in by_system.items():
        total = worlds["all"]
        lines.append(
            [
                model,
                method,
                recipe,
                f"{total['accuracy']:.3f} [{total['ci_low']:.3f}, {total['ci_high']:.3f}]",
                *(f"{worlds[w]['accuracy']:.3f}" for w in study.worlds),
            ]
        )
    return table(header, lines)


def _comparison_table(rows: Iterable[Pooled]) -> str:
    header = ["model", "A", "B", "A - B [95 %]", "over worlds [95 %]", "by world", "p (Holm)", ""]
    return table(
        header,
        [
            [
                row.model,
                row.a,
                row.b,
                f"{row.difference:+.3f} [{row.ci_low:+.3f}, {row.ci_high:+.3f}]",
                f"{row.worlds_mean:+.3f} [{row.worlds_low:+.3f}, {row.worlds_high:+.3f}]",
                row.by_world,
                f"{row.p_adjusted:.2g}",
                row.verdict,
            ]
            for row in rows
        ],
    )


def _rates_table(study: Study) -> str:
    counts: dict[tuple[str, str], dict[float, int]] = defaultdict(lambda: defaultdict(int))
    for row in study.checkpoints:
        if not row["recipe"].endswith(f".{COMMON}"):
            counts[row["model"], row["recipe"]][row["learning_rate"]] += 1
    rates = sorted({rate for found in counts.values() for rate in found})
    return table(
        ["model", "recipe", *(f"{rate:g}" for rate in rates)],
        [[*key, *(found[rate] for rate in rates)] for key, found in sorted(counts.items())],
    )


def _summary_table(study: Study, setting: str) -> str:
    """Accuracy by recipe beside the control, with the main comparison, of one setting."""
    by_system = _rows(study)
    main = {
        (row.model, row.a): row
        for row in compare(study)
        if row.family == f"par_vs_control.{setting}"
    }
    lines: list[list[str]] = []
    for model in sorted({model for model, _, _ in by_system}):
        for n in NUMBERS:
            recipe, control = (_recipe(kind, n, setting) for kind in "pr")
            mine = by_system[model, "ft", recipe]["all"]
            both = by_system[model, "ft_rag", recipe]["all"]
            row = main.get((model, f"ft {recipe}"))
            lines.append(
                [
                    model,
                    str(n),
                    f"{mine['accuracy']:.3f} [{mine['ci_low']:.3f}, {mine['ci_high']:.3f}]",
                    f"{by_system[model, 'ft', control]['all']['accuracy']:.3f}" if row else "",
                    f"{row.difference:+.3f} [{row.ci_low:+.3f}, {row.ci_high:+.3f}]" if row else "",
                    f"{row.worlds_mean:+.3f} [{row.worlds_low:+.3f}, {row.worlds_high:+.3f}]"
                    if row
                    else "",
                    row.verdict if row else "",
                    f"{both['accuracy']:.3f}",
                ]
            )
    header = ["model", "n", "FT-par", "control", "difference [95 %]", "over worlds [95 %]", ""]
    return table([*header, "FT-par + RAG"], lines)


def _levels_table(study: Study) -> str:
    by_system = _rows(study)
    lines: list[list[str]] = []
    for (model, method, recipe), worlds in by_system.items():
        if not recipe:
            total = worlds["all"]
            lines.append(
                [
                    model,
                    method,
                    f"{total['accuracy']:.3f} [{total['ci_low']:.3f}, {total['ci_high']:.3f}]",
                    " ".join(f"{worlds[w]['accuracy']:.3f}" for w in study.worlds),
                ]
            )
    return table(["model", "method", "accuracy [95 %]", "by world"], lines)


def results_text(study: Study, pictures: Sequence[tuple[str, str]]) -> str:
    """Pictures and the main tables, as Markdown."""
    return "\n".join(
        [
            f"{len(study.worlds)} worlds ({', '.join(map(str, study.worlds))}), "
            f"{len(study.checkpoints)} checkpoints. Every comparison, world and probe is in "
            "[`lab/tables.md`](lab/tables.md), the raw figures in [`lab/`](lab/). *Could have "
            "shown d*: the difference that the test finds with 80 % power, before Holm's "
            "adjustment.\n",
            "### Without fine-tuning, K cross-fitted\n",
            _levels_table(study),
            "### Own best learning rate\n",
            _summary_table(study, BEST),
            "### Common learning rate\n",
            _summary_table(study, COMMON),
            "### Pictures\n",
            *(f"![{title}](lab/{name})\n" for name, title in pictures),
        ]
    )


def tables_text(study: Study) -> str:
    """All tables, as a page of their own."""
    parts = [
        "# The lab's study: all tables\n",
        "Made by `kinject lab study`; [`../lab.md`](../lab.md) says what is asked, and how it is "
        "analysed. Synthetic text, tiny models.\n",
        "## Accuracy on the new facts, K cross-fitted\n",
        _accuracy_table(study),
        "## Declared comparisons\n",
    ]
    families: dict[str, list[Pooled]] = defaultdict(list)
    for row in (*compare(study), *compare_damage(study)):
        families[row.family].append(row)
    for name, rows in families.items():
        parts += [f"### {name}\n", _comparison_table(rows)]
    parts += ["## Learning rates that validation chose (number of worlds)\n", _rates_table(study)]
    return "\n".join(parts)
