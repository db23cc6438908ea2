"""Small tokenizers of the kinds that real models have, trained on a few lines of text."""

import json
from collections.abc import Callable, Iterable, Mapping

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as splits
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer
from transformers import PreTrainedTokenizerFast

LINES = (
    "The snake reads the international news, doesn't it? It's 1234 o'clock.",
    "def draft(tree):\n    return [node for node in tree]\n\n\tprint(tree)  # 12.5 %",
    "L'été où naître — grün, größer: schön!  Ещё раз; 漢字とかな。 🐍🐍 ❤️",
    "We're here: they'll go. <b>bold</b> a b c  d   e",
)
"""What they learn from."""

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
END, TURN = "<|end|>", "<|turn|>"

GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 and Qwen split a text, written anew."""


def byte_level(*, size: int = 400, adds_space: bool = False) -> PreTrainedTokenizerFast:
    """Returns byte-level pairs as in GPT-2, perhaps with a space before the first word."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splits.ByteLevel(add_prefix_space=adds_space)
    tokenizer.decoder = decoders.ByteLevel()
    return _byte_pairs(tokenizer, size)


def byte_level_split(*, size: int = 380) -> PreTrainedTokenizerFast:
    """Returns byte-level pairs as in Llama 3: line breaks join what is before them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splits.Sequence(
        [
            splits.Split(Regex(GPT4), "isolated"),
            splits.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _byte_pairs(tokenizer, size)


def byte_level_digits(*, size: int = 360) -> PreTrainedTokenizerFast:
    """Returns byte-level pairs that write numbers digit by digit, and runs of spaces as tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splits.Sequence(
        [splits.Digits(individual_digits=True), splits.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _byte_pairs(tokenizer, size, literal=("  ", "    ", "\n\n"))


def sentence_pieces(*, size: int = 420) -> PreTrainedTokenizerFast:
    """Returns pairs as in Llama 2: no splitting, a space in front, bytes for unknown characters."""
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizers.Replace(" ", SPACE)
    learned.pre_tokenizer = splits.Split(SPACE, "merged_with_next")
    learned.train_from_iterator(LINES[:2], BpeTrainer(vocab_size=size - 257, show_progress=False))
    model = json.loads(learned.to_str())["model"]
    own = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*own, *pieces]))}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _finished(tokenizer)


def metaspace(*, scheme: str = "always", size: int = 160) -> PreTrainedTokenizerFast:
    """Returns pieces by probability as in T5, which lack many characters."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = splits.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = UnigramTrainer(
        vocab_size=size, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return _finished(tokenizer)


def word_pieces(*, size: int = 200) -> PreTrainedTokenizerFast:
    """Returns word pieces as in BERT, in small letters."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = splits.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = WordPieceTrainer(vocab_size=size, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return _finished(tokenizer)


KINDS: Mapping[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": byte_level,
    "byte-level with a space in front": lambda: byte_level(size=330, adds_space=True),
    "byte-level as in Llama 3": byte_level_split,
    "byte-level, digit by digit": byte_level_digits,
    "sentence pieces": sentence_pieces,
    "unigram": metaspace,
    "unigram, first word alone": lambda: metaspace(scheme="first", size=140),
    "word pieces": word_pieces,
}
"""Tokenizers by what they are."""


def _byte_pairs(
    tokenizer: Tokenizer, size: int, literal: Iterable[str] = ()
) -> PreTrainedTokenizerFast:
    trainer = BpeTrainer(
        vocab_size=size, initial_alphabet=splits.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_tokens([AddedToken(each, normalized=False) for each in literal])
    return _finished(tokenizer)


def _finished(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in (END, TURN)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
