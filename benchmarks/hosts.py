"""Does a host give the target's own text with treesnake inside, and what becomes of the rest?

    python benchmarks/hosts.py --host transformers --output results/host-transformers.json

Each host runs on this machine, in an environment that has it: transformers[serving], ray[serve] or
vllm. Nothing is timed. What is counted are texts that equal plain decoding, whole and as a stream,
and what becomes of requests where a client leaves or a replica is killed (`--host ray`).
"""

import json
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from frame import Result, print_table, run

from treesnake import SpeculativeDecoder
from treesnake.integrations.model_folders import export_folder
from treesnake.loading.options import DEFAULT_OPTIONS
from treesnake.serving.server import address_of, listen

QUESTIONS = (
    "Explain how a heat pump works.",
    "Write a short story about a lighthouse.",
    "List the steps for planting a tree.",
    "Why is the sky blue?",
    "Write a Python function that reverses a list.",
    "What should I see in Rome in two days?",
    "Summarise how a bill becomes a law.",
    "Compare buses and trams for a small town.",
    "What is photosynthesis?",
    "Give me three tips for better sleep.",
    "Translate 'good morning' into French.",
    "Who wrote Hamlet, and when?",
    "Write a haiku about rain.",
    "How do vaccines work?",
    "Name five rivers in Europe.",
    "What is the capital of Australia?",
    "Describe a bicycle to a child.",
    "How is cheese made?",
    "What causes tides?",
    "Write a polite email that declines an invitation.",
)
NUM_DRAFTED = 6


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--host", choices=tuple(HOSTS), required=True)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--questions", type=int, default=len(QUESTIONS))


def measure(arguments: Namespace) -> Result:
    """Runs one host."""
    return {"host": arguments.host, "target": arguments.target} | HOSTS[arguments.host](arguments)


def show(result: Result) -> None:
    skipped = ("environment", "host", "target")
    rows = [[name, json.dumps(value)] for name, value in result.items() if name not in skipped]
    print_table(f"{result['host']}, {result['target']}", ["what", "result"], rows)


def asked(arguments: Namespace) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": each}] for each in QUESTIONS[: arguments.questions]]


@contextmanager
def exported(target: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        export_folder(target, out, options=DEFAULT_OPTIONS)
        yield str(out)


def transformers_serve(arguments: Namespace) -> Result:
    """Whole answers, streams and stop strings through openai-python."""
    import openai  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415
    from transformers.cli.serve import Serve  # noqa: PLC0415

    counts = {"whole_equal": 0, "stream_equal": 0, "stop_equal": 0}
    num_tokens = num_chunks = 0
    with exported(arguments.target) as out:
        plain: Any = AutoModelForCausalLM.from_pretrained(out)
        tokenizer: Any = AutoTokenizer.from_pretrained(out)
        address = _free_address()
        server = Serve(
            out,
            trust_remote_code=True,
            device="cpu",
            host="127.0.0.1",
            port=int(address.rsplit(":", 1)[1]),
            non_blocking=True,
        )
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=5)
        for messages in asked(arguments):
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            prompt = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])

            def decoded(prompt: Any = prompt, **options: Any) -> tuple[str, int]:
                made = plain.generate(
                    prompt, max_new_tokens=arguments.tokens, do_sample=False, **options
                )[0, prompt.shape[1] :]
                return tokenizer.decode(made, skip_special_tokens=True), len(made)

            expected, num_expected = decoded()
            common: Any = {
                "model": out,
                "messages": messages,
                "max_tokens": arguments.tokens,
                "temperature": 0,
            }
            whole = client.chat.completions.create(**common).choices[0].message.content
            counts["whole_equal"] += whole == expected
            stream = client.chat.completions.create(stream=True, **common)
            pieces = [chunk.choices[0].delta.content for chunk in stream if chunk.choices]
            pieces = [piece for piece in pieces if piece]
            counts["stream_equal"] += "".join(pieces) == expected
            num_tokens += num_expected
            num_chunks += len(pieces)
            stop = " the"
            stopped = client.chat.completions.create(stop=[stop], **common)
            cut, _ = decoded(stop_strings=[stop], tokenizer=tokenizer)
            counts["stop_equal"] += stopped.choices[0].message.content == cut
        server.server.should_exit = True
        server._thread.join()
    return {
        "versions": {"transformers": version("transformers")},
        "questions": arguments.questions,
        **counts,
        "tokens_a_chunk": round(num_tokens / num_chunks, 2),
    }


def _free_address() -> str:
    listener = listen("127.0.0.1", 0)
    with listener:
        return address_of(listener)


