"""Which of the target's tokens a drafter's token begins with, whose noise it is drawn by."""

import pytest
from transformers import PreTrainedTokenizerFast

from treesnake.drafters.first_tokens import FirstTokens, first_tokens
from treesnake.drafters.spelling import Spelling
from treesnake.testing.tokenizers import byte_level, byte_level_split, sentence_pieces

OURS, OTHERS = byte_level(), [byte_level_split(), sentence_pieces()]


def found(target: PreTrainedTokenizerFast) -> tuple[FirstTokens, list[int], Spelling, Spelling]:
    own, theirs = Spelling(OURS), Spelling(target)
    token_ids = [*range(len(OURS))][::-1]
    return first_tokens(token_ids, own, theirs, {0: 7}), token_ids, own, theirs


@pytest.mark.parametrize("target", OTHERS, ids=["byte level", "sentence pieces"])
def test_what_comes_first_is_the_beginning_of_the_token(target: PreTrainedTokenizerFast) -> None:
    first, token_ids, own, theirs = found(target)
    num_same = 0
    for column, token in enumerate(token_ids):
        spelled, index = own.of(token), int(first.ids[column])
        if token == 0:
            assert index == 7
        elif index >= 0:
            begin = theirs.of(index)
            assert isinstance(spelled, bytes)
            assert isinstance(begin, bytes)
            assert spelled.startswith(begin)
            assert first.counts[token] == 1 or len(begin) < len(spelled)
            num_same += spelled == begin
    assert num_same > len(token_ids) / 5


def test_the_names_of_tokens_are_found_again() -> None:
    for tokenizer in (OURS, *OTHERS):
        spelling = Spelling(tokenizer)
        for token in range(0, len(tokenizer), 3):
            spelled = spelling.of(token)
            if isinstance(spelled, bytes) and spelled:
                again = spelling.token_of(spelled)
                assert again is None or spelling.of(again) == spelled
