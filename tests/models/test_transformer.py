"""Our own decoder: the same numbers as transformers, and the same bits for a tree and its paths."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from treesnake.errors import ContextLengthError, InvalidInputError, LoadError, UnsupportedModelError
from treesnake.kernels.grouped_weight import GroupedWeight
from treesnake.kernels.matrices import INT4, round_to_groups
from treesnake.models.transformer import Transformer
from treesnake.models.transformer_cache import TransformerCache
from treesnake.models.transformer_config import TransformerConfig, unsupported_reason
from treesnake.models.transformer_cpu import CpuEngine
from treesnake.models.transformer_pass import NewNodes
from treesnake.models.transformer_torch import TorchEngine
from treesnake.pauses import pausing
from treesnake.prompt import Prompt
from treesnake.states.tree_layout import tree_layout
from treesnake.tree import TokenTree

CPU = torch.device("cpu")
VOCAB = 131
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
GEMMA3: dict[str, Any] = SHAPE | {
    "head_dim": 24,
    "query_pre_attn_scalar": 20,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
CONFIGS = {
    "gemma3": hf.Gemma3TextConfig(**GEMMA3),
    "gemma3 with linear positions": hf.Gemma3TextConfig(
        **GEMMA3,
        rope_parameters={
            "full_attention": LINEAR,
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
    "llama": hf.LlamaConfig(**SHAPE),
    "llama, tied, wide heads": hf.LlamaConfig(**SHAPE, tie_word_embeddings=True, head_dim=32),
    "llama with gates of GELU": hf.LlamaConfig(**SHAPE, hidden_act="gelu_pytorch_tanh"),
    "llama with llama3 positions": hf.LlamaConfig(**SHAPE, rope_parameters=LLAMA3),
    "llama with linear positions": hf.LlamaConfig(**SHAPE, rope_parameters=LINEAR),
    "mistral": hf.MistralConfig(**SHAPE, sliding_window=7),
    "olmo2": hf.Olmo2Config(**SHAPE),
    "phi3": hf.Phi3Config(**SHAPE),
    "qwen2": hf.Qwen2Config(**SHAPE),
    "qwen2 with windows": hf.Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3": hf.Qwen3Config(**(SHAPE | {"head_dim": 24})),
    "smollm3": hf.SmolLM3Config(**SHAPE, no_rope_layer_interval=2),
}
FAMILIES = pytest.mark.parametrize("name", CONFIGS)
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8, INT4], ids=str
)


def random_model(hf_config: hf.PretrainedConfig) -> Any:
    """Returns a model whose logits are far apart and whose norms and biases matter."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(hf_config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.rand_like(parameter) + 0.5)
            elif "bias" in name:
                parameter.normal_()
            else:
                parameter.mul_(5)
    return model


def network(
    hf_config: hf.PretrainedConfig, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32
) -> Transformer:
    return Transformer(TransformerConfig.from_hf(hf_config), tensors, dtype, CPU)


@pytest.fixture(scope="module")
def llama() -> Any:
    return random_model(CONFIGS["llama"])


@pytest.fixture(scope="module")
def networks(llama: Any) -> dict[torch.dtype, Transformer]:
    tensors = llama.state_dict()
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.int8, INT4)
    return {dtype: network(llama.config, tensors, dtype) for dtype in dtypes}


def random_tokens(number: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (number,), generator=torch.Generator().manual_seed(seed))


def random_tree(num_nodes: int, seed: int) -> TokenTree:
    random = torch.Generator().manual_seed(seed)
    reach = int(torch.randint(1, 6, (), generator=random))
    parents = [
        int(torch.randint(max(0, node - reach), node, (), generator=random))
        for node in range(1, num_nodes)
    ]
    return TokenTree.of(random_tokens(num_nodes, seed).tolist(), [-1, *parents])


def tensors_of(tree: TokenTree) -> tuple[Tensor, Tensor]:
    """The token ids and the mask of a tree."""
    return torch.tensor(tree.tokens), tree_layout(tree.parents, 1, CPU).ancestor_mask


def run(
    engine: CpuEngine | TorchEngine,
    tokens: Tensor,
    mask: Tensor,
    cache: TransformerCache,
    num_logits: int,
) -> Tensor:
    """Runs the nodes of one text."""
    return engine.forward_all([NewNodes(tokens, mask, cache, num_logits)])[0]


def causal_mask(number: int) -> Tensor:
    return torch.ones(number, number, dtype=torch.bool).tril()


