"""Inside `model.generate`: what comes back is what transformers would have returned."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from treesnake import StaticSearch, chain, custom_generate, drafter_for
from treesnake.drafters.composite import CompositeDrafterModel
from treesnake.drafters.load import found_drafter
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.drafters.text import TextDrafterModel
from treesnake.errors import InvalidInputError
from treesnake.loading.checkpoint import DEFAULT_MODEL, find_checkpoint
from treesnake.shape import LevelWidths
from treesnake.testing.tokenizers import KINDS
from treesnake.testing.wide_matrices import with_wide_matrices

VOCAB_SIZE = 24
PROMPT = torch.tensor([[3, 5, 3, 5, 7, 3, 5]])
NUM_NEW = 20


def randomized(model: PreTrainedModel) -> PreTrainedModel:
    return with_wide_matrices(model, deviation=0.4)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return randomized(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB_SIZE,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=128,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=0,
            )
        )
    )


@pytest.fixture(scope="module")
def short_model() -> PreTrainedModel:
    """A model whose learned positions end after 16."""
    config = GPT2Config(
        vocab_size=VOCAB_SIZE, n_positions=16, n_embd=32, n_layer=1, n_head=2, eos_token_id=None
    )
    return randomized(GPT2LMHeadModel(config))


def both(model: PreTrainedModel, **options: Any) -> tuple[list[int], list[int]]:
    """The text by transformers and by us."""
    options = {"max_new_tokens": NUM_NEW, "do_sample": False} | options
    theirs: Any = model.generate(PROMPT, **options)
    ours: Any = model.generate(PROMPT, custom_generate=custom_generate, **options)
    return theirs[0].tolist(), ours[0].tolist()


def ours_alone(model: PreTrainedModel, **options: Any) -> Any:
    return model.generate(
        PROMPT,
        custom_generate=custom_generate,
        **({"max_new_tokens": NUM_NEW, "do_sample": False} | options),
    )


GREEDY_OPTIONS: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 2},
    {"bad_words_ids": [[4], [6, 7]], "suppress_tokens": [1]},
    {"sequence_bias": {(9,): 3.0}},
    {"eos_token_id": [2, 11], "min_new_tokens": 6},
    {"eos_token_id": 2, "forced_eos_token_id": 2},
    {"prefix_allowed_tokens_fn": lambda batch, tokens: [len(tokens) % 5, 9, 10]},
    {"temperature": None, "top_k": None, "top_p": None},
]


@pytest.mark.parametrize("options", GREEDY_OPTIONS, ids=lambda options: "-".join(options) or "none")
def test_greedy_output_is_that_of_transformers(
    model: PreTrainedModel, options: dict[str, Any]
) -> None:
    theirs, ours = both(model, **options)
    assert ours == theirs


def test_greedy_output_is_that_of_transformers_in_half_precision(model: PreTrainedModel) -> None:
    half = randomized(LlamaForCausalLM(model.config)).to(torch.bfloat16)
    theirs, ours = both(half, repetition_penalty=1.3)
    assert ours == theirs


def test_any_tree_gives_the_same_greedy_output(model: PreTrainedModel) -> None:
    theirs: Any = model.generate(PROMPT, max_new_tokens=NUM_NEW, do_sample=False)
    for extra in ({"search": StaticSearch(LevelWidths((2, 2)))}, {"drafter": NoDrafterModel()}):
        ours: Any = model.generate(
            PROMPT,
            max_new_tokens=NUM_NEW,
            do_sample=False,
            custom_generate=custom_generate,
            **extra,
        )
        assert torch.equal(ours, theirs)


def test_sampling_is_reproducible_under_torchs_seed(model: PreTrainedModel) -> None:
    def sample(seed: int) -> list[int]:
        torch.manual_seed(seed)
        output: Any = model.generate(
            PROMPT,
            custom_generate=custom_generate,
            max_new_tokens=NUM_NEW,
            do_sample=True,
            temperature=0.8,
            top_k=10,
            top_p=0.9,
            min_p=0.01,
        )
        return output[0].tolist()

    assert sample(1) == sample(1) != sample(2)


@pytest.mark.parametrize(
    "options",
    [{"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}],
    ids=lambda options: next(iter(options)),
)
def test_what_shapes_the_distribution_is_heard(
    model: PreTrainedModel, options: dict[str, Any]
) -> None:
    """Each of these leaves the most probable token alone."""
    _, greedy = both(model)
    _, sampled = both(model, do_sample=True, **({"top_k": 0} | options))
    assert sampled == greedy


def test_a_processor_of_the_users_own_is_applied(model: PreTrainedModel) -> None:
    cold = LogitsProcessorList([TemperatureLogitsWarper(1e-4)])
    _, greedy = both(model)
    _, sampled = both(model, do_sample=True, top_k=0, logits_processor=cold)
    assert sampled == greedy


class EndsAfter(StoppingCriteria):
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **options: Any) -> Any:
        return torch.tensor([input_ids.shape[1] >= self.length])


def test_a_stopping_criterion_of_the_users_own_ends_the_text(model: PreTrainedModel) -> None:
    theirs, ours = both(model, stopping_criteria=StoppingCriteriaList([EndsAfter(16)]))
    assert ours == theirs
    assert len(ours) == 16


def test_tokens_are_streamed_as_they_come(model: PreTrainedModel) -> None:
    class Collector(BaseStreamer):
        def __init__(self) -> None:
            self.tokens: list[int] = []
            self.has_ended = False

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.tolist()

        def end(self) -> None:
            self.has_ended = True

    collector = Collector()
    output = ours_alone(model, token_streamer=collector)
    assert collector.tokens == output[0, PROMPT.shape[1] :].tolist()
    assert collector.has_ended


def test_a_dictionary_is_returned_where_it_is_asked_for(model: PreTrainedModel) -> None:
    output = ours_alone(model, return_dict_in_generate=True)
    assert output.sequences[0].tolist() == both(model)[0]


def test_the_text_ends_with_the_context(short_model: PreTrainedModel) -> None:
    assert ours_alone(short_model).shape[1] == 16


def with_history() -> DynamicCache:
    cache = DynamicCache()
    cache.update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8), 0)
    return cache


REFUSED: list[tuple[Callable[[], dict[str, Any]], str]] = [
    (lambda: {"inputs": PROMPT.repeat(2, 1)}, "one text at a time, got a batch of 2"),
    (lambda: {"num_return_sequences": 2, "do_sample": True}, "leave num_return_sequences at 1"),
    (lambda: {"num_beams": 2}, "set num_beams=1"),
    (
        lambda: {"output_scores": True, "return_dict_in_generate": True},
        "does not return what output_scores asks for",
    ),
    (lambda: {"do_sample": True, "typical_p": 0.5}, "TypicalLogitsWarper is not supported"),
    (lambda: {"do_sample": True, "epsilon_cutoff": 0.01}, "EpsilonLogitsWarper is not supported"),
    (lambda: {"guidance_scale": 2.0}, "keeps the state of one text, and a tree holds many"),
    (
        lambda: {"attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1, 1]])},
        "the attention mask hides a part of the prompt",
    ),
    (
        lambda: {"position_ids": torch.arange(5, 12)[None]},
        "numbers positions from 0 on; leave out position_ids",
    ),
    (
        lambda: {"inputs_embeds": torch.zeros(1, 7, 32), "inputs": None, "input_ids": PROMPT},
        "nothing but a text; leave out inputs_embeds",
    ),
    (
        lambda: {
            "do_sample": True,
            "temperature": 0.5,
            "logits_processor": LogitsProcessorList([TemperatureLogitsWarper(0.7)]),
        },
        "are each applied once",
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_done_is_refused(
    model: PreTrainedModel, options: Callable[[], dict[str, Any]], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        model.generate(
            **({"inputs": PROMPT, "max_new_tokens": 4} | options()), custom_generate=custom_generate
        )


def test_a_cache_with_a_history_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(
        InvalidInputError, match=r"give the whole prompt without (past_key_values|cache)"
    ):
        custom_generate(
            model,
            PROMPT,
            LogitsProcessorList(),
            StoppingCriteriaList(),
            model.generation_config,
            past_key_values=with_history(),
        )


class Alternating(LogitsProcessor):
    """Allows the lower tokens at every other call, and notes what it is asked about."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.lengths.append(input_ids.shape[1])
        is_low = torch.arange(scores.shape[1]) < VOCAB_SIZE // 2
        return scores.masked_fill(is_low if len(self.lengths) % 2 else ~is_low, float("-inf"))


