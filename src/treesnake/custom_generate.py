"""For people with transformers code: `model.generate(..., custom_generate=custom_generate)`.

Transformers prepares the inputs, logits processors and stopping criteria as for its own methods,
then hands over to `custom_generate`. What comes back is what `generate` would have returned: the
same tokens where nothing is sampled, and samples of the same distribution where they are. Text that
ends at a string needs transformers' own `StopStringCriteria` among the stopping criteria, because
the argument `stop_strings` asks for a tokenizer that custom methods are not given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, cast, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin
from transformers.generation import (
    EosTokenCriteria,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerateDecoderOnlyOutput,
    MaxLengthCriteria,
    MinPLogitsWarper,
    PrefixConstrainedLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from treesnake.continuation import continue_text
from treesnake.drafters.load import found_drafter
from treesnake.errors import InvalidInputError
from treesnake.models.hf_attention import HfAttention
from treesnake.models.hf_images import ENCODED, HfImages
from treesnake.models.hf_network import hf_network
from treesnake.models.hf_passes import CACHE_ARGUMENTS
from treesnake.outcome import FinishReason
from treesnake.pairs import Pair
from treesnake.prompt import Prompt
from treesnake.protocols import DrafterModel, SharedSearch
from treesnake.sampling import SamplingParams
from treesnake.search.by_name import as_search
from treesnake.search.self_tuning import SelfTuningSearch
from treesnake.search.static import StaticSearch
from treesnake.shape import OFF
from treesnake.stopping import Cut
from treesnake.targets.network import NetworkTargetModel

WARPERS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)
"""What `SamplingParams` says. None of these changes what is greedy."""

OTHER_WARPERS = (TypicalLogitsWarper, EpsilonLogitsWarper, EtaLogitsWarper, TopHLogitsWarper)
"""What would have to come after the temperature, where no constraint can be."""

STATEFUL_PROCESSORS = (
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
)
"""What must be called for one token after the other of one text, where a tree has many."""

ASKING_PROCESSORS = (PrefixConstrainedLogitsProcessor,)
"""What calls a function of the user's."""

HANDLED_INPUTS = frozenset(
    ["attention_mask", "logits_to_keep", "position_ids", "use_cache", *CACHE_ARGUMENTS]
)
"""What transformers prepares for every model: checked, and made anew for trees."""


_FOUND_DRAFTERS: WeakKeyDictionary[PreTrainedModel, DrafterModel] = WeakKeyDictionary()
"""What drafts by default for a model, kept as long as the model."""


@runtime_checkable
class TokenStreamer(Protocol):
    """What is used of a streamer of transformers: not all of them inherit from `BaseStreamer`."""

    def put(self, value: Tensor) -> None:
        """Takes token ids."""
        ...

    def end(self) -> None:
        """Hears that there are no more."""
        ...


def custom_generate(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "batch tokens"],
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    drafter: DrafterModel | str | Path | None = None,
    search: str | SharedSearch | None = None,
    token_streamer: TokenStreamer | None = None,
    **model_kwargs: object,
) -> Int[Tensor, "1 longer"] | GenerateDecoderOnlyOutput:
    """Generates speculatively inside `model.generate`.

    Args:
        model: given by transformers, as are the next four and `model_kwargs`.
        input_ids: one prompt; batches are refused.
        logits_processor: applied at every node of a tree that can be accepted. One of your own may
            remember its calls: it is called for one token of the text after another, as by
            transformers. While sampling that takes plain decoding, whatever drafts.
        stopping_criteria: applied after every token; for one of your own the same holds, beside
            any logits processor.
        generation_config: sampling or greedy; beams are refused. The text ends at the latest with
            the model's context.
        drafter: what drafts. By default what `treesnake.drafter_for` makes with the tokenizer that
            lies where the model was loaded from; prompt lookup if there is none. A name is refused:
            a drafter by name needs the target's tokenizer.
        search: what chooses the trees, by name or as an object. The default tunes itself, anew in
            every call; give a search to keep what it learns.
        token_streamer: gets the new tokens as they come. Transformers does not hand its own
            argument `streamer` on to custom methods.
        model_kwargs: what else the model is given: images, and nothing else that would make a
            difference. Transformers hands on what its tower made of them, which another model that
            drafts has no use for: that must read text alone.

    Raises:
        InvalidInputError: for what cannot be done losslessly, or not at all.
        UnsupportedModelError: if the model cannot score trees.
    """
    _check_options(input_ids, generation_config)
    network = hf_network(model)
    images = network.images if isinstance(network, HfAttention) else None
    prompt = _prompt(input_ids, model_kwargs, images)
    _check_inputs(model_kwargs, prompt, images)
    rules = [_CriterionRule(prompt, each, input_ids.device) for each in stopping_criteria]
    params = _sampling_params(logits_processor, sampled=bool(generation_config.do_sample))
    pair = Pair(NetworkTargetModel(network), _drafter(drafter, model))
    continuation = continue_text(
        *pair.new_sessions(),
        prompt,
        params,
        search=_search_for(params, search, logits_processor, stopping_criteria).new_session(),
        max_new_tokens=_max_length(stopping_criteria) - len(prompt),
        constraints=_constraints(logits_processor),
        stop_rules=[rule for rule in rules if not isinstance(rule.criterion, MaxLengthCriteria)],
    )
    tokens = list(prompt.token_ids)
    for step in continuation.steps:
        tokens += step.emitted
        if token_streamer is not None:
            token_streamer.put(torch.tensor(step.emitted))
    if token_streamer is not None:
        token_streamer.end()
    sequences = torch.tensor([tokens], device=input_ids.device)
    if generation_config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=cast(torch.LongTensor, sequences))
    return sequences


