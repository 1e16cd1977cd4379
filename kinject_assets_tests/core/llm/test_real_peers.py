"""Real OpenAI-compatible servers with a tiny model of random weights: its answers are noise.

What is tested is the way: every chunk comes to questions and paraphrases, or to rejections with
reasons; nothing crashes, nothing goes on for ever, and the accounts are exact. Only a server that
binds its model to the schema gives JSON that fits.
"""

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kinject_assets import config
from kinject_assets.core.augmentation.paraphrases import write_paraphrases
from kinject_assets.core.exams.writing import write_exam
from kinject_assets.core.llm.client import LLMClient
from kinject_assets.core.llm.ledger import Ledger
from kinject_assets.core.schema import Chunk
from kinject_assets_tests.e2e.browsing import free_port
from kinject_assets_tests.tiny import random_llama

pytestmark = pytest.mark.slow

TEXTS = [
    "The harbour of Ashwick was rebuilt by Abric Dunmere in 1902 for 4500 crowns.",
    "In 1911 the museum of Brimford received the collection of Casmir Vale.",
    "The observatory on Crag Peak has found three comets since it was opened in 1954.",
]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = random_llama(tmp_path_factory.mktemp("peer") / "tiny", TEXTS * 20, window=8192)
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text()) | {"chat_template": TEMPLATE}
    settings.write_text(json.dumps(content))
    return folder


