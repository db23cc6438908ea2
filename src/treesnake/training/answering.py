"""The target answers prompts in batches, and what it thought at every token is kept.

Prompts of a batch are filled up on the left, so batches should be of prompts of like length.
Sequences that have ended leave the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from treesnake.states.kv import KvCache


@dataclass(frozen=True, eq=False)
class Answer:
    """One prompt and what the target answers.

    Attributes:
        prompt: token ids.
        tokens: token ids of the answer, its end token included.
        top_ids: at each token of the answer, the most probable tokens, best first.
        top_log_probs: their log probabilities, of the whole vocabulary at temperature 1.
    """

    prompt: Sequence[int]
    tokens: Int[Tensor, " answer"]
    top_ids: Int[Tensor, "answer top"]
    top_log_probs: Float[Tensor, "answer top"]


@dataclass(frozen=True)
class AnswerOptions:
    """How the target answers.

    Attributes:
        max_new_tokens: of each answer.
        temperature: 0 takes the most probable token.
        num_top: how many of the most probable tokens are kept at each position.
        end_tokens: what ends an answer.
    """

    max_new_tokens: int
    temperature: float
    num_top: int
    end_tokens: tuple[int, ...]


@torch.inference_mode()
def answer(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    options: AnswerOptions,
    generator: torch.Generator,
) -> list[Answer]:
    """Answers one batch of prompts, in their order.

    Args:
        model: the target, on any device.
        prompts: token ids; each has one at least.
        options: how it answers.
        generator: on the model's device.
    """
    batch = _Batch(model, prompts, options.max_new_tokens)
    answers = _Answers.empty(len(prompts), options, model.device)
    ends = torch.tensor(options.end_tokens, device=model.device)
    logits = batch.prefill()
    for index in range(options.max_new_tokens):
        log_probs = logits.log_softmax(-1)
        top = log_probs.topk(options.num_top)
        chosen = _choose(log_probs, top.indices[:, 0], options.temperature, generator)
        answers.tokens[batch.members, index] = chosen
        answers.top_ids[batch.members, index] = top.indices
        answers.top_log_probs[batch.members, index] = top.values
        answers.lengths[batch.members] += 1
        alive = ~torch.isin(chosen, ends)
        if index == options.max_new_tokens - 1 or not alive.any():
            break
        logits = batch.step(chosen, alive)
    return answers.of_prompts(prompts)


@dataclass(frozen=True, eq=False)
class _Answers:
    """The answers so far, in rectangles with room for the longest answers."""

    lengths: Int[Tensor, " prompts"]
    tokens: Int[Tensor, "prompts tokens"]
    top_ids: Int[Tensor, "prompts tokens top"]
    top_log_probs: Float[Tensor, "prompts tokens top"]

    @classmethod
    def empty(cls, num_prompts: int, options: AnswerOptions, device: torch.device) -> "_Answers":
        shape = (num_prompts, options.max_new_tokens)
        return cls(
            torch.zeros(num_prompts, dtype=torch.int64, device=device),
            torch.zeros(*shape, dtype=torch.int64, device=device),
            torch.zeros(*shape, options.num_top, dtype=torch.int64, device=device),
            torch.zeros(*shape, options.num_top, device=device),
        )

    def of_prompts(self, prompts: Sequence[Sequence[int]]) -> list[Answer]:
        tokens, ids, log_probs = self.tokens.cpu(), self.top_ids.cpu(), self.top_log_probs.cpu()
        return [
            Answer(prompt, tokens[row, :length], ids[row, :length], log_probs[row, :length])
            for row, (prompt, length) in enumerate(zip(prompts, self.lengths.tolist(), strict=True))
        ]


def _choose(
    log_probs: Float[Tensor, "rows vocab"],
    best: Int[Tensor, " rows"],
    temperature: float,
    generator: torch.Generator,
) -> Int[Tensor, " rows"]:
    if temperature == 0:
        return best
    probs = (log_probs / temperature).softmax(-1)
    return torch.multinomial(probs, 1, generator=generator)[:, 0]


class _Batch:
    """The sequences that have not ended, in one rectangle of tokens."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> None:
        longest = max(map(len, prompts))
        self.members = torch.arange(len(prompts), device=model.device)
        self._model = model
        self._tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
        self._visible = torch.ones(len(prompts), longest + max_new_tokens, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            self._tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
            self._visible[row, : longest - len(prompt)] = False
        self._tokens = self._tokens.to(model.device)
        self._visible = self._visible.to(model.device)
        self._cache = KvCache([True] * model.config.get_text_config().num_hidden_layers)

    def prefill(self) -> Float[Tensor, "rows vocab"]:
        """Runs the prompts; returns the logits after each."""
        length = self._tokens.shape[1]
        visible = self._visible[:, :length]
        square = torch.ones(length, length, dtype=torch.bool, device=visible.device)
        # A filled-up position looks at itself, for a row that sees nothing has no softmax.
        mask = square.tril() & visible[:, None, None] | square.tril() & square.triu()
        return self._run(self._tokens, (visible.cumsum(1) - 1).clamp_min(0), mask)

    def step(
        self, chosen: Int[Tensor, " rows"], alive: Bool[Tensor, " rows"]
    ) -> Float[Tensor, "alive vocab"]:
        """Runs the tokens that were chosen; sequences that are not alive leave first."""
        if not alive.all():
            kept = alive.nonzero()[:, 0]
            self.members, self._visible = self.members[kept], self._visible[kept]
            chosen = chosen[kept]
            self._cache.batch_select_indices(kept)
        visible = self._visible[:, : self._cache.get_seq_length() + 1]
        mask = visible[:, None, None]
        return self._run(chosen[:, None], visible.sum(1, keepdim=True) - 1, mask)

    def _run(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        outputs = self._model(
            input_ids=tokens,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return outputs.logits[:, -1].float()
