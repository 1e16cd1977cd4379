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
from kinject_assets.core.errors import KinjectError, MissingArtefact, ModelError
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.schema import Checkpoint, Chunk, Damage, Paraphrase, Trial
from kinject_assets.core.store import read_rows, write_rows
from kinject_assets.core.training.models import load_model, load_tokenizer, resolve_device
from kinject_assets.core.training.packing import Packer, cut, encode_texts, recipe_texts
from kinject_assets.core.training.trial import (
    TrialPlan,
    TrialRecord,
    drop_kept,
    finished,
    mean_loss,
    restore_kept,
    run_trial,
)

if TYPE_CHECKING:
    import numpy as np

MODEL = "model"
GENERAL_PERPLEXITY = "general_perplexity"


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
        control_epochs: For a control, the epochs that its recipe's checkpoint kept.
        general_text: Text file whose perplexity is measured before and after; empty for none.
        work: Folder for what is wanted after a crash; it belongs to these inputs alone.
        out: Folder that gets `model/`, `checkpoint.parquet`, `trials.parquet`, `damage.parquet` and
            `loss.json`.
        device: `auto`, `cpu`, `cuda`: the first GPU that is visible.
        resume_seconds: Least time between two saves of an unfinished trial.
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
    control_epochs: int | None = None
    general_text: str = ""
    device: str = "auto"
    resume_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A made checkpoint.

    Attributes:
        losses: One entry an optimiser step: `trial`, `step` (from 1), `epoch`, `loss` (nats per
            token).
    """

    checkpoint: Checkpoint
    trials: list[Trial]
    damage: list[Damage]
    losses: list[dict[str, float]]


def train(request: TrainRequest, report: Report = silent) -> TrainResult:
    """Makes a checkpoint and writes it to `request.out`.

    Raises:
        ModelError: If the base model cannot be loaded or the method cannot run here.
        MissingArtefact: If there is nothing to train on.
        KinjectError: If memory does not suffice or every learning rate diverged.
    """
    return _Run(request, report).make()


class _Run:
    """What the parts of one call share."""

    def __init__(self, request: TrainRequest, report: Report) -> None:
        self.request = request
        self.report = report
        self.settings = config.Training(**request.training)
        self.control = request.control_tokens is not None
        self.device = resolve_device(request.device)
        if self.device.index:
            raise ModelError(
                f"scoring.device: training runs on the first visible GPU, not on `{self.device}`. "
                f"Set CUDA_VISIBLE_DEVICES={self.device.index} and the device to `cuda`."
            )
        _check_method(request.method, self.device.type)
        self.tokenizer = load_tokenizer(request.base, request.revision)
        self.packer = self._packer()
        self.validation = self._pieces_of(self._validation_texts())
        self.general = self._pieces_of(self._general_texts())
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
        if choose and math.isinf(records[best].loss):
            raise KinjectError(
                f"training.learning_rates: {self.label} diverged at every one of "
                f"{list(rates)}: no validation loss is a number. Give smaller ones."
            )
        if model is None:
            model = self._fresh_model()
        damage = self._finish(model, best)
        return self._write(records, best, damage)

    def _packer(self) -> Packer:
        request = self.request
        chunks = read_rows(Path(request.chunks), Chunk)
        paraphrases: list[Paraphrase] = []
        if request.n_paraphrases and not self.control:
            paraphrases = read_rows(Path(request.paraphrases), Paraphrase)
        texts = recipe_texts(chunks, paraphrases, request.n_paraphrases, request.augmentation)
        return Packer(
            encode_texts(self.tokenizer, texts),
            self.settings.piece_tokens,
            request.seed,
            request.control_tokens,
        )

    def _validation_texts(self) -> list[str]:
        if not self.request.validation:
            return []
        rows = read_rows(Path(self.request.validation), Paraphrase)
        return [row.text for row in sorted(rows, key=lambda row: (row.chunk_id, row.ordinal))]

    def _general_texts(self) -> list[str]:
        if not self.request.general_text:
            return []
        path = Path(self.request.general_text)
        try:
            return [path.read_text(encoding="utf-8")]
        except (OSError, UnicodeDecodeError) as error:
            raise MissingArtefact(
                f"training.general_text: {path} cannot be read as UTF-8 text ({error})."
            ) from error

    def _pieces_of(self, texts: Sequence[str]) -> "list[np.ndarray]":
        import numpy as np

        encoded = encode_texts(self.tokenizer, texts)
        return cut(np.concatenate(encoded), self.settings.piece_tokens) if encoded else []

    def _folder(self, number: int) -> Path:
        return Path(self.request.work) / f"trial-{number}"

    def _plan(self, number: int, rate: float, select: bool, count: int) -> TrialPlan:
        stop = self.request.control_epochs if self.control else None
        return TrialPlan(
            folder=self._folder(number),
            learning_rate=rate,
            settings=self.settings,
            packer=self.packer,
            validation=self.validation,
            select=select,
            stop_epoch=min(stop or self.settings.epochs, self.settings.epochs),
            seed=self.request.seed,
            dtype=self.request.dtype,
            device=self.device,
            resume_seconds=self.request.resume_seconds,
            label=f"{self.label} trial {number + 1}/{count}",
        )

    def _fresh_model(self) -> Any:
        """The base model, ready to be trained; measured when it is the first one."""
        from transformers import set_seed

        set_seed(self.request.seed)
        request = self.request
        model: Any = load_model(
            request.base,
            revision=request.revision,
            dtype="float32" if request.method == "full" else request.dtype,
            device=str(self.device),
            **(_four_bits(request.dtype) if request.method == "qlora" else {}),
        )
        if request.method != "full":
            model = _with_lora(model, self.settings, quantised=request.method == "qlora")
        if self.general and self.before is None:
            self.before = self._perplexity(model)
        return model

    def _drop_beaten(self, records: list[TrialRecord], choose: bool) -> None:
        best = _best(records, choose)
        for number in range(len(records)):
            if number != best:
                drop_kept(self._folder(number))

    def _perplexity(self, model: Any) -> float:
        loss = mean_loss(model, self.general, self.settings.micro_batch)
        # exp of more than about 709 is no float64; a perplexity of 1e304 says enough.
        return math.exp(min(loss, 700.0))

    def _finish(self, model: Any, best: int) -> list[Damage]:
        """Puts the best weights into the model, measures what it forgot, and saves it."""
        import torch

        out = Path(self.request.out) / MODEL
        restore_kept(model, self._folder(best))
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

    def _write(self, records: list[TrialRecord], best: int, damage: list[Damage]) -> TrainResult:
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
        result = TrainResult(checkpoint=checkpoint, trials=trials, damage=damage, losses=losses)
        out = Path(request.out)
        write_rows(out / "checkpoint.parquet", [checkpoint], Checkpoint)
        write_rows(out / "trials.parquet", trials, Trial)
        write_rows(out / "damage.parquet", damage, Damage)
        (out / "loss.json").write_text(json.dumps(losses) + "\n", encoding="utf-8")
        return result


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


def _four_bits(dtype: str) -> dict[str, Any]:
    import torch
    from transformers import BitsAndBytesConfig

    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    return {"quantization_config": quantisation, "device_map": {"": 0}}


def _with_lora(model: Any, settings: config.Training, quantised: bool) -> Any:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if quantised:
        model = prepare_model_for_kbit_training(model)
    adapter = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, adapter)
