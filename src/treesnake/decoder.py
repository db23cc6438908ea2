"""What users import: a target, a drafter and a tokenizer, wired to the loop in `generate.py`."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Protocol, cast, runtime_checkable

from treesnake.beginnings import encode_text
from treesnake.constraints import Constraint
from treesnake.continuation import Continuation, continue_text
from treesnake.conversation import Message, check_messages, render
from treesnake.detokenizing import decoding_of
from treesnake.drafters.load import AUTO, check_drafter_name, load_drafter
from treesnake.errors import InvalidInputError
from treesnake.loading.checkpoint import DEFAULT_MODEL, end_token_ids
from treesnake.loading.cost_files import CostKey, read_costs
from treesnake.loading.options import (
    DEFAULT_OPTIONS,
    DeviceMap,
    DtypeName,
    EngineName,
    LoadOptions,
)
from treesnake.outcome import FinishReason, Generation, Step
from treesnake.pairs import Pair
from treesnake.prompt import Prompt
from treesnake.protocols import (
    AcceptanceRule,
    Drafter,
    PairModel,
    SharedSearch,
    Target,
    TreeSearch,
)
from treesnake.sampling import SamplingParams
from treesnake.search.by_name import SELF_TUNING, search_by_name
from treesnake.search.static import CLOCK_FREE_SEARCH
from treesnake.stopping import StopRule, StopStrings
from treesnake.targets.load import load_target
from treesnake.text import TextAssembler
from treesnake.utf8 import check_text

PromptLike = str | Sequence[int] | Sequence[Message] | Prompt
"""Text as it is, token ids, or a conversation to put through the tokenizer's chat template."""


@runtime_checkable
class Tokenizer(Protocol):
    """What is used of a tokenizer of transformers."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns token ids; the special tokens are those that the model expects around a text."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Returns the text of token ids."""
        ...

    def apply_chat_template(
        self,
        conversation: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tokenize: bool,
    ) -> str:
        """Returns a conversation as the text that the model was trained on."""
        ...


@dataclass(frozen=True, eq=False)
class DecoderSession:
    """The state of one text: what was prefilled or generated in it need not be run again.

    A session serves one generation at a time.

    Attributes:
        target: holds the text so far.
        drafter: holds it too.
        search: chooses the trees.
        seeded_search: takes its place where text is sampled with a seed; None where `search`
            keeps seeds itself.
    """

    target: Target
    drafter: Drafter
    search: TreeSearch
    seeded_search: TreeSearch | None = None


class TextStream(Iterator[str]):
    """A generation under way: iterate to get its text piece by piece.

    What was made is in `generation` at any time, also if the iteration stopped early, and goes on
    if it is taken up again.
    """

    def __init__(
        self,
        continuation: Continuation,
        assembler: TextAssembler | None,
    ) -> None:
        self._continuation = continuation
        self._assembler = assembler
        self._finish_reason: FinishReason | None = None
        self._steps: list[Step] = []
        self._pieces: list[str] = []
        self._prefill_s = 0.0
        self._is_cancelled = False

    def __next__(self) -> str:
        """Returns the text that became certain by a step; empty where there is no tokenizer."""
        step = self._take_step()
        piece = ""
        if self._assembler:
            piece = self._assembler.push(step.emitted) if step else self._assembler.finish()
        if step is None and not piece:
            raise StopIteration
        self._pieces.append(piece)
        return piece

    def cancel(self) -> None:
        """Ends the generation after the step under way; any thread may call it."""
        self._is_cancelled = True

    def run(self) -> Generation:
        """Iterates to the end and returns the generation."""
        for _ in self:
            pass
        return self.generation

    @property
    def generation(self) -> Generation:
        """What was generated so far; unless it came to its end, it counts as cancelled."""
        return Generation(
            token_ids=tuple(token for step in self._steps for token in step.emitted),
            text="".join(self._pieces) + self._assembler.held if self._assembler else None,
            steps=tuple(self._steps),
            finish_reason=self._finish_reason or FinishReason.CANCELLED,
            prefill_s=self._prefill_s,
        )

    def _take_step(self) -> Step | None:
        """Runs one step, unless the generation is over."""
        if self._is_cancelled or self._finish_reason:
            return None
        started = perf_counter()
        step = next(self._continuation.steps, None)
        if step is None:
            self._finish_reason = self._continuation.limit_reason
            return None
        if not self._steps:
            self._prefill_s = perf_counter() - started - step.seconds.total_s
        self._steps.append(step)
        self._finish_reason = step.finish_reason
        return step


