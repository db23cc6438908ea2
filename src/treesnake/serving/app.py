"""The endpoints."""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from time import perf_counter, time
from typing import Any
from uuid import uuid4

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from treesnake.decoder import Tokenizer
from treesnake.errors import InvalidInputError, TreesnakeError
from treesnake.prompt import Prompt
from treesnake.serving.answers import (
    FINISHED,
    CallForm,
    ChatForm,
    EchoedToken,
    TextForm,
    TokenNames,
    step_record,
    timings,
    usage,
)
from treesnake.serving.engine import Engine
from treesnake.serving.gate import (
    API_KEY,
    KeyCheck,
    RequestName,
    check_images,
    error_object,
    read_body,
    tell,
)
from treesnake.serving.metrics import Metrics
from treesnake.serving.page import page_html
from treesnake.serving.relay import cancelled_with
from treesnake.serving.requests import (
    MOST_CHOICES,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    RequestError,
    TokenizeRequest,
    read_request,
)
from treesnake.serving.tickets import StreamPiece, Ticket
from treesnake.serving.tools import check_template

Asked = ChatRequest | CompletionRequest


@dataclass(frozen=True)
class Served:
    """What is served, and to whom.

    Attributes:
        engine: what generates.
        model_name: the name that clients call it by.
        api_keys: keys, any of which opens the server; none at all opens it to everybody.
        plain_step_s: seconds of a step of plain decoding, for the page; None is not known.
    """

    engine: Engine
    model_name: str
    api_keys: Sequence[str] = ()
    plain_step_s: float | None = None


def create_app(served: Served) -> Starlette:
    """Returns the server's application.

    Raises:
        InvalidInputError: if the decoder has no tokenizer, or its drafter would learn from what
            several users are told.
    """
    if served.engine.decoder.learner is not None and len({*served.api_keys}) > 1:
        raise InvalidInputError(
            "a drafter that learns tells one user by its speed what others were told: give one API "
            "key or none, or leave learning out"
        )
    api = Api(served)
    routes = [
        Route("/", api.page),
        Route("/health", api.health),
        Route("/version", api.version),
        Route("/metrics", api.metrics_page),
        Route("/v1/models", api.models),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/tokenize", api.tokenize, methods=["POST"]),
        Route("/detokenize", api.detokenize, methods=["POST"]),
    ]
    middleware = [
        Middleware(RequestName),
        Middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"]),
        Middleware(KeyCheck, keys=served.api_keys),
    ]
    return Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={404: tell, 405: tell, TreesnakeError: tell, Exception: tell},
    )


