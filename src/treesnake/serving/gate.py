"""The gate for requests: bodies, keys, conversations, and how refusals are told."""

import hmac
import json
import logging
from collections.abc import Sequence
from typing import Any, NoReturn

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from treesnake.errors import ContextLengthError, InvalidInputError
from treesnake.images import ADDRESS_PART, DATA, is_image_part
from treesnake.serving.engine import QueueFullError
from treesnake.serving.requests import RequestError

MOST_BODY_BYTES = 64 * 2**20
"""A longer body is refused before it is read to its end."""

RETRY_AFTER_S = 1
"""When a client that found the queue full may ask again."""

OPEN_PATHS = ("/", "/health")
"""What needs no key: the page holds no secret, and asks for the key itself."""

API_KEY = "treesnake.api_key"
"""Where a request has the key with which it came in; None if it needed none."""

LOG = logging.getLogger(__name__)


class KeyCheck:
    """Lets requests pass that have one of the keys; a browser's preflight cannot have one."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses a request without a key, or passes it on."""
        key = self._key_of(scope)
        if scope["type"] != "http" or self._is_free(scope) or key is not None:
            return await self._app({**scope, API_KEY: key}, receive, send)
        response = told(
            RequestError("the API key is missing or wrong", status=401, code="invalid_api_key")
        )
        response.headers["www-authenticate"] = "Bearer"
        return await response(scope, receive, send)

    def _is_free(self, scope: Scope) -> bool:
        return not self._keys or scope["method"] == "OPTIONS" or scope["path"] in OPEN_PATHS

    def _key_of(self, scope: Scope) -> str | None:
        """Returns the key that a request has, if it is one of ours."""
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        given = given.removeprefix(b"Bearer ").strip()
        found = [key for key in self._keys if hmac.compare_digest(given, key)]
        return found[0].decode() if found else None


class RequestName:
    """Gives each answer the x-request-id of its request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and its name back."""
        headers: Any = scope.get("headers") or ()
        named = [(name, value) for name, value in headers if name == b"x-request-id"]

        async def send_named(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *named]}
            await send(message)

        await self._app(scope, receive, send_named)


async def read_body(request: Request) -> object:
    """Returns the JSON of a body.

    Raises:
        RequestError: if it is too long, not whole, or no JSON.
    """
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BODY_BYTES:
                raise RequestError(f"the body is longer than {MOST_BODY_BYTES} bytes", status=413)
    except ClientDisconnect as error:
        raise RequestError("the client went away before its request was whole") from error
    try:
        return json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is no JSON: {error}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def check_images(messages: Sequence[Any]) -> None:
    """Checks that images come with the request: a server opens no files and addresses for others.

    Raises:
        RequestError: naming the message.
    """
    for number, message in enumerate(messages, 1):
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if is_image_part(part) and not _brings_image(part):
                raise RequestError(
                    f"the image in message {number} must be in the request itself: write "
                    "{'type': 'image_url', 'image_url': {'url': 'data:image/png;base64,...'}}",
                    "messages",
                )


def _brings_image(part: dict[str, Any]) -> bool:
    address = part.get(ADDRESS_PART)
    url = address.get("url") if isinstance(address, dict) else address
    others = {"image", "path", "url"} & part.keys()
    return not others and (part.get("base64") is not None or str(url).startswith(DATA))


def error_object(error: Exception) -> dict[str, Any]:
    """Returns an error in the form of OpenAI's API."""
    status, code, field = _facts(error)
    message = str(error) if status != 500 else "the server failed; its log says why"
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}


def told(error: Exception) -> JSONResponse:
    """Returns the answer to a request that went wrong."""
    status = _facts(error)[0]
    response = JSONResponse(error_object(error), status)
    if status == 503:
        response.headers["retry-after"] = str(RETRY_AFTER_S)
    return response


async def tell(request: Request, error: Exception) -> JSONResponse:
    """Answers a request that went wrong; a fault of ours goes to the log."""
    if _facts(error)[0] == 500:
        LOG.error("a request failed", exc_info=error)
    return told(error)


def _facts(error: Exception) -> tuple[int, str | None, str | None]:
    """Returns status, code and field of an error."""
    if isinstance(error, RequestError):
        return error.status, error.code, error.field
    if isinstance(error, ContextLengthError):
        return 400, "context_length_exceeded", None
    if isinstance(error, InvalidInputError):
        return 400, None, None
    if isinstance(error, QueueFullError):
        return 503, "queue_full", None
    if isinstance(error, HTTPException):
        return error.status_code, None, None
    return 500, None, None
