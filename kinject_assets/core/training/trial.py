"""One trial: one learning rate, up to the last epoch, through transformers' Trainer.

A batch of the Trainer is a whole optimiser step: `training_step` runs it in micro-batches of pieces
of one length. So a step holds exactly `batch_pieces` pieces (fewer at the end of an epoch), every
token of a step weighs the same, the shorter last piece of an epoch is a micro-batch of its own, and
a GPU that runs out of memory repeats the step with half the micro-batch.

Where several processes train together, each reads every batch and takes its share of the pieces.
The loss is divided by the predicted tokens of the whole step, whoever has them, so that the
gradient is that of one process. All run the same number of micro-batches: one that has fewer pieces
runs some for nothing, since the others wait for it in every pass.
"""

import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject_assets import config
from kinject_assets.core.errors import KinjectError
from kinject_assets.core.manifest import write_atomically
from kinject_assets.core.progress import Report
from kinject_assets.core.training.models import logits_of
from kinject_assets.core.training.packing import (
    NOT_PREDICTED,
    Packer,
    inputs_and_labels,
    targets,
)
from kinject_assets.core.training.ranks import RankOutOfMemory, Ranks

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel, Trainer

_RECORD = "trial.json"
_WEIGHTS = "weights.safetensors"
"""What is trained, in a saved state; under the parameters' own names, unlike `save_pretrained`."""

_KEPT = "kept-"
"""Begin of the names of files of kept weights; the epoch follows."""

_REPORT_SECONDS = 0.5

_SAVING = "saving"
"""Folder in which a checkpoint is written before it gets its name: what has the name is whole."""

_PLAIN, _SHARDED = "checkpoint", "sharded-checkpoint"

MOST_SAVING = 0.05
"""Part of the time that may go into saving the unfinished state; large models are saved less often
than they would be otherwise."""

SMALL_PASS = 1024
"""Tokens a forward pass below which a GPU mostly waits for its memory: an H100 does some 300
operations (in 16 bits) in the time that it takes to read one byte of weights."""

LOGITS_AT_ONCE = 2**27
"""Logits whose loss is computed at once: 512 MiB as float32, 4 pieces of 256 tokens with a
vocabulary of 128,000. The copy in float32 and its gradient are never larger."""


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
class Speed:
    """How fast a trial's optimiser steps were; what they cost is in no result.

    Attributes:
        tokens: That the steps since the last start read.
        seconds: That these steps took. Validation and saving are not among them.
        flops_per_token: See `flops_per_token`.
        micro_batch: Pieces a forward pass that fit in the end.
        gradient_checkpointing: Whether activations were computed twice in the end.
        peak_bytes: Most memory of a GPU (of the first process) that was in use; `None` without one.
    """

    tokens: int
    seconds: float
    flops_per_token: float
    micro_batch: int
    gradient_checkpointing: bool
    peak_bytes: int | None


