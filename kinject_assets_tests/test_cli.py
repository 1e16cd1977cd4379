"""The command line itself: quick, consistent, readable in any terminal, quiet in a pipe."""

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator

from kinject_assets.cli import main
from kinject_assets.config import PROFILES, load_profile, shipped
from kinject_assets.core.store import Store
from kinject_assets_tests.core.results import synthetic

HEAVY = (
    "dagster torch transformers pandas matplotlib lm_eval datasets scipy statsmodels faiss "
    "sentence_transformers openai httpx"
).split()


def commands(
    group: click.Group = main, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that call it."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


COMMANDS = dict(commands())
EVERY = pytest.mark.parametrize("words", COMMANDS, ids=" ".join)


@pytest.fixture(scope="module")
def study(built: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A profile with results, and its KINJECT_HOME."""
    folder = tmp_path_factory.mktemp("cli")
    shutil.copytree(built.root, folder / "home" / "synthetic")
    profile = folder / "synthetic.yaml"
    profile.write_text(yaml.safe_dump(synthetic.profile().model_dump(mode="json")))
    return profile, folder / "home"


@pytest.fixture
def kinject(study: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command on that study in this process."""
    monkeypatch.setenv("KINJECT_PROFILE", str(study[0]))
    monkeypatch.setenv("KINJECT_HOME", str(study[1]))
    return lambda *words: CliRunner().invoke(main, list(words))


def environment(study: tuple[Path, Path], **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "KINJECT_PROFILE": str(study[0]),
        "KINJECT_HOME": str(study[1]),
        **more,
    }


# -- Help ------------------------------------------------------------------------------------------


@EVERY
def test_help_is_there_and_fits_a_narrow_terminal(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(main, [*words, "--help"], terminal_width=60)
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 60


@pytest.mark.parametrize("words", [(), ("export",), ("lab",), ("exam",)], ids=str)
def test_a_list_of_commands_cuts_nothing_off(words: tuple[str, ...]) -> None:
    group = COMMANDS[words] if words else main
    assert isinstance(group, click.Group)
    shown = CliRunner().invoke(main, [*words, "--help"], terminal_width=60).output
    shown = " ".join(shown.split()).replace("- ", "-")
    for command in group.commands.values():
        first = " ".join((command.help or "").split("\n\n")[0].split()).removesuffix(".")
        assert first.replace("- ", "-") in shown


@EVERY
def test_options_that_mean_the_same_are_spelled_alike(words: tuple[str, ...]) -> None:
    options = {
        option: parameter
        for parameter in COMMANDS[words].params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
    }
    if "--profile" in options:
        assert options["--profile"].metavar == "P"
        assert options["--profile"].name == "profile_name"
    for name, metavar in (("--corpus", "C"), ("--model", "M")):
        if name in options and words[0] != "lab":
            assert options[name].metavar == metavar
    if "--format" in options and words[0] != "export":
        choices = options["--format"].type
        assert isinstance(choices, click.Choice)
        assert set(choices.choices) >= {"text", "json"}
        assert options["--format"].default == "text"
    assert all(option.help for option in set(options.values())), "each option says what it does"


def test_every_command_stands_in_one_section() -> None:
    assert isinstance(main, click.Group)
    named = [name for names in main.sections.values() for name in names]  # pyright: ignore[reportAttributeAccessIssue]
    assert len(named) == len(set(named))
    assert set(main.commands) <= set(named)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tabels"], "Did you mean 'tables'?"),
        (["export", "datset"], "Did you mean 'dataset'?"),
        (["tables", "--fromat", "csv"], "Did you mean '--format'?"),
        (["tables", "--profile", "labb"], "did you mean `lab`?"),
        (["tables", "--format", "xml"], "'text', 'csv', 'json', 'markdown'"),
        (["profile", "--reference", "--schema"], "exclude each other"),
    ],
)
def test_a_slip_is_answered_with_the_nearest(words: list[str], expected: str) -> None:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert expected in done.stderr
    assert done.stdout == ""


# -- Quick -----------------------------------------------------------------------------------------


QUICK = [
    ["--help"],
    ["export", "dataset", "--help"],
    ["completion", "zsh"],
    ["tables"],
    ["sql", "SELECT * FROM scores"],
    ["claims"],
    ["status"],
    ["doctor"],
]

WATCH = """
import sys
from kinject_assets.cli import main
for words in {words!r}:
    try:
        main(words)
    except SystemExit:
        pass
    found = [name for name in {heavy!r} if name in sys.modules]
    if found:
        sys.exit(f"{{words}} imports {{found}}")
"""


def test_nothing_heavy_is_imported(study: tuple[Path, Path]) -> None:
    code = WATCH.format(words=QUICK, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(study), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for said in ("Usage: ", "#compdef kinject", "Table 1", "cross_fitted", "rag_above_base"):
        assert said in done.stdout
    assert "Traceback" not in done.stderr


# -- Terminals and pipes ---------------------------------------------------------------------------


def in_terminal(study: tuple[Path, Path], width: int, *words: str, **more: str) -> str:
    """What a command prints in a terminal of a width."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kinject_assets.cli", *words],
        env=environment(study, COLUMNS=str(width), TERM="xterm-256color", **more),
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=subprocess.DEVNULL,
    )
    os.close(follower)
    said = b""
    try:
        while block := os.read(leader, 65536):
            said += block
    except OSError:
        pass  # Linux says so when the other end is closed
    os.close(leader)
    assert process.wait() == 0
    return said.decode().replace("\r\n", "\n")


def test_a_terminal_gets_what_fits_and_a_pipe_all(
    study: tuple[Path, Path], kinject: Callable[..., Result]
) -> None:
    shown = in_terminal(study, 60, "tables", NO_COLOR="1")
    assert max(map(len, shown.splitlines())) <= 60
    assert "0.267 [0.17, 0.39]" in shown
    assert "\x1b" not in shown
    assert max(map(len, kinject("tables").stdout.splitlines())) > 100


def test_many_columns_become_blocks_in_a_terminal(
    kinject: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kinject_assets.cli.terminal_width", lambda: 80)
    shown = kinject("sql", "SELECT * FROM scores LIMIT 2").stdout
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.startswith("-- 1 --\nk_rule ")


def test_a_closed_pipe_ends_it_quietly(study: tuple[Path, Path]) -> None:
    words = [sys.executable, "-m", "kinject_assets.cli", "sql", "--format", "csv"]
    process = subprocess.Popen(
        [*words, "SELECT range AS n FROM range(200_000)"],
        env=environment(study),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout and process.stderr
    process.stdout.read(1)
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=60) in {0, 1}
    assert "Error" not in said
    assert "Traceback" not in said


def test_ctrl_c_is_130(kinject: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kinject_assets.core.results.tables.format_tables", interrupted)
    done = kinject("tables")
    assert done.exit_code == 130
    assert done.stderr == "kinject: stopped\n"


# -- Data ------------------------------------------------------------------------------------------


def test_text_that_was_cut_says_so_beside_the_rows(kinject: Callable[..., Result]) -> None:
    done = kinject("sql", "SELECT range AS n FROM range(10_001)")
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 10_002
    assert "only the first 10,000 rows are shown" in done.stderr


@pytest.mark.parametrize("command", ["status", "doctor"])
def test_data_for_programs(kinject: Callable[..., Result], command: str) -> None:
    short, long = kinject(command, "--json"), kinject(command, "--format", "json")
    assert json.loads(short.stdout) == json.loads(long.stdout)
    assert short.exit_code == long.exit_code == kinject(command).exit_code


def test_the_doctor_names_the_mend(
    kinject: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    done = kinject("doctor")
    assert done.exit_code == 1
    assert "MEND corpus rivers:" in done.stdout
    assert "set corpora.rivers.source.folder" in done.stdout
    assert "MEND questions and paraphrases: OpenAI, key not set: export OPENAI" in done.stdout
    found = json.loads(kinject("doctor", "--json").stdout)
    assert {"ok": True, "text": "package duckdb"} in found


def test_status_counts_cells_and_shows_failures(
    kinject: Callable[..., Result], study: tuple[Path, Path]
) -> None:
    failures = study[1] / "synthetic" / "failures.jsonl"
    row = {"time": "2031-01-01", "what": "questions/rivers", "why": "no key\nmore"}
    failures.write_text(json.dumps(row) + "\n")
    try:
        found = json.loads(kinject("status", "--json").stdout)
        assert found["failures"] == [row]
        assert sum(found["assets"]["chunks"].values()) == 2
        assert "failed at 2031-01-01: questions/rivers: no key\n" in kinject("status").stdout
    finally:
        failures.unlink()


# -- Exports ---------------------------------------------------------------------------------------


def test_an_export_overwrites_nothing(kinject: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for words in (
        ["lm-eval", "--out", str(tmp_path)],
        ["dataset", "--corpus", "rivers", "--out", str(tmp_path)],
        ["checkpoint", "--corpus", "rivers", "--model", "tiny", "--recipe", "full.p00",
         "--out", str(tmp_path)],
        ["provenance", "--out", str(tmp_path / "mine")],
    ):  # fmt: skip
        done = kinject("export", *words)
        assert done.exit_code == 2, done.output
        assert done.stderr.startswith("kinject: ")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_checkpoint_that_nobody_asked_for_lists_those_that_are(
    kinject: Callable[..., Result], tmp_path: Path
) -> None:
    words = ["--model", "tiny", "--recipe", "full.p09", "--out", str(tmp_path / "out")]
    done = kinject("export", "checkpoint", "--corpus", "rivers", *words)
    assert done.exit_code == 2
    assert "--corpus rivers --model tiny --recipe full.p00" in done.stderr


@pytest.mark.parametrize("fmt", ["openlineage", "prov"])
def test_provenance_is_written(kinject: Callable[..., Result], tmp_path: Path, fmt: str) -> None:
    out = tmp_path / "provenance"
    done = kinject("export", "provenance", "--format", fmt, "--out", str(out))
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out)
    assert (
        [json.loads(line) for line in out.read_text().splitlines()]
        if fmt == "openlineage"
        else (json.loads(out.read_text()))
    )


# -- Profiles --------------------------------------------------------------------------------------


def test_a_whole_profile_is_the_same_profile(kinject: Callable[..., Result]) -> None:
    for name in shipped():
        done = kinject("profile", "--profile", name)
        assert done.exit_code == 0, done.output
        path = PROFILES / f"{name}.yaml"
        read = type(load_profile(name))(**yaml.safe_load(done.stdout), path=path)
        assert read == load_profile(name)


def test_the_schema_takes_what_the_model_takes(kinject: Callable[..., Result]) -> None:
    schema = json.loads(kinject("profile", "--schema").stdout)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)

    def plain(path: Path) -> dict:
        # YAML knows dates and JSON does not.
        return json.loads(json.dumps(yaml.safe_load(path.read_text()), default=str))

    for name in shipped():
        assert [e.message for e in validator.iter_errors(plain(PROFILES / f"{name}.yaml"))] == []
    wrong = plain(PROFILES / "lab.yaml") | {"trainig": {}, "path": "x"}
    assert any("trainig" in error.message for error in validator.iter_errors(wrong))


# -- Completion ------------------------------------------------------------------------------------


COMPLETE = "_KINJECT_COMPLETE"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("ta",), {"tables"}),
        (("export", "d"), {"dataset"}),
        (("tables", "--format", ""), {"text", "csv", "json", "markdown"}),
        (("tables", "--profile", "lab"), {"lab", "lab-study"}),
        (("export", "dataset", "--corpus", ""), {"rivers", "events-2031-04"}),
        (("run", "--profile", "lab", "--model", "lab-m"), {"lab-mistral"}),
        (("export", "checkpoint", "--recipe", "full.p02"), {"full.p02"}),
    ],
)
def test_names_are_completed(
    kinject: Callable[..., Result], words: tuple[str, ...], expected: set[str]
) -> None:
    from click.shell_completion import ShellComplete

    found = ShellComplete(main, {}, "kinject", COMPLETE).get_completions(
        list(words[:-1]), words[-1]
    )
    assert {item.value for item in found if item.type == "plain"} == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_call_back(shell: str) -> None:
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0
    assert "_KINJECT_COMPLETE" in done.stdout
    assert "kinject" in done.stdout


@pytest.mark.skipif(
    not Path(sys.executable).with_name("kinject").exists() or not shutil.which("bash"),
    reason="kinject is not installed beside this Python, or there is no bash",
)
def test_bash_completes_with_the_script(study: tuple[Path, Path], tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(CliRunner().invoke(main, ["completion", "bash"]).stdout)
    words = (
        f". {script}; COMP_WORDS=(kinject export da); COMP_CWORD=2; "
        'kinject() { command kinject "$@"; }; _kinject_completion kinject; echo "${COMPREPLY[@]}"'
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", words], env=environment(study, PATH=path), capture_output=True, text=True
    )
    assert done.stdout.strip() == "dataset", done.stderr
