"""Small real tokenizers of every kind that decoder models use, trained here on a few lines of text."""

import functools
from collections.abc import Callable

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from loramux.text.tokenizer import Tokenizer

CORPUS = [
    "The capital of France is Paris, and the capital of Japan is Tokyo.",
    "SELECT name, count(*) FROM cities WHERE country = 'France' GROUP BY name;",
    "hello  world, hello\n\n\tindented   text \u2026 na\u00efve caf\u00e9",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \ud55c\uad6d\uc5b4",
    "\U0001f600 \U0001f44d\U0001f3fd \U0001f468\u200d\U0001f469\u200d\U0001f467 fianc\u00e9e \U0001f1eb\U0001f1f7",
]
SPECIAL = ["<s>", "</s>", "<|turn|>"]


def wrap(backend: tokenizers.Tokenizer) -> Tokenizer:
    hf = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    return Tokenizer(hf)


def add_bos(backend: tokenizers.Tokenizer) -> None:
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )


@functools.cache
def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3, Qwen: each byte is a character, so that a token may be part of one."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL,
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens(["<think>", "\u00a0\u00a0"])
    return wrap(backend)


@functools.cache
def byte_fallback() -> Tokenizer:
    """As Llama 2, Mistral, Gemma: words begin with a mark, unknown characters become byte tokens."""
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=["<unk>", *SPECIAL], show_progress=False, limit_alphabet=60
    )
    first = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    first.normalizer = normalizers.Replace(" ", "\u2581")
    first.train_from_iterator([line for line in CORPUS if line.isascii()], trainer)
    vocab = first.get_vocab()
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.add_special_tokens(["<unk>", *SPECIAL])
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    add_bos(backend)
    return wrap(backend)


@functools.cache
def unigram() -> Tokenizer:
    """As T5 and the converted SentencePiece models: Metaspace on both ways."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150,
        special_tokens=["<unk>", *SPECIAL],
        unk_token="<unk>",
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return wrap(backend)


@functools.cache
def word_level() -> Tokenizer:
    """Whole words without a decoder: tokens are joined by spaces."""
    backend = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", *SPECIAL], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return wrap(backend)


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "unigram": unigram,
    "word_level": word_level,
}
