"""The worker for NVIDIA Dynamo, by the contract of ai-dynamo 1.6."""

import ast
import asyncio
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from treesnake import SamplingParams, SpeculativeDecoder
from treesnake.errors import InvalidInputError
from treesnake.integrations.dynamo_requests import end_token_ids, num_before_end, submit
from treesnake.serving.engine import Engine
from treesnake.testing.llama_folder import write_llama
from treesnake.testing.package_sources import (
    calls,
    definition,
    fields,
    is_installed,
    methods,
    parameters,
    takes,
)

MODULE = "treesnake.integrations.dynamo"
PROMPT = [5, 9, 200, 17]


class InvalidArgument(Exception):  # noqa: N818 - Dynamo's own name
    """As in Dynamo."""


class Context:
    """As in Dynamo: says when a client is gone."""

    def __init__(self) -> None:
        self.stopped = asyncio.Event()

    async def async_killed_or_stopped(self) -> None:
        await self.stopped.wait()


def register_engine_registry(
    metrics: list[Any], registry: Any, *, prefix_filters: list[str]
) -> None:
    """Notes the registry, and what the names on the page begin with."""
    metrics += [registry, prefix_filters]


@pytest.fixture
def dynamo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Our module over a Dynamo that notes what it is told."""
    pytest.importorskip("starlette", reason="the extra serve is not installed")
    contents: dict[str, dict[str, Any]] = {
        "dynamo": {},
        "dynamo.common": {},
        "dynamo.common.backend": {},
        "dynamo.common.backend.engine": {
            "EngineConfig": SimpleNamespace,
            "LLMEngine": object,
            "LlmRegistration": SimpleNamespace,
        },
        "dynamo.common.backend.metrics": {"register_engine_registry": register_engine_registry},
        "dynamo.common.backend.publisher": {"ComponentSnapshot": SimpleNamespace},
        "dynamo.common.backend.run": {"run": None},
        "dynamo.common.backend.worker": {"WorkerConfig": SimpleNamespace},
        "dynamo.common.utils": {},
        "dynamo.common.utils.token_ids": {"normalize_request_token_ids": lambda request: request},
        "dynamo.llm": {},
        "dynamo.llm.exceptions": {"InvalidArgument": InvalidArgument},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("target")
    write_llama(folder)
    return folder


@pytest.fixture(scope="module")
def decoder(folder: Path) -> SpeculativeDecoder:
    return SpeculativeDecoder.from_pretrained(str(folder), "prompt-lookup")


def request(**stop_conditions: Any) -> dict[str, Any]:
    """As Dynamo's frontend sends it: all keys are there, most of them are None."""
    return {
        "token_ids": list(PROMPT),
        "stop_conditions": {"max_tokens": 9, "min_tokens": None, "stop": None} | stop_conditions,
        "sampling_options": {"temperature": 0.0, "top_k": -1, "seed": None, "n": 1},
        "output_options": {"logprobs": None},
    }


async def chunks_of(engine: Any, asked: dict[str, Any], context: Any = None) -> list[Any]:
    return [chunk async for chunk in engine.generate(asked, context or Context())]


def tokens_of(chunks: list[Any]) -> list[int]:
    return [token for chunk in chunks for token in chunk["token_ids"]]


