"""Engines, and lm-eval's own command line with ours in it."""

import importlib.machinery
import importlib.metadata
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from kinject_assets.commands.lm_eval import names_a_model
from kinject_assets.core.errors import ModelError
from kinject_assets.core.scoring import lm as module
from kinject_assets.core.scoring.lm import load_lm, release


def test_vllm_without_vllm_says_what_to_do(base: Path) -> None:
    with pytest.raises(ModelError, match=r"pip install kinject\[vllm\]"):
        load_lm(str(base), engine="vllm")


def _stand_in(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The few names of vLLM that lm-eval's class imports; it cannot be installed here."""
    made: list[dict[str, Any]] = []

    class LLM:
        def __init__(self, **options: Any) -> None:
            made.append(options)
            self.llm_engine = types.SimpleNamespace(model_config=None)

    from transformers import AutoTokenizer

    def get_tokenizer(name: str, **options: Any) -> Any:
        options.pop("tokenizer_mode")
        return AutoTokenizer.from_pretrained(name, **options)

    parts: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": LLM, "SamplingParams": dict, "TokensPrompt": dict},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": lambda *arguments: arguments},
        "vllm.renderers": {},
        "vllm.renderers.hf": {"resolve_chat_template": lambda **options: None},
        "vllm.tokenizers": {"get_tokenizer": get_tokenizer},
    }
    for name, names in parts.items():
        stand_in = types.ModuleType(name)
        stand_in.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        vars(stand_in).update(names)
        monkeypatch.setitem(sys.modules, name, stand_in)
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.11.0" if name == "vllm" else real(name)
    )
    monkeypatch.delitem(sys.modules, "lm_eval.models.vllm_causallms", raising=False)
    return made


def test_vllm_is_constructed_through_lm_evals_class(
    base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = _stand_in(monkeypatch)
    with pytest.raises(ModelError, match="runs on CUDA alone"):
        load_lm(str(base), engine="vllm")
    monkeypatch.setattr(module, "resolve_device", lambda device: types.SimpleNamespace(type="cuda"))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 64}))
    lm = load_lm(
        str(base),
        engine="vllm",
        dtype="bfloat16",
        checkpoint=str(adapter),
        adapter=True,
        add_bos=True,
    )
    assert type(lm).__module__ == "lm_eval.models.vllm_causallms"
    (options,) = made
    assert options["model"] == str(base)
    assert options["enable_prefix_caching"] is True
    assert options["trust_remote_code"] is False
    assert options["dtype"] == "bfloat16"
    assert options["enable_lora"] is True
    assert options["max_lora_rank"] == 64
    assert lm.lora_request[2] == str(adapter)
    assert lm.add_bos_token is True
    release()


TASK = """
task: bones
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
num_fewshot: 2
fewshot_split: test
metric_list: [{{metric: acc}}]
"""


def test_lm_evals_command_line_gives_the_same_numbers(base: Path, tmp_path: Path) -> None:
    rows = [
        {"question": f"Which is bone {i}?", "choices": [f"bone {i}", "a liver", "no"], "answer": 0}
        for i in range(12)
    ]
    data = tmp_path / "bones.json"
    data.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "bones.yaml").write_text(TASK.format(data=data))

    def run(name: str, *model: str) -> tuple[list[list[float]], str]:
        command = [sys.executable, "-m", "kinject_assets.cli", "lm-eval", *model]
        command += ["--model_args", f"pretrained={base},dtype=float32", "--device", "cpu"]
        command += ["--tasks", "bones", "--include_path", str(tmp_path), "--batch_size", "4"]
        command += ["--output_path", str(tmp_path / name), "--log_samples"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        (samples,) = (tmp_path / name).rglob("samples_*.jsonl")
        found = [json.loads(line) for line in samples.read_text().splitlines()]
        found.sort(key=lambda sample: sample["doc_id"])
        return [[float(r[0]) for r in s["filtered_resps"]] for s in found], done.stdout

    ours, table = run("ours")
    stock, _ = run("stock", "--model", "hf")
    assert "hf-prefix" in table and "bones" in table
    assert len(ours) == 12
    for mine, theirs in zip(ours, stock, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--tasks", "a"], False),
        (["--tasks", "a", "--model", "hf"], True),
        (["-M", "hf"], True),
        (["--model=hf"], True),
        (["--model_args", "pretrained=x"], False),
        (["--config", "with.yaml"], True),
        (["--config=without.yaml"], False),
        (["-C", "without.yaml"], False),
        (["-C", "missing.yaml"], True),
    ],
)
def test_the_default_model_gives_way_to_one_that_is_named(
    arguments: list[str], named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "with.yaml").write_text("model: hf\ntasks: [a]\n")
    (tmp_path / "without.yaml").write_text("tasks: [a]\n")
    monkeypatch.chdir(tmp_path)
    assert names_a_model(arguments) is named


def test_lm_evals_help_is_one_word_away() -> None:
    command = [sys.executable, "-m", "kinject_assets.cli", "lm-eval"]
    short = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "hf-prefix" in short.stdout and "num_fewshot 5" in short.stdout
    whole = subprocess.run([*command, "run", "--help"], capture_output=True, text=True, check=True)
    assert "--num_fewshot" in whole.stdout
