"""Answers of another model are learned in the tokens of the drafter's target."""

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from treesnake.testing.tiny import TableModel, TinyNetwork
from treesnake.training.answering import Answer, Answerer
from treesnake.training.rewriting import rewritten_shard

END = 0


def tokenizer(merges: list[tuple[str, str]], mark: str) -> PreTrainedTokenizerFast:
    """Bytes and some merges of them, with an end token in front and a chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<end>", *letters, *("".join(pair) for pair in merges)]
    backend = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    content = mark + "{{ message['content'] }}"
    found.chat_template = "{% for message in messages %}" + content + "{% endfor %}"
    return found


OTHERS = tokenizer([("h", "e")], "?")
OWN = tokenizer([("l", "o"), ("l", "lo")], "!")
ANSWERER = Answerer(TinyNetwork(TableModel(300)), OTHERS, (END,))


def answer(text: str, *, is_ended: bool) -> Answer:
    tokens = torch.tensor([*OTHERS.encode(text), *([END] if is_ended else [])])
    nothing = torch.zeros(len(tokens), 1)
    return Answer([1], tokens, nothing.long(), nothing)


def written(text: str) -> list[int]:
    return OWN.encode(text, add_special_tokens=False)


def test_an_answer_is_written_in_other_tokens_behind_a_prompt_of_their_template() -> None:
    shard = rewritten_shard(
        [1, 0], ["who", "why"], [answer("hello", is_ended=True)] * 2, ANSWERER, OWN
    )
    assert shard.prompt_index.tolist() == [1, 0]
    assert shard.prompts.tolist() == [*written("!why"), *written("!who")]
    assert shard.answers.tolist() == [*written("hello"), END] * 2
    assert len(written("hello")) == 3, "h, e, llo"
    assert shard.top_ids is None
    assert shard.temperatures.tolist() == [0.0, 0.0]


def test_an_answer_that_was_cut_loses_what_might_go_on() -> None:
    whole = answer("say hé", is_ended=False)
    cut = Answer(whole.prompt, whole.tokens[:-1], whole.top_ids[:-1], whole.top_log_probs[:-1])
    shard = rewritten_shard([0], ["who"], [cut], ANSWERER, OWN)
    assert shard.answers.tolist() == written("say h")[:-1], "half a character is no text"
