"""A drafter can say what it will be asked to draft."""

import pytest
import torch

from treesnake.errors import InvalidInputError
from treesnake.training.answering import Answer
from treesnake.training.draft_vocabulary import choose_draft_vocabulary
from treesnake.training.shards import answers_shard, text_shard

ANSWER = Answer(
    prompt=[1, 1, 1],
    tokens=torch.tensor([5, 5, 6]),
    top_ids=torch.tensor([[5, 7, 8, 9], [5, 7, 8, 9], [6, 7, 4, 9]]),
    top_log_probs=torch.zeros(3, 4),
)


def test_what_the_target_said_counts_most() -> None:
    shards = [answers_shard([0], [ANSWER], 0.0)]
    chosen = [
        choose_draft_vocabulary(shards, size, [2], vocab_size=12).tolist() for size in range(1, 8)
    ]
    assert chosen == [
        [2],
        [2, 5],
        [2, 5, 6],
        [1, 2, 5, 6],
        [1, 2, 5, 6, 7],
        [1, 2, 5, 6, 7, 8],
        [1, 2, 4, 5, 6, 7, 8],
    ]


def test_tokens_that_never_occur_are_left_out() -> None:
    shards = [text_shard([0], [([3], [4])]), text_shard([0], [([], [4, 5])])]
    assert choose_draft_vocabulary(shards, 100, [2], vocab_size=50).tolist() == [2, 3, 4, 5]


def test_there_must_be_room_for_the_end_tokens() -> None:
    with pytest.raises(InvalidInputError, match="has no room for the end tokens"):
        choose_draft_vocabulary([], 1, [2, 3], vocab_size=50)