class Counting(StoppingCriteria):
    """Ends the text at its twelfth call."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
        self.lengths.append(input_ids.shape[1])
        return torch.tensor([len(self.lengths) >= 12])


@pytest.mark.parametrize("search", ["chain(4)", "2x2x1", "self-tuning"])
def test_a_processor_may_remember_its_calls(model: PreTrainedModel, search: str) -> None:
    theirs, ours = (
        model.generate(
            PROMPT,
            max_new_tokens=NUM_NEW,
            do_sample=False,
            logits_processor=LogitsProcessorList([Alternating()]),
            **options,
        )
        for options in ({}, {"custom_generate": custom_generate, "search": search})
    )
    assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}, {"do_sample": True}], ids=str)
def test_a_criterion_is_asked_once_for_each_token(
    model: PreTrainedModel, options: dict[str, Any]
) -> None:
    counting = Counting()
    output = ours_alone(
        model, search="chain(4)", stopping_criteria=StoppingCriteriaList([counting]), **options
    )
    assert output.shape[1] == PROMPT.shape[1] + 12
    assert counting.lengths == list(range(PROMPT.shape[1] + 1, PROMPT.shape[1] + 13))


def test_a_processor_is_asked_once_for_each_sampled_token(model: PreTrainedModel) -> None:
    processor = Alternating()
    ours_alone(model, do_sample=True, logits_processor=LogitsProcessorList([processor]))
    assert processor.lengths == list(range(PROMPT.shape[1], PROMPT.shape[1] + NUM_NEW))


@pytest.mark.parametrize("kind", ["byte-level as in Llama 3", "sentence pieces", "word pieces"])
def test_the_shipped_drafter_drafts_in_text_for_a_model_with_another_tokenizer(
    kind: str,
) -> None:
    tokenizer = KINDS[kind]()
    model = randomized(LlamaForCausalLM(config_for(tokenizer)))
    drafter = drafter_for(model, tokenizer)
    assert isinstance(drafter, CompositeDrafterModel)
    assert isinstance(drafter.first, TextDrafterModel)
    prompt = tokenizer("the snake reads the international news", return_tensors="pt").input_ids
    options: dict[str, Any] = {"max_new_tokens": NUM_NEW, "do_sample": False}
    search = StaticSearch(chain(4))
    ours: Any = model.generate(
        prompt, custom_generate=custom_generate, drafter=drafter, search=search, **options
    )
    theirs: Any = model.generate(prompt, **options)
    assert ours[0].tolist() == theirs[0].tolist()


def config_for(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=[tokenizer.eos_token_id],
        pad_token_id=0,
    )


def test_by_default_it_drafts_for_a_folder_that_has_its_tokenizer(tmp_path: Path) -> None:
    tokenizer = KINDS["sentence pieces"]()
    made = randomized(LlamaForCausalLM(config_for(tokenizer)))
    made.save_pretrained(tmp_path)
    assert isinstance(found_drafter(made), NgramDrafterModel)
    model = LlamaForCausalLM.from_pretrained(tmp_path)
    assert isinstance(found_drafter(model), NgramDrafterModel)
    tokenizer.save_pretrained(tmp_path)
    drafter = found_drafter(model)
    assert isinstance(drafter, CompositeDrafterModel)
    assert isinstance(drafter.first, TextDrafterModel)
    prompt = tokenizer("the snake reads the international news", return_tensors="pt").input_ids
    options: dict[str, Any] = {"max_new_tokens": NUM_NEW, "do_sample": False}
    ours: Any = model.generate(prompt, custom_generate=custom_generate, **options)
    theirs: Any = model.generate(prompt, **options)
    assert ours[0].tolist() == theirs[0].tolist()


def test_for_a_model_with_its_tokenizer_the_shipped_drafter_drafts_tokens() -> None:
    target = find_checkpoint(DEFAULT_MODEL)
    padded = LlamaConfig(
        vocab_size=49280, hidden_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    drafter = drafter_for(LlamaForCausalLM(padded), target.tokenizer)
    assert isinstance(drafter, CompositeDrafterModel)
    assert isinstance(drafter.first, NetworkDrafterModel)


def test_a_model_by_name_has_no_drafter_in_transformers() -> None:
    with pytest.raises(InvalidInputError, match=r"got str and str; .*from_pretrained"):
        drafter_for("owner/model", "owner/model")


def test_a_drafter_by_name_is_refused_with_the_call_that_makes_one(model: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"drafter_for\(model, tokenizer\)"):
        model.generate(
            torch.tensor([[1, 2, 3]]),
            max_new_tokens=2,
            custom_generate=custom_generate,
            drafter="auto",
        )