@dataclass(frozen=True)
class TrialRecord:
    """A finished trial.

    Attributes:
        kept_epoch: Epoch whose weights lie beside the record; 0 when no epoch had a finite loss.
    """

    learning_rate: float
    epochs: list[EpochRow]
    kept_epoch: int
    speed: Speed

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
        ranks: The processes that train together.
        peak_tflops: Peak of one GPU, for the share of it that is reached; `None` for unknown.
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
    ranks: Ranks = field(default_factory=Ranks)
    peak_tflops: float | None = None

    @property
    def sharded(self) -> bool:
        """Whether no process holds the whole model."""
        return self.settings.sharding == "fsdp"

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return -(-self.packer.epoch_pieces // self.settings.batch_pieces)


def finished(folder: Path) -> TrialRecord | None:
    """The record of a trial that ended earlier, or `None`."""
    path = folder / _RECORD
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    rows = [EpochRow(**row) for row in record.pop("epochs")]
    return TrialRecord(**record | {"epochs": rows, "speed": Speed(**record["speed"])})


def micro_batches(pieces: "Sequence[np.ndarray]", size: int) -> "Iterator[list[np.ndarray]]":
    """Groups of at most `size` neighbouring pieces of one length."""
    for _, alike in groupby(pieces, key=len):
        group = list(alike)
        for start in range(0, len(group), size):
            yield group[start : start + size]


def dealt(
    pieces: "Sequence[np.ndarray]", size: int, ranks: Ranks
) -> "list[tuple[list[np.ndarray], bool]]":
    """Micro-batches of one process, as many as each of the others has.

    Returns:
        Pieces of each micro-batch, and whether it counts: one that does not only keeps step.
    """
    of_all = [
        list(micro_batches(pieces[number :: ranks.count], size)) for number in range(ranks.count)
    ]
    mine = of_all[ranks.number]
    idle = max(map(len, of_all)) - len(mine)
    return [(group, True) for group in mine] + [([*pieces[:1]], False)] * idle


def leaner(settings: config.Training) -> config.Training | None:
    """Settings for another try after memory ran out; `None` when nothing is left to try.

    The micro-batch is halved. Where it is so small already that a GPU would not be kept busy with
    less, activations are computed twice first, unless the settings say otherwise: they are what a
    smaller micro-batch saves, too, and a third more work costs less than a pass of few tokens.
    """
    small = settings.micro_batch * settings.piece_tokens <= SMALL_PASS
    if settings.gradient_checkpointing is None and small:
        return settings.model_copy(update={"gradient_checkpointing": True})
    if settings.micro_batch > 1:
        return settings.model_copy(update={"micro_batch": settings.micro_batch // 2})
    return None


def said_of(settings: config.Training, leaner: config.Training) -> str:
    """What changes from one try to the next one, for people."""
    if leaner.micro_batch != settings.micro_batch:
        return f"out of GPU memory, micro-batch is now {leaner.micro_batch}"
    return "out of GPU memory, activations are computed twice from now on"


def summed_loss(model: Any, pieces: "Sequence[np.ndarray]") -> "torch.Tensor":
    """Summed loss in nats of pieces of one length, next token by next token, with gradients.

    Nothing is predicted across the begin of an isolated text. Of many logits the loss is taken in
    slices, which are computed again when the gradient needs them: what a large vocabulary would
    take in float32 is never there at once.
    """
    import torch
    from torch.nn.functional import cross_entropy
    from torch.utils.checkpoint import checkpoint

    def tensor(part: "np.ndarray") -> "torch.Tensor":
        return torch.from_numpy(part).to(model.device)

    ids, positions, labels = inputs_and_labels(pieces)
    places = None if positions is None else tensor(positions)
    logits, wanted = logits_of(model, tensor(ids), places), tensor(labels)

    def summed(logits: "torch.Tensor", wanted: "torch.Tensor") -> "torch.Tensor":
        return cross_entropy(
            logits[:, :-1].flatten(0, 1).float(),
            wanted.flatten(),
            ignore_index=NOT_PREDICTED,
            reduction="sum",
        )

    rows = max(1, LOGITS_AT_ONCE // max(1, logits[0].numel()))
    if rows >= len(logits):
        return summed(logits, wanted)
    slices = zip(logits.split(rows), wanted.split(rows), strict=True)
    return torch.stack(
        [
            checkpoint(summed, *part, use_reentrant=False, preserve_rng_state=False)
            for part in slices
        ]
    ).sum()


def computed_in(dtype: str, device: "torch.device") -> str:
    """Type of autocast while a model of `dtype` is trained and measured; `float32` for none."""
    return "float32" if dtype == "float16" and device.type != "cuda" else dtype


def autocast(kind: str, device: "torch.device") -> "torch.autocast":
    """A context that computes in the type `kind`; with `float32` in the weights' own."""
    import torch

    dtype = getattr(torch, kind)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def mean_loss(
    model: Any,
    pieces: "Sequence[np.ndarray]",
    micro_batch: int,
    kind: str = "float32",
    ranks: Ranks | None = None,
) -> float:
    """Mean loss of pieces in nats per predicted token, without training.

    Args:
        model: On any device; its mode is restored.
        pieces: Token ids, each piece an array.
        micro_batch: Pieces a forward pass, halved where memory runs out.
        kind: Type that is computed in; `float32` for the weights' own.
        ranks: Processes that each do a part and all get the result; `None`: this one alone.

    Raises:
        RankOutOfMemory: Where several processes do it and memory runs out.
    """
    import torch

    if ranks is not None and ranks.several:
        return _mean_loss_together(model, pieces, micro_batch, kind, ranks)

    was_training = model.training
    model.eval()
    total, size = 0.0, micro_batch
    with torch.inference_mode(), autocast(kind, model.device):
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


def _mean_loss_together(
    model: Any, pieces: "Sequence[np.ndarray]", micro_batch: int, kind: str, ranks: Ranks
) -> float:
    import torch

    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    # Weights that are spread over processes cannot be gathered in inference mode.
    with torch.no_grad(), autocast(kind, model.device):
        for group, counts in dealt(pieces, micro_batch, ranks):
            try:
                loss = summed_loss(model, group)
            except torch.OutOfMemoryError as error:
                raise RankOutOfMemory from error
            if counts:
                total += loss
    ranks.add(total)
    model.train(was_training)
    return float(total) / max(1, targets(pieces))


def flops_per_token(model: Any, piece_tokens: int) -> float:
    """Floating-point operations that training does for a token, as utilisation is counted.

    For N weights 2N in the forward pass, 2N for the gradients of activations and 2 for each weight
    that is trained, together 6N where all are; and 12 * layers * width * tokens for attention,
    width being heads times their size. So do the authors of PaLM (arXiv 2204.02311, appendix B)
    and nanoGPT. An embedding that is only looked up does no work. What is computed twice to save
    memory counts once, and attention counts as if it were not causal; a model without heads (Mamba)
    has none.

    Args:
        model: Before it is spread over processes, or compiled.
        piece_tokens: Tokens in a piece.
    """
    from peft import PeftModel

    shape = model.config.get_text_config()
    if isinstance(model, PeftModel):
        trained, weights = model.get_nb_trainable_parameters()
    else:
        weights = model.num_parameters()
        trained = model.num_parameters(only_trainable=True)
    looked_up: Any = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    if head is None or head.weight is not looked_up:
        weights -= looked_up.numel()
        trained -= looked_up.numel() if looked_up.requires_grad else 0
    heads = getattr(shape, "num_attention_heads", None) or 0
    size = getattr(shape, "head_dim", None) or shape.hidden_size // max(1, heads)
    attention = 12 * shape.num_hidden_layers * heads * size * piece_tokens
    return 4.0 * weights + 2.0 * trained + attention


def trainable(model: Any) -> "dict[str, torch.Tensor]":
    """Parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def restore_kept(model: Any, folder: Path, epoch: int) -> None:
    """Puts the weights that a trial kept of an epoch into a model of the same kind."""
    _restore(model, _kept_path(folder, epoch))


def _restore(model: Any, path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    saved = load_file(path)
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(saved[name])


def _kept_path(folder: Path, epoch: int) -> Path:
    return folder / f"{_KEPT}{epoch}.safetensors"


def drop_kept(folder: Path, *but: int) -> None:
    """Deletes a trial's kept weights, but those of some epochs; its record stays."""
    spared = {_kept_path(folder, epoch) for epoch in but}
    for path in set(folder.glob(f"{_KEPT}*")) - spared:
        path.unlink()


def run_trial(model: "PreTrainedModel", plan: TrialPlan, report: Report) -> TrialRecord:
    """Trains a model in place and keeps the weights of the chosen epoch in the plan's folder.

    An unfinished trial goes on from its last saved step. Several processes call it together; the
    first one writes.

    Args:
        model: Freshly loaded, with exactly the parameters to train requiring gradients. It is
            spread over the processes if the plan says so, and then of no further use.
        plan: What to do.
        report: Told of loss and speed, and of each epoch's end.

    Raises:
        KinjectError: If not even one piece fits into the GPU's memory.
        RankOutOfMemory: If memory runs out in one of several processes.
    """
    import torch
    import transformers
    from transformers.trainer_callback import PrinterCallback

    plan.folder.mkdir(parents=True, exist_ok=True)
    if plan.ranks.first:
        shutil.rmtree(plan.folder / _SAVING, ignore_errors=True)
    newest = _newest_checkpoint(plan)
    plan.ranks.wait()
    trainer = _packed_trainer()(model, plan, report, _step_of(newest) if newest else 0)
    trainer.remove_callback(PrinterCallback)
    quiet = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    except torch.OutOfMemoryError as error:
        if plan.ranks.several:
            raise RankOutOfMemory from error
        raise too_large(plan.label) from error
    finally:
        transformers.logging.set_verbosity(quiet)
    rows = _rows(trainer)
    record = TrialRecord(
        learning_rate=plan.learning_rate,
        epochs=rows,
        kept_epoch=_kept_epoch(rows, plan.select),
        speed=trainer.speed(),
    )
    if plan.ranks.first:
        write_atomically(plan.folder / _RECORD, json.dumps(asdict(record)) + "\n")
        drop_kept(plan.folder, record.kept_epoch)
        for checkpoint in _checkpoints(plan.folder):
            shutil.rmtree(checkpoint)
        shutil.rmtree(plan.folder / _SAVING, ignore_errors=True)
    return record


def too_large(label: str) -> KinjectError:
    """The error where nothing is left that needs less memory."""
    return KinjectError(
        f"training.micro_batch: {label} runs out of GPU memory with one piece at a time. Use "
        "a smaller model, fewer training.piece_tokens, a lora or qlora recipe, a larger GPU, or "
        "several: training.processes with training.sharding `fsdp`."
    )


def _kept_epoch(rows: list[EpochRow], select: bool) -> int:
    if not rows:
        return 0
    if not select:
        last = rows[-1]
        # Validation may not have been measured; then the loss of training alone tells.
        loss = last.training_loss + (last.validation_loss or 0.0)
        return last.epoch if math.isfinite(loss) else 0
    finite = [r for r in rows if r.validation_loss is not None and math.isfinite(r.validation_loss)]
    best = min(finite, key=lambda row: (row.validation_loss, row.epoch), default=None)
    return best.epoch if best else 0


def _checkpoints(folder: Path) -> list[Path]:
    return [path for kind in (_PLAIN, _SHARDED) for path in folder.glob(f"{kind}-*")]


def _newest_checkpoint(plan: TrialPlan) -> Path | None:
    """The newest saved state that can be taken up; all that have their name are whole."""
    found = plan.folder.glob(f"{_SHARDED if plan.sharded else _PLAIN}-*")
    return max(found, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _rows(trainer: "Trainer") -> list[EpochRow]:
    # The Trainer saves and restores its log, so that rows survive a crash together with weights.
    history: list[Any] = trainer.state.log_history
    return [EpochRow(**entry["kinject"]) for entry in history if "kinject" in entry]


@dataclass
class _OpenEpoch:
    """What an unfinished epoch has come to. It is saved together with the weights.

    Attributes:
        step_losses: Mean nats per token of each step.
        nats: Summed loss.
        targets: Predicted tokens.
        seconds: Of the calls before this one.
        micro_batch: Pieces a forward pass that fitted.
        gradient_checkpointing: Whether it fitted with activations computed twice.
    """

    step_losses: list[float] = field(default_factory=list)
    nats: float = 0.0
    targets: int = 0
    seconds: float = 0.0
    micro_batch: int = 0
    gradient_checkpointing: bool | None = None


class _StepLoader:
    """The Trainer's batches of an epoch: each the pieces of one optimiser step.

    Args:
        plan: Whose pieces.
        done: Steps that were trained before a restart; they do not come again.
    """

    def __init__(self, plan: TrialPlan, done: int) -> None:
        self.plan = plan
        self.done = done
        self.epoch = 0
        self.dataset = range(plan.packer.epoch_pieces)

    def __len__(self) -> int:
        return self.plan.steps_per_epoch

    def __iter__(self) -> "Iterator[dict[str, list[np.ndarray]]]":
        pieces = self.plan.packer.pieces(self.epoch)
        size = self.plan.settings.batch_pieces
        for step in range(max(0, self.done - self.epoch * len(self)), len(self)):
            yield {"pieces": pieces[step * size : (step + 1) * size]}

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before it iterates."""
        self.epoch = epoch


@cache
def _packed_trainer() -> Any:
    """The Trainer's subclass; built on first use because transformers is heavy to import."""
    import torch
    from safetensors.torch import save_file
    from torch.distributed.tensor import DTensor
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Course(TrainerCallback):
        """Measures, keeps the best weights, saves the state, stops."""

        def __init__(self, trainer: "PackedTrainer") -> None:
            self.trainer = trainer

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.trainer.take_up()

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.trainer.step_began = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer = self.trainer
            trainer.step_seconds += time.monotonic() - trainer.step_began
            trainer.tell_progress()
            # What follows a loss that is no number is none either.
            control.should_training_stop |= trainer.diverged
            # The end of an epoch comes after its last step, and saves by itself.
            whole = state.global_step % trainer.plan.steps_per_epoch == 0
            control.should_save = trainer.due and not whole and not trainer.diverged

        def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer = self.trainer
            epoch = trainer.current_epoch
            last = epoch == trainer.plan.stop_epoch
            trainer.close_epoch(epoch, last)
            control.should_training_stop = last or trainer.diverged or trainer.out_of_patience()
            control.should_save = trainer.due and not control.should_training_stop

    class PackedTrainer(Trainer):
        """Trains on packed pieces, a whole optimiser step at a time."""

        def __init__(self, model: Any, plan: TrialPlan, report: Report, done: int) -> None:
            self.plan = plan
            self.report_progress = report
            self.done = done
            self.fits = plan.settings
            self.open = _OpenEpoch()
            self.kind = computed_in(plan.dtype, plan.device)
            self.saved_kept = 0
            self.flops = flops_per_token(model, plan.settings.piece_tokens)
            self.epoch_started = self.saved_at = self.step_began = time.monotonic()
            self.pause = plan.resume_seconds
            self.due = self.diverged = False
            self.tokens, self.step_seconds = 0, 0.0
            self.told_tokens, self.told_seconds, self.told_at = 0, 0.0, self.epoch_started
            cuda = plan.device.type == "cuda"
            if cuda:
                torch.cuda.reset_peak_memory_stats(plan.device)
            if plan.settings.compile:
                _compile_layers(model)
            arguments = TrainingArguments(
                output_dir=str(plan.folder / _SAVING),
                num_train_epochs=plan.settings.epochs,
                per_device_train_batch_size=1,
                learning_rate=plan.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=_warmup_steps(plan),
                weight_decay=plan.settings.weight_decay,
                optim="adamw_torch_fused",
                seed=plan.seed,
                use_cpu=not cuda,
                # Accelerate's autocast turns all logits into float32 at once. Only a scaler and
                # sharding need it; otherwise the loss is computed in an own one.
                bf16=self.kind == "bfloat16" and plan.sharded,
                fp16=self.kind == "float16",
                report_to="none",
                disable_tqdm=True,
                logging_strategy="no",
                # It would look at the loss twice a step, and the GPU would have to wait.
                logging_nan_inf_filter=False,
                save_strategy="no",
                eval_strategy="no",
                # The loader begins after the steps that were done.
                ignore_data_skip=True,
                ddp_find_unused_parameters=False,
                **(_sharding(plan.settings) if plan.sharded else {}),
            )
            if arguments.n_gpu > 1:
                # Otherwise the Trainer spreads over all visible GPUs by nn.DataParallel.
                arguments._n_gpu = 1
            super().__init__(model=model, args=arguments)
            if plan.sharded and not cuda:
                self._shard_without_gpus()
            if plan.sharded and plan.dtype != "float32":
                self._sum_in_float32()
            if plan.settings.gradient_checkpointing and not plan.sharded:
                _checkpoint_activations(model)
            self.add_callback(Course(self))

        def _shard_without_gpus(self) -> None:
            """Accelerate takes FSDP for a matter of GPUs, and copies the model to each process.

            Torch can do it on processors, too; it is of use to try the code without a GPU.
            """
            from accelerate import PartialState
            from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

            state: Any = self.accelerator.state
            state.distributed_type = DistributedType.FSDP
            PartialState().distributed_type = DistributedType.FSDP
            arguments: dict[str, Any] = self.args.fsdp_plugin_args or {}
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**arguments)
            self.is_fsdp_enabled = True

        def _sum_in_float32(self) -> None:
            """Gradients of the processes are added in float32, not in the type of computing."""
            from torch.distributed.fsdp import MixedPrecisionPolicy

            plugin: Any = self.accelerator.state.fsdp_plugin
            plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=getattr(torch, self.plan.dtype), reduce_dtype=torch.float32
            )

        @property
        def current_epoch(self) -> int:
            """Epoch of the last step, from 1."""
            return -(-self.state.global_step // self.plan.steps_per_epoch)

        def get_train_dataloader(self) -> Any:
            return _StepLoader(self.plan, self.done)

        def floating_point_ops(self, inputs: Any) -> int:
            return 0

        def take_up(self) -> None:
            """Goes on in the epoch that was open when the state was saved."""
            history: list[Any] = self.state.log_history
            if history and "open" in history[-1]:
                self.open = _OpenEpoch(**history.pop()["open"])
                self._fit(
                    self.fits.model_copy(
                        update={
                            "micro_batch": min(self.open.micro_batch, self.fits.micro_batch),
                            "gradient_checkpointing": self.fits.gradient_checkpointing
                            or (self.open.gradient_checkpointing and not self.plan.ranks.several),
                        }
                    )
                )
            self.saved_kept = _kept_epoch(_rows(self), self.plan.select)
            # What came before, e.g. loading, belongs to no epoch.
            self.epoch_started = self.saved_at = self.told_at = time.monotonic()

        def _fit(self, settings: config.Training) -> None:
            if settings.gradient_checkpointing and not self.fits.gradient_checkpointing:
                _checkpoint_activations(self.model)
            self.fits = settings

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
                    if self.plan.ranks.several:
                        raise RankOutOfMemory from error
                    model.zero_grad()
                    torch.cuda.empty_cache()
                    settings = leaner(self.fits)
                    if settings is None:
                        raise too_large(self.plan.label) from error
                    self.report_progress(f"{self.plan.label}: {said_of(self.fits, settings)}")
                    self._fit(settings)
            count = max(1, targets(pieces))
            self.open.nats += nats
            self.open.targets += count
            self.open.step_losses.append(nats / count)
            self.diverged = not math.isfinite(nats)
            self.tokens += sum(len(piece) for piece in pieces)
            return torch.tensor(nats / count, device=self.args.device)

        def _forward_backward(self, model: Any, pieces: "list[np.ndarray]") -> float:
            """Gradients of a step, and its summed loss over all processes in nats."""
            ranks = self.plan.ranks
            # Gradients of several processes are averaged.
            share = max(1, targets(pieces)) / ranks.count
            turns = dealt(pieces, self.fits.micro_batch, ranks)
            total = torch.zeros((), device=self.args.device)
            for number, (group, counts) in enumerate(turns, 1):
                with self._exchange(model, last=number == len(turns)):
                    with self.compute_loss_context_manager(), self._computing():
                        loss = summed_loss(model, group)
                    self.accelerator.backward((loss if counts else 0 * loss) / share)
                total += loss.detach() * counts
            saving = time.monotonic() - self.saved_at >= self.pause
            if not ranks.several:
                self.due = saving
                return float(total)
            # One clock decides for all when to save.
            together = torch.stack([total, torch.full_like(total, ranks.first and saving)])
            ranks.add(together)
            nats, due = together.tolist()
            self.due = due > 0
            return nats

        def _computing(self) -> AbstractContextManager[Any]:
            by_accelerate = self.args.bf16 or self.args.fp16
            return nullcontext() if by_accelerate else autocast(self.kind, self.plan.device)

        def _exchange(self, model: Any, last: bool) -> AbstractContextManager[Any]:
            # With the last micro-batch is enough. Sharded gradients are exchanged each time: whole
            # ones would have to be kept until then, and there may be no room for them.
            if last or self.plan.sharded or not self.plan.ranks.several:
                return nullcontext()
            return self.accelerator.no_sync(model)

        def speed(self) -> Speed:
            """How fast it was since the last start."""
            cuda = self.plan.device.type == "cuda"
            return Speed(
                tokens=self.tokens,
                seconds=self.step_seconds,
                flops_per_token=self.flops,
                micro_batch=self.fits.micro_batch,
                gradient_checkpointing=bool(self.fits.gradient_checkpointing),
                peak_bytes=torch.cuda.max_memory_allocated(self.plan.device) if cuda else None,
            )

        def tell_progress(self) -> None:
            """Reports epoch, loss and speed, not more often than a person reads."""
            now = time.monotonic()
            if now - self.told_at < _REPORT_SECONDS:
                return
            speed = (self.tokens - self.told_tokens) / (self.step_seconds - self.told_seconds)
            self.told_at = now
            self.told_tokens, self.told_seconds = self.tokens, self.step_seconds
            reached = utilisation(speed, self.flops, self.plan)
            used = "" if reached is None else f" {reached:.0%} MFU"
            self.report_progress(
                f"{self.plan.label} epoch {self.current_epoch}/{self.plan.stop_epoch} "
                f"loss {self.open.step_losses[-1]:.3f} {speed:,.0f} tokens/s{used}",
                self.state.global_step,
                self.plan.stop_epoch * self.plan.steps_per_epoch,
            )

        def close_epoch(self, epoch: int, last: bool) -> None:
            """Writes the epoch's row, and its weights when it is the one to keep so far."""
            plan, open_epoch = self.plan, self.open
            validation = None
            if plan.validation and (plan.select or last) and not self.diverged:
                validation = mean_loss(
                    self.model, plan.validation, self.fits.micro_batch, self.kind, plan.ranks
                )
            row = EpochRow(
                epoch=epoch,
                training_loss=open_epoch.nats / max(1, open_epoch.targets),
                validation_loss=validation,
                step_losses=open_epoch.step_losses,
                seconds=open_epoch.seconds + time.monotonic() - self.epoch_started,
            )
            history: list[Any] = self.state.log_history
            history.append({"kinject": asdict(row)})
            held_out = "" if validation is None else f", held out {validation:.3f}"
            ends = "; the loss is no number, this trial ends" if self.diverged else ""
            # Without a count: said at once, however short the epoch was.
            self.report_progress(
                f"{plan.label} epoch {epoch}/{plan.stop_epoch} done: "
                f"loss {row.training_loss:.3f}{held_out}{ends}"
            )
            self.open = _OpenEpoch()
            self.epoch_started = time.monotonic()
            if (plan.select or last) and _kept_epoch(_rows(self), plan.select) == epoch:
                self._keep(epoch)

        def out_of_patience(self) -> bool:
            """Whether the validation loss has not become lower for so many epochs."""
            patience = self.plan.settings.patience
            if patience is None or not self.plan.select:
                return False
            rows = _rows(self)
            return len(rows) - _kept_epoch(rows, True) >= patience

        def _keep(self, epoch: int) -> None:
            folder = self.plan.folder
            self._save_weights(_kept_path(folder, epoch))
            if self.plan.ranks.first:
                # After a crash the saved state counts, and the epoch that it names.
                drop_kept(folder, epoch, self.saved_kept)

        def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
            """Saves the weights of a state that is not sharded.

            Models write some weights in another layout than they hold them, e.g. the experts of a
            mixture, and the Trainer would drop these without a word when it reads them.
            """
            if self.plan.sharded:
                super().save_model(output_dir, _internal_call)
                return
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            self._save_weights(folder / _WEIGHTS)

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            if self.plan.sharded:
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                _restore(self.model, Path(resume_from_checkpoint) / _WEIGHTS)

        def _save_weights(self, path: Path) -> None:
            """Called by all processes; the first one writes what is trained, whole."""
            kept: dict[str, torch.Tensor] = {}
            for name, parameter in trainable(self.model).items():
                # Spread over processes, it is gathered by all of them, one parameter at a time.
                shard: Any = parameter.detach()
                whole = shard.full_tensor() if isinstance(shard, DTensor) else shard
                if self.plan.ranks.first:
                    kept[name] = whole.cpu().contiguous()
            if self.plan.ranks.first:
                partial = path.with_suffix(".partial")
                save_file(kept, partial)
                partial.replace(path)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            """Saves all that an exact resume needs, and names it when it is whole."""
            began = time.monotonic()
            self.open.micro_batch = self.fits.micro_batch
            self.open.gradient_checkpointing = self.fits.gradient_checkpointing
            seconds = self.open.seconds + began - self.epoch_started
            history: list[Any] = self.state.log_history
            history.append({"open": asdict(self.open) | {"seconds": seconds}})
            super()._save_checkpoint(model, trial)
            history.pop()
            self.plan.ranks.wait()
            self.saved_kept = _kept_epoch(_rows(self), self.plan.select)
            if self.plan.ranks.first:
                self._name_checkpoint()
            self.saved_at = time.monotonic()
            self.pause = max(self.plan.resume_seconds, (self.saved_at - began) / MOST_SAVING)

        def _name_checkpoint(self) -> None:
            folder, step = self.plan.folder, self.state.global_step
            older = _checkpoints(folder)
            kind = _SHARDED if self.plan.sharded else _PLAIN
            (folder / _SAVING / f"checkpoint-{step}").rename(folder / f"{kind}-{step}")
            for path in older:
                shutil.rmtree(path)
            drop_kept(folder, self.saved_kept)

    return PackedTrainer


def utilisation(tokens_per_second: float, flops: float, plan: TrialPlan) -> float | None:
    """Part of the GPUs' peak that training reaches; `None` without a GPU or a known peak."""
    if plan.device.type != "cuda" or plan.peak_tflops is None:
        return None
    return tokens_per_second * flops / (plan.peak_tflops * 1e12 * plan.ranks.count)


def _sharding(settings: config.Training) -> dict[str, Any]:
    """The Trainer's arguments for weights that are spread over processes (FSDP2)."""
    return {
        "fsdp": True,
        "fsdp_config": {
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            # Each process saves its part: no one has room for all.
            "state_dict_type": "SHARDED_STATE_DICT",
            "activation_checkpointing": bool(settings.gradient_checkpointing),
        },
    }


def _checkpoint_activations(model: Any) -> None:
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def _compile_layers(model: Any) -> None:
    """Compiles the layers in place: parameters keep their names, and one layer serves for all.

    Almost all pieces are of one length, so shapes are compiled as they are.
    """
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names] or [model]
    for layer in layers:
        layer.compile(dynamic=False)


def _warmup_steps(plan: TrialPlan) -> int:
    return math.ceil(plan.settings.warmup_share * plan.settings.epochs * plan.steps_per_epoch)