def read(model: Transformer, tokens: Tensor, cache: TransformerCache, chunk: int = 64) -> Tensor:
    """Commits a text; returns the logits after each token."""
    logits = []
    for part in tokens.split(chunk):
        logits.append(model.forward(part, causal_mask(len(part)), cache))
        cache.commit(range(len(part)))
    return torch.cat(logits)


def greedy(model: Transformer, prompt: Tensor, number: int) -> Iterator[int]:
    cache = model.new_cache(len(prompt) + number)
    logits = read(model, prompt, cache)
    for _ in range(number):
        token = logits[-1].argmax()
        yield int(token)
        logits = read(model, token[None], cache)


@FAMILIES
def test_logits_and_greedy_text_are_those_of_transformers(name: str) -> None:
    model = random_model(CONFIGS[name])
    ours = network(CONFIGS[name], model.state_dict())
    prompt = random_tokens(21)
    with torch.inference_mode():
        expected = model(prompt[None]).logits[0]
        text = model.generate(
            prompt[None],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=40,
            do_sample=False,
        )
    logits = read(ours, prompt, ours.new_cache(32))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert list(greedy(ours, prompt, 40)) == text[0, len(prompt) :].tolist()


@FAMILIES
def test_the_torch_engine_gives_the_same_numbers(name: str) -> None:
    tensors = random_model(CONFIGS[name]).state_dict()
    ours = network(CONFIGS[name], tensors)
    other = TorchEngine(ours.config, tensors, torch.float32, CPU)
    cache, other_cache = ours.new_cache(64), other.new_cache(64)
    prompt, tree = random_tokens(19), random_tree(13, seed=1)
    mask = causal_mask(len(prompt))
    # Each branch of Gemma adds as much as its norm says, whatever rounding it began with.
    bounds = {"rtol": 1e-5, "atol": 5e-5} if name.startswith("gemma3") else {}
    expected = ours.forward(prompt, mask, cache)
    result = run(other, prompt, mask, other_cache, len(prompt))
    torch.testing.assert_close(result, expected, **bounds)
    for each in (cache, other_cache):
        each.commit(range(len(prompt)))
    expected = ours.forward(*tensors_of(tree), cache)
    result = run(other, *tensors_of(tree), other_cache, len(tree))
    torch.testing.assert_close(result, expected, **bounds)


