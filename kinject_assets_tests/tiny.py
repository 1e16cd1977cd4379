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