class SpeculativeDecoder:
    """Generates the target's own text, faster.

    A decoder holds what is shared: weights, tokenizer, end tokens. It may be used from several
    threads at once; every call has a session of its own unless one is given.

    Args:
        pair: the models; `treesnake.pairs.Pair` of any target and any drafter.
        tokenizer: a tokenizer of transformers, needed for text in and text out.
        end_token_ids: the tokens after which a text ends.
        search: chooses the trees of all texts, by name or as an object; by default one that tunes
            itself. Samples with a seed are drafted by chains of 4 instead, if the search reads the
            clock or learns across texts: the same seed would not give the same sample again.
        accept: the acceptance rule; by default the best that is exact for each draft.

    Raises:
        InvalidInputError: if `search` is none that texts can share.
    """

    def __init__(
        self,
        pair: PairModel,
        *,
        tokenizer: Tokenizer | None = None,
        end_token_ids: Collection[int] = (),
        search: str | SharedSearch = SELF_TUNING,
        accept: AcceptanceRule | None = None,
    ) -> None:
        if not isinstance(pair, PairModel):
            raise InvalidInputError(
                f"a decoder needs a target and a drafter as a pair: write Pair(target, drafter), "
                f"got {type(pair).__name__}"
            )
        self.pair = pair
        self.tokenizer = tokenizer
        self._decoding = None if tokenizer is None else decoding_of(tokenizer)
        self.end_token_ids = frozenset(end_token_ids)
        self.search = search_by_name(search) if isinstance(search, str) else search
        if not isinstance(self.search, SharedSearch):
            raise InvalidInputError(
                f"{self.search!r} cannot choose the trees of many texts: give the name of a "
                "search, or an object with reads_clock, learns_across_texts and new_session, such "
                "as StaticSearch(chain(3)) for one shape"
            )
        self._accept = accept

    @classmethod
    def from_pretrained(
        cls,
        target: str = DEFAULT_MODEL,
        drafter: str = AUTO,
        *,
        dtype: DtypeName = "auto",
        device: str = "auto",
        engine: EngineName = "auto",
        device_map: DeviceMap | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        search: str | SharedSearch = SELF_TUNING,
    ) -> "SpeculativeDecoder":
        """Loads a target and a drafter by name.

        Args:
            target: a name on the hub, a folder, a GGUF file, or "smollm2", which is a package.
            drafter: "auto" for the best that comes with the package, "prompt-lookup", "none" for
                plain decoding, or a model by name or folder that has the target's tokenizer; see
                `treesnake.drafters.load.load_drafter`.
            dtype: of the target's weights; see `treesnake.loading.options.LoadOptions`.
            device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the best there is.
            engine: "native", "generic", or "auto".
            device_map: spreads the layers over several devices, as in accelerate.
            revision: of a model on the hub.
            trust_remote_code: runs code that comes with the model.
            search: what chooses the trees of all sessions: "self-tuning", another one by name, or
                a shape such as "chain(4)", see `treesnake.search.by_name.search_by_name`; or a
                search of your own.

        Raises:
            LoadError: if the model cannot be had.
            UnsupportedModelError: if it cannot be run correctly.
            InvalidInputError: for names and options that do not exist or contradict each other.
        """
        options = LoadOptions(dtype, device, engine, device_map, revision, trust_remote_code)
        return cls.load(target, drafter, options, search=search)

    @classmethod
    def load(
        cls,
        target: str = DEFAULT_MODEL,
        drafter: str = AUTO,
        options: LoadOptions = DEFAULT_OPTIONS,
        *,
        search: str | SharedSearch = SELF_TUNING,
    ) -> "SpeculativeDecoder":
        """Does what `from_pretrained` does, with options in one piece.

        They are the target's; the drafter is loaded to the same device, with a dtype of its own.
        """
        check_drafter_name(drafter)
        if isinstance(search, str):
            search_by_name(search)  # a wrong name need not wait for the models
        model, loaded = load_target(target, options)
        drafter_options = LoadOptions(device=options.device)
        drafter_model = load_drafter(drafter, drafter_options, target=loaded.checkpoint)
        if isinstance(search, str):
            search = search_by_name(search, read_costs(CostKey.of(loaded, drafter)))
        return cls(
            Pair(model, drafter_model),
            tokenizer=cast(Tokenizer, loaded.checkpoint.tokenizer),
            end_token_ids=end_token_ids(loaded.checkpoint),
            search=search,
        )

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be given."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def new_session(self) -> DecoderSession:
        """Returns a session with an empty state, to continue one text in several calls."""
        target, drafter = self.pair.new_sessions()
        seeded_search = None if _keeps_seeds(self.search) else CLOCK_FREE_SEARCH
        return DecoderSession(target, drafter, self.search.new_session(), seeded_search)

    def generate(
        self,
        prompt: PromptLike,
        params: SamplingParams | None = None,
        *,
        max_new_tokens: int = 256,
        stop: Sequence[str] = (),
        constraints: Sequence[Constraint] = (),
        session: DecoderSession | None = None,
    ) -> Generation:
        """Continues a prompt and returns the text with its statistics.

        Args:
            prompt: text, which is continued as it is; a conversation, which is put through the
                chat template; or token ids.
            params: how to sample; greedy by default.
            max_new_tokens: at most so many; the context may end the text earlier.
            stop: strings that end the text and are not part of it; also names of special tokens.
            constraints: on the next token given the text so far.
            session: what the session holds of the prompt already is not run again.

        Raises:
            InvalidInputError: naming the argument that cannot be right.
            ContextLengthError: if the prompt does not fit into the target's context.
        """
        return self.stream(
            prompt,
            params,
            max_new_tokens=max_new_tokens,
            stop=stop,
            constraints=constraints,
            session=session,
        ).run()

    def stream(
        self,
        prompt: PromptLike,
        params: SamplingParams | None = None,
        *,
        max_new_tokens: int = 256,
        stop: Sequence[str] = (),
        constraints: Sequence[Constraint] = (),
        session: DecoderSession | None = None,
    ) -> TextStream:
        """Returns the text of `generate` piece by piece, as a stream to iterate over.

        Bad input is refused here, before the first piece.
        """
        if max_new_tokens < 1:
            raise InvalidInputError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if isinstance(stop, str):
            raise InvalidInputError(f"stop is a list of strings: write stop=[{stop!r}]")
        params = params or SamplingParams()
        session = session or self.new_session()
        encoded = self.encode(prompt)
        continuation = continue_text(
            session.target,
            session.drafter,
            encoded,
            params,
            search=_search_for(params, session),
            max_new_tokens=max_new_tokens,
            end_token_ids=self.end_token_ids,
            constraints=constraints,
            stop_rules=self._stop_rules(stop, encoded),
            accept=self._accept,
        )
        assembler = None
        if self._decoding is not None:
            assembler = TextAssembler(self._decoding, stop, encoded.token_ids)
        return TextStream(continuation, assembler)

    def encode(self, prompt: PromptLike) -> Prompt:
        """Returns the prompt as token ids.

        Raises:
            InvalidInputError: if it is empty, or is text and there is no tokenizer.
        """
        if isinstance(prompt, Prompt):
            return prompt
        if isinstance(prompt, str):
            tokenizer = self._tokenizer_for("a prompt of text")
            return Prompt.of(_encoded(tokenizer, prompt, is_whole=False))
        if isinstance(prompt, Mapping):
            raise InvalidInputError(
                "the prompt is one message: a conversation is a list, so write [message]"
            )
        first = prompt[0] if isinstance(prompt, Sequence) and len(prompt) else None
        if isinstance(first, Mapping):
            return self._encode_conversation(cast(Sequence[Message], prompt))
        if isinstance(first, str):
            raise InvalidInputError("the prompt is a list of texts: give one text at a time")
        return Prompt.of(cast(Sequence[int], prompt))

    def _encode_conversation(self, messages: Sequence[Message]) -> Prompt:
        """Returns the conversation as the template has it, with a border behind the last message.

        The next turn may go on otherwise from there: templates leave thoughts out, people edit.
        """
        tokenizer = self._tokenizer_for("a conversation")
        if not self.has_chat_template:
            raise InvalidInputError(
                "the target has no chat template, so it cannot take a conversation; give it text, "
                "or load an instruct model"
            )
        checked = check_messages(messages)
        text, history = (
            render(checked, partial(_templated, tokenizer, is_answered=is_answered))
            for is_answered in (True, False)
        )
        tokens = _encoded(tokenizer, text, is_whole=True)
        opening = _encoded(tokenizer, text[len(history) :], is_whole=True)
        border = len(tokens) - len(opening)
        is_border = text.startswith(history) and tokens[border:] == opening
        return Prompt(tuple(tokens), borders=(border,) if is_border else ())

    def _stop_rules(self, stop: Sequence[str], prompt: Prompt) -> list[StopRule]:
        if not stop:
            return []
        self._tokenizer_for("a stop string")
        assert self._decoding is not None
        return [StopStrings(stop, self._decoding, prompt.token_ids)]

    def _tokenizer_for(self, purpose: str) -> Tokenizer:
        if self.tokenizer is None:
            raise InvalidInputError(f"{purpose} needs a tokenizer: give token ids or a tokenizer")
        return self.tokenizer


def _encoded(tokenizer: Tokenizer, text: str, *, is_whole: bool) -> list[int]:
    """Returns the tokens of a text from outside, with a beginning in front if it has none yet."""
    check_text(text, "the prompt")
    try:
        if is_whole:
            return tokenizer.encode(text, add_special_tokens=False)
        return encode_text(tokenizer, text)
    except Exception as error:
        raise InvalidInputError(
            f"the target's tokenizer cannot encode the prompt: {error}"
        ) from error


def _templated(tokenizer: Tokenizer, messages: Sequence[Message], *, is_answered: bool) -> str:
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=is_answered, tokenize=False
    )


def _search_for(params: SamplingParams, session: DecoderSession) -> TreeSearch:
    if params.seed is None or params.is_greedy:
        return session.search
    return session.seeded_search or session.search


def _keeps_seeds(search: SharedSearch) -> bool:
    """Tells whether the trees for a text follow from the text alone."""
    return not (search.reads_clock or search.learns_across_texts)
