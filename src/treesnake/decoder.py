"""What users import: a target, a drafter and a tokenizer, wired to the loop in `generate.py`."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import curdir
from pathlib import Path
from typing import NoReturn, Protocol, cast, runtime_checkable

from treesnake.arguments import as_count, as_texts, as_token_ids
from treesnake.beginnings import encode_text
from treesnake.calibration import known_costs
from treesnake.constraints import Constraint, as_constraints
from treesnake.continuation import Continuation, continue_text
from treesnake.conversation import (
    Message,
    check_messages,
    check_offered,
    image_sources,
    render,
    user_message,
)
from treesnake.detokenizing import decoding_of
from treesnake.drafters.composite import CompositeDrafter
from treesnake.drafters.learner import Learner
from treesnake.drafters.learning import LearningDrafter, LearnLike, open_learner
from treesnake.drafters.load import AUTO, NO_DRAFTER, check_drafter_name, reads_captions
from treesnake.drafters.memory import MemoryDrafter
from treesnake.errors import InvalidInputError, LoadError
from treesnake.explanation import Explanation, explain
from treesnake.grammars import GrammarCompiler, chosen_grammar
from treesnake.lease import note_maker, was_made_by
from treesnake.likelihood import score_text
from treesnake.loading.checkpoint import DEFAULT_MODEL, end_token_ids
from treesnake.loading.generation_settings import warn_of_unapplied_settings
from treesnake.loading.kept_memory import MemoryLike, open_memory
from treesnake.loading.networks import LoadedNetwork
from treesnake.loading.options import (
    DEFAULT_OPTIONS,
    DeviceMap,
    DtypeName,
    EngineName,
    LoadOptions,
)
from treesnake.loading.processors import ProcessorFiles
from treesnake.logprobs import TokenLogprobs, as_num_top
from treesnake.memory.text_memory import TextMemory
from treesnake.models.tree_network import reads_inputs
from treesnake.outcome import FinishReason, Generation, Step
from treesnake.pairs import Pair, pair_by_name
from treesnake.prompt import Prompt, PromptInput
from treesnake.protocols import (
    AcceptanceRule,
    Drafter,
    PairModel,
    SharedSearch,
    Target,
    TreeSearch,
)
from treesnake.sampling import SamplingParams
from treesnake.search.by_name import SELF_TUNING, as_search, search_by_name
from treesnake.stopping import StopRule, StopStrings
from treesnake.targets.load import load_target
from treesnake.text import TextAssembler
from treesnake.threads import new_reentrant_lock
from treesnake.utf8 import check_text

DESCRIBE = "Describe this image in one sentence."
"""What is asked for a caption."""

MOST_CAPTION = 48
"""Tokens of a caption at most."""

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
        tools: Sequence[Mapping[str, object]] | None = None,
    ) -> str:
        """Returns a conversation as the text that the model was trained on."""
        ...


@runtime_checkable
class ImageEncoder(Protocol):
    """Makes prompts of texts and images, as `treesnake.loading.processors.ImagePrompts` does."""

    def encode(self, text: str, images: Sequence[tuple[str, object]]) -> Prompt:
        """Returns the prompt of a text with a mark for each image.

        Args:
            text: what the chat template made; nothing comes before it.
            images: in the order of the text, each behind what messages call it.
        """
        ...


class OfOneProcess:
    """What can be neither copied nor sent to another process: it holds weights, threads, state."""

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise InvalidInputError(
            f"a {type(self).__name__} can be neither copied nor pickled; threads may share one "
            "decoder, and another process loads its own with SpeculativeDecoder.from_pretrained"
        )


@dataclass(frozen=True, eq=False)
class DecoderSession(OfOneProcess):
    """The state of one text: what was prefilled or generated in it need not be run again.

    A session serves one generation at a time, the one that was begun last. A stream that was left
    half-read cannot go on once another was begun in its session: that raises InvalidInputError.

    Attributes:
        target: holds the text so far.
        drafter: holds it too.
        search: chooses the trees.
        memory_drafter: the part of `drafter` that knows earlier texts; None if none does.
        learning_drafter: `drafter`, if it hands answers to the decoder's learner.
    """

    target: Target
    drafter: Drafter
    search: TreeSearch
    memory_drafter: MemoryDrafter | None = None
    learning_drafter: LearningDrafter | None = None

    def finish_text(self) -> None:
        """Tells those who look back at answers that this one has ended."""
        if self.memory_drafter is not None:
            self.memory_drafter.remember()
        if self.learning_drafter is not None:
            self.learning_drafter.finish()


class TextStream(Iterator[str], OfOneProcess):
    """A generation under way: iterate to get its text piece by piece.

    What was made is in `generation` at any time, also if the iteration stopped early, and goes on
    if it is taken up again. It does not go on behind an error or an interruption: what was made so
    far counts as cancelled.

    Args:
        continuation: the steps.
        assembler: makes text of them; None where there is no tokenizer.
        on_end: is called when the text has ended.
    """

    def __init__(
        self,
        continuation: Continuation,
        assembler: TextAssembler | None,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self._continuation = continuation
        self._on_end = on_end
        self._assembler = assembler
        self._finish_reason: FinishReason | None = None
        self._steps: list[Step] = []
        self._pieces: list[str] = []
        self._is_cancelled = False
        self._lock = new_reentrant_lock()

    def __next__(self) -> str:
        """Returns the text that became certain by a step; empty where there is no tokenizer."""
        with self._lock:
            return self._next_piece()

    def _next_piece(self) -> str:
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
    def last_step(self) -> Step | None:
        """The newest step; None before the first."""
        return self._steps[-1] if self._steps else None

    @property
    def generation(self) -> Generation:
        """What was generated so far; unless it came to its end, it counts as cancelled."""
        return Generation(
            token_ids=tuple(token for step in self._steps for token in step.emitted),
            text="".join(self._pieces) + self._assembler.held if self._assembler else None,
            steps=tuple(self._steps),
            finish_reason=self._finish_reason or FinishReason.CANCELLED,
        )

    def _take_step(self) -> Step | None:
        """Runs one step, unless the generation is over, and tells when it is."""
        step = self._run_step()
        if self._on_end is not None and (step is None or self._finish_reason):
            self._on_end()
        return step

    def _run_step(self) -> Step | None:
        if self._is_cancelled or self._finish_reason:
            return None
        try:
            step = next(self._continuation.steps, None)
        except BaseException:
            self._is_cancelled = True  # a loop that has failed would look like one that has ended
            raise
        if step is None:
            self._finish_reason = self._continuation.limit_reason
            return None
        self._steps.append(step)
        self._finish_reason = step.finish_reason
        return step


class SpeculativeDecoder(OfOneProcess):
    """Generates the target's own text, faster.

    A decoder holds what is shared: weights, tokenizer, end tokens. It may be used from several
    threads at once; every call has a session of its own unless one is given. A process that is
    forked may go on with it, on one thread.

    Args:
        pair: the models; `treesnake.pairs.Pair` of any target and any drafter.
        tokenizer: a tokenizer of transformers, needed for text in and text out.
        end_token_ids: the tokens after which a text ends.
        search: chooses the trees of all texts, by name or as an object; by default one that tunes
            itself.
        accept: the acceptance rule; by default the best that is exact for each draft.
        images: makes prompts of conversations with images; None where the target reads text alone.
        memory: what was said in earlier texts, which drafts, too; None draws on each text alone.
        learner: teaches the drafter what the target says, between texts; None leaves it as it is.

    Raises:
        InvalidInputError: if an argument is none of these; a search is one that texts can share.
    """

    def __init__(
        self,
        pair: PairModel,
        *,
        tokenizer: Tokenizer | None = None,
        end_token_ids: Collection[int] = (),
        search: str | SharedSearch = SELF_TUNING,
        accept: AcceptanceRule | None = None,
        images: ImageEncoder | None = None,
        memory: TextMemory | None = None,
        learner: Learner | None = None,
    ) -> None:
        if not isinstance(pair, PairModel):
            raise InvalidInputError(
                f"a decoder needs a target and a drafter as a pair: write Pair(target, drafter), "
                f"got {type(pair).__name__}"
            )
        _check_part("tokenizer", tokenizer, Tokenizer)
        _check_part("accept", accept, AcceptanceRule)
        _check_part("images", images, ImageEncoder)
        _check_part("memory", memory, TextMemory)
        _check_part("learner", learner, Learner)
        self.pair = pair
        self.tokenizer = tokenizer
        self._decoding = None if tokenizer is None else decoding_of(tokenizer)
        self.end_token_ids = as_token_ids("end_token_ids", end_token_ids)
        self._grammars = GrammarCompiler(tokenizer, self.end_token_ids)
        self.search = as_search(search)
        self.images = images
        self.memory = memory
        self.learner = learner
        self._accept = accept

    @classmethod
    def from_pretrained(
        cls,
        target: str | Path = DEFAULT_MODEL,
        drafter: str | Path = AUTO,
        *,
        dtype: DtypeName = "auto",
        device: str = "auto",
        engine: EngineName = "auto",
        device_map: DeviceMap | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        search: str | SharedSearch = SELF_TUNING,
        captions: str | Path | None = None,
        memory: MemoryLike = False,
        learn: LearnLike = False,
    ) -> "SpeculativeDecoder":
        """Loads a target and a drafter by name.

        Args:
            target: a name on the hub, a folder, a GGUF file, or "smollm2", which is a package. A
                path is a folder or a file.
            drafter: "auto" for the best that comes with the package, "prompt-lookup", "none" for
                plain decoding, "self" for a copy of the target with fewer bits, or a model by name
                or folder; see `treesnake.pairs.pair_by_name`.
            dtype: of the target's weights; see `treesnake.loading.options.LoadOptions`.
            device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the best there is.
            engine: "native", "generic", or "auto".
            device_map: spreads the layers over several devices, as in accelerate.
            revision: of a model on the hub.
            trust_remote_code: runs code that comes with the model.
            search: what chooses the trees of all sessions: "self-tuning", another one by name, or
                a shape such as "chain(4)", see `treesnake.search.by_name.search_by_name`; or a
                search of your own.
            captions: a model that sees images. It describes each image once, for a drafter with a
                stream `C`, as in "owner/small-vlm:MTC".
            memory: True drafts also from what was said in earlier texts of this process, False does
                not. A folder keeps it there for the next process, by target and tokenizer. A
                `TextMemory` may be shared by decoders with the same tokens.
            learn: True lets the drafter, a Mamba, learn from what the target says, between texts.
                A folder keeps what it learned there for the next process, by target and drafter.

        Raises:
            LoadError: if the model cannot be had.
            UnsupportedModelError: if it cannot be run correctly.
            InvalidInputError: for names and options that do not exist or contradict each other.
        """
        options = LoadOptions(dtype, device, engine, device_map, revision, trust_remote_code)
        return cls.load(
            target,
            drafter,
            options,
            search=search,
            captions=captions,
            memory=memory,
            learn=learn,
        )

    @classmethod
    def load(
        cls,
        target: str | Path = DEFAULT_MODEL,
        drafter: str | Path = AUTO,
        options: LoadOptions = DEFAULT_OPTIONS,
        *,
        search: str | SharedSearch = SELF_TUNING,
        captions: str | Path | None = None,
        memory: MemoryLike = False,
        learn: LearnLike = False,
    ) -> "SpeculativeDecoder":
        """Does what `from_pretrained` does, with options in one piece.

        They are the target's. The drafter and the model that writes captions are loaded to the same
        device, with dtypes of their own.
        """
        target, drafter = _as_name("target", target), _as_name("drafter", drafter)
        _check_part("options", options, LoadOptions)
        check_drafter_name(drafter)
        as_search(search)  # a wrong one need not wait for the models
        if captions is not None and not reads_captions(drafter):
            raise InvalidInputError(
                f"the drafter {drafter!r} has no stream that reads captions; name one with a "
                "stream C, as in owner/small-vlm:MTC, or leave captions out"
            )
        memory = False if drafter == NO_DRAFTER else memory
        model, loaded = load_target(target, options)
        warn_of_unapplied_settings(target, loaded.checkpoint.generation_config)
        drafter_options = LoadOptions(device=options.device)
        caption = None if captions is None else cls._captioner(captions, drafter_options).caption
        pair = pair_by_name(model, loaded, drafter, drafter_options, caption)
        costs = known_costs(pair, loaded, str(drafter))
        if isinstance(search, str):
            search = search_by_name(search, costs)
        return cls.of_loaded(pair, loaded, search, memory, learn)

    @classmethod
    def _captioner(cls, name: str | Path, options: LoadOptions) -> "SpeculativeDecoder":
        """Loads a model that describes images, without a drafter."""
        captioner = cls.load(_as_name("captions", name), NO_DRAFTER, options)
        if captioner.images is None:
            raise InvalidInputError(
                f"{name} reads text alone and cannot write captions; name a vision-language model"
            )
        return captioner

    @classmethod
    def of_loaded(
        cls,
        pair: PairModel,
        loaded: LoadedNetwork,
        search: str | SharedSearch = SELF_TUNING,
        memory: MemoryLike = False,
        learn: LearnLike = False,
    ) -> "SpeculativeDecoder":
        """Returns a decoder of a pair whose target was loaded with its tokenizer and processor.

        Args:
            pair: the models.
            loaded: what the target was made of.
            search: as in `from_pretrained`.
            memory: likewise.
            learn: likewise.
        """
        drafter = pair.drafter if isinstance(pair, Pair) else pair
        return cls(
            pair,
            tokenizer=cast(Tokenizer, loaded.checkpoint.tokenizer),
            end_token_ids=end_token_ids(loaded.checkpoint),
            search=search,
            images=ProcessorFiles(loaded.checkpoint) if reads_inputs(loaded.network) else None,
            memory=open_memory(memory, loaded.checkpoint),
            learner=open_learner(learn, drafter, loaded.checkpoint),
        )

    def with_pair(self, pair: PairModel) -> "SpeculativeDecoder":
        """Returns a decoder like this one, of other models with the same tokens."""
        return SpeculativeDecoder(
            pair,
            tokenizer=self.tokenizer,
            end_token_ids=self.end_token_ids,
            search=self.search,
            accept=self._accept,
            images=self.images,
            memory=self.memory,
            learner=self.learner,
        )

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be given."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def new_session(self, memory: bool | TextMemory = True) -> DecoderSession:
        """Returns a session with an empty state, to continue one text in several calls.

        Args:
            memory: True drafts from the memory of the decoder, where it has one, and adds to it.
                False does neither, nor is the text learned from; a memory takes the place of the
                decoder's.
        """
        target, drafter = self.pair.new_sessions()
        note_maker(target, self)
        search = self.search.new_session()
        chosen = self.memory if memory is True else memory
        recalling = MemoryDrafter(chosen) if isinstance(chosen, TextMemory) else None
        learner = None if memory is False else self.learner
        if recalling is not None:
            drafter = CompositeDrafter(drafter, recalling)
        learning = None if learner is None else LearningDrafter(drafter, learner)
        drafter = learning or drafter
        return DecoderSession(target, drafter, search, recalling, learning)

    def explain(self, generation: Generation) -> Explanation:
        """Tells who wrote each token of a generation of this decoder, and draws its last tree.

        Printed it is text; a notebook shows it in colours.

        Raises:
            InvalidInputError: if the decoder has no tokenizer.
        """
        if self.tokenizer is None:
            raise InvalidInputError("tokens have no text without a tokenizer; give one to decoder")
        return explain(generation, self.tokenizer.decode)

    def caption(self, image: PromptInput) -> str:
        """Says in a sentence what an image shows, for a drafter that reads captions.

        Raises:
            InvalidInputError: if the input does not hold its picture, or the target sees none.
        """
        if image.picture is None:
            raise InvalidInputError(
                "the image came as tensors alone, and a caption needs its picture; give the prompt "
                "as messages with images"
            )
        asked = [user_message(DESCRIBE, [image.picture])]
        return (self.generate(asked, max_new_tokens=MOST_CAPTION).text or "").strip()

    def generate(
        self,
        prompt: PromptLike,
        params: SamplingParams | None = None,
        *,
        max_new_tokens: int = 256,
        min_new_tokens: int = 0,
        stop: Collection[str] | None = None,
        constraints: Sequence[Constraint] = (),
        response_format: Mapping[str, object] | None = None,
        grammar: str | None = None,
        regex: str | None = None,
        logprobs: int | None = None,
        session: DecoderSession | None = None,
    ) -> Generation:
        """Continues a prompt and returns the text with its statistics.

        Args:
            prompt: text, which is continued as it is; a conversation, which is put through the
                chat template; or token ids.
            params: how to sample; greedy by default.
            max_new_tokens: at most so many; the context may end the text earlier.
            min_new_tokens: so many before an end token may come; as many as `max_new_tokens`
                forbid it altogether. Stop strings, and a form that is whole, end the text all the
                same.
            stop: strings that end the text and are not part of it; also names of special tokens.
            constraints: on the next token given the text so far.
            response_format: the answer is JSON: `{"type": "json_object"}`, or
                `{"type": "json_schema", "json_schema": {"schema": schema}}` as in OpenAI's API.
            grammar: the answer keeps to a grammar in Lark's language.
            regex: the whole answer matches a regular expression.
            logprobs: a number asks for the log probability of each new token and for so many of
                the most probable ones beside it; see `treesnake.logprobs`. None costs nothing.
            session: one of this decoder's; what it holds of the prompt is not run again.

        Raises:
            InvalidInputError: naming the argument that cannot be right.
            ContextLengthError: if the prompt does not fit into the target's context.
        """
        return self.stream(
            prompt,
            params,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            stop=stop,
            constraints=constraints,
            response_format=response_format,
            grammar=grammar,
            regex=regex,
            logprobs=logprobs,
            session=session,
        ).run()

    def stream(
        self,
        prompt: PromptLike,
        params: SamplingParams | None = None,
        *,
        max_new_tokens: int = 256,
        min_new_tokens: int = 0,
        stop: Collection[str] | None = None,
        constraints: Sequence[Constraint] = (),
        response_format: Mapping[str, object] | None = None,
        grammar: str | None = None,
        regex: str | None = None,
        logprobs: int | None = None,
        session: DecoderSession | None = None,
    ) -> TextStream:
        """Returns the text of `generate` piece by piece, as a stream to iterate over.

        Bad input is refused here, before the first piece.
        """
        max_new_tokens = as_count("max_new_tokens", max_new_tokens)
        min_new_tokens = _as_least("min_new_tokens", min_new_tokens, max_new_tokens)
        stop = as_texts("stop", stop)
        constraints = as_constraints(constraints)
        form = chosen_grammar(response_format, grammar, regex)
        _check_part("params", params, SamplingParams)
        params = SamplingParams() if params is None else params
        session = self.new_session() if session is None else self._own(session)
        encoded = self.encode(prompt)
        if form is not None:
            constraints = (*constraints, self._grammar_constraint(form, len(encoded)))
        continuation = continue_text(
            session.target,
            session.drafter,
            encoded,
            params,
            search=session.search,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            end_token_ids=self.end_token_ids,
            constraints=constraints,
            stop_rules=self._stop_rules(stop, encoded),
            accept=self._accept,
            logprobs=logprobs,
        )
        assembler = None
        if self._decoding is not None:
            assembler = TextAssembler(self._decoding, stop, encoded.token_ids)
        return TextStream(continuation, assembler, session.finish_text)

    def form_constraint(
        self,
        num_prompt_tokens: int,
        *,
        response_format: Mapping[str, object] | None = None,
        grammar: str | None = None,
        regex: str | None = None,
    ) -> Constraint | None:
        """Returns what keeps one answer to a form, to make it once and before the answer begins.

        Args:
            num_prompt_tokens: where the answer begins.
            response_format: as for `generate`.
            grammar: as for `generate`.
            regex: as for `generate`.

        Raises:
            InvalidInputError: if the form cannot be used.
        """
        form = chosen_grammar(response_format, grammar, regex)
        return None if form is None else self._grammar_constraint(form, num_prompt_tokens)

    def score_text(
        self, text: PromptLike, *, logprobs: int = 0, session: DecoderSession | None = None
    ) -> tuple[TokenLogprobs, ...]:
        """Returns the target's log probability of each token of a text but the first.

        Args:
            text: as the prompt of `generate`; without images.
            logprobs: how many of the most probable tokens each position tells beside it.
            session: one of this decoder's; a generation that continues the text in it does not run
                the text again in the target.

        Raises:
            InvalidInputError: naming the argument that cannot be right.
            ContextLengthError: if the text does not fit into the target's context.
        """
        session = self.new_session() if session is None else self._own(session)
        num_top = as_num_top(logprobs, session.target.vocab_size)
        parts = score_text(session.target, self.encode(text), num_top)
        return tuple(token for part in parts for token in part)

    def encode(self, prompt: PromptLike, *, tools: Sequence[Mapping[str, object]] = ()) -> Prompt:
        """Returns the prompt as token ids.

        Args:
            prompt: as for `generate`.
            tools: what the model may call in its answer to a conversation, each described as in
                OpenAI's API. How it writes a call depends on the model; nothing here reads it.

        Raises:
            InvalidInputError: if it is empty, or is text and there is no tokenizer; if there are
                tools without a conversation, or the chat template leaves them out.
        """
        if tools and not _is_conversation(prompt):
            raise InvalidInputError("tools are for a conversation: give the prompt as messages")
        if isinstance(prompt, Prompt):
            return prompt
        if isinstance(prompt, str):
            tokenizer = self._tokenizer_for("a prompt of text")
            return Prompt.of(_encoded(tokenizer, prompt, is_whole=False))
        if isinstance(prompt, Mapping) and "role" in prompt:
            raise InvalidInputError(
                "the prompt is one message: a conversation is a list, so write [message]"
            )
        if _is_conversation(prompt):
            return self._encode_conversation(cast(Sequence[Message], prompt), tools)
        first = prompt[0] if isinstance(prompt, Sequence) and len(prompt) else None
        if isinstance(first, str):
            raise InvalidInputError("the prompt is a list of texts: give one text at a time")
        if isinstance(first, tuple) and first and isinstance(first[0], str):
            raise InvalidInputError(
                "the prompt is a list of tuples: a message is {'role': 'user', 'content': 'Hello'}"
            )
        return Prompt.of(cast(Sequence[int], prompt))

    def _encode_conversation(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, object]]
    ) -> Prompt:
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
        images = image_sources(checked)
        if images and self.images is None:
            raise InvalidInputError(
                f"{images[0][0]} cannot be read: the target reads text and nothing else; leave "
                "images out, or load a vision-language model"
            )
        text, history = (
            render(checked, partial(_templated, tokenizer, tools=tools, is_answered=is_answered))
            for is_answered in (True, False)
        )
        check_offered(tools, text)
        if images and self.images is not None:
            prompt = self.images.encode(check_text(text, "the prompt"), images)
        else:
            prompt = Prompt.of(_encoded(tokenizer, text, is_whole=True))
        tokens = list(prompt.token_ids)
        opening = _encoded(tokenizer, text[len(history) :], is_whole=True)
        border = len(tokens) - len(opening)
        is_border = text.startswith(history) and tokens[border:] == opening
        return replace(prompt, borders=(border,) if is_border else (), messages=tuple(checked))

    def _own(self, session: object) -> DecoderSession:
        """Returns a session, if it is one of this decoder's."""
        if not isinstance(session, DecoderSession):
            raise InvalidInputError(
                f"session must be what new_session returns, got {type(session).__name__}"
            )
        if not was_made_by(session.target, self):
            raise InvalidInputError(
                "the session was made by another decoder, whose text it holds; make one with "
                "new_session of this decoder"
            )
        return session

    def _stop_rules(self, stop: Sequence[str], prompt: Prompt) -> list[StopRule]:
        if not stop:
            return []
        self._tokenizer_for("a stop string")
        assert self._decoding is not None
        return [StopStrings(stop, self._decoding, prompt.token_ids)]

    def _grammar_constraint(self, grammar: str, num_prompt_tokens: int) -> Constraint:
        self._tokenizer_for("a grammar")
        return self._grammars.constraint(grammar, num_prompt_tokens)

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


