"""The decoder's layers in fused kernels against those in plain torch."""

from importlib import import_module

import pytest
import torch
import transformers as hf

from treesnake.models.cuda_graphs import GraphCache
from treesnake.models.transformer_config import TransformerConfig
from treesnake.models.transformer_inputs import Inputs, Size
from treesnake.models.transformer_layers import DecoderTensors
from treesnake.models.transformer_pass import NewNodes
from treesnake.models.transformer_torch import TorchEngine
from treesnake.states.tree_layout import tree_layout

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 40,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "max_position_embeddings": 2048,
}
CONFIGS = {
    "biases": hf.Qwen2Config(**SIZES),
    "windows and normed heads": hf.Qwen3Config(
        **SIZES,
        sliding_window=40,
        use_sliding_window=True,
        layer_types=["full_attention", "sliding_attention"],
    ),
}
PARENTS = {0: (-1, 0, 0, 1, 1), 1: (-1, -1, 1)}
"""Of the trees of two texts; the texts are of these lengths."""

LENGTHS = {0: 300, 1: 7}


@pytest.mark.parametrize("name", CONFIGS)
def test_trees_of_several_texts_have_the_logits_of_plain_layers(
    name: str, device: torch.device
) -> None:
    """One text is long enough for two parts; there is a free slot between them."""
    hf_config = CONFIGS[name]
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(hf_config)
    tensors = {key: 3 * value.detach() for key, value in model.state_dict().items()}
    config = TransformerConfig.from_hf(hf_config)
    nowhere: GraphCache[Size] = GraphCache(device_type="nowhere")
    engine = TorchEngine(config, tensors, torch.float32, device, nowhere)  # so it is plain
    caches = [engine.new_cache(512) for _ in range(3)]
    texts = [caches[0], caches[2]]
    parts = []
    for number, cache in enumerate(texts):
        text = torch.arange(LENGTHS[number]) % 40
        engine.forward_all([NewNodes.of_text(text, cache, num_logits=0)])
        cache.commit(range(len(text)))
        parents = PARENTS[number]
        mask = tree_layout(parents, 1, CPU).ancestor_mask
        parts.append(NewNodes(torch.arange(len(parents)) + 3, mask, cache, len(parents)))
    expected = engine.forward_all(parts)
    size = Size.fitting(parts, 4)
    inputs = Inputs.of(parts, range(4), size).copied_to(device)
    with torch.inference_mode():
        logits = import_module("treesnake.models.transformer_fused").run_fused(
            config,
            DecoderTensors.read(tensors, config, torch.float32, device),
            inputs,
            size.rows,
            caches[0].bank,
        )
    for part, rows in zip(parts, expected, strict=True):
        first = part.cache.slot * size.nodes
        torch.testing.assert_close(logits[first : first + len(rows)], rows, rtol=1e-3, atol=1e-3)