@DTYPES
@settings(max_examples=10)
@given(
    length=st.integers(0, 40),
    num_nodes=st.integers(1, 20),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_a_node_has_the_bits_of_its_path_decoded_token_by_token(
    networks: dict[torch.dtype, Transformer],
    dtype: torch.dtype,
    length: int,
    num_nodes: int,
    seed: int,
    data: st.DataObject,
) -> None:
    model = networks[dtype]
    text, tree = random_tokens(length, seed), random_tree(num_nodes, seed)
    cache = model.new_cache(64)
    if length:
        read(model, text, cache)
    scored = model.forward(*tensors_of(tree), cache)
    path = tree.path(data.draw(st.integers(0, num_nodes - 1)))
    cache.commit(path)

    plain = model.new_cache(77)
    tokens = torch.cat([text, torch.tensor([tree.tokens[node] for node in path])])
    logits = read(model, tokens, plain, chunk=1)
    assert torch.equal(scored[list(path)], logits[length:])
    assert cache.length == plain.length
    for ours, theirs in ((cache.keys, plain.keys), (cache.values, plain.values)):
        assert torch.equal(ours[:, :, : cache.length], theirs[:, :, : cache.length])


@FAMILIES
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
def test_a_tree_of_any_family_has_the_bits_of_its_paths(name: str, dtype: torch.dtype) -> None:
    model = network(CONFIGS[name], random_model(CONFIGS[name]).state_dict(), dtype)
    text, tree = random_tokens(19), random_tree(16, seed=2)
    cache = model.new_cache(40)
    read(model, text, cache)
    scored = model.forward(*tensors_of(tree), cache)
    for node in range(len(tree)):
        path = list(tree.path(node))
        plain = model.new_cache(40)
        tokens = torch.cat([text, torch.tensor([tree.tokens[each] for each in path])])
        assert torch.equal(scored[path], read(model, tokens, plain, chunk=1)[len(text) :])


@DTYPES
@settings(max_examples=10)
@given(length=st.integers(1, 90), chunk=st.integers(1, 90))
def test_a_prompt_may_be_cut_anywhere(
    networks: dict[torch.dtype, Transformer], dtype: torch.dtype, length: int, chunk: int
) -> None:
    model, tokens = networks[dtype], random_tokens(length)
    whole, cut = model.new_cache(90), model.new_cache(101)
    assert torch.equal(read(model, tokens, whole, length), read(model, tokens, cut, chunk))
    assert torch.equal(whole.keys[:, :, :length], cut.keys[:, :, :length])


def test_a_long_prompt_pauses_before_each_part(networks: dict[torch.dtype, Transformer]) -> None:
    state = networks[torch.float32].new_state()
    lengths: list[int] = []
    with pausing(lambda: lengths.append(state.length)):
        state.prefill(Prompt((*random_tokens(300).tolist(), 1)))
    assert lengths == [0, 128, 256]


@settings(max_examples=10)
@given(num_nodes=st.integers(2, 20), data=st.data())
def test_a_tree_may_be_run_level_by_level(
    networks: dict[torch.dtype, Transformer], num_nodes: int, data: st.DataObject
) -> None:
    model, tree = networks[torch.float32], random_tree(num_nodes, seed=num_nodes)
    cache = model.new_cache(64)
    read(model, random_tokens(10), cache)
    whole = model.forward(*tensors_of(tree), cache)
    middle = data.draw(st.integers(1, num_nodes - 1))
    tokens, mask = tensors_of(tree)
    first = model.forward(tokens[:middle], mask[:middle, :middle], cache)
    second = model.forward(tokens[middle:], mask[middle:], cache)
    assert torch.equal(torch.cat([first, second]), whole)


def test_the_torch_engine_runs_trees_level_by_level(llama: Any) -> None:
    config = TransformerConfig.from_hf(llama.config)
    engine = TorchEngine(config, llama.state_dict(), torch.float32, CPU)
    tree, cache = random_tree(11, seed=3), engine.new_cache(40)
    tokens, mask = tensors_of(tree)
    whole = run(engine, tokens, mask, cache, 11)
    parts = [run(engine, tokens[:6], mask[:6, :6], cache, 6)]
    parts.append(run(engine, tokens[6:], mask[6:], cache, 5))
    torch.testing.assert_close(torch.cat(parts), whole)


def test_the_number_of_threads_changes_no_bit(networks: dict[torch.dtype, Transformer]) -> None:
    model, tree = networks[torch.float32], random_tree(30, seed=5)
    logits = []
    threads = torch.get_num_threads()
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        logits.append(model.forward(*tensors_of(tree), model.new_cache(64)))
    torch.set_num_threads(threads)
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_sequences_do_not_disturb_each_other(networks: dict[torch.dtype, Transformer]) -> None:
    model = networks[torch.int8]
    texts = [random_tokens(12, seed=number) for number in range(3)]
    alone = [read(model, text, model.new_cache(16)) for text in texts]
    caches = [model.new_cache(16) for _ in texts]
    steps = [
        torch.cat(
            [
                read(model, text[position, None], cache)
                for text, cache in zip(texts, caches, strict=True)
            ]
        )
        for position in range(12)
    ]
    assert torch.equal(torch.stack(steps, dim=1), torch.stack(alone))


def test_matrices_of_a_file_keep_their_own_bits_layer_by_layer() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    llama = random_model(hf.LlamaConfig(**(SHAPE | sizes)))
    config = TransformerConfig.from_hf(llama.config)
    tensors: dict[str, Any] = dict(llama.state_dict())
    bits = [8, 4, 8]
    for number, name in enumerate(name for name in list(tensors) if "proj" in name):
        tensors[name] = round_to_groups(tensors[name], bits[number % 3])
    floats = {
        name: torch.from_numpy(each.to_floats()) if isinstance(each, GroupedWeight) else each
        for name, each in tensors.items()
    }
    grouped, exact = (
        CpuEngine(config, tensors, torch.int8),
        CpuEngine(config, floats, torch.float32),
    )
    forms = {
        int(form) for stack in grouped.stacks.values() for form in stack.array["plain_form"].flat
    }
    assert len(forms) == 2
    tokens = random_tokens(20)
    results = [
        engine.forward_all([NewNodes.of_text(tokens, engine.new_cache(20), 20)])[0]
        for engine in (grouped, exact)
    ]
    spread = results[1].std(dim=1)
    error = (results[0] - results[1]).std(dim=1)
    assert (error < 0.2 * spread).all()
    alone = read_one_by_one(grouped, tokens)
    assert torch.equal(results[0], alone)


def read_one_by_one(engine: CpuEngine, tokens: Tensor) -> Tensor:
    cache = engine.new_cache(len(tokens))
    logits = []
    for token in tokens:
        logits += engine.forward_all([NewNodes.of_text(token[None], cache, 1)])
        cache.commit([0])
    return torch.cat(logits)


def test_only_the_last_logits_are_computed_if_asked(
    networks: dict[torch.dtype, Transformer],
) -> None:
    model, tokens, mask = networks[torch.float16], random_tokens(20), causal_mask(20)
    every = model.forward(tokens, mask, model.new_cache(20))
    for number in (0, 1, 7):
        some = model.forward(tokens, mask, model.new_cache(20), num_logits=number)
        assert torch.equal(some, every[20 - number :])


def test_a_grown_cache_and_a_rewound_one_go_on_alike(
    networks: dict[torch.dtype, Transformer],
) -> None:
    model, tokens = networks[torch.float32], random_tokens(30)
    cache = model.new_cache(20)
    read(model, tokens[:20], cache)
    cache.reserve(40)
    after = read(model, tokens[20:], cache)
    cache.rewind(15)
    assert torch.equal(read(model, tokens[15:], cache)[5:], after)
    assert cache.num_bytes == 30 * 3 * 2 * 2 * 16 * 4


def test_texts_share_a_pass_with_logits_of_some_nodes_each(
    networks: dict[torch.dtype, Transformer],
) -> None:
    model = networks[torch.float32]
    tokens, mask = random_tokens(20), causal_mask(20)
    every = model.forward(tokens, mask, model.new_cache(20))
    counts = [3, 0, 20, 1]
    lengths = [20, 15, 20, 6]
    nodes = [
        NewNodes(tokens[:length], mask[:length, :length], model.new_cache(capacity), count)
        for length, count, capacity in zip(lengths, counts, (20, 40, 21, 6), strict=True)
    ]
    parts = model._engine.forward_all(nodes)
    for logits, length, count in zip(parts, lengths, counts, strict=True):
        assert torch.equal(logits, every[length - count : length])


def test_weights_take_the_bytes_of_their_dtype(networks: dict[torch.dtype, Transformer]) -> None:
    sizes = [networks[dtype].num_bytes for dtype in (torch.float32, torch.float16, torch.int8)]
    assert 1.9 < sizes[0] / sizes[1] < 2
    assert 1.4 < sizes[1] / sizes[2] < 2  # with a scale for each 32 inputs, some of them padding


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16], ids=str)
def test_float32_has_the_same_bits_from_weights_left_in_half_precision(
    llama: Any, stored: torch.dtype
) -> None:
    halves = {name: tensor.to(stored) for name, tensor in llama.state_dict().items()}
    wide = network(llama.config, {name: tensor.float() for name, tensor in halves.items()})
    narrow = network(llama.config, halves)
    tokens, mask = random_tokens(30), causal_mask(30)
    logits = [model.forward(tokens, mask, model.new_cache(30)) for model in (wide, narrow)]
    assert torch.equal(*logits)
    assert 1.9 < wide.num_bytes / narrow.num_bytes < 2


