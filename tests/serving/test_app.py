"""The endpoints, as clients meet them over a real socket."""

import asyncio
import json
import re
from collections.abc import Callable
from threading import Event
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel

from treesnake import Pair, SamplingParams, SpeculativeDecoder
from treesnake.drafters.learning import learner_of
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.errors import InvalidInputError
from treesnake.serving.app import Served, create_app
from treesnake.serving.engine import Engine, EngineLimits
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import RecurrentModel, TinyNetwork
from treesnake.testing.bigrams import BigramNetwork
from treesnake.testing.tokenizers import END

ASKED = [{"role": "user", "content": "def draft(tree):"}]
GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


def post(server: str, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{server}{path}", content=content, headers=headers, timeout=60)


def chunks_of(server: str, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    lines = [
        line for line in post(server, path, body | {"stream": True}).text.split("\n\n") if line
    ]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


class SlowModel(RecurrentModel):
    """Waits in front of each pass until it is let go."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size)
        self.may_run = Event()
        self.has_begun = Event()
        self.num_steps = 0

    def step(self, state: Any, token: int) -> Any:
        self.has_begun.set()
        self.may_run.wait(60)
        self.num_steps += 1
        return super().step(state, token)


def slow_decoder(decoder: SpeculativeDecoder) -> tuple[SlowModel, SpeculativeDecoder]:
    tokenizer: Any = decoder.tokenizer
    model = SlowModel(len(tokenizer))
    pair = Pair(NetworkTargetModel(TinyNetwork(model)), NoDrafterModel())
    return model, SpeculativeDecoder(pair, tokenizer=tokenizer)


def metrics_of(server: str) -> dict[str, float]:
    page = httpx.get(f"{server}/metrics").text
    lines = [line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#")]
    return {name: float(number) for name, number in lines}


def test_a_whole_answer_is_the_decoders_own(
    client: openai.OpenAI, decoder: SpeculativeDecoder
) -> None:
    answer = client.chat.completions.create(messages=ASKED, logprobs=True, top_logprobs=2, **GREEDY)
    expected = decoder.generate(ASKED, max_new_tokens=24, logprobs=2)
    choice = answer.choices[0]
    assert choice.message.content == expected.text
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 24
    assert answer.usage.prompt_tokens == len(decoder.encode(ASKED))
    assert [each.logprob for each in choice.logprobs.content] == pytest.approx(
        [each.logprob for each in expected.logprobs], abs=1e-6
    )
    assert {len(each.top_logprobs) for each in choice.logprobs.content} == {2}


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_is_the_whole_answer_with_one_finish_reason_each(
    client: openai.OpenAI, n: int
) -> None:
    asked = GREEDY | {"temperature": 1.0, "seed": 7, "n": n, "logprobs": True}
    whole = client.chat.completions.create(messages=ASKED, **asked)
    texts, reasons, logprobs, usages = [""] * n, [[] for _ in range(n)], [[] for _ in range(n)], []
    stream = client.chat.completions.create(
        messages=ASKED, stream=True, stream_options={"include_usage": True}, **asked
    )
    for chunk in stream:
        usages += [chunk.usage] if chunk.usage else []
        assert bool(chunk.choices) != bool(chunk.usage)
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] += [choice.finish_reason] if choice.finish_reason else []
            logprobs[choice.index] += choice.logprobs.content if choice.logprobs else []
    assert texts == [choice.message.content for choice in whole.choices]
    assert len(set(texts)) == n, "each answer has a seed of its own"
    assert reasons == [[choice.finish_reason] for choice in whole.choices]
    assert [len(each) for each in logprobs] == [24] * n
    assert [each.total_tokens for each in usages] == [whole.usage.total_tokens]


def test_the_last_chunk_counts_drafts(server: str, decoder: SpeculativeDecoder) -> None:
    chunks = chunks_of(server, "/v1/chat/completions", GREEDY | {"messages": ASKED})
    expected = decoder.generate(ASKED, max_new_tokens=24)
    assert chunks[-1]["timings"]["draft_n"] == expected.num_drafted > 0
    assert chunks[-1]["timings"]["draft_n_accepted"] == expected.num_accepted > 0
    assert chunks[-1]["timings"]["predicted_n"] == 24


def test_usage_tells_what_was_kept_of_earlier_requests(start_server: Callable[..., str]) -> None:
    server = start_server()
    body = GREEDY | {"prompt": "def accept(draft, tree):", "max_tokens": 4}
    first, second = (post(server, "/v1/completions", body).json()["usage"] for _ in range(2))
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    assert second["prompt_tokens_details"] == {"cached_tokens": second["prompt_tokens"] - 1}


def test_a_stop_string_cuts_text_logprobs_and_counts_at_one_place(
    client: openai.OpenAI, server: str, decoder: SpeculativeDecoder
) -> None:
    free = decoder.generate("draft", max_new_tokens=24).text
    stop = next(free[k : k + 2] for k in range(6, 20) if free[k : k + 2].isascii())
    expected = decoder.generate("draft", max_new_tokens=24, stop=[stop])
    counted = metrics_of(server)["treesnake_generation_tokens_total"]
    answer = client.completions.create(prompt="draft", stop=stop, logprobs=0, **GREEDY)
    counted = metrics_of(server)["treesnake_generation_tokens_total"] - counted
    assert counted == answer.usage.completion_tokens
    assert answer.choices[0].text == expected.text == free[: free.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert len(answer.choices[0].logprobs.tokens) == answer.usage.completion_tokens
    assert answer.usage.completion_tokens == expected.num_emitted


def test_characters_are_never_cut_by_chunks(server: str, decoder: SpeculativeDecoder) -> None:
    body = GREEDY | {"prompt": "\N{SNAKE}", "max_tokens": 60, "temperature": 1.0, "seed": 1}
    chunks = chunks_of(server, "/v1/completions", body)
    texts = [choice["text"] for chunk in chunks for choice in chunk["choices"]]
    params = SamplingParams(temperature=1.0, seed=1)
    assert "".join(texts) == decoder.generate("\N{SNAKE}", params, max_new_tokens=60).text


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("is_stream", [False, True])
def test_echo_tells_what_the_target_says_of_each_token_of_a_prompt(
    server: str, decoder: SpeculativeDecoder, max_tokens: int, is_stream: bool
) -> None:
    prompts = [list(decoder.encode(text).token_ids) for text in ("draft a tree", "def f(x):")]
    body = {"model": "tiny", "prompt": prompts, "echo": True, "logprobs": 1, "temperature": 0}
    body |= {"max_tokens": max_tokens}
    if is_stream:
        chunks = chunks_of(server, "/v1/completions", body)
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
    else:
        choices = post(server, "/v1/completions", body).json()["choices"]
    for index, prompt in enumerate(prompts):
        mine = [each["logprobs"] for each in choices if each["index"] == index and each["logprobs"]]
        logprobs = [value for part in mine for value in part["token_logprobs"]]
        made = decoder.generate(prompt, max_new_tokens=1).token_ids
        expected = decoder.score_text([*prompt, *made][: len(prompt) + max_tokens], logprobs=1)
        assert logprobs[0] is None
        assert logprobs[1:] == pytest.approx([each.logprob for each in expected], abs=1e-6)
        tokens = [token for part in mine for token in part["tokens"]]
        tops = [top for part in mine for top in part["top_logprobs"]]
        is_greedy = [
            token == max(top, key=top.get) for token, top in zip(tokens, tops, strict=True) if top
        ]
        assert is_greedy == [each.token_id == each.top[0][0] for each in expected]


def test_penalties_and_biases_are_applied(client: openai.OpenAI) -> None:
    answer = client.completions.create(prompt="draft", logit_bias={"65": 100}, logprobs=0, **GREEDY)
    assert len(set(answer.choices[0].logprobs.tokens)) == 1
    free = client.completions.create(prompt="draft", presence_penalty=2, frequency_penalty=2,
                                     extra_body={"repetition_penalty": 1.3}, **GREEDY)  # fmt: skip
    assert free.choices[0].text != answer.choices[0].text


class Shape(BaseModel):
    kind: Literal["chain", "best-first"]
    is_tree: bool


@pytest.fixture(scope="module")
def ending(start_server: Callable[..., str], decoder: SpeculativeDecoder) -> tuple[str, int]:
    """A server whose texts can end, and the token that ends them."""
    pytest.importorskip("llguidance", reason="the extra serve is not installed")
    tokenizer: Any = decoder.tokenizer
    end = tokenizer.convert_tokens_to_ids(END)
    chosen = SpeculativeDecoder(
        decoder.pair, tokenizer=tokenizer, end_token_ids=[end], search="chain(3)"
    )
    return start_server(chosen=chosen), end


@pytest.mark.parametrize("is_stream", [False, True])
def test_answers_fit_the_class_that_openai_python_is_given(
    ending: tuple[str, int], is_stream: bool
) -> None:
    server, end = ending
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": "tiny", "messages": ASKED, "max_tokens": 300}
    asked |= {"logit_bias": {str(end): 9}, "response_format": Shape, "n": 2, "seed": 1}
    if is_stream:
        with client.chat.completions.stream(**asked) as stream:
            answer = stream.get_final_completion()
    else:
        answer = client.chat.completions.parse(**asked)
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 2
    assert all(isinstance(choice.message.parsed, Shape) for choice in answer.choices)


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"guided_regex": "(yes|no), [a-c]{1,9}"}, "(yes|no), [a-c]{1,9}"),
        ({"guided_grammar": 'start: "yes" | "no"'}, "yes|no"),
        ({"guided_json": {"enum": ["yes", "no"]}}, '"(yes|no)"'),
        ({"guided_json": '{"enum": ["yes", "no"]}'}, '"(yes|no)"'),
        ({"response_format": {"type": "json_object"}}, r"\{.*"),
        ({"response_format": {"type": "text"}}, ".*"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_forms_have_the_names_of_openai_and_vllm(
    ending: tuple[str, int], path: str, form: dict[str, Any], pattern: str
) -> None:
    body = {"messages": ASKED} if "chat" in path else {"prompt": "draft"}
    answer = post(ending[0], path, GREEDY | body | form)
    choice = answer.json()["choices"][0]
    text = choice["message"]["content"] if "chat" in path else choice["text"]
    assert re.fullmatch(pattern, text, re.DOTALL), text


@pytest.mark.parametrize("is_chat", [False, True])
@pytest.mark.parametrize("field", [{"ignore_eos": True}, {"min_tokens": 20}])
def test_a_form_that_is_whole_ends_the_answer_even_where_no_end_is_wanted(
    ending: tuple[str, int], field: dict[str, Any], is_chat: bool
) -> None:
    body = {"messages": ASKED} if is_chat else {"prompt": "draft"}
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    answer = post(ending[0], path, GREEDY | body | field | {"guided_regex": "yes|no"}).json()
    [choice] = answer["choices"]
    text = choice["message"]["content"] if is_chat else choice["text"]
    assert (text, choice["finish_reason"]) in (("yes", "stop"), ("no", "stop"))


@pytest.mark.parametrize(
    ("form", "field", "reason"),
    [
        ({"response_format": {}}, "response_format", "a type of text, json_object, json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format", "a type of text"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "needs a schema"),
        ({"response_format": "json"}, "response_format", "dictionary"),
        ({"guided_json": {"type": "x"}}, "guided_json", "x"),
        ({"guided_json": "{"}, "guided_json", "no JSON"),
        ({"guided_json": "[]"}, "guided_json", "needs a schema"),
        ({"guided_regex": "("}, "guided_regex", "unclosed group"),
        ({"guided_grammar": "start"}, "guided_grammar", "grammar"),
        ({"guided_regex": "a", "guided_json": {}}, "guided_regex", "exclude each other"),
        ({"guided_choice": ["a"]}, "guided_choice", "not supported"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_form_that_cannot_be_used_is_refused_with_the_reason(
    ending: tuple[str, int], is_stream: bool, form: dict[str, Any], field: str, reason: str
) -> None:
    body = GREEDY | {"messages": ASKED, "stream": is_stream}
    answer = post(ending[0], "/v1/chat/completions", body | form)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, field)
    assert reason in error["message"]


def test_the_page_gets_each_step(server: str) -> None:
    body = GREEDY | {"messages": ASKED, "return_steps": True}
    steps = [chunk["step"] for chunk in chunks_of(server, "/v1/chat/completions", body)
             if "step" in chunk]  # fmt: skip
    assert sum(len(step["emitted"]) for step in steps) == 24
    assert all(len(step["tokens"]) == len(step["parents"]) == len(step["probs"]) for step in steps)


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_goes_ends_its_text_within_a_step(
    start_server: Callable[..., str], decoder: SpeculativeDecoder, is_stream: bool
) -> None:
    model, slow = slow_decoder(decoder)
    server = start_server(chosen=slow, limits=EngineLimits(max_num_seqs=1))
    body = {"prompt": "d", "max_tokens": 10_000, "temperature": 0, "stream": is_stream}
    with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{server}/v1/completions", json=body, timeout=httpx.Timeout(60, read=0.5))
    assert model.has_begun.is_set()
    model.may_run.set()
    body |= {"max_tokens": 2, "stream": False}
    assert post(server, "/v1/completions", body).status_code == 200, "once there is a free worker"
    assert model.num_steps < 10_000, "the first text did not come to its end"


def test_a_client_that_goes_within_its_request_is_no_fault_of_the_server(
    decoder: SpeculativeDecoder, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(decoder)
    app = create_app(Served(engine, "tiny"))
    messages = iter(
        [{"type": "http.request", "body": b'{"pro', "more_body": True}, {"type": "http.disconnect"}]
    )
    statuses: list[int] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    asyncio.run(app(scope, receive, send))
    engine.close(finish_s=0)
    assert statuses[0] == 400
    assert not caplog.records


def test_a_full_queue_is_told_before_the_answer_begins(
    start_server: Callable[..., str], decoder: SpeculativeDecoder
) -> None:
    model, slow = slow_decoder(decoder)
    server = start_server(chosen=slow, limits=EngineLimits(max_num_seqs=1, max_queued=1))
    body = {"prompt": "d", "max_tokens": 2, "stream": True}
    with httpx.stream("POST", f"{server}/v1/completions", json=body, timeout=60):
        assert model.has_begun.wait(60)
        with httpx.stream("POST", f"{server}/v1/completions", json=body, timeout=60):
            refused = post(server, "/v1/completions", body)
        model.may_run.set()
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "queue_full"


def test_a_key_is_asked_for_everywhere_but_where_browsers_cannot_have_one(
    start_server: Callable[..., str],
) -> None:
    server = start_server(api_keys=("secret", "other"))
    assert httpx.get(f"{server}/health").status_code == 200
    assert httpx.get(f"{server}/v1/models").status_code == 401
    assert post(server, "/v1/completions", {}).json()["error"]["code"] == "invalid_api_key"
    wrong = httpx.get(f"{server}/v1/models", headers={"Authorization": "Bearer secre"})
    assert wrong.status_code == 401
    for key in ("secret", "other"):
        right = httpx.get(f"{server}/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert right.json()["data"][0]["id"] == "tiny"
    asked = {"Origin": "http://x", "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(f"{server}/v1/chat/completions", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "*"


def test_metrics_count_what_was_drafted(server: str) -> None:
    chunks_of(server, "/v1/chat/completions", GREEDY | {"messages": ASKED})
    numbers = metrics_of(server)
    for name in (
        "treesnake_spec_decode_num_drafts_total",
        "treesnake_spec_decode_num_draft_tokens_total",
        "treesnake_spec_decode_num_accepted_tokens_total",
        'treesnake_spec_decode_num_accepted_tokens_per_pos_total{position="0"}',
        "treesnake_draft_seconds_total",
        "treesnake_score_seconds_total",
        "treesnake_time_to_first_token_seconds_count",
        "treesnake_time_per_output_token_seconds_count",
    ):
        assert numbers[name] > 0, name
    assert numbers["treesnake_num_requests_waiting"] == 0


MALFORMED = [
    (b"", None),
    (b"{", None),
    (b"[1]", None),
    (b"\xff", None),
    (b'{"prompt": NaN}', None),
    (b"[" * 100_000, None),
    (b'{"prompt": "\\ud800", "max_tokens": 1}', None),
    ({"model": "tiny"}, "prompt"),
    ({"prompt": ""}, None),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, None),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [-1]}, None),
    ({"prompt": [10**9]}, None),
    ({"prompt": "a", "n": 0}, "n"),
    ({"prompt": "a", "n": 500}, "n"),
    ({"prompt": "a", "temperature": -1}, None),
    ({"prompt": "a", "temperature": "hot"}, "temperature"),
    ({"prompt": "a", "top_p": 0}, None),
    ({"prompt": "a", "top_k": -5}, None),
    ({"prompt": "a", "seed": -1}, None),
    ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
    ({"prompt": "a", "logprobs": 99}, "logprobs"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"1": 1000}}, None),
    ({"prompt": "a", "stop": [""]}, None),
    ({"prompt": "a", "suffix": "b"}, "suffix"),
    ({"prompt": "a", "best_of": 2}, "best_of"),
    ({"prompt": "a", "colour": "red"}, "colour"),
    ({"prompt": "a", "repetition_penalty": 0}, None),
    ({"prompt": "a", "stream": True, "temperature": -1}, None),
    ({"prompt": "a", "user": 5}, "user"),
]


@pytest.mark.parametrize(("body", "field"), MALFORMED)
def test_what_cannot_be_right_is_refused_with_its_name(
    server: str, body: Any, field: str | None
) -> None:
    answer = post(server, "/v1/completions", body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert error["param"] == field


@pytest.mark.parametrize(
    "messages",
    [
        [], "hello", [{"content": "no role"}], [{"role": "user"}], [5],
        [{"role": "user", "content": [{"type": "image", "path": "/etc/passwd"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc"}}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]}],
    ],
)  # fmt: skip
def test_conversations_that_cannot_be_right_are_refused(server: str, messages: Any) -> None:
    answer = post(server, "/v1/chat/completions", {"model": "tiny", "messages": messages})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_no_tools_are_no_tools(server: str) -> None:
    body = GREEDY | {"messages": ASKED, "tools": [], "tool_choice": "none", "functions": None}
    assert post(server, "/v1/chat/completions", body).status_code == 200
    old = post(server, "/v1/chat/completions", body | {"functions": [{"name": "f"}]})
    assert old.json()["error"]["param"] == "functions"


def test_an_unknown_model_or_path_is_not_found(server: str) -> None:
    answer = post(server, "/v1/completions", {"model": "other", "prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert httpx.get(f"{server}/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(f"{server}/v1/completions").status_code == 405


def test_the_small_endpoints(server: str, decoder: SpeculativeDecoder) -> None:
    tokens = post(server, "/tokenize", {"prompt": "draft a tree"}).json()
    assert tokens["tokens"] == list(decoder.encode("draft a tree").token_ids)
    text = post(server, "/detokenize", {"tokens": tokens["tokens"]}).json()["prompt"]
    assert text == "draft a tree"
    assert post(server, "/tokenize", {"messages": ASKED}).json()["count"] == len(
        decoder.encode(ASKED)
    )
    assert post(server, "/tokenize", {}).status_code == 400
    assert post(server, "/detokenize", {"tokens": [10**6]}).status_code == 400
    assert httpx.get(f"{server}/version").json()["version"]
    named = httpx.get(f"{server}/health", headers={"x-request-id": "abc"})
    assert named.headers["x-request-id"] == "abc"


def test_a_drafter_that_learns_serves_one_user(decoder: SpeculativeDecoder) -> None:
    model = NetworkDrafterModel(BigramNetwork.of(12))
    learning = SpeculativeDecoder(
        Pair(decoder.pair.target, model), tokenizer=decoder.tokenizer, learner=learner_of(model)
    )
    engine = Engine(learning)
    try:
        create_app(Served(engine, "tiny", ("one", "one")))
        with pytest.raises(InvalidInputError, match="give one API key or none"):
            create_app(Served(engine, "tiny", ("one", "two")))
    finally:
        engine.close(finish_s=0)
