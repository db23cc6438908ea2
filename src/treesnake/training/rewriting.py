"""Answers of one model in the tokens of another, to be learned as text."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from treesnake.training.answering import Answer, Answerer
from treesnake.training.corpus import prompt_tokens
from treesnake.training.shards import Shard, text_shard

CUT_CHARACTER = "\ufffd"
"""What a decoder writes for a character of which bytes are lacking."""


def rewritten_shard(
    prompt_index: Sequence[int],
    prompts: Sequence[str],
    answers: Sequence[Answer],
    answerer: Answerer,
    tokenizer: PreTrainedTokenizerBase,
) -> Shard:
    """Packs answers in other tokens than they were given in, each behind its prompt.

    Prompts have the chat template of the tokenizer that they are written with. An answer that was
    cut loses its last token, which might have been another one if the text had gone on.

    Args:
        prompt_index: which prompt each answer belongs to.
        prompts: all of their source, as text.
        answers: in the tokens of the model that gave them.
        answerer: that model.
        tokenizer: what they are written with.
    """
    texts = [
        (prompt_tokens(tokenizer, prompts[index]), _rewritten(answer, answerer, tokenizer))
        for index, answer in zip(prompt_index, answers, strict=True)
    ]
    return text_shard(prompt_index, texts)


def _rewritten(answer: Answer, answerer: Answerer, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    tokens = answer.tokens.tolist()
    has_ended = tokens[-1] in answerer.end_tokens
    text = answerer.tokenizer.decode(
        tokens[:-1] if has_ended else tokens,
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    written = tokenizer.encode(str(text).rstrip(CUT_CHARACTER), add_special_tokens=False)
    end = tokenizer.eos_token_id
    if not has_ended:
        return written[:-1]
    return [*written, end] if isinstance(end, int) else written