def test_tied_embeddings_are_in_memory_once() -> None:
    sizes = []
    for tied in (True, False):
        hf_config = hf.LlamaConfig(**SHAPE, tie_word_embeddings=tied)
        sizes.append(network(hf_config, random_model(hf_config).state_dict()).num_bytes)
    assert sizes[1] - sizes[0] == VOCAB * 80 * 4  # rows of 72 are padded


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.embed_tokens.weight", "the embedding"),
        ("model.layers.0.self_attn.k_proj.weight", "layer 0"),
        ("model.layers.2.mlp.down_proj.weight", "layer 2"),
        ("model.norm.weight", "the output layer"),
        ("lm_head.weight", "the output layer"),
    ],
)
def test_a_broken_weight_is_found(llama: Any, name: str, part: str) -> None:
    tensors = {key: value.clone() for key, value in llama.state_dict().items()}
    tensors[name][5] = torch.nan
    tokens = torch.tensor([5, 6, 7])
    assert network(llama.config, tensors).find_broken_layer(tokens) == part
    assert network(llama.config, llama.state_dict()).find_broken_layer(tokens) is None


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_tokens_that_do_not_exist_are_refused(
    networks: dict[torch.dtype, Transformer], token: int
) -> None:
    model = networks[torch.float32]
    with pytest.raises(InvalidInputError, match=f"token {token} does not exist.*0 to 130"):
        model.forward(torch.tensor([3, token]), causal_mask(2), model.new_cache(8))


