"""What encoders want in front of queries and passages, known by their names or said by themselves.

An encoder that was trained with such a prefix finds less without it, and no error tells.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kinject_assets import config

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@dataclass(frozen=True)
class Prefixes:
    """Texts put in front of each query and of each passage."""

    query: str = ""
    passage: str = ""


KNOWN: tuple[tuple[str, Prefixes], ...] = (
    # https://huggingface.co/BAAI/bge-large-en; with v1.5 its authors call it optional.
    (
        r"bge-(small|base|large)-en(-v1\.5)?",
        Prefixes("Represent this sentence for searching relevant passages: "),
    ),
    # https://huggingface.co/BAAI/bge-large-zh
    (
        r"bge-(small|base|large)-zh(-v1\.5)?",
        Prefixes("为这个句子生成表示以用于检索相关文章："),
    ),
    # https://huggingface.co/intfloat/multilingual-e5-large-instruct and e5-mistral-7b-instruct:
    # passages have none.
    (
        r"(multilingual-)?e5-(\w+-)+instruct",
        Prefixes(
            "Instruct: Given a web search query, retrieve relevant passages that answer the "
            "query\nQuery: "
        ),
    ),
    # https://huggingface.co/intfloat/e5-large-v2 and multilingual-e5-large
    (
        r"(multilingual-)?e5-(small|base|large)(-v2|-unsupervised)?",
        Prefixes("query: ", "passage: "),
    ),
    # https://huggingface.co/BAAI/bge-m3, thenlper/gte-large, and the sentence-transformers models
    (
        r"bge-m3|gte-(small|base|large)|(all|multi-qa|paraphrase(-multilingual)?)-"
        r"(MiniLM-L\d+|mpnet-base|distilroberta|distilbert)[\w.-]*",
        Prefixes(),
    ),
)
"""The last part of a hub id or of a folder -> prefixes, each from the model's card."""


def known_prefixes(model: str) -> Prefixes | None:
    """Prefixes that the authors of an encoder give, or `None` if it is not known here.

    Args:
        model: Hub id or folder; its last part decides.
    """
    name = model.rstrip("/").rpartition("/")[2]
    for pattern, prefixes in KNOWN:
        if re.fullmatch(pattern, name, re.IGNORECASE):
            return prefixes
    return None


def prefixes_of(encoder: "SentenceTransformer", settings: config.Encoder) -> Prefixes:
    """What is put in front of texts: as the profile says, as is known, or as the encoder says.

    An encoder says it in `prompts` of its `config_sentence_transformers.json`.
    """
    found = known_prefixes(settings.model)
    if found is None:
        said = encoder.prompts
        passage = next(filter(None, map(said.get, ("document", "passage", "corpus"))), "")
        found = Prefixes(said.get("query") or "", passage)
    return Prefixes(
        found.query if settings.query_prefix is None else settings.query_prefix,
        found.passage if settings.passage_prefix is None else settings.passage_prefix,
    )
