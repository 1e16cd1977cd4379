"""Makes a checkpoint: tries learning rates, keeps the epoch with the lowest validation loss.

The learning rate rises linearly over `warmup_share` of all steps and falls as a cosine to zero at
the last of `epochs`. A control is trained at its recipe's learning rate, on its recipe's schedule,
to its recipe's last kept step, and nothing about it is chosen.

Full fine-tuning keeps float32 weights while it trains, whatever the model's dtype (which is then
the type that is computed in and saved): the learning rates of continued pre-training are below the
resolution of bfloat16 weights.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject_assets import config
from kinject_assets.core.augmentation.registry import PARAPHRASE
from kinject_assets.core.errors import KinjectError, MissingArtefact, ModelError, ProfileError
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.schema import Checkpoint, Chunk, Damage, Paraphrase, Trial
from kinject_assets.core.store import read_rows, write_rows
from kinject_assets.core.training.models import (
    check_isolation,
    load_model,
    load_tokenizer,
    resolve_device,
    tokenizer_identity,
    weights_identity,
)
from kinject_assets.core.training.packing import (
    Packer,
    data_hash,
    encode_texts,
    pack,
    paragraphs,
    recipe_texts,
    replay_tokens,
)
from kinject_assets.core.training.ranks import Ranks, launched, meet
from kinject_assets.core.training.trial import (
    TrialPlan,
    TrialRecord,
    autocast,
    computed_in,
    drop_kept,
    finished,
    mean_loss,
    restore_kept,
    run_trial,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

MODEL = "model"
GENERAL_PERPLEXITY = "general_perplexity"
IDENTITY = "identity.json"
LOSSES = "loss.json"
SPEED = "speed.json"

MOST_SHARED = 0.01
"""Part of the general text that may also be in the replay text, e.g. headings, in characters."""


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """A checkpoint to make.

    Attributes:
        checkpoint_id: Goes into every row.
        method: `full`, `lora` or `qlora`.
        base: Folder or hub id of the base model.
        dtype: `float32`, `bfloat16` or `float16`.
        chunks: Parquet file of `Chunk` rows.
        paraphrases: Parquet file of `Paraphrase` rows to train on; empty for none.
        n_paraphrases: Texts on each chunk that are trained on, the first by ordinal.
        augmentation: Whose texts these are.
        validation: Parquet file of `Paraphrase` rows that choose learning rate and epoch; empty:
            the first learning rate and the last epoch.
        training: Fields of `config.Training`, a recipe's overrides applied.
        control_tokens: For a control, the packed tokens of its recipe's epoch (`packed_tokens` /
            `epochs` of its checkpoint); the first learning rate given must be its recipe's.
        control_replay: For a control, the tokens of general text among them.
        control_epochs: For a control, the epochs that its recipe's checkpoint kept.
        general_text: Text file whose perplexity is measured before and after; empty for none.
        replay_text: Text file whose paragraphs are mixed in where `replay_share` is above 0.
        work: Folder for what is wanted after a crash; it belongs to these inputs alone.
        out: Folder that gets `model/`, `checkpoint.parquet`, `trials.parquet`, `damage.parquet`,
            `loss.json`, `identity.json` and `speed.json`.
        device: `auto`, `cpu`, `cuda`: the first GPUs that are visible, one for each of
            `training.processes`.
        resume_seconds: Least time between two saves of an unfinished trial.
        peak_tflops: Peak of one GPU; `None` for unknown.
    """

    checkpoint_id: str
    corpus: str
    model: str
    recipe: str
    seed: int
    method: str
    base: str
    chunks: str
    training: dict[str, Any]
    work: str
    out: str
    revision: str | None = None
    dtype: str = "float32"
    paraphrases: str = ""
    n_paraphrases: int = 0
    augmentation: str = PARAPHRASE
    validation: str = ""
    control_tokens: int | None = None
    control_replay: int = 0
    control_epochs: int | None = None
    general_text: str = ""
    replay_text: str = ""
    device: str = "auto"
    resume_seconds: float = 60.0
    peak_tflops: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A made checkpoint.

    Attributes:
        losses: One entry an optimiser step: `trial`, `step` (from 1), `epoch`, `loss` (nats per
            token).
        identity: Hashes that tell what it was made from: `base_weights` (of a model of the hub its
            commit), `tokenizer`, `training_data` (the tokens of all texts, in the corpus's order)
            and, where there are any, `validation_data` and `replay_data`.
        speed: What steps cost, see `speed_of`.
    """

    checkpoint: Checkpoint
    trials: list[Trial]
    damage: list[Damage]
    losses: list[dict[str, float]]
    identity: dict[str, str]
    speed: dict[str, Any]


