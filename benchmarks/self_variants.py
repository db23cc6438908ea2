"""What may a copy leave out that drafts for its own model, and what may draft for the copy?

    python benchmarks/self_variants.py --threads 2
        --questions spec_bench_report.jsonl --limit 7 --output results/self_variants.json

The target is `smollm2-hybrid` in float32. Its copy has weights in int4 and reads the target's
memory of the text. Variants of the copy leave parts of layers out: attentions, Mamba-2 mixers,
MLPs, or all behind a layer (early exit). The five and the ten parts whose absence did the least
harm were found greedily on other questions. With two levels, something else drafts for the copy:
the copy runs that chain in one pass, and goes on alone where the chain leaves what the copy says.

Nothing is timed. Greedy texts of the target are read by each copy, which tells how often it agrees.
Chains of 4 tell the tokens a step, for copies that agree with every other token at least. A copy
reads the given share of the weights of the whole one.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from frame import Result, add_questions, print_table, read_questions, run

from treesnake import SamplingParams, SpeculativeDecoder, StaticSearch, chain
from treesnake.conversation import user_message
from treesnake.draft import Draft, Scored
from treesnake.drafters.load import load_drafter
from treesnake.kernels.matrices import INT4
from treesnake.loading.checkpoint import HYBRID, Checkpoint, find_checkpoint
from treesnake.loading.networks import load_network
from treesnake.loading.options import LoadOptions
from treesnake.models.hybrid_config import HybridConfig
from treesnake.models.hybrid_cpu import CpuHybrid
from treesnake.models.tree_network import TreeState
from treesnake.models.weights import InMemory, Weights
from treesnake.pairs import SelfPair
from treesnake.prompt import Prompt
from treesnake.protocols import Drafter, DrafterModel, Target
from treesnake.sampling import Rng
from treesnake.shape import Shape
from treesnake.targets.network import NetworkTargetModel
from treesnake.tree import TokenTree

DEPTH = 4
COLUMNS = ("share", "agreement", "tokens_per_step", "passes_per_step")
OUTPUTS = ("o_proj.weight", "out_proj.weight", "output_linear.weight")
"""How the matrices end that write to the residual stream; zeros in them leave a part out."""

FIVE_PARTS = ("9.mamba", "7.mamba", "25.mamba", "5.mamba", "17.mamba")
TEN_PARTS = (
    *FIVE_PARTS,
    *("5.shared_mlp", "11.shared_mlp", "6.mamba", "22.self_attn", "12.self_attn"),
)
LEAST_AGREEMENT = 0.5
"""Copies that agree less are not tried as drafters."""

INNER = ("prompt-lookup", "treesnake-smol")
"""What drafts for the copy, a chain as deep as its own."""


class TwoLevels:
    """A drafter session: a copy of the target, for which another drafter drafts."""

    def __init__(self, state: TreeState, inner: Drafter) -> None:
        self._state = state
        self._inner = inner
        self.num_passes = 0

    def prefill(self, prompt: Prompt) -> None:
        self._inner.prefill(prompt)

    def draft(self, anchor: int, shape: Shape, params: SamplingParams, rng: Rng) -> Draft:
        self._state.commit(())
        inner = self._inner.draft(anchor, chain(shape.depth), params, rng).tree.tokens
        logits = self._extend(inner, range(-1, len(inner) - 1))
        path, node, num_nodes = [anchor], 0, len(inner)
        row = logits[0]
        while True:
            path.append(int(row.argmax()))
            if len(path) > shape.depth:
                return Draft.chosen(TokenTree.chain(path))
            if path == list(inner[: len(path)]):
                node, row = node + 1, logits[node + 1]
            else:
                row = self._extend(path[-1:], [node])[0]
                node, num_nodes = num_nodes, num_nodes + 1

    def _extend(self, token_ids: Sequence[int], parents: Iterable[int]) -> Any:
        self.num_passes += 1
        return self._state.extend(token_ids, [*parents])

    def commit(self, token_ids: Sequence[int], scored: Scored | None = None) -> None:
        self._inner.commit(token_ids, scored)


class TwoLevelPair:
    """A target, its copy, and what drafts for the copy."""

    def __init__(self, target: NetworkTargetModel, copy: CpuHybrid, inner: DrafterModel) -> None:
        self.target = target
        self._copy = copy
        self._inner = inner
        self.drafters: list[TwoLevels] = []

    def new_sessions(self) -> tuple[Target, Drafter]:
        target = self.target.new_session()
        self.drafters.append(TwoLevels(target.lent_to(self._copy), self._inner.new_session()))
        return target, self.drafters[-1]


class Texts:
    """What the target says, and how well drafters guess it."""

    def __init__(self, target: CpuHybrid, checkpoint: Checkpoint, arguments: Namespace) -> None:
        self.model = NetworkTargetModel(target)
        self._tokenizer: Any = checkpoint.tokenizer
        self._num_tokens = arguments.tokens
        plain = self._decoder(SelfPair(self.model, target), 0)
        messages = [[user_message(each.turns[0])] for each in read_questions(arguments)]
        self._prompts = [list(plain.encode(message).token_ids) for message in messages]
        self._answers = [self._answer(plain, prompt) for prompt in self._prompts]
        self._states = [target.new_state() for _ in self._prompts]
        for state, prompt in zip(self._states, self._prompts, strict=True):
            state.prefill(Prompt.of(prompt))

    def agreement(self, copy: CpuHybrid) -> float:
        """Returns how often the copy's best token is the target's next."""
        num_equal = num_tokens = 0
        for state, prompt, answer in zip(self._states, self._prompts, self._answers, strict=True):
            lent = state.lent_to(copy)
            logits = lent.extend([prompt[-1], *answer[:-1]], range(-1, len(answer) - 1))
            lent.commit(())
            num_equal += int((logits.argmax(-1) == torch.tensor(answer)).sum())
            num_tokens += len(answer)
        return num_equal / num_tokens

    def tokens_per_step(self, pair: SelfPair | TwoLevelPair) -> tuple[float, int]:
        """Returns the tokens a step of chains, and the number of steps."""
        decoder, num_steps = self._decoder(pair, DEPTH), 0
        for prompt, answer in zip(self._prompts, self._answers, strict=True):
            found = decoder.generate(prompt, max_new_tokens=self._num_tokens)
            assert list(found.token_ids) == answer, "drafting changed a text"
            num_steps += len(found.steps)
        return sum(map(len, self._answers)) / num_steps, num_steps

    def _answer(self, decoder: SpeculativeDecoder, prompt: Sequence[int]) -> list[int]:
        return list(decoder.generate(prompt, max_new_tokens=self._num_tokens).token_ids)

    def _decoder(self, pair: SelfPair | TwoLevelPair, depth: int) -> SpeculativeDecoder:
        return SpeculativeDecoder(
            pair, tokenizer=self._tokenizer, search=StaticSearch(chain(depth))
        )


def add_arguments(parser: ArgumentParser) -> None:
    add_questions(parser)
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")


def measure(arguments: Namespace) -> Result:
    checkpoint = find_checkpoint(HYBRID)
    target = load_network(checkpoint, LoadOptions(dtype="float32", device="cpu")).network
    assert isinstance(target, CpuHybrid)
    texts = Texts(target, checkpoint, arguments)
    variants: dict[str, Any] = {}
    for name, parts in _variants(target.config).items():
        copy, share = _copy_without(checkpoint, target, parts)
        agreement = texts.agreement(copy)
        variants[name] = {"share": round(share, 3), "agreement": round(agreement, 3)}
        if agreement >= LEAST_AGREEMENT:
            rate, _ = texts.tokens_per_step(SelfPair(texts.model, copy))
            variants[name] |= {"tokens_per_step": round(rate, 3), "passes_per_step": DEPTH}
    copy, _ = _copy_without(checkpoint, target, ())
    for name in INNER:
        inner = load_drafter(name, LoadOptions(device="cpu"), target=checkpoint)
        pair = TwoLevelPair(texts.model, copy, inner)
        rate, num_steps = texts.tokens_per_step(pair)
        num_passes = sum(drafter.num_passes for drafter in pair.drafters)
        variants[f"whole, {name} drafts for it"] = {
            **variants["whole"],
            "tokens_per_step": round(rate, 3),
            "passes_per_step": round(num_passes / num_steps, 2),
        }
    return {"tokens": arguments.tokens, "depth": DEPTH, "variants": variants}


def _variants(config: HybridConfig) -> Mapping[str, Sequence[str]]:
    """Returns which parts of layers each variant leaves out."""
    attends = config.decoder.attends
    mixing = [f"{number}.{'self_attn' if it else 'mamba'}" for number, it in enumerate(attends)]

    def behind(num_layers: int) -> list[str]:
        layers = range(num_layers, len(attends))
        return [part for n in layers for part in (mixing[n], f"{n}.shared_mlp")]

    return {
        "whole": (),
        "without 5 mixers": FIVE_PARTS,
        "without 10 parts of layers": TEN_PARTS,
        "without any mixer": [part for part in mixing if "mamba" in part],
        "without attention": [part for part in mixing if "self_attn" in part],
        **{f"exit behind layer {count} of {len(attends)}": behind(count) for count in (28, 25, 20)},
    }


def _copy_without(
    checkpoint: Checkpoint, target: CpuHybrid, parts: Sequence[str]
) -> tuple[CpuHybrid, float]:
    """Returns a copy in int4 that leaves some parts out, and the share of values that it reads."""
    weights = checkpoint.weights
    assert isinstance(weights, Weights)
    prefixes = tuple(f"model.layers.{part}." for part in parts)
    left_out = [entry for name, entry in weights.entries.items() if name.startswith(prefixes)]
    zeros = {
        name: InMemory(torch.zeros(entry.shape))
        for name, entry in weights.entries.items()
        if name.startswith(prefixes) and name.endswith(OUTPUTS)
    }
    num_all = sum(entry.num_elements for entry in weights.entries.values())
    network = CpuHybrid(
        HybridConfig.from_hf(checkpoint.config),
        Weights(weights.entries | zeros),
        INT4,
        cache_dtype=target.cache_dtype,
    )
    return network, 1 - sum(entry.num_elements for entry in left_out) / num_all


def show(result: Result) -> None:
    print_table(
        f"smollm2-hybrid in float32, its copy in int4, chains of {result['depth']}",
        ("copy", "share read", "agreement", "tokens a step", "passes of the copy a step"),
        (
            (name, *(f"{found[key]:.2f}" if key in found else "" for key in COLUMNS))
            for name, found in result["variants"].items()
        ),
    )


if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
