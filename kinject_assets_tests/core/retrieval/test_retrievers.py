import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from kinject_assets import config
from kinject_assets.core.errors import BrokenArtefact, MissingArtefact, ModelError
from kinject_assets.core.retrieval.encoder import embed_chunks, encode, load_encoder
from kinject_assets.core.retrieval.fusion import FUSED_DEPTH, fuse
from kinject_assets.core.retrieval.index import ChunkIndex, build_index, save_index
from kinject_assets.core.retrieval.lexical import LexicalIndex, words
from kinject_assets.core.retrieval.rerank import load_cross_encoder, rerank
from kinject_assets.core.retrieval.retrievers import Search
from kinject_assets.core.retrieval.search import Ranked
from kinject_assets.core.retrieval.steps import RetrieveRequest, find
from kinject_assets.core.schema import Chunk, Question, Retrieved
from kinject_assets.core.store import read_rows, write_rows

NAMES = ("dense", "lexical", "fused", "reranked", "oracle", "random")


def chunk(number: int, text: str) -> Chunk:
    return Chunk(
        chunk_id=f"c{number}",
        article_id="a",
        revision_id="r",
        ordinal=number,
        title="",
        section="",
        n_tokens=5,
        small=False,
        text=text,
    )


def question(number: int, stem: str, chunk_id: str | None, retired: bool = False) -> Question:
    return Question(
        question_id=f"q{number}",
        origin="llm",
        stem=stem,
        options=["Abric", "Breton"],
        gold=0,
        chunk_id=chunk_id,
        generator="",
        generation_id="",
        triage="",
        split="test",
        retired=retired,
    )


