"""For code that has a transformers model already: one more argument to `model.generate`."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from treesnake import custom_generate

torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        eos_token_id=None,
    )
).eval()  # in earnest: AutoModelForCausalLM.from_pretrained(...)
prompt = torch.tensor([[5, 6, 7, 5, 6]])

plain = model.generate(prompt, max_new_tokens=24, do_sample=False)
ours = model.generate(prompt, max_new_tokens=24, do_sample=False, custom_generate=custom_generate)

print("the same tokens:", torch.equal(plain, ours))
