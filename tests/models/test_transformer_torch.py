"""The engine in plain torch: texts in slots of a bank, alone and together, eager and captured.

Here a capture is the pass itself, run again at every replay, so that all but CUDA is tested.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from treesnake.models.cuda_graphs import GraphCache
from treesnake.models.transformer_cache import TransformerCache
from treesnake.models.transformer_config import TransformerConfig
from treesnake.models.transformer_inputs import Size
from treesnake.models.transformer_pass import NewNodes
from treesnake.models.transformer_torch import TorchEngine
from treesnake.states.tree_layout import tree_layout
from treesnake.testing.captures import RecordedCapture, WatchedCapture

CPU = torch.device("cpu")
VOCAB = 61
CONFIG = hf.MistralConfig(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    sliding_window=40,
)


def random_model() -> hf.MistralForCausalLM:
    torch.manual_seed(0)
    model = hf.MistralForCausalLM(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    return model


MODEL = random_model()
OUR_CONFIG = TransformerConfig.from_hf(CONFIG)
WEIGHTS = MODEL.state_dict()


def engine(recorder: RecordedCapture | None = None) -> TorchEngine:
    """An engine that captures with a recorder, or runs eagerly without."""
    graphs: GraphCache[Size] = GraphCache(recorder, "cpu") if recorder else GraphCache()
    return TorchEngine(OUR_CONFIG, WEIGHTS, torch.float32, CPU, graphs)


def both(test: Any) -> Any:
    return pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])(test)


def made(captured: bool) -> TorchEngine:
    return engine(RecordedCapture() if captured else None)


def random_tokens(number: int, seed: int) -> Tensor:
    return torch.randint(0, VOCAB, (number,), generator=torch.Generator().manual_seed(seed))


def tree_mask(parents: Sequence[int]) -> Tensor:
    return tree_layout(tuple(parents), 4, CPU).ancestor_mask


def random_parents(number: int, seed: int) -> list[int]:
    random = torch.Generator().manual_seed(seed)
    return [
        int(torch.randint(-1, node, (), generator=random)) if node else -1 for node in range(number)
    ]


@dataclass
class Text:
    """A text in one of the engines, what it holds, and the tree that grows on it."""

    engine: TorchEngine
    cache: TransformerCache
    tokens: list[int]
    tree_tokens: list[int]
    parents: list[int]

    @classmethod
    def of(cls, engine: TorchEngine, tokens: Sequence[int], capacity: int = 64) -> "Text":
        text = cls(engine, engine.new_cache(capacity), [], [], [])
        text.read(tokens)
        return text

    def read(self, tokens: Sequence[int]) -> None:
        if len(tokens):
            self.cache.reserve(self.cache.length + len(tokens))
            self.engine.forward_all([self.part(tokens, range(-1, len(tokens) - 1), 0)])
            self.commit(range(len(tokens)))

    def part(
        self, tokens: Sequence[int], parents: Sequence[int], num_logits: int | None = None
    ) -> NewNodes:
        """Appends nodes to the tree."""
        self.tree_tokens += [int(token) for token in tokens]
        self.parents += parents
        mask = tree_mask(self.parents)[-len(tokens) :]
        wanted = len(tokens) if num_logits is None else num_logits
        return NewNodes(torch.tensor([int(token) for token in tokens]), mask, self.cache, wanted)

    def commit(self, path: Sequence[int]) -> None:
        self.cache.commit(path)
        self.tokens += [self.tree_tokens[node] for node in path]
        self.tree_tokens, self.parents = [], []


def alone(text: Text, part: NewNodes) -> Tensor:
    """What a part gives in an engine of its own that runs eagerly."""
    fresh = Text.of(engine(), text.tokens)
    fresh.cache.reserve(len(text.tokens) + part.ancestor_mask.shape[1])
    whole = fresh.part(text.tree_tokens, text.parents, part.num_logits)
    return fresh.engine.forward_all([whole])[0]


def assert_close(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def path_to(parents: Sequence[int], node: int) -> list[int]:
    path: list[int] = []
    while node >= 0:
        path.insert(0, node)
        node = parents[node]
    return path


@both
@settings(max_examples=15)
@given(data=st.data())
def test_texts_together_get_the_logits_that_each_gets_alone(
    captured: bool, data: st.DataObject
) -> None:
    """Whichever texts come and go, in whatever slots, and however the bank grows meanwhile."""
    ours = made(captured)
    texts: list[Text] = []
    for step in range(data.draw(st.integers(1, 5))):
        kept = data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
        texts = [text for text, keep in zip(texts, kept, strict=True) if keep]
        for _ in range(data.draw(st.integers(0 if texts else 1, 3))):
            length = data.draw(st.integers(0, 90))
            texts.append(Text.of(ours, random_tokens(length, length).tolist(), length + 8))
        running = data.draw(st.permutations(texts))[: data.draw(st.integers(1, len(texts)))]
        parts = []
        for text in running:
            num_nodes = data.draw(st.integers(1, 9))
            text.cache.reserve(text.cache.length + len(text.parents) + num_nodes)
            before = len(text.parents)
            parents = random_parents(before + num_nodes, step)[before:]
            num_logits = data.draw(st.integers(0, num_nodes))
            parts.append(text.part(random_tokens(num_nodes, step).tolist(), parents, num_logits))
        logits = ours.forward_all(parts)
        for text, part, result in zip(running, parts, logits, strict=True):
            assert_close(result, alone(text, part))
            if data.draw(st.booleans()):
                text.commit(path_to(text.parents, len(text.parents) - 1))


@both
def test_nodes_have_the_logits_of_their_paths_in_transformers(captured: bool) -> None:
    text, parents = (
        Text.of(made(captured), random_tokens(50, 1).tolist(), 80),
        random_parents(13, 2),
    )
    logits = text.engine.forward_all([text.part(random_tokens(13, 3).tolist(), parents)])[0]
    for node in range(13):
        path = [text.tree_tokens[each] for each in path_to(parents, node)]
        with torch.inference_mode():
            expected = MODEL(torch.tensor([[*text.tokens, *path]])).logits[0, -1]
        torch.testing.assert_close(logits[node], expected, rtol=1e-4, atol=1e-4)


def test_slots_are_handed_out_lowest_first_and_come_back() -> None:
    ours = engine()
    caches = [ours.new_cache(16) for _ in range(5)]
    assert [cache.slot for cache in caches] == [0, 1, 2, 3, 4]
    assert caches[0].bank.num_slots == 8
    del caches[3], caches[1]
    gc.collect()
    assert [ours.new_cache(16).slot for _ in range(1)] == [1]
    gc.collect()
    held = [ours.new_cache(16) for _ in range(3)]
    assert [cache.slot for cache in held] == [1, 3, 5]


def test_a_slot_that_comes_back_remembers_nothing() -> None:
    ours = engine()
    cache = ours.new_cache(16)
    cache.keys.fill_(torch.nan)
    cache.values.fill_(torch.nan)
    del cache
    gc.collect()
    text = Text.of(ours, [3, 1, 4])
    part = text.part([5], [-1])
    assert text.cache.slot == 0
    assert_close(ours.forward_all([part])[0], alone(text, part))


def test_all_slots_grow_together_and_keep_what_they_hold() -> None:
    ours = engine()
    texts = [Text.of(ours, random_tokens(10, seed).tolist(), 10) for seed in range(2)]
    before = [text.cache.keys[:, :, :10].clone() for text in texts]
    bank, generation = texts[0].cache.bank, texts[0].cache.bank.generation
    texts[0].cache.reserve(11)
    assert bank.num_rows == texts[1].cache.capacity == 20
    assert bank.generation == generation + 1
    for text, rows in zip(texts, before, strict=True):
        assert torch.equal(text.cache.keys[:, :, :10], rows)
    texts[0].cache.reserve(15)
    assert bank.generation == generation + 1


def test_a_bank_made_while_inferring_serves_outside_too() -> None:
    ours = engine()
    with torch.inference_mode():
        text = Text.of(ours, [3, 1, 4])
    ours.forward_all([text.part([5, 6], [-1, -1])])
    text.commit([1])
    part = text.part([7], [-1])
    assert_close(ours.forward_all([part])[0], alone(text, part))


def test_a_size_is_captured_once_for_all_texts() -> None:
    recorder = RecordedCapture()
    ours = engine(recorder)
    texts = [Text.of(ours, [seed, 1], 64) for seed in range(4)]
    counts = []
    for running in ([0], [0], [3, 0], [1, 2, 3], [2], [1, 0]):
        ours.forward_all([texts[index].part([5, 6, 7], [-1, -1, -1]) for index in running])
        for text in texts:
            text.commit([])
        counts.append(recorder.num_captured)
    assert counts == [1, 1, 2, 2, 2, 3]


def test_a_bank_that_moved_is_captured_anew() -> None:
    recorder = RecordedCapture()
    ours = engine(recorder)
    text = Text.of(ours, [3, 1], 16)
    first = ours.forward_all([text.part([5], [-1])])[0]
    text.commit([])
    other = ours.new_cache(16)
    assert torch.equal(ours.forward_all([text.part([5], [-1])])[0], first)
    text.commit([])
    other.reserve(17)
    assert_close(ours.forward_all([text.part([5], [-1])])[0], first)
    assert recorder.num_captured == 3


def test_a_result_is_not_overwritten_by_the_next_one() -> None:
    ours = engine(RecordedCapture())
    texts = [Text.of(ours, [seed], 16) for seed in range(2)]
    first = ours.forward_all([text.part([5], [-1]) for text in texts])
    kept = [logits.clone() for logits in first]
    for text in texts:
        text.commit([])
    ours.forward_all([text.part([9], [-1]) for text in texts])
    assert all(map(torch.equal, first, kept))


def test_chunks_of_a_prompt_are_not_captured() -> None:
    recorder = RecordedCapture()
    text = Text.of(engine(recorder), random_tokens(300, 0).tolist(), 700)
    text.engine.forward_all([text.part(random_tokens(300, 1).tolist(), range(-1, 299))])
    assert recorder.num_captured == 0


def test_plain_layers_never_wait_for_the_device() -> None:
    """Tensors without values cannot be looked at: whoever tries raises.

    Windows that are shorter than a tree are not fused.
    """
    config = replace(OUR_CONFIG, windows=(2, None))
    capture = WatchedCapture()
    mask = tree_mask([-1, 0, 0])
    with FakeTensorMode(allow_non_fake_inputs=True):
        graphs: GraphCache[Size] = GraphCache(capture)
        ours = TorchEngine(config, WEIGHTS, torch.float32, torch.device("cuda"), graphs)
        caches = [ours.new_cache(64) for _ in range(3)]
        logits = ours.forward_all(
            [NewNodes(torch.tensor([1, 2, 3]), mask, cache, 3) for cache in caches[1:]]
        )
    assert [rows.shape for rows in logits] == [(3, VOCAB), (3, VOCAB)]
    assert capture.num_captured == 1