# --- lexical


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The U.S. won 3-2, didn't it?", ["the", "u", "s", "won", "3", "2", "didn", "t", "it"]),
        ("Straße der Größe", ["strasse", "der", "grösse"]),
        ("Gro\u0308sse ﬁnal Ｘ１", ["grösse", "final", "x1"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("东京大学 2020", ["东京", "京大", "大学", "2020"]),
        ("国 人", ["国", "人"]),
        ("한국어를", ["한국", "국어", "어를"]),
        ("iPhone是2023年苹果", ["iphone", "是", "2023", "年苹", "苹果"]),
        ("東京2020オリンピック", ["東京", "2020", "オリ", "リン", "ンピ", "ピッ", "ック"]),
        ("人々の𠮟る", ["人々", "々の", "の𠮟", "𠮟る"]),
        ("Ünï2023", ["ünï2023"]),
        ("Москва, столица", ["москва", "столица"]),
        ("مدينة القاهرة", ["مدينة", "القاهرة"]),
        ("... —", []),
    ],
)
def test_words_of_any_language(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_thai_is_found_without_spaces() -> None:
    index = LexicalIndex(["แมวนอนบนเตียง", "สุนัขวิ่งในสวน"], config.Lexical())
    assert index.rank("สุนัขอยู่ที่ไหน", 1)[0][0] == 1


def test_bm25_by_hand() -> None:
    index = LexicalIndex(["river lake river", "lake", "stone hill"], config.Lexical(k1=1.2, b=0.75))
    # Three chunks with 2 words in the mean; `river` is in one of them, `lake` in two.
    rare, common = math.log(1 + 2.5 / 1.5), math.log(1 + 1.5 / 2.5)
    long, short = 1.2 * (0.25 + 0.75 * 3 / 2), 1.2 * (0.25 + 0.75 * 1 / 2)
    first = rare * 2 / (2 + long) + common * 1 / (1 + long)
    second = common * 1 / (1 + short)
    assert [row for row, _ in index.rank("River, lake?", 3)] == [0, 1, 2]
    assert [s for _, s in index.rank("River, lake?", 3)] == pytest.approx(
        [first, second, 0], abs=1e-6
    )
    assert [row for row, _ in index.rank("lake", 3)] == [1, 0, 2]


def bm25(texts: Sequence[str], query: str, row: int) -> float:
    """The definition, word by word."""
    chunks = [words(text) for text in texts]
    mean = sum(map(len, chunks)) / len(chunks)
    found = 0.0
    for word in words(query):
        n, f = sum(word in c for c in chunks), chunks[row].count(word)
        idf = math.log(1 + (len(chunks) - n + 0.5) / (n + 0.5))
        found += idf * f / (f + 1.2 * (0.25 + 0.75 * len(chunks[row]) / mean)) if f else 0.0
    return found


TEXT = st.lists(st.sampled_from("abcdefg"), max_size=6).map(" ".join)


@settings(deadline=None, max_examples=60)
@given(st.lists(TEXT, min_size=1, max_size=12), TEXT, st.integers(1, 14))
def test_bm25_is_the_definition(texts: list[str], query: str, depth: int) -> None:
    ranked = LexicalIndex(texts, config.Lexical()).rank(query, depth)
    scores = [round(bm25(texts, query, row), 5) if any(texts) else 0.0 for row in range(len(texts))]
    assert len(ranked) == min(depth, len(texts))
    assert [s for _, s in ranked] == pytest.approx(sorted(scores, reverse=True)[:depth], abs=2e-5)
    for row, score in ranked:
        assert score == pytest.approx(scores[row], abs=2e-5)
    assert ranked == sorted(ranked, key=lambda pair: (-pair[1], pair[0]))


@pytest.mark.parametrize("texts", [["one two", "three"], ["...", ""]])
def test_a_question_without_a_known_word_ranks_in_corpus_order(texts: list[str]) -> None:
    index = LexicalIndex(texts, config.Lexical())
    for query in ("four", "", "?"):
        assert index.rank(query, 5) == [(0, 0.0), (1, 0.0)]


def test_stems_are_the_languages_own() -> None:
    texts = ["nothing", "They were running", "Die Häuser stehen"]
    english = LexicalIndex(texts, config.Lexical(stemmer="english"))
    german = LexicalIndex(texts, config.Lexical(stemmer="german"))
    assert LexicalIndex(texts, config.Lexical()).rank("runs Haus", 1) == [(0, 0.0)]
    assert english.rank("runs", 1)[0][0] == 1
    assert german.rank("Haus", 1)[0][0] == 2


# --- fusion


def test_fused_scores_by_hand() -> None:
    assert fuse([[7, 8, 9], [9, 7]], 4) == [
        (7, pytest.approx(1 / 61 + 1 / 62)),
        (9, pytest.approx(1 / 63 + 1 / 61)),
        (8, pytest.approx(1 / 62)),
    ]
    assert fuse([[5, 2], [2, 5]], 1) == [(2, pytest.approx(1 / 61 + 1 / 62))]
    assert fuse([[], [3, 1]], 9) == [(3, 1 / 61), (1, 1 / 62)]


RANKINGS = st.lists(st.lists(st.integers(0, 15), unique=True, max_size=16), min_size=1, max_size=4)


@given(RANKINGS, st.randoms(use_true_random=False), st.integers(1, 16))
def test_fusion_does_not_depend_on_the_order_of_rankings(
    rankings: list[list[int]], order: Any, depth: int
) -> None:
    shuffled = order.sample(rankings, len(rankings))
    whole = fuse(rankings, 99)
    assert fuse(shuffled, 99) == whole
    assert fuse(rankings, depth) == whole[:depth]
    assert {row for row, _ in whole} == {row for ranking in rankings for row in ranking}


@given(RANKINGS)
def test_fusion_is_the_exact_sum_with_ties_in_corpus_order(rankings: list[list[int]]) -> None:
    def exact(row: int) -> Fraction:
        return sum((Fraction(1, 61 + r.index(row)) for r in rankings if row in r), Fraction())

    rows = {row for ranking in rankings for row in ranking}
    for row, score in fuse(rankings, 99):
        assert score == pytest.approx(float(exact(row)), rel=1e-12)
    # Sums that are equal as fractions may differ in their last bit as floats of other parts.
    ranked = [row for row, _ in fuse(rankings, 99)]
    for before, after in itertools.pairwise(ranked):
        assert exact(before) > exact(after) - Fraction(1, 10**12)
    assert [row for row, _ in fuse(rankings[:1] * 3, 99)] == rankings[0]
    assert len(ranked) == len(rows)


@given(st.lists(st.integers(0, 15), unique=True, min_size=1), RANKINGS)
def test_what_all_rank_first_comes_first(ranking: list[int], others: list[list[int]]) -> None:
    first = ranking[0]
    moved = [[first, *(row for row in other if row != first)] for other in others]
    assert fuse([ranking, *moved], 1)[0][0] == first


# --- all of them on one corpus

TEXTS = [
    "The Balan Accord was led by Abric.",
    "Corath Storm drew 40 guests. It took place in Ashwick, and people remember it.",
    "Eldost Fair was held in Ashwick by Breton.",
    "The Balan Accord was held in Corath.",
    "Nothing much.",
]
STEMS = ["Who led the Balan Accord?", "Where was Eldost Fair held?", "Which storm drew guests?"]
OWN = ["c0", "c2", "c1"]


def cross_encoder(folder: Path, labels: int = 1) -> Path:
    """A BERT of random weights that scores pairs, in safetensors, with a word tokenizer."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary += sorted({word for text in (*TEXTS, *STEMS) for word in words(text)})
    ids = {word: row for row, word in enumerate(vocabulary)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(ids),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
            id2label={label: str(label) for label in range(labels)},
            initializer_range=1.0,
        )
    )
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cross_encoder(tmp_path_factory.mktemp("reranker"))


@pytest.fixture(scope="module")
def index_folder(encoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    settings = config.Encoder(model=str(encoder_folder))
    chunks = [chunk(number, text) for number, text in enumerate(TEXTS)]
    save_index(
        folder, build_index(embed_chunks(load_encoder(settings, "cpu"), chunks, settings, folder))
    )
    return folder


SearchOf = Callable[..., Search]


@pytest.fixture
def search_of(encoder_folder: Path, index_folder: Path, reranker: Path) -> SearchOf:
    def build(**changes: Any) -> Search:
        questions = [
            question(n, stem, own) for n, (stem, own) in enumerate(zip(STEMS, OWN, strict=True))
        ]
        fields: dict[str, Any] = {
            "encoder": {"model": str(encoder_folder)},
            "depth": 4,
            "retrievers": NAMES,
            "rerank": {"model": str(reranker), "depth": 4},
        }
        return Search(
            corpus="events",
            questions=questions,
            chunks=[chunk(number, text) for number, text in enumerate(TEXTS)],
            settings=config.Retrieval.model_validate(fields | changes),
            index=index_folder,
            device="cpu",
        )

    return build


def rows_of(rankings: list[Ranked]) -> list[list[int]]:
    return [[row for row, _ in ranked] for ranked in rankings]


def test_each_retriever_ranks_without_gaps_or_copies(search_of: SearchOf, reranker: Path) -> None:
    for depth, expected in ((1, 1), (4, 4)):
        search = search_of(depth=depth, rerank={"model": "x", "depth": 4})
        for name in set(NAMES) - {"reranked"}:
            for ranked in search.rank(name):
                assert len({row for row, _ in ranked}) == len(ranked) == expected, name
                assert ranked == sorted(ranked, key=lambda pair: (-pair[1], pair[0])), name
    search = search_of(depth=10, rerank={"model": str(reranker), "depth": 10})
    for name in NAMES:
        assert {len(ranked) for ranked in search.rank(name)} == {len(TEXTS)}, name


def test_dense_is_the_encoders_inner_product(search_of: SearchOf) -> None:
    search = search_of()
    encoder = load_encoder(search.settings.encoder, "cpu")
    scores = encode(encoder, STEMS, 8) @ encode(encoder, TEXTS, 8).T
    expected = np.argsort(-scores.round(6), axis=1, kind="stable")[:, :4]
    assert rows_of(search.rank("dense")) == expected.tolist()


def test_fused_is_made_of_dense_and_lexical(search_of: SearchOf) -> None:
    search = search_of()
    expected = [
        fuse([d, w], 4)
        for d, w in zip(
            rows_of(search.rank("dense", FUSED_DEPTH)),
            # Chunks without a word of the question are not ranked by words.
            [[row for row, s in r if s > 0] for r in search.rank("lexical", FUSED_DEPTH)],
            strict=True,
        )
    ]
    assert search.rank("fused") == expected


def test_a_question_without_a_known_word_is_fused_as_dense_ranks_it(search_of: SearchOf) -> None:
    made = search_of()
    search = Search(
        corpus="events",
        questions=[question(0, "zzz", "c0")],
        chunks=made.chunks,
        settings=made.settings,
        index=made.index,
        device="cpu",
    )
    assert rows_of(search.rank("fused")) == rows_of(search.rank("dense"))


def test_chunks_that_the_index_left_out_are_not_fused_but_filled_in(
    search_of: SearchOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An approximate index that finds one chunk a question and no more.
    found = ChunkIndex.search

    def one(self: ChunkIndex, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        scores, rows = found(self, queries, depth)
        rows[:, 1:] = -1
        return scores, rows

    names = ("dense", "lexical", "fused")
    whole = search_of(depth=5, retrievers=names, rerank=None)
    firsts = [ranked[0] for ranked in rows_of(whole.rank("dense"))]
    monkeypatch.setattr(ChunkIndex, "search", one)
    search = search_of(depth=5, retrievers=names, rerank=None)
    for first, words_, fused in zip(
        firsts, search.rank("lexical"), search.rank("fused"), strict=True
    ):
        expected = fuse([[first], [row for row, score in words_ if score > 0]], 5)
        assert len(expected) < 5
        left = [(row, 0.0) for row in range(5) if row not in dict(expected)]
        assert fused == [*expected, *left]


def test_an_index_in_half_precision_is_searched_so_where_auto_is_asked(
    search_of: SearchOf, encoder_folder: Path, tmp_path: Path
) -> None:
    half = config.Encoder(model=str(encoder_folder), dtype="float16")
    chunks = [chunk(number, text) for number, text in enumerate(TEXTS)]
    made = embed_chunks(load_encoder(half, "cpu"), chunks, half, tmp_path)
    save_index(tmp_path, build_index(made))
    search = replace(search_of(), index=tmp_path)
    scores = encode(load_encoder(half, "cpu"), STEMS, 8) @ made.vectors.T
    expected = np.argsort(-scores.round(6), axis=1, kind="stable")[:, :4]
    assert rows_of(search.rank("dense")) == expected.tolist()
    asked = {"model": str(encoder_folder), "dtype": "float32"}
    with pytest.raises(BrokenArtefact, match=r"float16[\s\S]*float32"):
        replace(search_of(encoder=asked), index=tmp_path).rank("dense")


def test_options_join_the_query_where_the_profile_says_so(search_of: SearchOf) -> None:
    alone, both = search_of(), search_of(query="question_and_options")
    assert alone.rank("lexical")[1] != both.rank("lexical")[1]
    # `Breton` is an option of every question, and in chunk 2 alone.
    assert dict(both.rank("lexical")[0])[2] > 0 == dict(alone.rank("lexical", 5)[0]).get(4, 0)


def test_the_oracle_knows_the_chunk_and_random_knows_nothing(search_of: SearchOf) -> None:
    search = search_of()
    oracle, dense = rows_of(search.rank("oracle")), rows_of(search.rank("dense"))
    for mine, other, own in zip(oracle, dense, (0, 2, 1), strict=True):
        assert mine == [own, *(row for row in other if row != own)][:4]
    behind = search_of(retrievers=("oracle", "lexical", "dense"))
    lexical = rows_of(behind.rank("lexical"))
    assert rows_of(behind.rank("oracle"))[0] == [0, *(r for r in lexical[0] if r)][:4]
    drawn = rows_of(search.rank("random"))
    assert drawn == rows_of(search_of(depth=4).rank("random"))
    assert len({tuple(rows) for rows in drawn}) > 1
    many = Search(
        corpus="events",
        questions=[question(number, "?", "c0") for number in range(2000)],
        chunks=search.chunks,
        settings=search.settings,
        index=search.index,
    )
    firsts = [rows[0] for rows in rows_of(many.rank("random"))]
    assert all(abs(firsts.count(row) / 2000 - 1 / 5) < 0.05 for row in range(5))


def test_an_oracle_without_the_chunk_says_so(search_of: SearchOf) -> None:
    made = search_of()
    search = Search(
        corpus="events",
        questions=[question(0, STEMS[0], "gone")],
        chunks=made.chunks,
        settings=made.settings,
        index=made.index,
        device="cpu",
    )
    with pytest.raises(MissingArtefact, match=r"oracle[\s\S]*chunk gone[\s\S]*`questions`"):
        search.rank("oracle")


def test_an_index_of_other_chunks_is_refused(search_of: SearchOf) -> None:
    made = search_of()
    search = Search(
        corpus="events",
        questions=made.questions,
        chunks=made.chunks[:3],
        settings=made.settings,
        index=made.index,
        device="cpu",
    )
    assert len(search.rank("lexical")) == 3
    with pytest.raises(BrokenArtefact, match=r"5 chunks and the corpus 3[\s\S]*`faiss_index`"):
        search.rank("dense")


# --- reranking


def test_reranked_follows_the_models_own_logits(search_of: SearchOf, reranker: Path) -> None:
    search = search_of(rerank={"model": str(reranker), "depth": 5, "over": "dense"})
    model = BertForSequenceClassification.from_pretrained(reranker).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(reranker)
    for stem, ranked in zip(STEMS, search.rank("reranked"), strict=True):
        logits = []
        for text in TEXTS:
            with torch.inference_mode():
                logits.append(model(**tokenizer(stem, text, return_tensors="pt")).logits.item())
        assert [row for row, _ in ranked] == np.argsort(-np.array(logits)).tolist()[:4]
        assert [s for _, s in ranked] == pytest.approx(sorted(logits, reverse=True)[:4], abs=1e-4)


def test_equal_pairs_keep_the_order_of_the_corpus(reranker: Path) -> None:
    model = load_cross_encoder(config.Rerank(model=str(reranker)), "cpu")
    ranking: Ranked = [(2, 0.9), (0, 0.5), (1, 0.1)]
    (found, nothing) = rerank(model, ["Who led?", "?"], [ranking, []], ["Abric"] * 3, 2)
    assert [row for row, _ in found] == [0, 1, 2]
    assert nothing == []


def test_only_cross_encoders_in_safetensors_are_taken(
    reranker: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    def load(folder: Path) -> None:
        load_cross_encoder(config.Rerank(model=str(folder)), "cpu")

    with pytest.raises(ModelError, match=r"retrieval\.rerank\.model[\s\S]*cannot be loaded"):
        load(encoder_folder)
    with pytest.raises(ModelError, match="gives 3 numbers"):
        load(cross_encoder(tmp_path / "three", labels=3))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(reranker)
    model = BertForSequenceClassification.from_pretrained(reranker)
    model.bert.save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match=r"no cross-encoder: its config\.json says BertModel"):
        load(tmp_path / "bare")
    model.config.save_pretrained(tmp_path / "pickled")
    tokenizer.save_pretrained(tmp_path / "pickled")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load(tmp_path / "pickled")


# --- the step


def test_the_step_writes_every_retriever_and_leaves_retired_questions_out(
    search_of: SearchOf, tmp_path: Path
) -> None:
    search = search_of(retrievers=("dense", "fused"), also_ranked=("oracle", "random", "lexical"))
    retired = question(9, STEMS[0], "c0", retired=True)
    write_rows(tmp_path / "questions.parquet", [*search.questions, retired], Question)
    write_rows(tmp_path / "chunks.parquet", search.chunks[::-1], Chunk)
    request = RetrieveRequest(
        corpus="events",
        questions=str(tmp_path / "questions.parquet"),
        chunks=str(tmp_path / "chunks.parquet"),
        index=str(search.index),
        retrieval=search.settings.model_dump(),
        retrievers=search.settings.ranking("generated"),
        out=str(tmp_path / "out"),
        device="cpu",
    )
    assert find(request) == {"questions": 3, "rows": 5 * 3 * 4}
    rows = read_rows(tmp_path / "out" / "retrieved.parquet", Retrieved)
    for name in request.retrievers:
        mine = [row for row in rows if row.retriever == name]
        expected = [row for ranked in search.rank(name) for row in ranked]
        assert [(row.chunk_id, row.score) for row in mine] == [(f"c{r}", s) for r, s in expected]
        assert [row.rank for row in mine] == [1, 2, 3, 4] * 3
        assert all(row.hit == (row.chunk_id == OWN[int(row.question_id[1])]) for row in mine)
    write_rows(tmp_path / "chunks.parquet", [], Chunk)
    with pytest.raises(MissingArtefact, match="events has no chunks"):
        find(request)


def test_words_alone_need_no_encoder_and_no_index(tmp_path: Path, search_of: SearchOf) -> None:
    search = search_of(
        retrievers=("lexical", "random", "oracle"), encoder={"model": str(tmp_path / "none")}
    )
    assert rows_of(search.rank("oracle"))[0][0] == 0
    assert rows_of(search.rank("lexical"))[0][0] == 0


# --- the profile


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"retrievers": ["dense", "reranked"]}, "`reranked` needs the part `rerank`"),
        ({"also_ranked": ["dense"]}, "dense stands twice"),
        ({"retrievers": []}, "at least 1"),
        ({"retrievers": ["bm25"]}, "lexical"),
        ({"rerank": {"model": "m", "depth": 5}}, r"rerank\.depth \(5\) is less than depth \(10\)"),
        ({"lexical": {"stemmer": "klingon"}}, "english"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config.Retrieval.model_validate(fields)


def test_no_oracle_for_questions_that_were_written_from_no_chunk() -> None:
    both = config.Retrieval.model_validate(
        {"retrievers": ["oracle", "dense"], "also_ranked": ["random"]}
    )
    assert both.ranking("generated") == ("oracle", "dense", "random")
    assert both.answering("generated") == ("oracle", "dense")
    assert both.ranking("mmlu") == ("dense", "random")
    assert both.answering("mmlu") == ("dense",)
    profile: dict[str, Any] = {
        "name": "mixed",
        "corpora": {
            "anatomy": {
                "source": {"kind": "files", "folder": "texts"},
                "exam": {"kind": "mmlu", "subject": "anatomy"},
            },
            "mine": {"source": {"kind": "files", "folder": "texts"}},
        },
        "models": {"m": {"source": "somewhere/m"}},
        "grid": [{"corpora": ["anatomy", "mine"], "models": ["m"]}],
    }
    config.Profile.model_validate(profile | {"retrieval": {"retrievers": ["oracle", "lexical"]}})
    with pytest.raises(ValueError, match=r"`oracle` knows no chunks of anatomy, [\s\S]*\[oracle, "):
        config.Profile.model_validate(profile | {"retrieval": {"retrievers": ["oracle"]}})
