"""Texts begin once, and go on."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from treesnake.beginnings import encode_text

WORDS = {"<s>": 1, "</s>": 2, "a": 3, "b": 4, "<g>": 5, "<x>": 0}


def tokenizer(template: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="<x>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [(word, WORDS[word]) for word in ("<s>", "</s>", "<g>") if word in template]
    backend.post_processor = processors.TemplateProcessing(
        single=template, pair=None, special_tokens=special
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<x>")


@pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>"])
@pytest.mark.parametrize("text", ["a b", "<s> a b"])
def test_one_beginning_stands_in_front_and_no_end_behind(template: str, text: str) -> None:
    assert encode_text(tokenizer(template), text) == [1, 3, 4]


@given(text=st.lists(st.sampled_from(list(WORDS))).map(" ".join))
def test_without_a_beginning_the_text_is_all(text: str) -> None:
    plain = tokenizer("$A")
    assert encode_text(plain, text) == plain.encode(text)


def test_a_beginning_of_two_tokens_is_one_beginning() -> None:
    two = tokenizer("<g> <s> $A")
    assert encode_text(two, "a") == encode_text(two, "<g> <s> a") == [5, 1, 3]
    assert encode_text(two, "<s> a") == [5, 1, 1, 3]


def test_an_empty_text_is_its_beginning() -> None:
    assert encode_text(tokenizer("<s> $A </s>"), "") == [1]


def test_a_tokenizer_that_does_not_know_the_probe_is_taken_as_it_is(tmp_path: Path) -> None:
    class Silent:
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            return [7] * add_special_tokens

    assert encode_text(Silent(), "b") == [7]
