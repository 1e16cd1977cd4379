"""Tiny models made on the spot: random weights, a real tokenizer trained on given texts."""

from collections.abc import Sequence
from pathlib import Path


def byte_level_tokenizer(texts: Sequence[str], vocabulary: int = 2048):
    """A byte-level BPE tokenizer trained on texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def random_llama(folder: Path, texts: Sequence[str], window: int = 4096) -> Path:
    """Saves a Llama of random weights with a tokenizer trained on texts."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_level_tokenizer(texts)
    vocabulary = tokenizer.get_vocab()
    pad, begin, end = (vocabulary[token] for token in ("<pad>", "<s>", "</s>"))
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=window,
            bos_token_id=begin,
            eos_token_id=end,
            pad_token_id=pad,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_encoder(folder: Path, texts: Sequence[str]) -> Path:
    """Saves a sentence-transformers encoder: a fixed random vector a token, averaged."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

    tokenizer = byte_level_tokenizer(texts).backend_tokenizer
    torch.manual_seed(0)
    embedding = StaticEmbedding(
        tokenizer, embedding_weights=torch.randn(tokenizer.get_vocab_size(), 128).numpy()
    )
    SentenceTransformer(modules=[embedding, Normalize()]).save(str(folder))
    return folder


def svd_encoder(folder: Path, texts: Sequence[str], dimension: int = 128) -> Path:
    """Saves a sentence-transformers encoder made of the texts alone: latent semantic analysis.

    Words that stand in two texts or more get the right singular vectors of the texts' tf-idf
    matrix, times their idf; a text is the normalised sum of its words' vectors. No training, no
    word order: what real text can give without a model that read more of it.
    """
    import numpy as np
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        min_frequency=2, vocab_size=10**6, special_tokens=["[UNK]"], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    counts = np.zeros((len(texts), tokenizer.get_vocab_size()), dtype=np.float32)
    for row, encoding in enumerate(tokenizer.encode_batch(list(texts))):
        np.add.at(counts[row], encoding.ids, 1)
    idf = np.log(len(texts) / np.maximum(1, (counts > 0).sum(axis=0))).astype(np.float32)
    idf[tokenizer.token_to_id("[UNK]")] = 0
    weighted = np.log1p(counts) * idf
    weighted /= np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-9)
    # The right singular vectors, by the eigenvectors of the smaller product of the two.
    values, vectors = np.linalg.eigh(weighted @ weighted.T)
    kept = np.argsort(-values)[: min(dimension, len(texts))]
    right = weighted.T @ vectors[:, kept] / np.sqrt(np.maximum(values[kept], 1e-9))
    embedding = StaticEmbedding(tokenizer, embedding_weights=right * idf[:, None])
    SentenceTransformer(modules=[embedding, Normalize()]).save(str(folder))
    return folder


def random_bert(
    folder: Path,
    texts: Sequence[str],
    *,
    hidden: int = 32,
    layers: int = 2,
    window: int = 64,
    prompts: dict[str, str] | None = None,
) -> Path:
    """Saves an encoder of BERT's shape with random weights: a token is a word, mean pooling.

    Args:
        folder: Gets it.
        texts: Their words are known.
        hidden: Numbers a vector.
        layers: How many.
        window: Tokens that it reads, those at both ends among them.
        prompts: What it says should stand in front of texts.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    whitespace = pre_tokenizers.Whitespace()
    words = [word for text in texts for word, _ in whitespace.pre_tokenize_str(text)]
    named = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys([*named, *words]))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = whitespace
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=window,
    )
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=max(2, hidden // 64),
            intermediate_size=4 * hidden,
            max_position_embeddings=window,
        )
    )
    plain = folder / "plain"
    model.save_pretrained(plain)
    tokenizer.save_pretrained(plain)
    encoder = SentenceTransformer(
        modules=[Transformer(str(plain)), Pooling(hidden)], prompts=prompts, device="cpu"
    )
    encoder.save(str(folder / "encoder"), create_model_card=False)
    return folder / "encoder"