def test_masks_of_another_shape_are_refused(networks: dict[torch.dtype, Transformer]) -> None:
    model = networks[torch.float32]
    for tokens, mask in ((0, causal_mask(0)), (3, causal_mask(3)[:, :2])):
        with pytest.raises(InvalidInputError, match=f"got {tokens} tokens and a mask of"):
            model.forward(random_tokens(tokens), mask, model.new_cache(8))


def test_trees_that_do_not_fit_are_refused(networks: dict[torch.dtype, Transformer]) -> None:
    model = networks[torch.float32]
    cache = model.new_cache(10)
    read(model, random_tokens(8), cache)
    with pytest.raises(ContextLengthError, match=r"8 tokens and 3 more .* a cache of 10"):
        model.forward(random_tokens(3), causal_mask(3), cache)


def test_paths_and_lengths_that_make_no_sense_are_refused(
    networks: dict[torch.dtype, Transformer],
) -> None:
    model = networks[torch.float32]
    cache = model.new_cache(10)
    model.forward(random_tokens(3), causal_mask(3), cache)
    with pytest.raises(InvalidInputError, match=r"from nodes to later ones, got \[1, 1\]"):
        cache.commit([1, 1])
    with pytest.raises(InvalidInputError, match="cannot rewind 0 tokens to 1"):
        cache.rewind(1)


@pytest.mark.parametrize(
    ("hf_config", "reason"),
    [
        (hf.GPT2Config(), "this is 'gpt2'"),
        (hf.LlamaConfig(**SHAPE, hidden_act="gelu"), "this model has 'gelu'"),
        (hf.LlamaConfig(**SHAPE, attention_bias=True), "sets attention_bias"),
        (hf.LlamaConfig(**SHAPE, mlp_bias=True), "sets mlp_bias"),
        (hf.Gemma3TextConfig(**SHAPE, hidden_activation="gelu"), "this model has 'gelu'"),
        (hf.Gemma3TextConfig(**SHAPE, final_logit_softcapping=30.0), "final_logit_softcapping"),
        (hf.Gemma3TextConfig(**SHAPE, attn_logit_softcapping=50.0), "attn_logit_softcapping"),
        (hf.Gemma3TextConfig(**SHAPE, use_bidirectional_attention=True), "looks ahead"),
        (
            hf.LlamaConfig(
                **SHAPE, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
            ),
            "not 'dynamic'",
        ),
    ],
)
def test_models_of_another_kind_are_refused_with_the_reason(
    hf_config: hf.PretrainedConfig, reason: str
) -> None:
    assert reason in (unsupported_reason(hf_config) or "")
    with pytest.raises(UnsupportedModelError, match=reason):
        TransformerConfig.from_hf(hf_config)


def test_dtypes_without_arithmetic_are_refused(llama: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"on cpu, not of torch\.float64"):
        network(llama.config, {}, torch.float64)
    with pytest.raises(UnsupportedModelError, match=r"on cuda, not of torch\.int8"):
        Transformer(TransformerConfig.from_hf(llama.config), {}, torch.int8, torch.device("cuda"))


def test_matrices_that_do_not_fit_never_reach_the_kernels(llama: Any) -> None:
    tensors = llama.state_dict()
    for name in ("model.norm.weight", "model.layers.1.mlp.down_proj.weight"):
        narrower = tensors | {name: tensors[name][..., :36].contiguous()}
        with pytest.raises(LoadError, match=rf"{name} has shape \[.*36\], the config promises"):
            network(llama.config, narrower)
    for name in tensors:
        with pytest.raises(LoadError, match=f"lacks 1 of the tensors .*{name}"):
            network(llama.config, {own: tensor for own, tensor in tensors.items() if own != name})


def test_norms_and_biases_that_the_config_does_not_know_are_refused(llama: Any) -> None:
    layer = "model.layers.0.self_attn."
    for name in (f"{layer}q_norm.weight", f"{layer}q_proj.bias", f"{layer}qkv_proj.weight"):
        with pytest.raises(LoadError, match=f"more of its network .*{name}"):
            network(llama.config, llama.state_dict() | {name: torch.zeros(72)})
