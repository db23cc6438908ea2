"""Our own decoder on a CUDA device: captured graphs give what the CPU gives."""

import pytest
import torch
import transformers as hf
from torch import Tensor

from treesnake.models.transformer import Transformer
from treesnake.models.transformer_config import TransformerConfig
from treesnake.tree import TokenTree

pytestmark = pytest.mark.gpu

CONFIG = hf.LlamaConfig(
    vocab_size=500,
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


def engines(tensors: dict[str, Tensor], dtype: torch.dtype) -> list[Transformer]:
    config = TransformerConfig.from_hf(CONFIG)
    return [Transformer(config, tensors, dtype, torch.device(device)) for device in ("cpu", "cuda")]


def random_tree(num_nodes: int) -> TokenTree:
    parents = [int(torch.randint(0, node, ())) for node in range(1, num_nodes)]
    return TokenTree(torch.randint(0, 500, (num_nodes,)), torch.tensor([-1, *parents]))


def test_graphs_of_every_size_give_the_logits_of_the_cpu(tensors: dict[str, Tensor]) -> None:
    cpu, cuda = engines(tensors, torch.float32)
    caches = cpu.new_cache(1000), cuda.new_cache(1000)
    prompt = torch.randint(0, 500, (300,))
    mask = torch.ones(300, 300, dtype=torch.bool).tril()
    for model, cache in zip((cpu, cuda), caches, strict=True):
        model.forward(prompt, mask, cache, num_logits=0)
        cache.commit(range(300))
    for num_nodes in (1, 2, 3, 8, 13, 33, 64, 100):
        tree = random_tree(num_nodes)
        path = tree.path(num_nodes - 1)
        expected = cpu.forward(tree.token_ids, tree.ancestor_mask, caches[0])
        result = cuda.forward(tree.token_ids, tree.ancestor_mask, caches[1])
        torch.testing.assert_close(result.cpu(), expected, rtol=1e-3, atol=1e-3)
        for cache in caches:
            cache.commit(path)


def test_replaying_gives_what_capturing_gave(tensors: dict[str, Tensor]) -> None:
    cuda = engines(tensors, torch.float16)[1]
    cache, tree = cuda.new_cache(100), random_tree(11)
    first = cuda.forward(tree.token_ids, tree.ancestor_mask, cache)
    other = random_tree(9)
    cuda.forward(other.token_ids, other.ancestor_mask, cache)
    assert torch.equal(cuda.forward(tree.token_ids, tree.ancestor_mask, cache), first)


def test_sequences_have_graphs_of_their_own(tensors: dict[str, Tensor]) -> None:
    cuda = engines(tensors, torch.float32)[1]
    tokens, mask = torch.tensor([7]), torch.ones(1, 1, dtype=torch.bool)
    caches = [cuda.new_cache(64) for _ in range(2)]
    first = [cuda.forward(tokens, mask, cache) for cache in caches]
    torch.testing.assert_close(first[0], first[1])
    caches[0].commit([0])
    cuda.forward(tokens + 1, mask, caches[0])
    torch.testing.assert_close(cuda.forward(tokens, mask, caches[1]), first[1])