@dataclass(eq=False)
class Choice:
    """One of the answers to a request.

    Attributes:
        index: its number.
        ticket: its text in the engine.
        form: how it is written.
        prompt: what it continues.
        echo: the prompt's text, if the answer begins with it.
    """

    index: int
    ticket: Ticket
    form: ChatForm | TextForm
    prompt: Prompt
    echo: str = ""
    texts: list[str] = field(default_factory=list)

    def json(self, body: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        """Returns the choice with its number and the reason why it ended."""
        return {"index": self.index, **body, "finish_reason": finish_reason}

    @property
    def finish_reason(self) -> str:
        """Why it ended, in OpenAI's words."""
        return self.form.finish_reason(FINISHED[self.ticket.generation.finish_reason])

    @property
    def bare_echo(self) -> str:
        """The prompt's text where nothing is told of its tokens, and so nothing is waited for."""
        return self.echo if self.ticket.request.echo_logprobs is None else ""

    def echoed(self, piece: StreamPiece) -> tuple[str, list[EchoedToken]]:
        """Returns what a piece adds to text and tokens, the prompt's first token included."""
        if piece.echo is None:
            return piece.text, list(piece.logprobs)
        return self.echo, [self.prompt.token_ids[0], *piece.echo]


class Answer:
    """The answer to one request: choices, and the frame around them."""

    def __init__(self, asked: Asked, choices: Sequence[Choice], model: str) -> None:
        self.asked = asked
        self.choices = choices
        self.tickets = [choice.ticket for choice in choices]
        is_chat = isinstance(asked, ChatRequest)
        self._kind = "chat.completion" if is_chat else "text_completion"
        self._chunk_kind = "chat.completion.chunk" if is_chat else "text_completion"
        self._id = f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid4().hex}"
        self._created = int(time())
        self._model = model

    def frame(self, choices: list[dict[str, Any]], *, is_chunk: bool) -> dict[str, Any]:
        """Returns choices with what stands around them."""
        return {
            "id": self._id,
            "object": self._chunk_kind if is_chunk else self._kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(len(choice.prompt) for choice in self.choices[:: self.asked.n])

    @property
    def num_cached(self) -> int:
        """Tokens of the prompts that did not run again."""
        return sum(choice.ticket.num_cached for choice in self.choices[:: self.asked.n])

    def numbers(self) -> dict[str, Any]:
        """Returns usage and timings."""
        generations = [ticket.generation for ticket in self.tickets]
        return {
            "usage": usage(self.num_prompt_tokens, self.num_cached, generations),
            "timings": timings(self.num_prompt_tokens, generations),
        }


class Api:
    """The endpoints of one server."""

    def __init__(self, served: Served) -> None:
        tokenizer = served.engine.decoder.tokenizer
        if tokenizer is None:
            raise InvalidInputError("a server needs the target's tokenizer; give the decoder one")
        self._served = served
        self._engine = served.engine
        self._tokenizer: Tokenizer = tokenizer
        self._names = TokenNames(tokenizer)
        self._metrics = Metrics(served.engine)
        self._created = int(time())
        self._most_length = served.engine.max_model_len
        self._has_tools = False

    async def chat(self, request: Request) -> Response:
        """Answers a conversation."""
        asked = read_request(ChatRequest, await read_body(request))
        check_images(asked.messages)
        return await self._answer(request, asked)

    async def completions(self, request: Request) -> Response:
        """Continues texts."""
        return await self._answer(
            request, read_request(CompletionRequest, await read_body(request))
        )

    async def _answer(self, request: Request, asked: Asked) -> Response:
        asked_at = perf_counter()
        self._check_model(asked.model)
        choices = await run_in_threadpool(self._begin, asked, request.scope[API_KEY])
        answer = Answer(asked, choices, self._served.model_name)
        if asked.stream:
            lines = self._stream(request, answer, asked_at)
            headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
            return StreamingResponse(lines, media_type="text/event-stream", headers=headers)
        return await self._whole(request, answer, asked_at)

    def _begin(self, asked: Asked, user: str | None) -> list[Choice]:
        """Puts all texts of a request into the queue, or none of them."""
        prompts = [self._encode(asked, prompt) for prompt in asked.prompts]
        if len(prompts) * asked.n > MOST_CHOICES:
            raise RequestError(f"a request can have {MOST_CHOICES} answers at most", "n")
        choices: list[Choice] = []
        try:
            for prompt in prompts:
                echo = self._echo(asked, prompt)
                for number in range(asked.n):
                    ticket = self._submit(asked, prompt, number, user)
                    form = self._form(asked)
                    choices.append(Choice(len(choices), ticket, form, prompt, echo))
        except BaseException:
            for choice in choices:
                choice.ticket.cancel()
            raise
        return choices

    def _encode(self, asked: Asked, prompt: Any) -> Prompt:
        tools = [tool.model_dump(exclude_none=True) for tool in asked.offered_tools]
        if tools:
            self._check_tools()
        return self._engine.decoder.encode(prompt, tools=tools)

    def _check_tools(self) -> None:
        """Checks once that the model has tools."""
        if not self._has_tools:
            try:
                check_template(self._engine.decoder)
            except InvalidInputError as error:
                raise RequestError(str(error), "tools") from error
            self._has_tools = True

    def _form(self, asked: Asked) -> ChatForm | TextForm:
        if isinstance(asked, CompletionRequest):
            return TextForm(self._names)
        return (CallForm if asked.offered_tools else ChatForm)(self._names)

    def _submit(self, asked: Asked, prompt: Prompt, number: int, user: str | None) -> Ticket:
        return self._engine.submit(
            prompt,
            asked.params(number),
            max_new_tokens=asked.most_tokens,
            stop=asked.stop_strings,
            min_new_tokens=None if asked.ignore_eos else asked.min_tokens,
            constraints=asked.constraints(self._engine.decoder, len(prompt)),
            logprobs=asked.num_top,
            echo_logprobs=asked.num_top if asked.echoes else None,
            user=user,
        )

    def _echo(self, asked: Asked, prompt: Prompt) -> str:
        return self._tokenizer.decode(list(prompt.token_ids)) if asked.echoes else ""

    async def _pieces(
        self, answer: Answer, asked_at: float
    ) -> AsyncIterator[tuple[Choice, StreamPiece | None]]:
        """Iterates over what the texts get, and counts it."""
        async for number, piece in self._metrics.counted_pieces(answer.tickets, asked_at):
            yield answer.choices[number], piece

    async def _whole(self, request: Request, answer: Answer, asked_at: float) -> Response:
        tokens: dict[int, list[EchoedToken]] = {}
        for choice in answer.choices:
            choice.texts.append(choice.bare_echo)
        async with cancelled_with(request, answer.tickets):
            async for choice, piece in self._pieces(answer, asked_at):
                if piece:
                    text, added = choice.echoed(piece)
                    choice.texts.append(text)
                    tokens.setdefault(choice.index, []).extend(added)
        has_logprobs = answer.asked.num_top is not None
        bodies = [
            choice.json(
                choice.form.whole(
                    "".join(choice.texts),
                    tokens.get(choice.index, []) if has_logprobs else None,
                ),
                choice.finish_reason,
            )
            for choice in answer.choices
        ]
        return JSONResponse(answer.frame(bodies, is_chunk=False) | answer.numbers())

    async def _stream(
        self, request: Request, answer: Answer, asked_at: float
    ) -> AsyncIterator[str]:
        """Yields the lines of an event stream; an error ends it with an object of its own."""
        async with cancelled_with(request, answer.tickets):
            try:
                async for chunk in self._chunks(answer, asked_at):
                    yield _event(chunk)
            except TreesnakeError as error:
                yield _event(error_object(error))
            except Exception as error:  # noqa: BLE001 - the headers are gone already
                await tell(request, error)
                yield _event(error_object(error))
            yield "data: [DONE]\n\n"

    async def _chunks(self, answer: Answer, asked_at: float) -> AsyncIterator[dict[str, Any]]:
        asked = answer.asked
        for choice in answer.choices:
            for body in self._openings(choice):
                yield answer.frame([choice.json(body)], is_chunk=True)
        num_open = len(answer.choices)
        async for choice, piece in self._pieces(answer, asked_at):
            if piece is None:
                num_open -= 1
                yield self._closing(answer, choice, is_last=not num_open)
            elif piece.text or piece.logprobs or piece.echo is not None or asked.return_steps:
                text, added = choice.echoed(piece)
                body = choice.form.piece(text, None if asked.num_top is None else added)
                chunk = answer.frame([choice.json(body)], is_chunk=True)
                if asked.return_steps and piece.step:
                    chunk["step"] = step_record(piece.step, self._names)
                yield chunk
        if asked.stream_options.include_usage:
            yield answer.frame([], is_chunk=True) | answer.numbers()

    def _openings(self, choice: Choice) -> list[dict[str, Any]]:
        if isinstance(choice.form, ChatForm):
            return [choice.form.opening()]
        return [choice.form.piece(choice.bare_echo, None)] if choice.bare_echo else []

    def _closing(self, answer: Answer, choice: Choice, *, is_last: bool) -> dict[str, Any]:
        body = choice.json(choice.form.closing(), choice.finish_reason)
        chunk = answer.frame([body], is_chunk=True)
        if is_last:
            chunk["timings"] = answer.numbers()["timings"]
        return chunk

    async def models(self, request: Request) -> Response:
        """Tells the one model."""
        model = {
            "id": self._served.model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "treesnake",
            "max_model_len": self._most_length,
            "meta": {"n_ctx": self._most_length},
        }
        return JSONResponse({"object": "list", "data": [model]})

    async def tokenize(self, request: Request) -> Response:
        """Turns a text or a conversation into tokens."""
        asked = read_request(TokenizeRequest, await read_body(request))
        self._check_model(asked.model)
        if (asked.prompt is None) == (asked.messages is None):
            raise RequestError("give a prompt or messages, and one of them only", "prompt")
        check_images(asked.messages or ())
        prompt: Any = asked.messages if asked.prompt is None else asked.prompt
        encoded = await run_in_threadpool(self._engine.decoder.encode, prompt)
        tokens = list(encoded.token_ids)
        return JSONResponse(
            {"tokens": tokens, "count": len(tokens), "max_model_len": self._most_length}
        )

    async def detokenize(self, request: Request) -> Response:
        """Turns tokens into text."""
        asked = read_request(DetokenizeRequest, await read_body(request))
        self._check_model(asked.model)
        num_tokens = self._engine.vocab_size
        if not all(0 <= token < num_tokens for token in asked.tokens):
            raise RequestError(f"tokens must be from 0 to {num_tokens - 1}", "tokens")
        return JSONResponse({"prompt": self._tokenizer.decode(asked.tokens)})

    async def health(self, request: Request) -> Response:
        """Tells that the server runs."""
        return JSONResponse({"status": "ok"})

    async def version(self, request: Request) -> Response:
        """Tells the version."""
        return JSONResponse({"version": version("treesnake")})

    async def metrics_page(self, request: Request) -> Response:
        """Tells the numbers for Prometheus."""
        return Response(self._metrics.page(), media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        """Shows the page."""
        return HTMLResponse(page_html(self._served.model_name, self._served.plain_step_s))

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self._served.model_name:
            raise RequestError(
                f"the model {name!r:.200} does not exist; this server has "
                f"{self._served.model_name!r}",
                "model",
                status=404,
                code="model_not_found",
            )


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
