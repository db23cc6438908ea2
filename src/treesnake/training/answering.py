"""The target answers prompts in batches, and what it thought at every token is kept.

The texts of a batch share each pass, and shorter ones are filled up, so batches should be of
prompts of like length. Texts that have ended leave the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from treesnake.models.tree_network import Part, TreeNetwork
from treesnake.prompt import Prompt


@dataclass(frozen=True, eq=False)
class Answer:
    """One prompt and what the target answers.

    Attributes:
        prompt: token ids.
        tokens: token ids of the answer, its end token included.
        top_ids: at each token of the answer, the most probable tokens, best first. The last one is
            the answer's own token where that would not be among them.
        top_log_probs: their log probabilities, of the whole vocabulary at temperature 1.
    """

    prompt: Sequence[int]
    tokens: Int[Tensor, " answer"]
    top_ids: Int[Tensor, "answer top"]
    top_log_probs: Float[Tensor, "answer top"]


@dataclass(frozen=True, eq=False)
class Answerer:
    """A model that answers prompts.

    Attributes:
        network: in any engine.
        tokenizer: its own.
        end_tokens: what ends an answer.
    """

    network: TreeNetwork
    tokenizer: PreTrainedTokenizerBase
    end_tokens: tuple[int, ...]


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


@torch.no_grad()
def answer(
    network: TreeNetwork,
    prompts: Sequence[Sequence[int]],
    options: AnswerOptions,
    seed: int,
) -> list[Answer]:
    """Answers one batch of prompts, in their order.

    Args:
        network: the target, in any engine.
        prompts: token ids; each has one at least.
        options: how it answers.
        seed: of sampled answers.
    """
    live = _LiveTexts(network, prompts)
    logits = live.step([prompt[-1] for prompt in prompts])
    device = logits.device
    answers = _Answers.empty(len(prompts), options, device)
    ends = torch.tensor(options.end_tokens, device=device)
    generator = torch.Generator().manual_seed(seed)
    for index in range(options.max_new_tokens):
        log_probs = logits.log_softmax(-1)
        top = log_probs.topk(options.num_top)
        chosen = _choose(log_probs, top.indices[:, 0], options.temperature, generator)
        rows = torch.tensor(live.rows, device=device)
        answers.tokens[rows, index] = chosen
        answers.top_ids[rows, index] = top.indices
        answers.top_log_probs[rows, index] = top.values
        lacking = ~(top.indices == chosen[:, None]).any(-1)
        answers.top_ids[rows[lacking], index, -1] = chosen[lacking]
        answers.top_log_probs[rows[lacking], index, -1] = log_probs[lacking, chosen[lacking]]
        answers.lengths[rows] += 1
        goes_on = ~torch.isin(chosen, ends)
        if index == options.max_new_tokens - 1 or not goes_on.any():
            break
        live.keep(goes_on.tolist())
        logits = live.step(chosen[goes_on].tolist())
    return answers.of_prompts(prompts)


class _LiveTexts:
    """The texts of a batch that have not ended.

    Attributes:
        rows: their numbers in the batch.
    """

    def __init__(self, network: TreeNetwork, prompts: Sequence[Sequence[int]]) -> None:
        self.rows = list(range(len(prompts)))
        self._network = network
        self._states = [network.new_state() for _ in prompts]
        for state, prompt in zip(self._states, prompts, strict=True):
            state.prefill(Prompt.of(prompt))

    def step(self, token_ids: Sequence[int]) -> Float[Tensor, "live vocab"]:
        """Appends one token to each text; returns the logits after them."""
        parts = [
            Part(state, [token], [-1]) for state, token in zip(self._states, token_ids, strict=True)
        ]
        logits = torch.cat(self._network.extend_all(parts))
        for state in self._states:
            state.commit((0,))
        return logits.float()

    def keep(self, mask: Sequence[bool]) -> None:
        """Lets those texts go that are not to be kept, with their memory."""
        self.rows = list(compress(self.rows, mask))
        self._states = list(compress(self._states, mask))


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
    return draw((log_probs / temperature).softmax(-1), generator)


def draw(probs: Float[Tensor, "rows outcomes"], generator: torch.Generator) -> Int[Tensor, " rows"]:
    """Returns a column for each row, drawn by its probabilities.

    Args:
        probs: of each row; they need not be normalized.
        generator: on a CPU, so that the chance is the same for every device.
    """
    chance = torch.rand(len(probs), 1, generator=generator).to(probs.device)
    cumulative = probs.cumsum(-1)
    drawn = torch.searchsorted(cumulative, chance * cumulative[:, -1:])[:, 0]
    return drawn.clamp_max(probs.shape[-1] - 1)
