"""One trial: one learning rate, up to the last epoch, through transformers' Trainer.

A batch of the Trainer is a whole optimiser step: `training_step` runs it in micro-batches of pieces
of one length. So a step holds exactly `batch_pieces` pieces (fewer at the end of an epoch), every
token of a step weighs the same, the shorter last piece of an epoch is a micro-batch of its own, and
a GPU that runs out of memory repeats the step with half the micro-batch.
"""

import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject_assets import config
from kinject_assets.core.errors import KinjectError
from kinject_assets.core.manifest import write_atomically
from kinject_assets.core.progress import Report
from kinject_assets.core.training.packing import Packer

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel, Trainer

_RECORD = "trial.json"
_WEIGHTS = "kept.safetensors"
_REPORT_SECONDS = 0.5


@dataclass(frozen=True)
class EpochRow:
    """What an epoch came to.

    Attributes:
        epoch: From 1.
        training_loss: Mean nats per token over the epoch, measured as it was trained.
        validation_loss: Mean nats per token after the epoch; `None` when not measured.
        step_losses: Mean nats per token of each optimiser step.
        seconds: Time of the epoch with its validation.
    """

    epoch: int
    training_loss: float
    validation_loss: float | None
    step_losses: list[float]
    seconds: float


@dataclass(frozen=True)
class TrialRecord:
    """A finished trial.

    Attributes:
        kept_epoch: Epoch whose weights lie beside the record; 0 when no epoch had a finite loss.
    """

    learning_rate: float
    epochs: list[EpochRow]
    kept_epoch: int

    @property
    def kept(self) -> EpochRow | None:
        """The kept epoch's row."""
        return self.epochs[self.kept_epoch - 1] if self.kept_epoch else None

    @property
    def loss(self) -> float:
        """Validation loss of the kept epoch, infinite when there is none or it is no number."""
        row = self.kept
        loss = None if row is None else row.validation_loss
        return loss if loss is not None and math.isfinite(loss) else math.inf


@dataclass(frozen=True, kw_only=True)
class TrialPlan:
    """How a trial is run.

    Attributes:
        folder: Where it keeps what it needs after a crash.
        validation: Pieces that choose the epoch; empty for none.
        select: Keep the epoch with the lowest validation loss (the earliest of equals), measured
            after each; otherwise keep the last, measured once.
        stop_epoch: Last epoch to run; the schedule of the learning rate spans `settings.epochs`.
        dtype: Of autocast, when it is not float32.
        resume_seconds: Least time between two saves of the unfinished state.
    """

    folder: Path
    learning_rate: float
    settings: config.Training
    packer: Packer
    validation: "list[np.ndarray]"
    select: bool
    stop_epoch: int
    seed: int
    dtype: str
    device: "torch.device"
    resume_seconds: float
    label: str


def finished(folder: Path) -> TrialRecord | None:
    """The record of a trial that ended earlier, or `None`."""
    path = folder / _RECORD
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    rows = [EpochRow(**row) for row in record.pop("epochs")]
    return TrialRecord(**record, epochs=rows)


def micro_batches(pieces: "Sequence[np.ndarray]", size: int) -> "Iterator[list[np.ndarray]]":
    """Groups of at most `size` neighbouring pieces of one length."""
    for _, alike in groupby(pieces, key=len):
        group = list(alike)
        for start in range(0, len(group), size):
            yield group[start : start + size]


def summed_loss(model: Any, pieces: "Sequence[np.ndarray]") -> "torch.Tensor":
    """Summed loss in nats of pieces of one length, next token by next token, with gradients."""
    import numpy as np
    import torch
    from torch.nn.functional import cross_entropy

    ids = torch.from_numpy(np.stack(pieces)).to(model.device)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum")


def targets(pieces: "Sequence[np.ndarray]") -> int:
    """Tokens that pieces predict: all but the first of each."""
    return sum(len(piece) - 1 for piece in pieces)


