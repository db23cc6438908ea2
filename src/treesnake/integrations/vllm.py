"""A drafter of treesnake in vLLM, by its method `custom_class`.

    vllm serve MODEL --speculative-config '{"method": "custom_class",
        "model": "treesnake.integrations.vllm.Proposer", "num_speculative_tokens": 6}'

vLLM verifies chains of tokens. It gives its drafter no names of requests, so the text of each row
is recognized by its tokens. Drafts are greedy and count as certain: accepted tokens have the
target's distribution at every temperature. Written from the contract of vLLM 0.32 and 0.33.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from treesnake.draft import Draft
from treesnake.drafters.load import AUTO
from treesnake.errors import InvalidInputError
from treesnake.integrations.batch_drafts import BatchDrafts, Row, load_model_drafter
from treesnake.protocols import DrafterModel
from treesnake.shape import Priced

OPTIONS = "treesnake"
"""The key of our options in vLLM's `--additional-config`."""

LEAST_PROB = 0.1
"""A chain ends where the drafter takes all of it for less probable."""

SPARE_TEXTS = 64
"""States that are kept of texts beside those that can run at once: of those that were preempted."""


class Proposer:
    """What vLLM asks for drafts.

    Options, in vLLM's `additional_config` under "treesnake": `drafter`, a name as everywhere (the
    default is the model that comes with treesnake); `device`, the target's by default;
    `least_prob`, where chains end.

    Args:
        vllm_config: vLLM's own.

    Raises:
        InvalidInputError: for an option that does not exist.
    """

    def __init__(self, vllm_config: Any) -> None:
        given = dict((vllm_config.additional_config or {}).get(OPTIONS, {}))
        self._drafter: str = given.pop("drafter", AUTO)
        self._device: str | None = given.pop("device", None)
        self._least_prob = float(given.pop("least_prob", LEAST_PROB))
        if given:
            raise InvalidInputError(
                f"treesnake has no options {', '.join(sorted(given))} in vLLM's additional_config; "
                "it has drafter, device and least_prob"
            )
        self._target: str = vllm_config.model_config.model
        self._max_length: int = vllm_config.model_config.max_model_len
        self._most_tokens: int = vllm_config.speculative_config.num_speculative_tokens
        self._most_texts = vllm_config.scheduler_config.max_num_seqs + SPARE_TEXTS
        parallel = vllm_config.parallel_config
        # Drafts are taken from the first of each group of ranks that share a layer.
        self._is_asked = parallel.rank % parallel.tensor_parallel_size == 0
        self._drafts: BatchDrafts | None = None

    def load_model(self, target_model: nn.Module) -> None:
        """Loads the drafter, to where the target is unless an option says otherwise."""
        if not self._is_asked:
            return
        device = self._device or str(next(target_model.parameters()).device)
        self.use(load_model_drafter(self._target, self._drafter, device))

    def use(self, model: DrafterModel) -> None:
        """Drafts with this drafter from now on."""
        self._drafts = BatchDrafts(model, self._most_texts)

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: NDArray[np.int32],
        token_ids_cpu: NDArray[np.int32],
        slot_mappings: object = None,
    ) -> list[list[int]]:
        """Returns a chain for each row of the batch; it may be empty.

        Args:
            sampled_token_ids: of each row the newest tokens; none where a prompt is still running,
                all of which the drafter can read already.
            num_tokens_no_spec: the length of each text.
            token_ids_cpu: the texts, each with its newest tokens. vLLM goes on writing there.
            slot_mappings: of vLLM's cache; not read.
        """
        if self._drafts is None:
            return [[] for _ in sampled_token_ids]
        rows = [
            Row(index, token_ids_cpu[index, : num_tokens_no_spec[index]], bool(len(newest)))
            for index, newest in enumerate(sampled_token_ids)
        ]
        prices = (self._least_prob,) * self._most_tokens
        drafts = self._drafts.draft(rows, Priced(1, prices, prices))
        return [
            likeliest_chain(draft)[: self._room_behind(row)] if draft else []
            for row, draft in zip(rows, drafts, strict=True)
        ]

    def _room_behind(self, row: Row) -> int:
        """Returns how many tokens may be drafted behind a text, with one of the target's own."""
        return max(min(self._most_tokens, self._max_length - len(row.tokens) - 1), 0)


def likeliest_chain(draft: Draft) -> list[int]:
    """Returns the tokens of the path on which each node is its parent's most probable child.

    Where the drafter has no probabilities, that is the first child.
    """
    probs = np.nan_to_num(draft.node_probs or (0.0,) * len(draft.tree))
    tokens: list[int] = []
    node = 0
    while children := draft.tree.children[node]:
        node = max(children, key=probs.__getitem__)
        tokens.append(draft.tree.tokens[node])
    return tokens
