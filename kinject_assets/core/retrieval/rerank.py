"""First chunks ranked again by a cross-encoder, which reads question and chunk together."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kinject_assets import config
from kinject_assets.core.errors import ModelError
from kinject_assets.core.progress import Report, silent
from kinject_assets.core.retrieval.search import Ranked, in_order

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

QUESTIONS_A_BLOCK = 64
"""Questions between two reports."""


def load_cross_encoder(settings: config.Rerank, device: str = "auto") -> "CrossEncoder":
    """Loads a cross-encoder from a local folder or the Hugging Face hub, without code from either.

    Args:
        settings: Its `model` is a folder or a hub id (names of the lab already resolved).
        device: `auto`, `cpu`, `cuda`, `cuda:0`, ...

    Raises:
        ModelError: If it cannot be loaded, was not trained to score pairs, or gives several numbers
            for one.
    """
    from sentence_transformers import CrossEncoder

    try:
        model = CrossEncoder(
            settings.model,
            revision=settings.revision,
            device=None if device == "auto" else device,
            trust_remote_code=False,
            local_files_only=Path(settings.model).is_dir(),
            model_kwargs={"use_safetensors": True},
        )
    except Exception as error:
        raise ModelError(
            f"retrieval.rerank.model: `{settings.model}` cannot be loaded as a cross-encoder "
            f"({error}). Give a folder with config.json and safetensors weights, or a hub id that "
            "this machine can reach or has in its HF_HOME."
        ) from error
    kinds = getattr(model.config, "architectures", None) or ()
    # On a plain encoder sentence-transformers puts a head of random weights, with but a warning.
    if len(model) == 1 and not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ModelError(
            f"retrieval.rerank.model: `{settings.model}` is no cross-encoder: its config.json says "
            f"{', '.join(kinds) or 'nothing'} under architectures, which scores no pairs. Give a "
            "reranker, e.g. cross-encoder/ms-marco-MiniLM-L6-v2."
        )
    if model.num_labels != 1:
        raise ModelError(
            f"retrieval.rerank.model: `{settings.model}` gives {model.num_labels} numbers for a "
            "question and a chunk, where one is needed to rank by. Give a reranker, e.g. "
            "cross-encoder/ms-marco-MiniLM-L6-v2."
        )
    return model.eval()


def rerank(
    model: "CrossEncoder",
    queries: Sequence[str],
    rankings: Sequence[Ranked],
    texts: Sequence[str],
    batch_size: int,
    report: Report = silent,
) -> list[Ranked]:
    """Each ranking in the cross-encoder's order; equal scores in the order of the corpus.

    Args:
        model: From `load_cross_encoder`.
        queries: One for each ranking.
        rankings: Rows of chunks.
        texts: Text of each row.
        batch_size: Pairs a forward pass.
        report: Told after every few questions.
    """
    from torch.nn import Identity

    found: list[Ranked] = []
    for start in range(0, len(queries), QUESTIONS_A_BLOCK):
        block = range(start, min(start + QUESTIONS_A_BLOCK, len(queries)))
        pairs = [(queries[at], texts[row]) for at in block for row, _ in rankings[at]]
        # Logits, since the usual sigmoid makes the best ones all 1.
        scores = model.predict(
            pairs, batch_size=batch_size, activation_fn=Identity(), show_progress_bar=False
        )
        left = iter(scores.tolist())
        found += (in_order([(row, next(left)) for row, _ in rankings[at]]) for at in block)
        report("reranking", block.stop, len(queries))
    return found
