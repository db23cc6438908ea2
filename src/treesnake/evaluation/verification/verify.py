"""Both experiments on one decoder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from time import perf_counter

from treesnake.conversation import user_message
from treesnake.decoder import PromptLike, SpeculativeDecoder
from treesnake.errors import InvalidInputError
from treesnake.evaluation.shapeworld.scenes import as_png, draw, random_scene
from treesnake.evaluation.verification.evidence import Verdict
from treesnake.evaluation.verification.greedy import Report, verify_greedy
from treesnake.evaluation.verification.sampling import SamplingPlan, verify_sampling
from treesnake.evaluation.verification.state import verify_state
from treesnake.images import png_address
from treesnake.loading.reference import LogitsComparison

PROMPTS = (
    "Why is the sky blue?",
    "Write a haiku about a heron.",
    "List three uses of a paper clip.",
    "Translate to French: The train leaves at nine.",
    "What is 17 times 23? Explain each step.",
    "Write a Python function that reverses a string.",
    "Summarize: The cat sat on the mat. The mat was red. The cat was not. The cat slept.",
    "Who are you?",
)
"""What is asked where nobody says what to ask."""

QUESTIONS_ABOUT_PICTURES = ("What is in the picture?", "Which of the shapes is the largest?")
"""What a target that sees images is asked before, each about a picture that is drawn."""

PICTURE_SCALE = 8
"""By how much the pictures are larger than those of ShapeWorld."""


@dataclass(frozen=True)
class VerifyPlan:
    """What is looked at.

    Attributes:
        max_new_tokens: of each greedy text; 0 leaves greedy decoding out.
        sampling: None leaves sampling out.
        state: whether texts are come to in the ways that corrupt a recurrent state.
        num_sampled_prompts: sampling continues so many of the prompts, each many times.
    """

    max_new_tokens: int = 64
    sampling: SamplingPlan | None = field(default_factory=SamplingPlan)
    state: bool = False
    num_sampled_prompts: int = 4


def verify(
    decoder: SpeculativeDecoder,
    prompts: Sequence[PromptLike] | None = None,
    plan: VerifyPlan | None = None,
    *,
    subject: Mapping[str, str] | None = None,
    report: Report | None = None,
    loading: LogitsComparison | None = None,
) -> Verdict:
    """Looks for anything by which decoding differs from its target's own.

    Args:
        decoder: what is verified.
        prompts: texts become the first turn of a conversation where there is a chat template. By
            default some questions, for a target that sees images also about drawn pictures.
        plan: how much is looked at.
        subject: what the verdict says about whom it judges.
        report: is told of the progress.
        loading: the target's logits beside transformers', which become a part of the verdict; see
            `treesnake.loading.reference`.

    Raises:
        InvalidInputError: if there is nothing to look at.
    """
    plan = plan or VerifyPlan()
    prompts = default_prompts(decoder) if prompts is None else prompts
    asks = plan.max_new_tokens or plan.state or plan.sampling is not None
    if not prompts or not asks:
        raise InvalidInputError("there is nothing to verify: give prompts, and ask for something")
    started = perf_counter()
    asked = [decoder.encode(_as_conversation(decoder, prompt)) for prompt in prompts]
    state = verify_state(decoder.pair.target, asked, report) if plan.state else None
    greedy = None
    if plan.max_new_tokens:
        greedy = verify_greedy(decoder, asked, max_new_tokens=plan.max_new_tokens, report=report)
    sampling = None
    if plan.sampling is not None:
        chosen = asked[: plan.num_sampled_prompts]
        sampling = verify_sampling(decoder, chosen, plan.sampling, report=report)
    seconds = perf_counter() - started
    return Verdict(dict(subject or {}), greedy, sampling, seconds, loading, state)


def default_prompts(decoder: SpeculativeDecoder) -> list[PromptLike]:
    """Returns what a target is asked where nobody says what to ask."""
    if decoder.images is None or not decoder.has_chat_template:
        return list(PROMPTS)
    return [*_about_pictures(), *PROMPTS]


def _about_pictures() -> Iterator[PromptLike]:
    for seed, text in enumerate(QUESTIONS_ABOUT_PICTURES):
        rng = Random(seed)
        picture = as_png(draw(random_scene(rng), rng), PICTURE_SCALE)
        yield [user_message(text, [png_address(picture)])]


def _as_conversation(decoder: SpeculativeDecoder, prompt: PromptLike) -> PromptLike:
    if isinstance(prompt, str) and decoder.has_chat_template:
        return [user_message(prompt)]
    return prompt
