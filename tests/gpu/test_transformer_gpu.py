"""Our own decoder on a CUDA device: captured graphs give what the CPU gives."""

import gc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers as hf
from torch import Tensor

from treesnake.models.transformer_cache import TransformerCache
from treesnake.models.transformer_config import TransformerConfig
from treesnake.models.transformer_pass import NewNodes
from treesnake.models.transformer_torch import TorchEngine
from treesnake.states.tree_layout import tree_layout

pytestmark = pytest.mark.gpu

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
VOCAB = 500
CONFIG = hf.LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    max_position_embeddings=2048,
)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(CONFIG).state_dict()


def engine(
    tensors: dict[str, Tensor], device: torch.device, dtype: torch.dtype = torch.float32
) -> TorchEngine:
    return TorchEngine(TransformerConfig.from_hf(CONFIG), tensors, dtype, device)


def engines(tensors: dict[str, Tensor]) -> list[TorchEngine]:
    return [engine(tensors, device) for device in (CPU, CUDA)]


def random_tokens(number: int, seed: int) -> Tensor:
    return torch.randint(0, VOCAB, (number,), generator=torch.Generator().manual_seed(seed))


def random_parents(number: int, seed: int) -> list[int]:
    random = torch.Generator().manual_seed(seed)
    return [
        int(torch.randint(node, (), generator=random)) - 1 if node else -1 for node in range(number)
    ]


def tree(cache: TransformerCache, parents: Sequence[int], seed: int) -> NewNodes:
    mask = tree_layout(tuple(parents), 4, CPU).ancestor_mask
    return NewNodes(random_tokens(len(parents), seed), mask, cache, len(parents))


def read(engine: TorchEngine, cache: TransformerCache, tokens: Tensor) -> None:
    """Runs the next tokens of a text and commits them."""
    mask = torch.ones(len(tokens), len(tokens), dtype=torch.bool).tril()
    engine.forward_all([NewNodes(tokens, mask, cache, 0)])
    cache.commit(range(len(tokens)))


def path_to(parents: Sequence[int], node: int) -> list[int]:
    path: list[int] = []
    while node >= 0:
        path.insert(0, node)
        node = parents[node]
    return path


def assert_close(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result.cpu(), expected.cpu(), rtol=1e-3, atol=1e-3)


def test_graphs_of_every_size_give_the_logits_of_the_cpu(tensors: dict[str, Tensor]) -> None:
    both = engines(tensors)
    caches = [each.new_cache(1000) for each in both]
    for each, cache in zip(both, caches, strict=True):
        read(each, cache, random_tokens(300, 0))
    for num_nodes in (1, 2, 3, 8, 13, 33, 64, 100, 300):
        parents = random_parents(num_nodes, num_nodes)
        for _ in range(2):  # captured, then replayed
            expected, result = (
                each.forward_all([tree(cache, parents, num_nodes)])[0]
                for each, cache in zip(both, caches, strict=True)
            )
            assert_close(result, expected)
        for cache in caches:
            cache.commit(path_to(parents, num_nodes - 1))


def test_a_tree_may_be_run_level_by_level(tensors: dict[str, Tensor]) -> None:
    cuda = engine(tensors, CUDA)
    cache, parents = cuda.new_cache(100), random_parents(20, 3)
    read(cuda, cache, random_tokens(30, 1))
    whole = tree(cache, parents, 2)
    expected = cuda.forward_all([whole])[0]
    for begin, end in ((0, 1), (1, 4), (4, 20)):
        mask = whole.ancestor_mask[begin:end, :end]
        part = NewNodes(whole.token_ids[begin:end], mask, cache, end - begin)
        assert_close(cuda.forward_all([part])[0], expected[begin:end])


def test_texts_together_get_the_logits_that_each_gets_alone(tensors: dict[str, Tensor]) -> None:
    """With holes between their slots, and a bank that grows in slots and in rows."""
    cpu, cuda = engines(tensors)
    texts: dict[int, tuple[TransformerCache, TransformerCache]] = {}
    for step, (come, go) in enumerate([([0, 1], []), ([2, 3, 4], [1]), ([5], [0, 3]), ([], [4])]):
        for number in go:
            del texts[number]
        gc.collect()
        for number in come:
            length = 5 + 90 * number
            texts[number] = cpu.new_cache(length + 40), cuda.new_cache(length + 40)
            for each, cache in zip((cpu, cuda), texts[number], strict=True):
                read(each, cache, random_tokens(length, number))
        trees = {number: random_parents(1 + (5 * number + step) % 7, step) for number in texts}
        parts = [tree(texts[number][1], trees[number], number) for number in reversed(texts)]
        alone = [
            cpu.forward_all([tree(texts[number][0], trees[number], number)])[0]
            for number in reversed(texts)
        ]
        for _ in range(2):  # captured, then replayed
            for result, expected in zip(cuda.forward_all(parts), alone, strict=True):
                assert_close(result, expected)
        for number, parents in trees.items():
            for cache in texts[number]:
                cache.commit(path_to(parents, len(parents) - 1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_replaying_gives_what_capturing_gave(
    tensors: dict[str, Tensor], dtype: torch.dtype
) -> None:
    cuda = engine(tensors, CUDA, dtype)
    cache = cuda.new_cache(100)
    first = cuda.forward_all([tree(cache, random_parents(11, 1), 1)])[0]
    kept = first.clone()
    cuda.forward_all([tree(cache, random_parents(9, 2), 2)])
    assert torch.equal(cuda.forward_all([tree(cache, random_parents(11, 1), 1)])[0], kept)
    assert torch.equal(first, kept)


def test_texts_share_graphs_and_nothing_else(tensors: dict[str, Tensor]) -> None:
    cuda = engine(tensors, CUDA)
    caches = [cuda.new_cache(64) for _ in range(2)]
    first = [cuda.forward_all([tree(cache, [-1], 7)])[0] for cache in caches]
    assert_close(*first)
    caches[0].commit([0])
    cuda.forward_all([tree(caches[0], [-1], 8)])
    assert_close(cuda.forward_all([tree(caches[1], [-1], 7)])[0], first[1])


def test_threads_may_use_one_engine_and_capture_in_several(tensors: dict[str, Tensor]) -> None:
    """A thread that reads its results back must not end the capture of another one."""
    shared, own = engine(tensors, CUDA), [engine(tensors, CUDA) for _ in range(4)]

    def generate(each: TorchEngine, seed: int) -> list[int]:
        cache, tokens = each.new_cache(16), [seed]
        for step in range(40):
            cache.reserve(cache.length + 8)
            num_nodes = 1 + (step + seed) % 8  # sizes are captured all the time
            mask = torch.eye(num_nodes, dtype=torch.bool)
            nodes = torch.tensor([tokens[-1]] * num_nodes)
            logits = each.forward_all([NewNodes(nodes, mask, cache, num_nodes)])[0]
            cache.commit([num_nodes - 1])
            tokens.append(int(logits[-1].argmax()))
        return tokens

    alone = [generate(engine(tensors, CUDA), seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(generate, [shared] * 4, range(4))) == alone
        assert list(threads.map(generate, own, range(4))) == alone
