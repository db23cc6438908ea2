"""The network that is trained: built as a recipe says, and written as a drafter is loaded."""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from treesnake.drafters.load import PROMPT_WINDOW, locate_drafter
from treesnake.errors import InvalidInputError
from treesnake.loading.checkpoint import Checkpoint, end_token_ids
from treesnake.loading.memory import free_bytes
from treesnake.loading.state_space import read_embeddings
from treesnake.models.checkpoint import (
    CONFIG_FILE,
    read_fields,
    read_network,
    save_network,
    shares_embeddings,
)
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.training.training_recipe import (
    DrafterSizes,
    Mamba2Sizes,
    MambaSizes,
    TrainedBefore,
    TransformerSizes,
)


class Learner(nn.Module):
    """A drafter's network of any architecture, as training sees it.

    Args:
        network: a Mamba, a Mamba-2 or a Llama.
    """

    def __init__(self, network: Mamba | Mamba2 | LlamaForCausalLM) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, token_ids: Int[Tensor, "texts tokens"]
    ) -> Float[Tensor, "texts tokens hidden"]:
        """Returns what the output layer sees, after each token of each text."""
        if isinstance(self.network, LlamaForCausalLM):
            return self.network.model(input_ids=token_ids, use_cache=False).last_hidden_state
        return self.network.features(token_ids)

    @property
    def vocab_size(self) -> int:
        """The number of tokens that it reads."""
        return self.embeddings.shape[0]

    @property
    def hidden_size(self) -> int:
        """The width of its embeddings."""
        return self.embeddings.shape[1]

    @property
    def embeddings(self) -> nn.Parameter:
        """The weight of the embeddings."""
        if isinstance(self.network, LlamaForCausalLM):
            return self.network.model.embed_tokens.weight
        return _parameter(self.network.backbone.embeddings.weight)

    @property
    def final_norm(self) -> nn.Parameter:
        """The weight of the last norm."""
        if isinstance(self.network, LlamaForCausalLM):
            return self.network.model.norm.weight
        return self.network.backbone.norm_f.weight

    @property
    def output_weight(self) -> nn.Parameter:
        """The weight of the output layer, which may be that of the embeddings."""
        return _parameter(self.network.lm_head.weight)

    @property
    def output_projections(self) -> list[nn.Parameter]:
        """The weights by which each layer adds to the residual stream what it mixed."""
        ends = ("mixer.out_proj.weight", "self_attn.o_proj.weight", "mlp.down_proj.weight")
        return [weight for name, weight in self.named_parameters() if name.endswith(ends)]

    @property
    def num_channels(self) -> int:
        """The channels of a layer's recurrence; 0 where there is none."""
        if isinstance(self.network, LlamaForCausalLM):
            return 0
        return self.network.config.num_channels

    @property
    def num_parameters(self) -> int:
        """The number of its weights; what is shared is counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def save(self, folder: Path, dtype: torch.dtype, *, leave_out_embeddings: bool = False) -> None:
        """Writes the network into a folder in the Hugging Face layout.

        Args:
            folder: where to.
            dtype: of what is written.
            leave_out_embeddings: for a Mamba whose embeddings are its target's own.
        """
        network: Any = copy.deepcopy(self.network)
        network.to("cpu", dtype)
        if isinstance(network, LlamaForCausalLM):
            network.config.dtype = dtype
            network.save_pretrained(folder)
        else:
            save_network(network, folder, leave_out_embeddings=leave_out_embeddings)


def build_learner(sizes: DrafterSizes, target: Checkpoint, seed: int) -> Learner:
    """Returns a network of random weights, or one that was trained before.

    Raises:
        InvalidInputError: if the sizes do not fit each other, or into memory.
    """
    if not isinstance(sizes, TrainedBefore):
        _check_memory(sizes, target)
    build: dict[type[Any], Callable[[Any, Checkpoint], Learner]] = {
        MambaSizes: _build_mamba,
        Mamba2Sizes: _build_mamba2,
        TransformerSizes: _build_transformer,
        TrainedBefore: _load_trained,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learner = build[type(sizes)](sizes, target)
    return learner.float().train()


def _check_memory(sizes: MambaSizes | Mamba2Sizes | TransformerSizes, target: Checkpoint) -> None:
    """Refuses sizes whose largest matrices alone do not fit, before anything is built."""
    if isinstance(sizes, MambaSizes):
        inner = sizes.expand * sizes.hidden_size
    elif isinstance(sizes, Mamba2Sizes):
        inner = sizes.num_heads * sizes.head_dim
    else:
        inner = sizes.intermediate_size
    vocab_size = target.config.get_text_config(decoder=True).vocab_size
    num_weights = sizes.hidden_size * (vocab_size + 3 * inner * sizes.num_layers)
    needed, free = num_weights * torch.float32.itemsize, free_bytes(torch.device("cpu"))
    if needed > free:
        raise InvalidInputError(
            f"a drafter of {sizes.num_layers} layers of width {sizes.hidden_size} has "
            f"{num_weights:,} weights and more, which take {needed / 1e9:,.1f} GB, and "
            f"{free / 1e9:.1f} GB are free; choose a smaller one"
        )


def locate_trained(before: TrainedBefore) -> Path:
    """Returns the folder of a drafter that goes on learning, fetched if need be.

    Raises:
        LoadError: if there is none.
    """
    return locate_drafter(before.source)


def keep_prompt_window(before: Path, folder: Path) -> None:
    """Lets a drafter read as much of a prompt as it did before it went on learning.

    Args:
        before: its folder then.
        folder: its folder now, with a config.
    """
    window = read_fields(before).get(PROMPT_WINDOW)
    if window is not None:
        path = folder / CONFIG_FILE
        config = json.loads(path.read_text("utf-8")) | {PROMPT_WINDOW: window}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def _build_mamba(sizes: MambaSizes, target: Checkpoint) -> Learner:
    return Learner(Mamba(MambaConfig(**_numbers(sizes), **_tokens(target))))


def _build_mamba2(sizes: Mamba2Sizes, target: Checkpoint) -> Learner:
    return Learner(Mamba2(Mamba2Config(**_numbers(sizes), **_tokens(target))))


def _build_transformer(sizes: TransformerSizes, target: Checkpoint) -> Learner:
    if sizes.hidden_size % sizes.num_heads or sizes.num_heads % sizes.num_kv_heads:
        raise InvalidInputError(
            f"{sizes.num_heads} heads must divide the hidden size {sizes.hidden_size} and be a "
            f"multiple of {sizes.num_kv_heads} heads of keys and values"
        )
    if sizes.hidden_size // sizes.num_heads % 2:
        raise InvalidInputError(
            f"a head of {sizes.hidden_size // sizes.num_heads} channels has no halves to rotate; "
            "choose a hidden size that is an even multiple of the number of heads"
        )
    text = target.config.get_text_config(decoder=True)
    tokens = _tokens(target)
    config = LlamaConfig(
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_kv_heads,
        max_position_embeddings=text.max_position_embeddings,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        **(tokens | {"eos_token_id": list(tokens["eos_token_id"])}),
    )
    return Learner(LlamaForCausalLM(config))


def _load_trained(before: TrainedBefore, target: Checkpoint) -> Learner:
    folder = locate_trained(before)
    embeddings = read_embeddings(target) if shares_embeddings(folder) else None
    return Learner(read_network(folder, target_embeddings=embeddings).requires_grad_(True))


def _numbers(sizes: MambaSizes | Mamba2Sizes) -> dict[str, Any]:
    """Returns the sizes, which have the names that they have in the network's config."""
    return {name: value for name, value in asdict(sizes).items() if name != "kind"}


def _tokens(target: Checkpoint) -> dict[str, Any]:
    ends = tuple(sorted(end_token_ids(target)))
    start = target.tokenizer.bos_token_id
    return {
        "vocab_size": target.config.get_text_config(decoder=True).vocab_size,
        "eos_token_id": ends,
        "bos_token_id": start if isinstance(start, int) else None,
        "pad_token_id": ends[0] if ends else None,
    }


def _parameter(weight: Tensor) -> nn.Parameter:
    assert isinstance(weight, nn.Parameter)
    return weight