@dataclass(frozen=True)
class _ProcessorConstraint:
    """A logits processor of transformers as a constraint."""

    processor: LogitsProcessor

    def __call__(
        self, prefix: Sequence[int], logits: Float[Tensor, " vocab"]
    ) -> Float[Tensor, " vocab"]:
        tokens = torch.tensor([prefix], device=logits.device)
        return self.processor(tokens, logits[None].float())[0]


@dataclass(frozen=True)
class _CriterionRule:
    """A stopping criterion of transformers as a stop rule, asked once about each text.

    It is asked about the drafts of a step and again about what the step emitted; it may count.
    """

    prompt: Prompt
    criterion: StoppingCriteria
    device: torch.device
    answers: dict[tuple[int, ...], bool] = field(default_factory=dict)

    def __call__(self, generated: Sequence[int], emitted: Sequence[int]) -> Cut | None:
        before = (*self.prompt.token_ids, *generated)
        if self.answers and len(next(iter(self.answers))) <= len(before):
            self.answers.clear()  # they were about the step before
        for num_kept in range(1, len(emitted) + 1):
            if self._ends((*before, *emitted[:num_kept])):
                is_end = isinstance(self.criterion, EosTokenCriteria)
                reason = FinishReason.END_TOKEN if is_end else FinishReason.STOP_RULE
                return Cut(num_kept, reason)
        return None

    def _ends(self, text: tuple[int, ...]) -> bool:
        if text not in self.answers:
            tokens = torch.tensor([text], device=self.device)
            self.answers[text] = bool(torch.as_tensor(self.criterion(tokens, None)).all())
        return self.answers[text]


def _search_for(
    params: SamplingParams,
    search: str | SharedSearch | None,
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
) -> SharedSearch:
    """Returns a search under which processors and criteria may remember their calls.

    A greedy text takes one path of a tree, so they see nothing beside the text. Samples may go
    anywhere in a tree: whoever could remember is asked about trees without branches or depth.
    """
    others = [each for each in processors if not isinstance(each, WARPERS)]
    asked = [*others, *criteria] if others and not params.is_greedy else []
    if any(_may_remember(each) for each in asked):
        return StaticSearch(OFF)
    return SelfTuningSearch() if search is None else as_search(search)


def _may_remember(part: LogitsProcessor | StoppingCriteria) -> bool:
    """Tells whether what a part does may depend on more than the text; transformers' do not."""
    is_known = type(part).__module__.startswith("transformers.")
    return not is_known or isinstance(part, ASKING_PROCESSORS)


def _drafter(drafter: DrafterModel | str | Path | None, model: PreTrainedModel) -> DrafterModel:
    """Returns what drafts. A name is refused: custom methods are given no tokenizer."""
    if isinstance(drafter, str | Path):
        raise InvalidInputError(
            f"a drafter by name, {drafter!r:.60}, needs the target's tokenizer, which transformers "
            "does not hand on; give drafter=treesnake.drafter_for(model, tokenizer) for what "
            '"auto" stands for, a drafter of treesnake.drafters.load.load_drafter, or leave it '
            "out for the default"
        )
    if drafter is not None:
        return drafter
    if model not in _FOUND_DRAFTERS:
        _FOUND_DRAFTERS[model] = found_drafter(model)
    return _FOUND_DRAFTERS[model]


def _check_options(input_ids: Int[Tensor, "batch tokens"], config: GenerationConfig) -> None:
    if (config.num_beams or 1) > 1:
        raise InvalidInputError("treesnake samples or decodes greedily; set num_beams=1")
    if input_ids.shape[0] != 1:
        raise InvalidInputError(
            f"treesnake generates one text at a time, got a batch of {input_ids.shape[0]}; call "
            "generate once for each prompt, and leave num_return_sequences at 1"
        )
    for name in ("dola_layers", "penalty_alpha"):
        if getattr(config, name, None):
            raise InvalidInputError(f"{name} asks for another way to decode; leave it out")
    unsupported = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
    for name in unsupported:
        if getattr(config, name, False):
            raise InvalidInputError(f"treesnake does not return what {name} asks for; leave it off")