def ray_serve(arguments: Namespace) -> Result:
    """Two replicas: answers, kept conversations, a client that leaves, a replica that is killed."""
    import httpx  # noqa: PLC0415

    ray: Any = import_module("ray")
    serve: Any = import_module("ray.serve")
    ours: Any = import_module("treesnake.integrations.ray_serve")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 << 20)
    address = _free_address()
    serve.start(http_options={"host": "127.0.0.1", "port": int(address.rsplit(":", 1)[1])})
    settings = ours.Settings(
        target=arguments.target, min_replicas=2, max_replicas=2, num_cpus=0.5, max_num_seqs=4
    )
    serve.run(ours.build(settings))
    url = f"{address}/v1/chat/completions"
    plain = SpeculativeDecoder.from_pretrained(arguments.target, "none")

    def body(messages: Any, **others: Any) -> dict[str, Any]:
        told = {"model": arguments.target, "messages": messages, "temperature": 0}
        return told | {"max_tokens": arguments.tokens} | others

    def answer(messages: Any, session: str | None = None) -> httpx.Response:
        headers = {} if session is None else {"x-session-id": session}
        return httpx.post(url, json=body(messages), headers=headers, timeout=120)

    conversations = asked(arguments)
    most = arguments.tokens
    expected = [plain.generate(each, max_new_tokens=most).text for each in conversations]
    texts = [_text(answer(each)) for each in conversations]
    cached = []
    for number, (messages, text) in enumerate(zip(conversations, expected, strict=True)):
        longer = [*messages, {"role": "assistant", "content": text}, *messages]
        session = f"session-{number}"
        answer(messages, session)
        usage = answer(longer, session).json()["usage"]
        cached.append(usage["prompt_tokens_details"]["cached_tokens"] > 0)
    with httpx.stream("POST", url, json=body(conversations[0], stream=True), timeout=120) as left:
        first = next(left.iter_text())
    killed = _kill_one_under_load(ray, answer, conversations)
    after = [_text(answer(each)) for each in conversations]
    serve.shutdown()
    ray.shutdown()
    return {
        "versions": {"ray": version("ray")},
        "questions": arguments.questions,
        "equal": sum(map(str.__eq__, texts, expected)),
        "second_turns_with_kept_state": sum(cached),
        "first_chunk_of_a_stream_that_was_left": bool(first),
        **killed,
        "equal_afterwards": sum(map(str.__eq__, after, expected)),
    }


def _text(response: Any) -> str:
    return response.json()["choices"][0]["message"]["content"]


def _kill_one_under_load(
    ray: Any, answer: Callable[[Any], Any], conversations: list[Any]
) -> dict[str, Any]:
    """Kills a replica while requests run; returns what became of them."""
    replicas = [
        each
        for each in ray.util.list_named_actors(all_namespaces=True)
        if each["name"].startswith("SERVE_REPLICA::")
    ]
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(answer, each) for each in conversations]
        ray.kill(ray.get_actor(replicas[0]["name"], namespace=replicas[0]["namespace"]))
        statuses = [each.result().status_code for each in running]
    return {
        "replicas": len(replicas),
        "statuses_where_one_was_killed": {
            str(status): statuses.count(status) for status in sorted({*statuses})
        },
    }


def vllm(arguments: Namespace) -> Result:
    """Greedy texts of vLLM with our drafts, and of its plain decoding."""
    engine: Any = import_module("vllm")
    with exported(arguments.target) as out:
        common = {
            "model": out,
            "dtype": "float32",
            "max_model_len": 512,
            "max_num_seqs": 2,
            "enforce_eager": True,
            "disable_log_stats": False,
        }
        greedy = engine.SamplingParams(temperature=0, max_tokens=arguments.tokens)
        made = {}
        for name, options in (("plain", {}), ("drafted", {"speculative_config": _speculative()})):
            llm = engine.LLM(**common, **options)
            outputs = llm.chat(asked(arguments), greedy, use_tqdm=False)
            made[name] = [list(each.outputs[0].token_ids) for each in outputs]
            metrics = {each.name: getattr(each, "value", None) for each in llm.get_metrics()}
            del llm
    drafts = metrics.get("vllm:spec_decode_num_drafts") or 0
    accepted = metrics.get("vllm:spec_decode_num_accepted_tokens") or 0
    return {
        "versions": {"vllm": engine.__version__},
        "questions": arguments.questions,
        "equal": sum(map(list.__eq__, made["plain"], made["drafted"])),
        "accepted_a_draft": round(accepted / max(drafts, 1), 2),
        "preemptions": metrics.get("vllm:num_preemptions"),
    }


def _speculative() -> dict[str, Any]:
    return {
        "method": "custom_class",
        "model": "treesnake.integrations.vllm.Proposer",
        "num_speculative_tokens": NUM_DRAFTED,
    }


HOSTS: dict[str, Callable[[Namespace], Result]] = {
    "transformers": transformers_serve,
    "ray": ray_serve,
    "vllm": vllm,
}

if __name__ == "__main__":
    run(__doc__, measure, add_arguments=add_arguments, show=show)
