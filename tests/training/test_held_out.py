"""What one pass over a text says of speculative decoding is what speculative decoding does."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean, stdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor, nn

from treesnake.chance import TorchRng
from treesnake.decoder import SpeculativeDecoder
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.vocabulary import read_draft_vocabulary
from treesnake.generate import generate
from treesnake.loading.checkpoint import DEFAULT_MODEL, find_checkpoint
from treesnake.outcome import Step
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams
from treesnake.search.static import StaticSearch
from treesnake.shape import chain
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing.tiny import RecurrentModel, TableModel, TinyModel, TinyNetwork
from treesnake.training.answering import AnswerOptions, answer
from treesnake.training.corpus import prompt_tokens
from treesnake.training.distillation_loss import DistillationLoss, LossTerms, Objective
from treesnake.training.held_out import HeldOutScore, calibration_error, score_texts
from treesnake.training.learner import Learner, build_learner, locate_trained
from treesnake.training.shards import answers_shard, text_shard
from treesnake.training.texts import Texts
from treesnake.training.training_recipe import TrainedBefore

VOCAB = 6
PROMPT = (1, 2)
TARGET = RecurrentModel(VOCAB, seed=3)


class TinyLearner(Learner):
    """A tiny model in the place of a network that is trained."""

    def __init__(self, model: TinyModel) -> None:
        nn.Module.__init__(self)
        self._model = model

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size

    @property
    def output_weight(self) -> nn.Parameter:
        return nn.Parameter(torch.eye(self._model.vocab_size))

    def forward(
        self, token_ids: Int[Tensor, "texts tokens"]
    ) -> Float[Tensor, "texts tokens hidden"]:
        return torch.stack([self._logits(row) for row in token_ids.tolist()])

    def _logits(self, token_ids: Sequence[int]) -> Float[Tensor, "tokens hidden"]:
        state, rows = self._model.initial(), []
        for token in token_ids:
            state, logits = self._model.step(state, token)
            rows.append(logits)
        return torch.stack(rows)


def estimate(
    drafter: TinyModel, temperature: float, num_texts: int, num_tokens: int, draft_length: int
) -> HeldOutScore:
    """Scores a drafter on texts of the target."""
    options = AnswerOptions(num_tokens, temperature, num_top=VOCAB, end_tokens=())
    answers = answer(TinyNetwork(TARGET), [PROMPT] * num_texts, options, seed=0)
    texts = Texts([answers_shard(range(num_texts), answers, temperature)], max_tokens=99)
    batch = texts.batch(range(num_texts))
    loss_module = DistillationLoss(
        TinyLearner(drafter), Objective("forward_kl", 0.0), VOCAB, draft_vocabulary=None
    )
    terms = LossTerms.of(loss_module(batch).detach())
    return score_texts(
        terms, batch.num_learned, [temperature] * num_texts, draft_length, [False] * num_texts
    )


def decode(
    drafter: TinyModel, temperature: float, seed: int, num_tokens: int, draft_length: int
) -> list[Step]:
    """Returns the steps of a text, drafted by chains of chosen tokens."""
    return list(
        generate(
            NetworkTargetModel(TinyNetwork(TARGET)).new_session(),
            NetworkDrafterModel(TinyNetwork(drafter)).new_session(),
            Prompt(PROMPT),
            search=StaticSearch(chain(draft_length, sampled=False)),
            params=SamplingParams(temperature=temperature),
            rng=TorchRng(seed),
            max_length=len(PROMPT) + num_tokens,
        )
    )


def accepted_by_position(steps: Sequence[Step], draft_length: int) -> list[float]:
    drafted = [step.tree.depths[-1] for step in steps]
    accepted = [len(step.acceptance.path) - 1 for step in steps]
    return [
        sum(depth <= number for number in accepted) / max(sum(depth <= each for each in drafted), 1)
        for depth in range(1, draft_length + 1)
    ]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 20), st.integers(1, 5))
def test_one_pass_over_greedy_text_tells_every_step(seed: int, draft_length: int) -> None:
    drafter = TableModel(VOCAB, order=2, seed=seed)
    steps = decode(drafter, 0.0, 0, 30, draft_length)
    score = estimate(drafter, 0.0, 1, 30, draft_length)
    (chains,) = score.chains
    assert chains.tokens_per_step == score.tokens_per_step == pytest.approx(30 / len(steps))
    assert chains.acceptance_by_position == pytest.approx(
        tuple(accepted_by_position(steps, draft_length)), abs=1e-5
    )


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_one_pass_over_sampled_text_tells_what_drafting_brings(temperature: float) -> None:
    """Both draw by the noise that they share; the texts are others, of the same distribution."""
    drafter, num_tokens, draft_length = TableModel(VOCAB, order=1, seed=1), 20, 3
    score = estimate(drafter, temperature, 90, num_tokens, draft_length)
    texts = [decode(drafter, temperature, seed, num_tokens, draft_length) for seed in range(90)]
    counts = [len(steps) for steps in texts]
    error = stdev(counts) / len(counts) ** 0.5
    expected = num_tokens / score.tokens_per_step
    assert fmean(counts) == pytest.approx(expected, abs=4 * error)
    steps = [step for text in texts for step in text]
    found = accepted_by_position(steps, draft_length)
    assert score.chains[0].acceptance_by_position == pytest.approx(tuple(found), abs=0.05)


def test_the_score_of_the_drafter_that_ships_is_what_decoding_makes() -> None:
    """What is trained and what drafts are two programs; the latter rounds to 8 bits."""
    target = find_checkpoint(DEFAULT_MODEL)
    questions = ["Why is the sky blue?", "Write a short poem about a cat."]
    prompts = [prompt_tokens(target.tokenizer, question) for question in questions]
    before = TrainedBefore(source="treesnake-smol")
    decoder = SpeculativeDecoder.from_pretrained(drafter=before.source, search="chain(4) chosen")
    answers = [decoder.generate(prompt, max_new_tokens=24) for prompt in prompts]
    pairs = [(prompt, each.token_ids) for prompt, each in zip(prompts, answers, strict=True)]
    texts = Texts([text_shard(range(2), pairs)], max_tokens=99)
    batch = texts.batch(range(2))
    loss_module = DistillationLoss(
        build_learner(before, target, seed=0).eval(),
        Objective(None, 1.0),
        target.config.vocab_size,
        read_draft_vocabulary(locate_trained(before)),
    )
    with torch.no_grad():
        terms = LossTerms.of(loss_module(batch))
    score = score_texts(terms, batch.num_learned, [0.0, 0.0], 4, [False, False])
    num_steps = sum(len(each.steps) for each in answers)
    assert score.num_tokens / score.tokens_per_step == pytest.approx(num_steps, abs=2)
    assert score.tokens_per_step > 1.3


def test_texts_of_each_temperature_are_scored_apart() -> None:
    columns = torch.tensor([[1.0, 1.0, 0.9, 1.0]] * 4 + [[1.0, 0.0, 0.5, 0.0]] * 8)
    score = score_texts(LossTerms.of(columns), [4, 4, 4], [0.0, 0.7, 0.7], 2, [False] * 3)
    assert [chains.temperature for chains in score.chains] == [0.0, 0.7]
    assert [chains.num_texts for chains in score.chains] == [1, 2]
    assert [chains.tokens_per_step for chains in score.chains] == [2.0, 1.0]
    assert score.tokens_per_step == pytest.approx(12 / (2 + 4 + 4))


def test_a_score_comes_back_from_json() -> None:
    score = estimate(TableModel(VOCAB), 1.0, 2, 5, 2)
    assert HeldOutScore.of_json(json.loads(json.dumps(asdict(score)))) == score


def test_confidence_that_is_borne_out_has_no_error() -> None:
    confidence = torch.tensor([0.75, 0.75, 0.75, 0.75, 0.1])
    is_right = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    assert calibration_error(confidence, is_right) == pytest.approx(0.02)
    assert calibration_error(torch.ones(4), torch.zeros(4)) == pytest.approx(1.0)
