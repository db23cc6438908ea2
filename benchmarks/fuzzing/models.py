"""Tiny models as specimens, how a user opens them, and what transformers says to them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from fuzzing.cases import RefusalError
from treesnake import SpeculativeDecoder
from treesnake.loading.gguf_tokenizer import build_tokenizer
from treesnake.outcome import FinishReason

PROMPT = "Once upon a time"
NEW_TOKENS = 8
NEAR = 1e-3
"""Logits that are closer than this may change places by rounding."""

CONTEXT_ENDS = -1
"""Stands behind the tokens of a text that filled the context."""

CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "Ġ t", "Ġt he"]
VOCAB_SIZE = 288
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
ATTENTION = COMMON | {
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
CONFIGS: Mapping[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**ATTENTION),
    "tied": LlamaConfig(**ATTENTION, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**ATTENTION),
    "mamba": MambaConfig(**COMMON, state_size=8),
    "mamba2": Mamba2Config(**COMMON, state_size=8, num_heads=4, head_dim=16, n_groups=1),
}


def tokenizer_metadata() -> dict[str, Any]:
    """Returns what a GGUF file says of a tokenizer of bytes with four merges."""
    tokens = [*CONTROL_TOKENS, *sorted(ByteLevel.alphabet())]
    tokens += [merge.replace(" ", "") for merge in MERGES]
    tokens += [f"unused{index}" for index in range(VOCAB_SIZE - len(tokens))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in CONTROL_TOKENS else 1 for token in tokens],
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": CHAT_TEMPLATE,
        "llama.context_length": 128,
    }


def build_model(kind: str) -> PreTrainedModel:
    """Returns a random model whose logits are far apart."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model.eval()


def save_model(kind: str, folder: Path, *, shard_size: str = "1GB") -> PreTrainedModel:
    """Writes a model with its tokenizer, as folders at the hub are."""
    model = build_model(kind)
    model.save_pretrained(folder, max_shard_size=shard_size)
    build_tokenizer(tokenizer_metadata()).save_pretrained(folder)
    return model


def generate(
    target: Path | str,
    drafter: Path | str = "none",
    *,
    dtype: str = "float32",
    engine: str = "auto",
) -> list[int]:
    """Loads a pair and generates greedily; returns the prompt and the new tokens.

    They end in `CONTEXT_ENDS` where the context is full, which transformers goes beyond.
    """
    decoder = SpeculativeDecoder.from_pretrained(
        str(target), str(drafter), dtype=dtype, device="cpu", engine=engine, search="chain(3)"
    )
    made = decoder.generate(PROMPT, max_new_tokens=NEW_TOKENS)
    end = [CONTEXT_ENDS] if made.finish_reason is FinishReason.CONTEXT else []
    return [*decoder.encode(PROMPT).token_ids, *made.token_ids, *end]


def reference(path: Path) -> dict[str, Any]:
    """Returns the tokens of transformers, and by how much each new one was ahead of the next.

    Raises:
        RefusalError: if weights are missing or do not fit, for which transformers draws new ones.
    """
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(path)}
    if path.is_file():
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
    model, info = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        raise RefusalError(
            f"{info['missing_keys']} are missing, {info['mismatched_keys']} do not fit"
        )
    prompt = torch.tensor([tokenizer.encode(PROMPT)])
    plain = GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    model.generation_config = GenerationConfig()
    made = model.eval().generate(
        prompt, attention_mask=torch.ones_like(prompt), generation_config=plain
    )
    leads = [float(best[0] - best[1]) for each in made.logits for best in [each[0].topk(2).values]]
    return {"tokens": made.sequences[0].tolist(), "leads": leads}


def differ_in_text(opened: Sequence[int], meant: Mapping[str, Any]) -> str | None:
    """Returns how our tokens differ from those of transformers, but for ties."""
    tokens, leads = meant["tokens"], meant["leads"]
    if opened[-1:] == [CONTEXT_ENDS]:
        opened = opened[:-1]
        tokens = tokens[: len(opened)]
    if list(opened) == tokens:
        return None
    num_prompt = len(tokens) - len(leads)
    both = enumerate(zip(opened, tokens, strict=False))
    first = next((index for index, (ours, theirs) in both if ours != theirs), None)
    if first is None:
        return f"{opened[num_prompt:]} ends elsewhere than {tokens[num_prompt:]}"
    if first >= num_prompt and not leads[first - num_prompt] > NEAR:  # also where it is NaN
        return None
    return f"{opened}, not {tokens}; leads {[round(lead, 3) for lead in leads]}"