def train(request: TrainRequest, report: Report = silent) -> TrainResult:
    """Makes a checkpoint and writes it to `request.out`.

    Several processes call it together; the first one reports, writes, and measures the damage.

    Raises:
        ModelError: If the base model cannot be loaded or the method cannot run here.
        MissingArtefact: If there is nothing to train on.
        KinjectError: If memory does not suffice or every learning rate diverged.
        RankOutOfMemory: If it does not suffice in one of several processes.
    """
    return _Run(request, report).make()


class _Run:
    """What the parts of one call share."""

    def __init__(self, request: TrainRequest, report: Report) -> None:
        self.request = request
        self.report = report
        self.settings = config.Training(**request.training)
        self.control = request.control_tokens is not None
        self.ranks = launched()
        self.device = _device_of(request.device, self.settings.processes, self.ranks)
        _check_method(request.method, self.device.type)
        _check_attention(self.settings.attention, request.dtype, self.device.type)
        self.kind = computed_in(request.dtype, self.device)
        meet(self.ranks, self.device)
        self.isolated = self.settings.documents == "isolated"
        self.tokenizer = load_tokenizer(request.base, request.revision)
        self.identity = {
            "base_weights": weights_identity(request.base, request.revision),
            "tokenizer": tokenizer_identity(self.tokenizer),
        }
        self.packer = self._packer()
        validation = encode_texts(self.tokenizer, self._validation_texts())
        self.validation = self._pieces_of(validation)
        self.general = self._pieces_of(encode_texts(self.tokenizer, self._general_texts()))
        data = {"training": self.packer.texts, "validation": validation}
        for name, encoded in {**data, "replay": self.packer.replay}.items():
            if encoded:
                self.identity[f"{name}_data"] = data_hash(encoded)
        self.before: float | None = None
        self.label = f"{request.corpus} {request.model}.{request.recipe}"

    def make(self) -> TrainResult:
        choose = bool(self.validation) and not self.control
        rates = self.settings.learning_rates if choose else self.settings.learning_rates[:1]
        records: list[TrialRecord] = []
        model: Any = None
        for number, rate in enumerate(rates):
            record = finished(self._folder(number))
            if record is None:
                # Two models of a size may not fit into a GPU beside each other.
                model = None
                model = self._fresh_model()
                select = choose and self.settings.keep == "best"
                plan = self._plan(number, rate, select, len(rates))
                record = run_trial(model, plan, self.report)
            records.append(record)
            self._drop_beaten(records, choose)
        best = _best(records, choose)
        if (choose and math.isinf(records[best].loss)) or not records[best].kept_epoch:
            raise KinjectError(
                f"training.learning_rates: {self.label} diverged at every one of "
                f"{list(rates)}: no loss is a number. Give smaller ones."
            )
        self.ranks.leave()
        if not self.ranks.first:
            return self._result(records, best, [])
        if model is None or self.settings.sharding == "fsdp":
            # Of a model that is spread over processes this one has a part.
            model = None
            model = self._fresh_model()
        damage = self._finish(model, records, best)
        result = self._result(records, best, damage)
        self._write(result)
        return result

    def _packer(self) -> Packer:
        request = self.request
        chunks = read_rows(Path(request.chunks), Chunk)
        paraphrases: list[Paraphrase] = []
        if request.n_paraphrases and not self.control:
            paraphrases = read_rows(Path(request.paraphrases), Paraphrase)
        texts = recipe_texts(chunks, paraphrases, request.n_paraphrases, request.augmentation)
        encoded = encode_texts(self.tokenizer, texts)
        own_tokens = sum(len(text) for text in encoded)
        mixed_in = (
            request.control_replay
            if self.control
            else replay_tokens(own_tokens, self.settings.replay_share)
        )
        return Packer(
            encoded,
            self.settings.piece_tokens,
            request.seed,
            request.control_tokens,
            self.isolated,
            encode_texts(self.tokenizer, self._replay_texts()) if mixed_in else (),
            mixed_in,
        )

    def _validation_texts(self) -> list[str]:
        if not self.request.validation:
            return []
        rows = read_rows(Path(self.request.validation), Paraphrase)
        return [row.text for row in sorted(rows, key=lambda row: (row.chunk_id, row.ordinal))]

    def _general_texts(self) -> list[str]:
        path = self.request.general_text
        return [_text_of("general_text", path)] if path else []

    def _replay_texts(self) -> list[str]:
        """Paragraphs to mix in, none of which is in the text that damage is measured on."""
        path = self.request.replay_text
        if not path:
            raise ProfileError(
                "training.replay_share is above 0 and training.replay_text names no text to mix in."
            )
        found = paragraphs(_text_of("replay_text", path))
        if not found:
            raise MissingArtefact(f"training.replay_text: {path} holds no paragraph.")
        replayed = {" ".join(text.split()) for text in found}
        for general in self._general_texts():
            measured = [" ".join(text.split()) for text in paragraphs(general)]
            shared = sum(len(text) for text in measured if text in replayed)
            if shared > MOST_SHARED * sum(map(len, measured)):
                raise ProfileError(
                    f"training.replay_text: {path} holds paragraphs of training.general_text "
                    f"({shared:,} characters): what training costs would be measured on text that "
                    "was trained on. Take them out of one of the two."
                )
        return found

    def _pieces_of(self, encoded: "Sequence[np.ndarray]") -> "list[np.ndarray]":
        return pack(encoded, self.settings.piece_tokens, self.isolated)

    def _folder(self, number: int) -> Path:
        return Path(self.request.work) / f"trial-{number}"

    def _plan(self, number: int, rate: float, select: bool, count: int) -> TrialPlan:
        stop = (self.control and self.request.control_epochs) or self.settings.epochs
        if stop > self.settings.epochs:
            raise ProfileError(
                f"training.epochs: {self.label} is trained for {stop} epochs, as many as its "
                f"recipe kept, and its schedule ends after {self.settings.epochs}. Make the "
                "recipe's `checkpoint` again, or set epochs back."
            )
        return TrialPlan(
            folder=self._folder(number),
            learning_rate=rate,
            settings=self.settings,
            packer=self.packer,
            validation=self.validation,
            select=select,
            stop_epoch=stop,
            seed=self.request.seed,
            dtype=self.request.dtype,
            device=self.device,
            resume_seconds=self.request.resume_seconds,
            label=f"{self.label} trial {number + 1}/{count}",
            ranks=self.ranks,
            peak_tflops=self.request.peak_tflops,
        )

    def _fresh_model(self) -> Any:
        """The base model, ready to be trained; measured when it is the first one."""
        from transformers import set_seed

        set_seed(self.request.seed)
        request = self.request
        options: dict[str, Any] = {}
        if self.settings.attention != "sdpa":
            options["attn_implementation"] = self.settings.attention
        if request.method == "qlora":
            options |= _four_bits(request.dtype, self.device)
        model: Any = load_model(
            request.base,
            revision=request.revision,
            dtype="float32" if request.method == "full" else request.dtype,
            device=str(self.device),
            **options,
        )
        if options and request.method != "qlora":
            model.to(self.device)
        if self.isolated:
            with autocast(self.kind, self.device):
                check_isolation(model)
        if request.method != "full":
            model = _with_lora(model, self.settings, quantised=request.method == "qlora")
        if self.general and self.before is None and self.ranks.first:
            self.before = self._perplexity(model)
        return model

    def _drop_beaten(self, records: list[TrialRecord], choose: bool) -> None:
        if not self.ranks.first:
            return
        best = _best(records, choose)
        for number in range(len(records)):
            if number != best:
                drop_kept(self._folder(number))

    def _perplexity(self, model: Any) -> float:
        loss = mean_loss(model, self.general, self.settings.micro_batch, self.kind)
        # exp of more than about 709 is no float64; a perplexity of 1e304 says enough.
        return math.exp(min(loss, 700.0))

    def _finish(self, model: Any, records: list[TrialRecord], best: int) -> list[Damage]:
        """Puts the best weights into the model, measures what it forgot, and saves it."""
        import torch

        out = Path(self.request.out) / MODEL
        restore_kept(model, self._folder(best), records[best].kept_epoch)
        damage: list[Damage] = []
        if self.before is not None:
            damage.append(
                Damage(
                    checkpoint_id=self.request.checkpoint_id,
                    probe=GENERAL_PERPLEXITY,
                    before=self.before,
                    after=self._perplexity(model),
                )
            )
        if self.request.method == "full":
            model = model.to(getattr(torch, self.request.dtype))
        model.save_pretrained(out)
        self.tokenizer.save_pretrained(out)
        # PEFT's model card is a form with nothing filled in.
        (out / "README.md").unlink(missing_ok=True)
        return damage

    def _result(self, records: list[TrialRecord], best: int, damage: list[Damage]) -> TrainResult:
        request = self.request
        kept = records[best].kept_epoch
        steps_per_epoch = -(-self.packer.epoch_pieces // self.settings.batch_pieces)
        checkpoint = Checkpoint(
            checkpoint_id=request.checkpoint_id,
            corpus=request.corpus,
            model=request.model,
            recipe=request.recipe,
            seed=request.seed,
            method=request.method,
            n_paraphrases=0 if self.control else request.n_paraphrases,
            repeats=self.packer.repeats if self.control else 0,
            learning_rate=records[best].learning_rate,
            epochs=kept,
            steps=kept * steps_per_epoch,
            packed_tokens=kept * self.packer.epoch_tokens,
            replay_tokens=kept * self.packer.replay_per_epoch,
            validation_loss=records[best].epochs[kept - 1].validation_loss,
            seconds=sum(row.seconds for record in records for row in record.epochs),
        )
        trials = [
            Trial(
                checkpoint_id=request.checkpoint_id,
                trial=number,
                learning_rate=record.learning_rate,
                epoch=row.epoch,
                training_loss=row.training_loss,
                validation_loss=row.validation_loss,
                kept=(number, row.epoch) == (best, kept),
            )
            for number, record in enumerate(records)
            for row in record.epochs
        ]
        losses = [entry for n, record in enumerate(records) for entry in _loss_history(n, record)]
        return TrainResult(
            checkpoint=checkpoint,
            trials=trials,
            damage=damage,
            losses=losses,
            identity=self.identity,
            speed=speed_of(
                records,
                self.settings.processes,
                request.peak_tflops if self.device.type == "cuda" else None,
            ),
        )

    def _write(self, result: TrainResult) -> None:
        out = Path(self.request.out)
        write_rows(out / "checkpoint.parquet", [result.checkpoint], Checkpoint)
        write_rows(out / "trials.parquet", result.trials, Trial)
        write_rows(out / "damage.parquet", result.damage, Damage)
        (out / LOSSES).write_text(json.dumps(result.losses) + "\n", encoding="utf-8")
        for name, content in ((IDENTITY, result.identity), (SPEED, result.speed)):
            (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def speed_of(
    records: "Sequence[TrialRecord]", processes: int, peak_tflops: float | None
) -> dict[str, Any]:
    """What the optimiser's steps of all trials came to, for people; no result depends on it.

    Returns:
        `tokens_per_second` of all processes together, without validation and saving;
        `micro_batch` and `gradient_checkpointing` that fitted in the end; `processes`; and, with a
        GPU, `mfu` (the part of the GPUs' peak that was reached, see `flops_per_token`) and
        `peak_memory_bytes` of the first one.
    """
    speeds = [record.speed for record in records]
    seconds = sum(speed.seconds for speed in speeds)
    pace = sum(speed.tokens for speed in speeds) / seconds if seconds else 0.0
    found: dict[str, Any] = {
        "tokens_per_second": pace,
        "micro_batch": min(speed.micro_batch for speed in speeds),
        "gradient_checkpointing": any(speed.gradient_checkpointing for speed in speeds),
        "processes": processes,
    }
    if peak_tflops is not None:
        found["mfu"] = pace * speeds[0].flops_per_token / (peak_tflops * 1e12 * processes)
    if peaks := [speed.peak_bytes for speed in speeds if speed.peak_bytes is not None]:
        found["peak_memory_bytes"] = max(peaks)
    return found


def _device_of(device: str, processes: int, ranks: Ranks) -> "torch.device":
    """What this process trains on."""
    import torch

    chosen = resolve_device(device)
    if processes != ranks.count:
        raise KinjectError(
            f"training.processes: {processes} are asked for, and {ranks.count} were started. They "
            "are started by `kinject run` and the UI; in Python run kinject_assets.workers.torchrun"
        )
    if chosen.index:
        raise ModelError(
            f"scoring.device: training runs on the first visible GPU, not on `{chosen}`. "
            f"Set CUDA_VISIBLE_DEVICES={chosen.index} and the device to `cuda`."
        )
    if chosen.type != "cuda" or not ranks.several:
        return chosen
    if processes > torch.cuda.device_count():
        raise ModelError(
            f"training.processes: {processes} GPUs are asked for, and torch sees "
            f"{torch.cuda.device_count()}. Set it to that number, or scoring.device to `cpu`."
        )
    return torch.device("cuda", ranks.number)


def _text_of(setting: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingArtefact(
            f"training.{setting}: {path} cannot be read as UTF-8 text ({error})."
        ) from error


def _best(records: list[TrialRecord], choose: bool) -> int:
    if not choose:
        return 0
    return min(range(len(records)), key=lambda number: (records[number].loss, number))


def _loss_history(number: int, record: TrialRecord) -> list[dict[str, float]]:
    entries: list[dict[str, float]] = []
    for row in record.epochs:
        for loss in row.step_losses:
            step = len(entries) + 1
            entries.append({"trial": number, "step": step, "epoch": row.epoch, "loss": loss})
    return entries


def _check_method(method: str, device_type: str) -> None:
    if method not in {"full", "lora", "qlora"}:
        raise ModelError(f"recipes: `{method}` is no way to train; allowed: full, lora, qlora")
    if method == "qlora" and (find_spec("bitsandbytes") is None or device_type != "cuda"):
        raise ModelError(
            "recipes: qlora needs a CUDA GPU and the package bitsandbytes "
            "(`pip install bitsandbytes`). Use a lora recipe on this machine."
        )


def _check_attention(attention: str, dtype: str, device_type: str) -> None:
    flash = attention == "flash_attention_2"
    if flash and dtype == "float32":
        raise ModelError(
            "training.attention: flash_attention_2 computes in 16 bits only, and the model's dtype "
            "is float32. Set it to `sdpa`, or models.NAME.dtype to `bfloat16`."
        )
    if flash and (find_spec("flash_attn") is None or device_type != "cuda"):
        raise ModelError(
            "training.attention: flash_attention_2 needs a CUDA GPU and the package flash-attn "
            "(`pip install flash-attn --no-build-isolation`). Set it to `sdpa`, torch's own kernel."
        )


def _four_bits(dtype: str, device: "torch.device") -> dict[str, Any]:
    import torch
    from transformers import BitsAndBytesConfig

    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    return {"quantization_config": quantisation, "device_map": {"": device.index or 0}}


def _with_lora(model: Any, settings: config.Training, quantised: bool) -> Any:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if quantised:
        model = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=settings.gradient_checkpointing is not False,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    adapter = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, adapter)