def mean_loss(
    model: Any, pieces: "Sequence[np.ndarray]", micro_batch: int, autocast: str = "float32"
) -> float:
    """Mean loss of pieces in nats per predicted token, without training.

    Args:
        model: On any device; its mode is restored.
        pieces: Token ids, each piece an array.
        micro_batch: Pieces a forward pass, halved where memory runs out.
        autocast: Type that is computed in; `float32` for the weights' own.
    """
    import torch

    was_training = model.training
    model.eval()
    total, size = 0.0, micro_batch
    kind = getattr(torch, autocast)
    with (
        torch.inference_mode(),
        torch.autocast(model.device.type, dtype=kind, enabled=kind != torch.float32),
    ):
        remaining = [group for group in micro_batches(pieces, size) if targets(group)]
        while remaining:
            group = remaining.pop()
            try:
                total += float(summed_loss(model, group))
            except torch.OutOfMemoryError:
                if len(group) == 1:
                    raise
                torch.cuda.empty_cache()
                remaining += [group[: len(group) // 2], group[len(group) // 2 :]]
    model.train(was_training)
    return total / max(1, targets(pieces))


def trainable(model: Any) -> "dict[str, torch.Tensor]":
    """Parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def restore_kept(model: Any, folder: Path) -> None:
    """Puts the kept weights of a finished trial into a model of the same kind."""
    import torch
    from safetensors.torch import load_file

    kept = load_file(folder / _WEIGHTS)
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(kept[name])


def drop_kept(folder: Path) -> None:
    """Deletes the kept weights of a trial that another one beat; its record stays."""
    (folder / _WEIGHTS).unlink(missing_ok=True)


def run_trial(model: "PreTrainedModel", plan: TrialPlan, report: Report) -> TrialRecord:
    """Trains a model in place and keeps the weights of the chosen epoch in the plan's folder.

    An unfinished trial goes on from its last saved epoch.

    Args:
        model: Freshly loaded, with exactly the parameters to train requiring gradients.
        plan: What to do.
        report: Told of loss and speed, and of each epoch's end.

    Raises:
        KinjectError: If not even one piece fits into the GPU's memory.
    """
    import transformers
    from transformers.trainer_callback import PrinterCallback

    plan.folder.mkdir(parents=True, exist_ok=True)
    trainer = _packed_trainer()(model, plan, report)
    trainer.remove_callback(PrinterCallback)
    quiet = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        trainer.train(resume_from_checkpoint=_last_whole_checkpoint(plan.folder))
    finally:
        transformers.logging.set_verbosity(quiet)
    rows = _rows(trainer)
    record = TrialRecord(
        learning_rate=plan.learning_rate, epochs=rows, kept_epoch=_kept_epoch(rows, plan.select)
    )
    write_atomically(plan.folder / _RECORD, json.dumps(asdict(record)) + "\n")
    for checkpoint in plan.folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return record


def _kept_epoch(rows: list[EpochRow], select: bool) -> int:
    if not select:
        return rows[-1].epoch
    finite = [r for r in rows if r.validation_loss is not None and math.isfinite(r.validation_loss)]
    best = min(finite, key=lambda row: (row.validation_loss, row.epoch), default=None)
    return best.epoch if best else 0


def _last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint whose state was written: the Trainer writes that file last."""
    whole = [state.parent for state in folder.glob("checkpoint-*/trainer_state.json")]
    newest = max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)
    return str(newest) if newest else None


def _rows(trainer: "Trainer") -> list[EpochRow]:
    # The Trainer saves and restores its log, so that rows survive a crash together with weights.
    history: list[Any] = trainer.state.log_history
    return [EpochRow(**entry["kinject"]) for entry in history if "kinject" in entry]


class _StepLoader:
    """The Trainer's batches of an epoch: each the pieces of one optimiser step."""

    def __init__(self, packer: Packer, batch_pieces: int) -> None:
        self.packer = packer
        self.batch_pieces = batch_pieces
        self.epoch = 0
        self.dataset = range(packer.epoch_pieces)

    def __len__(self) -> int:
        return -(-self.packer.epoch_pieces // self.batch_pieces)

    def __iter__(self) -> "Iterator[dict[str, list[np.ndarray]]]":
        pieces = self.packer.pieces(self.epoch)
        for start in range(0, len(pieces), self.batch_pieces):
            yield {"pieces": pieces[start : start + self.batch_pieces]}

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before it iterates."""
        self.epoch = epoch


@cache
def _packed_trainer() -> Any:
    """The Trainer's subclass; built on first use because transformers is heavy to import."""
    import torch
    from safetensors.torch import save_file
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class EpochEnd(TrainerCallback):
        """Measures, keeps the best weights, saves the state, stops."""

        def __init__(self, trainer: "PackedTrainer") -> None:
            self.trainer = trainer
            self.saved_at = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.trainer.tell_progress()

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            epoch = round(state.epoch)
            last = epoch == self.trainer.plan.stop_epoch
            self.trainer.close_epoch(epoch, last)
            control.should_training_stop = last
            due = time.monotonic() - self.saved_at >= self.trainer.plan.resume_seconds
            control.should_save = due and not last
            if control.should_save:
                self.saved_at = time.monotonic()

    class PackedTrainer(Trainer):
        """Trains on packed pieces, a whole optimiser step at a time."""

        def __init__(self, model: Any, plan: TrialPlan, report: Report) -> None:
            self.plan = plan
            self.report_progress = report
            self.micro_batch = plan.settings.micro_batch
            self.step_losses: list[float] = []
            self.nats, self.targets = 0.0, 0
            self.epoch_started = time.monotonic()
            self.told_at, self.told_tokens, self.tokens = self.epoch_started, 0, 0
            cuda = plan.device.type == "cuda"
            arguments = TrainingArguments(
                output_dir=str(plan.folder),
                num_train_epochs=plan.settings.epochs,
                per_device_train_batch_size=1,
                learning_rate=plan.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=_warmup_steps(plan),
                weight_decay=plan.settings.weight_decay,
                seed=plan.seed,
                use_cpu=not cuda,
                bf16=plan.dtype == "bfloat16",
                fp16=plan.dtype == "float16" and cuda,
                report_to="none",
                disable_tqdm=True,
                logging_strategy="no",
                save_strategy="no",
                eval_strategy="no",
                save_total_limit=1,
            )
            if arguments.n_gpu > 1:
                # Otherwise the Trainer spreads over all visible GPUs by nn.DataParallel.
                arguments._n_gpu = 1
            super().__init__(model=model, args=arguments)
            self.add_callback(EpochEnd(self))

        def get_train_dataloader(self) -> Any:
            return _StepLoader(self.plan.packer, self.plan.settings.batch_pieces)

        def floating_point_ops(self, inputs: Any) -> int:
            return 0

        def training_step(
            self, model: Any, inputs: Any, num_items_in_batch: Any = None
        ) -> "torch.Tensor":
            model.train()
            pieces = inputs["pieces"]
            while True:
                try:
                    nats = self._forward_backward(model, pieces)
                    break
                except torch.OutOfMemoryError as error:
                    model.zero_grad()
                    torch.cuda.empty_cache()
                    if self.micro_batch == 1:
                        raise KinjectError(
                            f"training.micro_batch: {self.plan.label} runs out of GPU memory with "
                            "one piece at a time. Use a smaller model, fewer "
                            "training.piece_tokens, a lora or qlora recipe, or a larger GPU."
                        ) from error
                    self.micro_batch = self.micro_batch // 2
                    self.report_progress(
                        f"{self.plan.label}: out of GPU memory, micro-batch is now "
                        f"{self.micro_batch}"
                    )
            count = max(1, targets(pieces))
            self.nats += nats
            self.targets += count
            self.tokens += sum(len(piece) for piece in pieces)
            self.step_losses.append(nats / count)
            return torch.tensor(nats / count, device=self.args.device)

        def _forward_backward(self, model: Any, pieces: "list[np.ndarray]") -> float:
            count = max(1, targets(pieces))
            total = torch.zeros((), device=self.args.device)
            for group in micro_batches(pieces, self.micro_batch):
                with self.compute_loss_context_manager():
                    loss = summed_loss(model, group)
                self.accelerator.backward(loss / count)
                total += loss.detach()
            return float(total)

        def tell_progress(self) -> None:
            """Reports loss and speed, not more often than a person reads."""
            now = time.monotonic()
            if now - self.told_at < _REPORT_SECONDS:
                return
            speed = (self.tokens - self.told_tokens) / (now - self.told_at)
            self.told_at, self.told_tokens = now, self.tokens
            self.tell(f"loss {self.step_losses[-1]:.3f} {speed:,.0f} tokens/s")

        def tell(self, what: str) -> None:
            """Reports something about the current epoch."""
            epoch = math.ceil(self.state.epoch or 0)
            self.report_progress(
                f"{self.plan.label} epoch {epoch}/{self.plan.stop_epoch} {what}",
                self.state.global_step,
                self.plan.stop_epoch * len(self.get_train_dataloader()),
            )

        def close_epoch(self, epoch: int, last: bool) -> None:
            """Writes the epoch's row, and its weights when it is the one to keep so far."""
            plan = self.plan
            validation = None
            if plan.validation and (plan.select or last):
                kind = plan.dtype if self.args.bf16 or self.args.fp16 else "float32"
                validation = mean_loss(self.model, plan.validation, self.micro_batch, kind)
            row = EpochRow(
                epoch=epoch,
                training_loss=self.nats / max(1, self.targets),
                validation_loss=validation,
                step_losses=self.step_losses,
                seconds=time.monotonic() - self.epoch_started,
            )
            history: list[Any] = self.state.log_history
            history.append({"kinject": asdict(row)})
            held_out = "" if validation is None else f", held out {validation:.3f}"
            self.tell(f"done: loss {row.training_loss:.3f}{held_out}")
            self.step_losses, self.nats, self.targets = [], 0.0, 0
            self.epoch_started = time.monotonic()
            if (plan.select or last) and _kept_epoch(_rows(self), plan.select) == epoch:
                self._keep()

        def _keep(self) -> None:
            path = self.plan.folder / _WEIGHTS
            partial = path.with_suffix(".partial")
            save_file(
                {name: p.detach().cpu().contiguous() for name, p in trainable(self.model).items()},
                partial,
            )
            partial.replace(path)

    return PackedTrainer


def _warmup_steps(plan: TrialPlan) -> int:
    steps = plan.settings.epochs * len(_StepLoader(plan.packer, plan.settings.batch_pieces))
    return math.ceil(plan.settings.warmup_share * steps)