@contextmanager
def serving(words: list[str], port: int, log: Path, **environment: str) -> Iterator[str]:
    """A server as a process; its address once it answers."""
    url = f"http://127.0.0.1:{port}/v1"
    with log.open("w") as sink:
        process = subprocess.Popen(
            words, stdout=sink, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
    try:
        until = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"{url}/models", timeout=5).read()
                break
            except OSError:  # nobody listens yet, or it answers with an error
                assert process.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < until, log.read_text()[-2000:]
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def transformers_server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not has("fastapi"):
        pytest.skip("`transformers serve` needs fastapi (pip install fastapi)")
    folder, port = tmp_path_factory.mktemp("hub"), free_port()
    program = shutil.which("transformers", path=str(Path(sys.executable).parent))
    assert program is not None
    words = [program, "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(folder)}
    with serving([*words, "--device", "cpu"], port, folder / "log", **offline) as url:
        yield url


def write_gguf(model: Path, out: Path) -> None:
    """The model in llama.cpp's format, by its own library."""
    from safetensors.numpy import load_file

    # Not among the development packages: it comes with what is built for these tests alone.
    gguf = importlib.import_module("gguf")

    settings = json.loads((model / "config.json").read_text())
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_context_length(settings["max_position_embeddings"])
    writer.add_embedding_length(settings["hidden_size"])
    writer.add_block_count(settings["num_hidden_layers"])
    writer.add_feed_forward_length(settings["intermediate_size"])
    writer.add_head_count(settings["num_attention_heads"])
    writer.add_head_count_kv(settings["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(settings["rms_norm_eps"])
    writer.add_vocab_size(settings["vocab_size"])
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in vocabulary])
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if token in special else normal for token, _ in vocabulary])
    writer.add_token_merges(
        [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    )
    writer.add_bos_token_id(settings["bos_token_id"])
    writer.add_eos_token_id(settings["eos_token_id"])
    writer.add_chat_template(TEMPLATE)
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    parts = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for layer in range(settings["num_hidden_layers"]):
        for ours, theirs in parts.items():
            names[f"model.layers.{layer}.{ours}.weight"] = f"blk.{layer}.{theirs}.weight"
    for name, tensor in load_file(model / "model.safetensors").items():
        writer.add_tensor(names[name], tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def llama_server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not (has("llama_cpp") and has("fastapi") and has("gguf")):
        pytest.skip("needs pip install 'llama-cpp-python[server]' gguf (builds for 10 minutes)")
    folder, port = tmp_path_factory.mktemp("gguf"), free_port()
    write_gguf(model, folder / "tiny.gguf")
    words = [sys.executable, "-m", "llama_cpp.server", "--model", str(folder / "tiny.gguf")]
    words += ["--host", "127.0.0.1", "--port", str(port), "--n_ctx", "8192"]
    with serving(words, port, folder / "log") as url:
        yield url


def chunks() -> list[Chunk]:
    return [
        Chunk(
            chunk_id=f"c{n}",
            article_id=f"a{n}",
            revision_id="1",
            ordinal=n,
            title=f"Page {n}",
            section="",
            n_tokens=40,
            small=False,
            text=text,
        )
        for n, text in enumerate(TEXTS)
    ]


def go_through(url: str, name: str, structure: str, ledger: Path) -> dict[str, int]:
    """Questions and paraphrases on every chunk; what came of it."""
    settings = config.LLM(
        model=name,
        structure=structure,  # pyright: ignore[reportArgumentType]
        max_output_tokens=96,
        concurrency=2,
        attempts=2,
        timeout=120,
        prices={name: (0.0, 0.0)},
    )
    client = LLMClient(settings, base_url=url, ledger=Ledger(ledger))
    exam = write_exam(chunks(), corpus="c", client=client, settings=config.Exams())
    texts = write_paraphrases(
        chunks(),
        per_chunk=1,
        purpose="train",
        client=client,
        settings=config.Augmentation(attempts=2),
    )
    for row in (*exam.rejections, *texts.rejections):
        assert row.reason
    answered = {row.chunk_id for row in (*exam.questions, *exam.rejections)}
    assert answered == {chunk.chunk_id for chunk in chunks()}
    rewritten = {row.chunk_id for row in (*texts.paraphrases, *texts.rejections)}
    assert rewritten == answered
    assert len(texts.paraphrases) + texts.given_up == len(chunks())
    sent = client.ledger.generations()
    assert all(row.state == "received" for row in sent)
    assert all(row.input_tokens > 0 and row.output_tokens > 0 for row in sent)
    # Each question and paraphrase is asked at most `attempts` times, and each of these tries once.
    assert len(sent) <= 2 * len(chunks()) * 2 * 2
    again = len(Ledger(ledger).generations())
    write_exam(chunks(), corpus="c", client=client, settings=config.Exams())
    assert len(client.ledger.generations()) == again, "nothing is asked for twice"
    return {
        "questions": len(exam.questions),
        "paraphrases": len(texts.paraphrases),
        "rejected": len(exam.rejections) + len(texts.rejections),
        "requests": len(sent),
    }


def rows_of(ledger: Path) -> list[dict[str, str]]:
    """Requests of a ledger."""
    rows = [
        json.loads(line)
        for path in sorted(ledger.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return [row for row in rows if row["row"] == "intent"]


@pytest.mark.parametrize("structure", ["json_schema", "json_object", "prompt"])
def test_transformers_serve(
    transformers_server: str, model: Path, structure: str, tmp_path: Path
) -> None:
    found = go_through(transformers_server, str(model), structure, tmp_path / "ledger")
    print(f"transformers serve, {structure}: {found}")
    # It takes response_format and ignores it: noise is no JSON.
    assert found["questions"] == 0
    assert found["rejected"] >= 2 * len(TEXTS)


@pytest.mark.parametrize("structure", ["json_object", "json_object_schema", "prompt"])
def test_llama_cpp(llama_server: str, structure: str, tmp_path: Path) -> None:
    found = go_through(llama_server, "tiny", structure, tmp_path / "ledger")
    print(f"llama_cpp.server, {structure}: {found}")
    assert found["rejected"] >= len(TEXTS)
    if structure == "json_object_schema":
        kept = Ledger(tmp_path / "ledger")
        texts = [kept.answer(row["key"]) for row in rows_of(tmp_path / "ledger")]
        whole = [t for t in texts if t is not None and t.finish_reason == "stop"]
        assert all(isinstance(json.loads(t.text), dict) for t in whole)


def test_a_structure_that_a_server_does_not_know_is_named(
    llama_server: str, tmp_path: Path
) -> None:
    """llama_cpp.server answers 500 to json_schema: after all tries, the mend is in the error."""
    settings = config.LLM(model="tiny", attempts=2, max_output_tokens=32, prices={"tiny": (0, 0)})
    client = LLMClient(settings, base_url=llama_server, ledger=Ledger(tmp_path / "ledger"))
    with pytest.raises(Exception, match=r"llm\.structure") as caught:
        write_exam(chunks(), corpus="c", client=client, settings=config.Exams())
    print(caught.value)
