"""`transformers serve` on an exported folder."""

from argparse import Namespace
from importlib.metadata import version
from typing import Any
from unittest.mock import patch

from hosting.clients import (
    Client,
    Messages,
    Plain,
    Result,
    compared,
    conversations,
    exported,
    free_address,
    port_of,
)


def run(arguments: Namespace) -> Result:
    """Whole answers, streams and stop strings, against `generate` of transformers itself."""
    import torch  # noqa: PLC0415 - each host has an environment of its own
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415
    from transformers.cli.serve import Serve  # noqa: PLC0415
    from transformers.cli.serving.utils import DirectStreamer  # noqa: PLC0415

    num_puts = 0
    put = DirectStreamer.put

    def counting_put(streamer: Any, value: Any) -> None:
        nonlocal num_puts
        num_puts += 1
        put(streamer, value)

    with exported(arguments.target) as out, patch.object(DirectStreamer, "put", counting_put):
        model: Any = AutoModelForCausalLM.from_pretrained(out)
        tokenizer: Any = AutoTokenizer.from_pretrained(out)

        def decode(messages: Messages, stop: str | None) -> Plain:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            prompt = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
            stopping = {} if stop is None else {"stop_strings": [stop], "tokenizer": tokenizer}
            made = model.generate(
                prompt, max_new_tokens=arguments.tokens, do_sample=False, **stopping
            )[0, prompt.shape[1] :]
            return Plain(tokenizer.decode(made, skip_special_tokens=True), len(made))

        address = free_address()
        server = Serve(
            out,
            trust_remote_code=True,
            device="cpu",
            host="127.0.0.1",
            port=port_of(address),
            non_blocking=True,
        )
        asked = conversations(arguments)
        result = compared(Client(address, out, arguments.tokens), asked, decode)
        server.server.should_exit = True
        server._thread.join()
    # Transformers hands on the tokens of a step one by one, after the prompt, so chunks are tokens.
    result["steps"] = num_puts - len(asked)
    return {"versions": {"transformers": version("transformers")}, **result}
