"""A conversation in one session: what was said before is not run again."""

from treesnake import SamplingParams, SpeculativeDecoder

decoder = SpeculativeDecoder.from_pretrained()
session = decoder.new_session()
params = SamplingParams(temperature=0.7, top_p=0.9, seed=1)
messages = []

for question in ("Name a planet.", "And another one."):
    print(f"> {question}")
    messages.append({"role": "user", "content": question})
    stream = decoder.stream(messages, params, max_new_tokens=32, session=session)
    for piece in stream:
        print(piece, end="", flush=True)
    print()
    messages.append({"role": "assistant", "content": stream.generation.text})
