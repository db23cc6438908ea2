"""Answers a question, and says what speculation gained."""

import sys

from treesnake import SpeculativeDecoder

question = sys.argv[1] if len(sys.argv) > 1 else "Say the days of the week, twice."

decoder = SpeculativeDecoder.from_pretrained("smollm2", "prompt-lookup")
generation = decoder.generate([{"role": "user", "content": question}], max_new_tokens=48)

print(generation.text)
print(
    f"{generation.num_emitted} tokens in {len(generation.steps)} steps: "
    f"{generation.mean_tokens_per_step:.2f} a step, {generation.tokens_per_s:.1f} a second"
)
