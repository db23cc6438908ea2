"""The target answers in batches what it answers alone."""

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from treesnake.errors import InvalidInputError
from treesnake.loading.options import LoadOptions
from treesnake.loading.pretrained import Pretrained, load_pretrained
from treesnake.models.hf_attention import HfAttention
from treesnake.models.tree_network import TreeNetwork
from treesnake.training import answers
from treesnake.training.answering import Answerer, AnswerOptions, answer
from treesnake.training.answers import answer_batches, answer_prompts, read_prompts
from treesnake.training.reporting import NoReporter
from treesnake.training.shards import read_shard, shard_files
from treesnake.training.training_recipe import AnswersStage

PROMPTS = [[5, 6, 7], [9], [5, 6, 7, 8, 9, 10], [11, 12]]


@pytest.fixture(scope="module")
def pretrained(target_folder: Path) -> Pretrained:
    return load_pretrained(str(target_folder), LoadOptions(dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def model(pretrained: Pretrained) -> PreTrainedModel:
    return pretrained.model


@pytest.fixture(scope="module")
def network(model: PreTrainedModel) -> HfAttention:
    return HfAttention(model)


def greedy(model: PreTrainedModel, prompt: list[int], ends: tuple[int, ...]) -> list[int]:
    tokens = list(prompt)
    for _ in range(10):
        logits = model(input_ids=torch.tensor([tokens])).logits[0, -1]
        tokens.append(int(logits.argmax()))
        if tokens[-1] in ends:
            break
    return tokens[len(prompt) :]


def test_batched_answers_are_those_of_one_prompt_alone(
    model: PreTrainedModel, network: HfAttention
) -> None:
    # Tokens that occur early end the texts at different positions.
    ends = tuple({greedy(model, prompt, ())[3 + row] for row, prompt in enumerate(PROMPTS[:2])})
    options = AnswerOptions(10, temperature=0.0, num_top=3, end_tokens=ends)
    found = answer(network, PROMPTS, options, seed=0)
    expected = [greedy(model, prompt, ends) for prompt in PROMPTS]
    assert [each.tokens.tolist() for each in found] == expected
    assert len({len(each) for each in expected}) > 1


def test_texts_that_ended_are_not_run_any_more(network: HfAttention) -> None:
    ends = tuple({greedy(network.model, prompt, ())[3 + row] for row, prompt in enumerate(PROMPTS)})
    sizes: list[int] = []

    def note(module: object, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        if output.shape[1] == 1:
            sizes.append(len(output))

    handle = network.model.get_input_embeddings().register_forward_hook(note)
    options = AnswerOptions(10, temperature=0.0, num_top=1, end_tokens=ends)
    lengths = [len(each.tokens) for each in answer(network, [[9, 9], *PROMPTS[2:]], options, 0)]
    handle.remove()
    steps = range(max(lengths))
    assert sizes[-len(steps) :] == [sum(length > step for length in lengths) for step in steps]


def test_the_targets_probabilities_come_along(model: PreTrainedModel, network: HfAttention) -> None:
    options = AnswerOptions(4, temperature=0.0, num_top=3, end_tokens=())
    for each in answer(network, PROMPTS, options, seed=0):
        text = [*each.prompt, *each.tokens.tolist()]
        logits = model(input_ids=torch.tensor([text])).logits[0, len(each.prompt) - 1 : -1]
        expected = logits.log_softmax(-1).topk(3)
        assert torch.equal(each.top_ids, expected.indices)
        torch.testing.assert_close(each.top_log_probs, expected.values, atol=1e-4, rtol=1e-4)


def test_sampled_answers_are_those_of_the_seed(network: HfAttention) -> None:
    options = AnswerOptions(6, temperature=1.5, num_top=1, end_tokens=())

    def sample(seed: int) -> list[list[int]]:
        found = answer(network, PROMPTS, options, seed)
        return [each.tokens.tolist() for each in found]

    assert sample(0) == sample(0) != sample(1)


def test_a_drawn_token_is_kept_with_its_probability(
    model: PreTrainedModel, network: HfAttention
) -> None:
    options = AnswerOptions(5, temperature=3.0, num_top=2, end_tokens=())
    for each in answer(network, PROMPTS, options, seed=0):
        assert (each.top_ids == each.tokens[:, None]).any(-1).all()
        text = [*each.prompt, *each.tokens.tolist()]
        logits = model(input_ids=torch.tensor([text])).logits[0, len(each.prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(-1, each.top_ids)
        torch.testing.assert_close(each.top_log_probs, expected, atol=1e-4, rtol=1e-4)


def test_answers_that_are_there_are_not_made_again(
    network: HfAttention, pretrained: Pretrained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = AnswersStage(name="a", prompts=(), max_new_tokens=3, num_top=2, batch_size=2)
    prompts = [f"number {index}" for index in range(7)]
    asked = []

    def counting(network: TreeNetwork, batch: list[list[int]], *rest: object) -> object:
        asked.append(len(batch))
        return answer(network, batch, *rest)

    def run() -> list[bytes]:
        answer_prompts(
            Answerer(network, pretrained.tokenizer, (2,)),
            prompts,
            stage,
            tmp_path,
            seed=0,
            share=(0, 1),
            reporter=NoReporter(),
        )
        return [path.read_bytes() for path in shard_files(tmp_path)]

    monkeypatch.setattr(answers, "answer", counting)
    first = run()
    assert asked == [2, 2, 2, 1]
    shard_files(tmp_path)[1].unlink()
    assert run() == first
    assert asked == [2, 2, 2, 1, 2]
    indices = [read_shard(path).prompt_index.tolist() for path in shard_files(tmp_path)]
    assert sorted(index for each in indices for index in each) == list(range(7))


def test_prompts_are_sorted_by_length_within_windows_and_long_ones_left_out(
    pretrained: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "WINDOW", 4)
    prompts = ["a" * length for length in (9, 3, 40, 5, 2, 8)]
    stage = AnswersStage(name="a", prompts=(), max_prompt_tokens=20, batch_size=2)
    batches = list(answer_batches(prompts, pretrained.tokenizer, stage))
    assert [batch.prompt_index for batch in batches] == [(1, 3), (0,), (4, 5)]
    assert [batch.number for batch in batches] == [0, 1, 100]


def test_prompts_are_read_once_each_and_errors_are_told(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in "abab"))
    assert read_prompts([path, path]) == ["a", "b"]
    for row, message in (
        ({"text": "a"}, r'line 2 of .*prompts\.jsonl lacks "prompt"; it has'),
        ({"prompt": None}, '"prompt" of line 2 of .* must be text, not null'),
        ({"prompt": ["a"]}, '"prompt" of line 2 of .* must be text, not a list of 1'),
        ({"prompt": "half \ud83d"}, '"prompt" of line 2 of .* is no text in UTF-8'),
        ({"prompt": " "}, '"prompt" of line 2 of .* is empty'),
    ):
        path.write_text('{"prompt": "a"}\n' + json.dumps(row))
        with pytest.raises(InvalidInputError, match=message):
            read_prompts([path])
