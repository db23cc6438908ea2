"""What clients ask for: the fields of OpenAI's API that are supported, and no others.

A field that has no effect here is refused with its name. `user` is the exception: it is a note for
operators, and changes no answer anywhere.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from treesnake.constraints import (
    Constraint,
    LogitBias,
    OccurrencePenalty,
    RepetitionPenalty,
)
from treesnake.decoder import SpeculativeDecoder
from treesnake.errors import InvalidInputError
from treesnake.sampling import SamplingParams
from treesnake.serving.tools import Choice, Tool, call_grammar, has_mark_tokens

MOST_CHOICES = 128
"""Answers to one request, prompts times `n`."""

NOT_SUPPORTED: Mapping[str, str] = {
    "functions": "use tools",
    "function_call": "use tool_choice",
    "suffix": "the models continue texts only",
    "best_of": "ask for n answers and choose",
    "audio": "only text can be answered with",
    "modalities": "only text can be answered with",
}
"""What to do instead of fields that clients know from elsewhere."""

FORMS = ("response_format", "guided_json", "guided_regex", "guided_grammar")
"""Fields that give an answer a form, as OpenAI's API and vLLM name them; one of them at a time."""


class RequestError(InvalidInputError):
    """A request that is refused.

    Attributes:
        field: the field that cannot be right; None where it is the whole.
        status: of HTTP.
        code: as OpenAI's API names the error; None where it has no name.
    """

    def __init__(
        self, message: str, field: str | None = None, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.field = field
        self.status = status
        self.code = code


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Penalty = Annotated[float, Field(ge=-2, le=2)]
"""As OpenAI's API bounds penalties on occurrences."""


class StreamOptions(_Fields):
    """What a stream tells beside its text."""

    include_usage: bool = False


class AnswerRequest(_Fields):
    """What both kinds of completion have in common.

    Attributes:
        return_steps: adds each step to its chunk: tree, accepted path, seconds. The page asks.
    """

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: dict[int, float] = {}
    min_tokens: Annotated[int, Field(ge=0)] = 0
    ignore_eos: bool = False
    seed: int | None = None
    response_format: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] = 1
    stop: str | list[str] = []
    user: str | None = None
    return_steps: bool = False

    @property
    def stop_strings(self) -> list[str]:
        """The strings that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def params(self, choice: int) -> SamplingParams:
        """Returns how to sample one of the answers; a seed makes each a different one."""
        top_k = None if self.top_k in (0, -1) else self.top_k  # how others spell "all"
        seed = None if self.seed is None else self.seed + choice
        return SamplingParams(self.temperature, top_k, self.top_p, self.min_p, seed)

    def constraints(self, decoder: SpeculativeDecoder, num_prompt_tokens: int) -> list[Constraint]:
        """Returns what changes the logits of one answer.

        Raises:
            RequestError: if the form of the answer cannot be used.
        """
        found: list[Constraint] = []
        if self.repetition_penalty != 1:
            found.append(RepetitionPenalty(self.repetition_penalty))
        if self.presence_penalty or self.frequency_penalty:
            found.append(
                OccurrencePenalty(num_prompt_tokens, self.presence_penalty, self.frequency_penalty)
            )
        if self.logit_bias:
            found.append(LogitBias(self.logit_bias))
        form = self._form(decoder, num_prompt_tokens)
        return [*found, form] if form else found

    @property
    def echoes(self) -> bool:
        """Whether the answer begins with the prompt."""
        return False

    @property
    def offered_tools(self) -> Sequence[Tool]:
        """What the model may call."""
        return ()

    @property
    def _forms(self) -> list[str]:
        """The fields that give the answer a form."""
        return [name for name in FORMS if getattr(self, name) is not None]

    def _grammar(self, decoder: SpeculativeDecoder) -> str | None:
        return self.guided_grammar

    def _form(self, decoder: SpeculativeDecoder, num_prompt_tokens: int) -> Constraint | None:
        asked = self._forms
        if len(asked) > 1:
            message = f"{' and '.join(asked)} exclude each other: give one of them"
            raise RequestError(message, asked[-1])
        try:
            return decoder.form_constraint(
                num_prompt_tokens,
                response_format=self._response_format(),
                grammar=self._grammar(decoder),
                regex=self.guided_regex,
            )
        except InvalidInputError as error:
            raise RequestError(str(error), asked[0] if asked else None) from error

    def _response_format(self) -> dict[str, Any] | None:
        schema = self.guided_json
        if schema is None:
            return self.response_format
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError as error:
                raise InvalidInputError(f"guided_json is text that is no JSON: {error}") from error
        return {"type": "json_schema", "json_schema": {"schema": schema}}


class ChatRequest(AnswerRequest):
    """The body of /v1/chat/completions.

    Attributes:
        tool_choice: "none" leaves the tools out of the prompt.
    """

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    tools: list[Tool] = []
    tool_choice: Choice = "auto"
    parallel_tool_calls: bool = True

    @property
    def prompts(self) -> list[Any]:
        """The one conversation."""
        return [self.messages]

    @property
    def num_top(self) -> int | None:
        """How many of the most probable tokens are asked for; None without log probabilities."""
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", "top_logprobs")
        return self.top_logprobs if self.logprobs else None

    @property
    def most_tokens(self) -> int | None:
        """How many tokens the client wants at most; None leaves it to the server."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def offered_tools(self) -> Sequence[Tool]:
        """What the model may call."""
        if not self.tools and self.tool_choice not in ("none", "auto"):
            raise RequestError(
                "tool_choice needs tools; offer some, or leave it out", "tool_choice"
            )
        return () if self.tool_choice == "none" else self.tools

    @property
    def _forms(self) -> list[str]:
        return [*super()._forms, *(["tools"] if self.offered_tools else [])]

    def _grammar(self, decoder: SpeculativeDecoder) -> str | None:
        if not self.offered_tools:
            return super()._grammar(decoder)
        return call_grammar(
            self.offered_tools,
            choice=self.tool_choice,
            is_parallel=self.parallel_tool_calls,
            marks_are_tokens=has_mark_tokens(decoder),
        )


class CompletionRequest(AnswerRequest):
    """The body of /v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0)] = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, one or more."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise RequestError("prompt is empty; give a text, or token ids", "prompt")
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt

    @property
    def num_top(self) -> int | None:
        """How many of the most probable tokens are asked for; None without log probabilities."""
        return self.logprobs

    @property
    def echoes(self) -> bool:
        """Whether the answer begins with the prompt."""
        return self.echo

    @property
    def most_tokens(self) -> int:
        """How many tokens the client wants at most."""
        return self.max_tokens


class TokenizeRequest(_Fields):
    """The body of /tokenize: a text or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None


class DetokenizeRequest(_Fields):
    """The body of /detokenize."""

    model: str | None = None
    tokens: list[int]


R = TypeVar("R", bound=BaseModel)


def read_request(kind: type[R], body: object) -> R:
    """Returns a request; a field that is null counts as left out.

    Raises:
        RequestError: naming the field that cannot be right.
    """
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    given = {name: value for name, value in body.items() if value is not None}
    for name, remedy in NOT_SUPPORTED.items():
        if name in given and given[name] not in ([], "none"):
            raise RequestError(f"{name} is not supported; {remedy}", name)
    given = {name: value for name, value in given.items() if name not in NOT_SUPPORTED}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _refusal(error) from error


def _refusal(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    name = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "extra_forbidden":
        return RequestError(f"{field} is not supported; leave it out", name)
    if first["type"] == "missing":
        return RequestError(f"{field} is missing", name)
    return RequestError(f"{field} cannot be right: {first['msg']}", name)