def test_a_worker_starts_answers_is_cancelled_and_ends(
    dynamo: Any, folder: Path, decoder: SpeculativeDecoder
) -> None:
    whole = decoder.generate(PROMPT, max_new_tokens=9, min_new_tokens=9)
    expected = list(whole.token_ids)

    async def live() -> None:
        arguments = ["--model", str(folder), "--drafter", "prompt-lookup"]
        engine, told = await dynamo.TreesnakeEngine.from_args(arguments)
        assert told.served_model_name == folder.name
        assert told.model_name == str(folder)  # Dynamo would fetch any other name
        published: list[Any] = []
        engine.attach_snapshot_publisher(
            SimpleNamespace(publish=lambda rank, load: published.append((rank, load)))
        )
        started = await engine.start(1)
        registered: list[Any] = []
        await engine.register_prometheus(registered)
        registry, [prefix] = registered
        assert started.model == str(folder)
        assert started.llm.context_length == 96
        *chunks, last = await chunks_of(engine, request(ignore_eos=True))
        assert tokens_of(chunks) == expected
        assert last["finish_reason"] == "length"
        assert last["completion_usage"] == {
            "prompt_tokens": 4, "completion_tokens": 9, "total_tokens": 13,
        }  # fmt: skip
        assert published[0][0] == engine.component_metrics_dp_ranks()[0]
        assert registry.get_sample_value(f"{prefix}generation_tokens_total") == 9
        assert registry.get_sample_value(f"{prefix}prompt_tokens_total") == len(PROMPT)

        *chunks, last = await chunks_of(
            engine, request(ignore_eos=True, stop_token_ids=[expected[3]])
        )
        ended = expected[: expected.index(expected[3]) + 1]
        assert tokens_of(chunks) == ended
        assert last["finish_reason"] == "stop"

        gone = Context()
        gone.stopped.set()
        *_, last = await chunks_of(engine, request(max_tokens=80, ignore_eos=True), gone)
        assert last["finish_reason"] in ("cancelled", "length")
        with pytest.raises(InvalidArgument, match="leave out n"):
            await chunks_of(engine, request() | {"sampling_options": {"n": 2}})
        await engine.cleanup()
        await engine.cleanup()

    asyncio.run(live())


def test_sampling_and_forms_are_the_decoders(decoder: SpeculativeDecoder) -> None:
    engine = Engine(decoder)
    try:
        sampling = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "repetition_penalty": 1.5}
        asked = request() | {"sampling_options": sampling, "output_options": {"logprobs": 2}}
        ticket = submit(engine, asked)
        assert ticket.request.params == SamplingParams(0.5, None, 0.9, 0.0, 3)
        assert len(ticket.request.constraints) == 1
        assert ticket.request.logprobs == 2
        form = {"guided_decoding": {"json": {}, "regex": "a"}}
        with pytest.raises(InvalidInputError, match="give one of json, regex, grammar"):
            submit(engine, request() | {"sampling_options": form})
    finally:
        engine.close(finish_s=0)


def test_a_text_ends_with_its_end_token() -> None:
    assert end_token_ids(request(stop_token_ids=[3], stop_token_ids_hidden=[4])) == {3, 4}
    assert num_before_end([1, 3, 2], {3, 4}) == (2, True)
    assert num_before_end([1, 2], {3, 4}) == (2, False)


BACKEND = "dynamo.common.backend"
needs_dynamo = pytest.mark.skipif(not is_installed("dynamo"), reason="Dynamo is not installed")


@needs_dynamo
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("engine", "EngineConfig"),
        ("engine", "LlmRegistration"),
        ("worker", "WorkerConfig"),
        ("publisher", "ComponentSnapshot"),
    ],
)
def test_dynamos_data_has_the_fields_that_are_set(module: str, name: str) -> None:
    made = list(calls(MODULE, name))
    assert made
    named = {each.arg for call in made for each in call.keywords}
    assert named <= fields(f"{BACKEND}.{module}", name)


@needs_dynamo
def test_the_engine_has_the_methods_that_dynamo_calls() -> None:
    engine = f"{BACKEND}.engine"
    asked = methods(engine, "BaseEngine") | methods(engine, "LLMEngine")
    ours = {name for name in methods(MODULE, "TreesnakeEngine") if not name.startswith("_")}
    assert ours <= asked
    for name in ours:
        owner = "LLMEngine" if name == "generate" else "BaseEngine"
        assert parameters(MODULE, f"TreesnakeEngine.{name}") == parameters(
            engine, f"{owner}.{name}"
        )
    needed = {
        each.name
        for owner in ("BaseEngine", "LLMEngine")
        for each in definition(engine, owner).body
        if isinstance(each, ast.AsyncFunctionDef)
        if "abstractmethod" in [ast.unparse(mark) for mark in each.decorator_list]
    }
    assert needed <= ours


@needs_dynamo
def test_dynamos_functions_take_what_they_are_given() -> None:
    assert parameters(f"{BACKEND}.run", "run")[0] == "engine_cls"
    [registered] = calls(MODULE, "register_engine_registry")
    assert takes(register_engine_registry, registered)
    assert {"metrics", "registry", "prefix_filters"} <= {
        *parameters(f"{BACKEND}.metrics", "register_engine_registry")
    }
    assert parameters("dynamo.common.utils.token_ids", "normalize_request_token_ids")
