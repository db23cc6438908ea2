"""A folder with a tiny Llama of random weights and its tokenizer, as users have them."""

from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

from treesnake.testing.tokenizers import byte_level
from treesnake.testing.wide_matrices import with_wide_matrices


def write_llama(folder: Path) -> None:
    """Writes a model of 96 positions that never ends a text by itself."""
    tokenizer = byte_level()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        eos_token_id=None,
    )
    with_wide_matrices(LlamaForCausalLM(config)).save_pretrained(folder)
