"""Which texts are learned when, and at which positions, does not depend on the machine."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treesnake.errors import InvalidInputError, TrainingError
from treesnake.training.answering import Answer
from treesnake.training.losses import NEVER
from treesnake.training.shards import Shard, answers_shard, read_shard, text_shard, write_shard
from treesnake.training.texts import NO_TOKEN, Texts, cut_passes, epoch_updates, read_texts


def answer(prompt: list[int], tokens: list[int]) -> Answer:
    top_ids = torch.tensor(tokens)[:, None] + torch.arange(2)
    return Answer(
        prompt,
        torch.tensor(tokens),
        top_ids,
        torch.log(torch.tensor([[0.7, 0.2]])).expand(len(tokens), 2),
    )


def answers() -> Shard:
    pair = [answer([1, 2, 3], [10, 20]), answer([5], [30, 40, 50])]
    return answers_shard([4, 7], pair, 0.7)


def test_every_token_of_an_answer_is_learned_at_the_place_before_it() -> None:
    batch = Texts([answers()], max_tokens=9).batch([0, 1])
    assert batch.tokens.tolist() == [[1, 2, 3, 10], [5, 30, 40, 0]]
    assert batch.labels.tolist() == [10, 20, 30, 40, 50]
    before = batch.tokens.flatten()[batch.positions]
    assert before.tolist() == [3, 10, 5, 30, 40]
    assert batch.top_ids[:, 0].tolist() == batch.labels.tolist()
    assert batch.num_learned == [2, 3]
    assert batch.temperatures.tolist() == pytest.approx([0.7] * 5)


def test_of_a_text_without_prompt_all_but_the_first_token_is_learned() -> None:
    texts = Texts([text_shard([0, 1], [([], [1, 2, 3]), ([], [9])])], max_tokens=9)
    assert len(texts) == 1, "one token teaches nothing"
    batch = texts.batch([0])
    assert batch.labels.tolist() == [2, 3]
    assert batch.positions.tolist() == [0, 1]
    assert batch.top_ids.tolist() == [[2], [3]], "of a text alone its tokens are certain"
    assert batch.top_log_probs.tolist() == [[0.0], [0.0]]
    assert batch.temperatures.tolist() == [0.0, 0.0]
    assert not texts.has_target_probs


def test_texts_with_and_without_the_targets_probabilities_are_learned_together() -> None:
    texts = Texts([text_shard([0], [([1], [2, 3])]), answers()], max_tokens=9)
    assert texts.has_target_probs
    batch = texts.batch([0, 1])
    assert batch.top_ids.tolist() == [[2, NO_TOKEN], [3, NO_TOKEN], [10, 11], [20, 21]]
    assert batch.top_log_probs[:2, 1].tolist() == pytest.approx([NEVER, NEVER])
    assert batch.top_log_probs[2].exp().tolist() == pytest.approx([0.7, 0.2], abs=1e-4)


def test_tokens_that_a_vocabulary_lacks_are_counted() -> None:
    texts = Texts([answers(), text_shard([0], [([60], [10, 70, 70])])], max_tokens=9)
    assert texts.share_outside(torch.tensor([10, 20, 30, 60])) == 4 / 8
    assert texts.share_outside(torch.arange(90)) == 0


def test_long_answers_are_cut_and_long_prompts_left_out() -> None:
    texts = Texts([answers()], max_tokens=3)
    assert (len(texts), texts.num_left_out) == (1, 1)
    batch = texts.batch([0])
    assert batch.labels.tolist() == [30, 40]
    assert len(batch.top_ids) == 2


def many(num_texts: int) -> Texts:
    pairs = [
        ([index % 50, index // 50], list(range(1 + index * 7 % 13))) for index in range(num_texts)
    ]
    return Texts([text_shard(range(num_texts), pairs)], max_tokens=12)


@given(st.integers(1, 60), st.integers(1, 80), st.integers(1, 80), st.integers(0, 3))
def test_an_epoch_has_every_text_once(num: int, batch: int, part: int, seed: int) -> None:
    texts = many(num)
    updates = epoch_updates(texts, range(len(texts)), batch, part, seed)
    flat = [index for update in updates for indices in update for index in indices]
    assert sorted(flat) == list(range(len(texts)))
    for update in updates:
        for indices in update:
            longest = max(texts.lengths[index] for index in indices)
            assert len(indices) == 1 or longest * len(indices) <= part
    for update in updates[:-1]:
        assert sum(texts.lengths[index] for part in update for index in part) >= batch


def test_epochs_differ_and_can_be_made_again() -> None:
    texts = many(50)
    first, again, second = (
        epoch_updates(texts, range(len(texts)), 40, 20, seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != second


def test_lengths_that_exceed_a_pass_have_one_of_their_own() -> None:
    assert [list(part) for part in cut_passes([2, 2, 3, 9], 6)] == [[0, 1], [2], [3]]
    assert cut_passes([], 6) == []


def test_texts_keep_their_side_when_others_are_added() -> None:
    _, few = many(40).split(0.3)
    _, more = many(60).split(0.3)
    assert 0 < len(few) < 40
    assert few == [index for index in more if index < 40]


def test_equal_prompts_are_on_the_same_side() -> None:
    shard = text_shard(range(40), [([index % 4], [index, 1]) for index in range(40)])
    learned, _ = Texts([shard], max_tokens=9).split(0.5)
    assert len({index % 4 for index in learned}) * 10 == len(learned)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(49152, torch.uint16), (128256, torch.int32)])
def test_shards_come_back_as_they_were_written(
    vocab_size: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    path = tmp_path / "000000.safetensors"
    write_shard(path, answers(), vocab_size)
    found = read_shard(path)
    assert found.answers.dtype == dtype
    assert found.answers.tolist() == answers().answers.tolist()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert len(read_texts([tmp_path], 9, 70000)) == 2


def test_a_shard_that_is_broken_or_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "000000.safetensors"
    path.write_bytes(b"no")
    with pytest.raises(TrainingError, match=r"000000\.safetensors is no shard of texts"):
        read_shard(path)
    with pytest.raises(TrainingError, match="cannot be written"):
        write_shard(path / "inside_a_file.safetensors", answers(), 100)


def test_no_texts_at_all_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="there are no texts of at most 9 tokens"):
        read_texts([tmp_path], 9, 70000)
