"""The default target as users have it, in both engines and several dtypes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import pytest
import torch

from treesnake import (
    FinishReason,
    LevelWidths,
    SamplingParams,
    SpeculativeDecoder,
    StaticSearch,
    chain,
)
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.loading.networks import LoadedNetwork
from treesnake.loading.options import LoadOptions
from treesnake.loading.pretrained import load_pretrained
from treesnake.pairs import Pair
from treesnake.protocols import TargetModel
from treesnake.shape import Shape
from treesnake.targets.load import load_target

NUM_NEW = 20
QUESTION = [{"role": "user", "content": "Repeat after me: one two three one two three one"}]
Loaded = tuple[TargetModel, LoadedNetwork]
Load = Callable[..., Loaded]


@pytest.fixture(scope="module")
def load() -> Load:
    """Loads each kind of the default target once."""
    return cache(
        lambda dtype, engine="native": load_target("smollm2", LoadOptions(dtype, "cpu", engine))
    )


def decoder(loaded: Loaded, shape: Shape | None = chain(4)) -> SpeculativeDecoder:  # noqa: B008
    model, network = loaded
    tokenizer: Any = network.checkpoint.tokenizer
    drafter = NoDrafterModel() if shape is None else NgramDrafterModel(shortest=1)
    search = StaticSearch(shape or chain(0))
    return SpeculativeDecoder(Pair(model, drafter), tokenizer=tokenizer, search=search)


@pytest.mark.parametrize(
    ("dtype", "engine"),
    [("float32", "native"), ("float16", "native"), ("int8", "native"), ("float32", "generic")],
)
def test_speculative_text_is_plain_text(dtype: str, engine: str, load: Load) -> None:
    loaded = load(dtype, engine)
    plain = decoder(loaded, None).generate(QUESTION, max_new_tokens=NUM_NEW)
    for shape in (chain(4), LevelWidths((3, 1, 1))):
        speculative = decoder(loaded, shape).generate(QUESTION, max_new_tokens=NUM_NEW)
        assert speculative.token_ids == plain.token_ids
        assert speculative.num_accepted > 0


def test_greedy_text_is_that_of_transformers(load: Load) -> None:
    native = decoder(load("float32"))
    prompt = native.encode(QUESTION)
    pretrained = load_pretrained("smollm2", LoadOptions(dtype="float32", device="cpu"))
    token_ids = torch.tensor([prompt.token_ids])
    # The mask is given because transformers would hide the ends of turns, which are padding too.
    output: Any = pretrained.model.generate(
        token_ids,
        attention_mask=torch.ones_like(token_ids),
        max_new_tokens=NUM_NEW,
        do_sample=False,
    )
    expected = output[0, len(prompt) :].tolist()
    generation = native.generate(prompt, max_new_tokens=len(expected))
    assert list(generation.token_ids) == expected


def test_sampling_with_a_seed_reproduces(load: Load) -> None:
    params = SamplingParams(temperature=0.9, top_p=0.9, seed=3)
    first, again = (
        decoder(load("int8")).generate("Once upon", params, max_new_tokens=NUM_NEW).token_ids
        for _ in range(2)
    )
    assert first == again


def test_pieces_join_to_what_the_tokenizer_says(load: Load) -> None:
    stream = decoder(load("int8")).stream("Some emoji: 😀🎉😀🎉", max_new_tokens=NUM_NEW)
    pieces = list(stream)
    tokenizer = load("int8")[1].checkpoint.tokenizer
    assert "".join(pieces) == stream.generation.text
    assert stream.generation.text == tokenizer.decode(stream.generation.token_ids)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces[:-1])


def test_a_stop_string_ends_the_text(load: Load) -> None:
    whole = decoder(load("int8")).generate("1 2 3 1 2 3 1 2", max_new_tokens=NUM_NEW)
    assert whole.text is not None
    stop = whole.text[4:7]
    generation = decoder(load("int8")).generate(
        "1 2 3 1 2 3 1 2", max_new_tokens=NUM_NEW, stop=[stop]
    )
    assert generation.text == whole.text[: whole.text.index(stop)]
    assert generation.finish_reason == FinishReason.STOP_STRING


def test_a_conversation_in_one_session_is_the_same_as_from_scratch(load: Load) -> None:
    chat = decoder(load("int8"))
    session, messages = chat.new_session(), list(QUESTION)
    for question in ("Again.", "And again."):
        going_on, from_scratch = (
            chat.generate(messages, max_new_tokens=12, session=each) for each in (session, None)
        )
        assert going_on.token_ids == from_scratch.token_ids
        messages += [
            {"role": "assistant", "content": str(going_on.text)},
            {"role": "user", "content": question},
        ]


def test_two_threads_generate_at_once(load: Load) -> None:
    shared = decoder(load("int8"))
    prompts = ["The sea is", "A tree has"]
    expected = [shared.generate(prompt, max_new_tokens=12).text for prompt in prompts]
    with ThreadPoolExecutor(2) as pool:
        texts = pool.map(lambda prompt: shared.generate(prompt, max_new_tokens=12).text, prompts)
    assert list(texts) == expected