def _prompt(
    input_ids: Int[Tensor, "batch tokens"],
    model_kwargs: Mapping[str, object],
    images: HfImages | None,
) -> Prompt:
    """Returns the prompt with its images, which transformers has run through the tower already."""
    token_ids = tuple(input_ids[0].tolist())
    outputs = model_kwargs.get(ENCODED)
    if images is None or not isinstance(outputs, Mapping) or not outputs:
        return Prompt.of(token_ids)
    positions = model_kwargs.get("position_ids")
    rows = None
    if isinstance(positions, Tensor) and positions.ndim == 3:
        rows = positions[-3:].cpu()
    return Prompt(token_ids, (images.encoded(token_ids, outputs, rows),))


def _check_inputs(
    model_kwargs: Mapping[str, object], prompt: Prompt, images: HfImages | None
) -> None:
    """Refuses inputs that say something which the prompt does not."""
    types: Mapping[str, Tensor] = {} if images is None else images.token_types(prompt)
    read = {ENCODED} if prompt.inputs else set()
    given = {name for name, value in model_kwargs.items() if value is not None}
    if not model_kwargs.get(ENCODED):
        given -= {ENCODED}
    if unknown := sorted(given - HANDLED_INPUTS - read - types.keys()):
        raise InvalidInputError(
            f"treesnake gives the model nothing but a text{' and images' if images else ''}; leave "
            f"out {', '.join(unknown)}"
        )
    for name, expected in types.items():
        value = model_kwargs.get(name)
        if isinstance(value, Tensor) and not torch.equal(value.cpu().long(), expected):
            raise InvalidInputError(
                f"{name} says that other tokens stand for images than those that do; leave it out"
            )
    mask = model_kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and not bool((mask == 1).all()):
        raise InvalidInputError(
            "the attention mask hides a part of the prompt; give the prompt without padding"
        )
    positions = model_kwargs.get("position_ids")
    if isinstance(positions, Tensor) and not _are_own(positions.cpu(), prompt, images):
        raise InvalidInputError("treesnake numbers positions from 0 on; leave out position_ids")
    for name in CACHE_ARGUMENTS:
        cache = model_kwargs.get(name)
        if isinstance(cache, Cache) and any(map(_holds_text, cache.layers)):
            raise InvalidInputError(
                f"treesnake keeps a cache of its own; give the whole prompt without {name}"
            )


def _are_own(positions: Tensor, prompt: Prompt, images: HfImages | None) -> bool:
    """Tells whether positions are those that treesnake would give; some models have rows of them.

    Of four rows the first counts tokens; the others are time, height and width.
    """
    counted = torch.arange(len(prompt))
    if images is None or positions.ndim < 3:
        return torch.equal(positions.flatten(), counted)
    own = images.whole_positions(prompt)
    has_counts = len(positions) == 4
    rows = positions[1:] if has_counts else positions
    counts = positions[0, 0] if has_counts else counted
    return torch.equal(counts, counted) and torch.equal(rows, own.expand_as(rows))


def _holds_text(layer: object) -> bool:
    """Tells whether a layer of a cache has rows or a recurrent state."""
    has_rows = isinstance(layer, CacheLayerMixin) and int(layer.get_seq_length()) > 0
    has_state = isinstance(layer, LinearAttentionCacheLayerMixin) and any(
        layer.has_previous_state.values()
    )
    return has_rows or has_state


def _sampling_params(processors: LogitsProcessorList, *, sampled: bool) -> SamplingParams:
    """Returns what the warpers among the processors say.

    The seed comes from torch's global generator, which is where transformers would sample from.
    """
    if not sampled:
        return SamplingParams()
    warpers = [each for each in processors if isinstance(each, WARPERS)]
    if len({type(each) for each in warpers}) < len(warpers):
        raise InvalidInputError(
            "temperature, top_k, top_p and min_p are each applied once; set them as arguments of "
            "generate and leave their processors out"
        )
    params = SamplingParams(temperature=1.0, seed=int(torch.randint(2**63 - 1, ())))
    for warper in warpers:
        match warper:
            case TemperatureLogitsWarper():
                params = replace(params, temperature=warper.temperature)
            case TopKLogitsWarper():
                params = replace(params, top_k=warper.top_k)
            case TopPLogitsWarper():
                params = replace(params, top_p=warper.top_p)
            case MinPLogitsWarper():
                params = replace(params, min_p=warper.min_p)
    return params


def _constraints(processors: LogitsProcessorList) -> list[_ProcessorConstraint]:
    for processor in processors:
        name = type(processor).__name__
        if isinstance(processor, OTHER_WARPERS):
            raise InvalidInputError(
                f"{name} is not supported with custom_generate=treesnake; use top_k, top_p or min_p"
            )
        if isinstance(processor, STATEFUL_PROCESSORS):
            raise InvalidInputError(
                f"{name} keeps the state of one text, and a tree holds many; generate without it"
            )
    return [_ProcessorConstraint(each) for each in processors if not isinstance(each, WARPERS)]


def _max_length(criteria: StoppingCriteriaList) -> int:
    lengths = [each.max_length for each in criteria if isinstance(each, MaxLengthCriteria)]
    if not lengths:
        raise InvalidInputError("set max_new_tokens or max_length")
    return min(lengths)