def _is_conversation(prompt: object) -> bool:
    is_list = isinstance(prompt, Sequence) and not isinstance(prompt, str)
    return is_list and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _templated(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, object]],
    is_answered: bool,
) -> str:
    offered = {"tools": list(tools)} if tools else {}
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=is_answered, tokenize=False, **offered
    )


def _check_part(name: str, part: object, role: type) -> None:
    """Checks that a part plays its role, or is left out."""
    if part is not None and not isinstance(part, role):
        raise InvalidInputError(
            f"{name} must be a {role.__module__}.{role.__name__}, got {type(part).__name__}"
        )


def _as_name(role: str, name: object) -> str:
    """Returns the name of a model; a path stays one, also where a model has the same name."""
    if isinstance(name, Path):
        if not name.expanduser().exists():
            raise LoadError(f"there is no file or folder {name}")
        return str(name) if name.is_absolute() else f"{curdir}/{name}"
    if isinstance(name, str) and name:
        return name
    raise InvalidInputError(
        f"{role} must be the name of a model or its folder, got {name!r}; a model that is loaded "
        "already goes into SpeculativeDecoder(Pair(target, drafter))"
    )


def _as_least(name: str, least: object, most: int) -> int:
    """Returns a number of tokens, if there may be so many."""
    number = as_count(name, least, least=0)
    if number > most:
        raise InvalidInputError(f"{name} must be at most max_new_tokens, {most}, got {number}")
    return number
