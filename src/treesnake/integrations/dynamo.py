"""An engine of treesnake as a worker of NVIDIA Dynamo.

    python -m treesnake.integrations.dynamo --model smollm2 --discovery-backend file
    python -m dynamo.frontend --http-port 8000 --discovery-backend file

Dynamo's frontend has the tokenizer, the chat template and the stop strings. The worker gets tokens
and gives as many at a time as a step emits. Written from the contract of ai-dynamo 1.6.
"""

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import PurePath
from time import perf_counter
from typing import Any

from dynamo.common.backend.engine import EngineConfig, LLMEngine, LlmRegistration
from dynamo.common.backend.metrics import register_engine_registry
from dynamo.common.backend.publisher import ComponentSnapshot
from dynamo.common.backend.run import run
from dynamo.common.backend.worker import WorkerConfig
from dynamo.common.utils.token_ids import normalize_request_token_ids
from dynamo.llm.exceptions import InvalidArgument

from treesnake.decoder import SpeculativeDecoder
from treesnake.errors import InvalidInputError
from treesnake.integrations.dynamo_arguments import folder_of, load_options, new_parser
from treesnake.integrations.dynamo_requests import chunk_of, end_token_ids, num_before_end, submit
from treesnake.outcome import FinishReason
from treesnake.serving.engine import Engine, EngineLimits
from treesnake.serving.metrics import Metrics
from treesnake.serving.tickets import Ticket

CACHE_BLOCK = 16
"""Tokens of a block, the unit in which Dynamo counts memory."""

FINISHED = {
    FinishReason.LENGTH: "length",
    FinishReason.CONTEXT: "length",
    FinishReason.CANCELLED: "cancelled",
}
"""Dynamo's words; all else is "stop"."""


class TreesnakeEngine(LLMEngine):
    """What Dynamo starts, asks and ends.

    Args:
        arguments: of the command line.
        files: closed with the engine.
    """

    def __init__(self, arguments: Namespace, files: ExitStack) -> None:
        self._arguments = arguments
        self._files = files
        self._engine: Engine | None = None
        self._metrics: Metrics | None = None
        self._publisher: Any = None

    @classmethod
    async def from_args(cls, argv: list[str] | None = None) -> tuple["TreesnakeEngine", Any]:
        """Returns the engine, and what Dynamo is told of the worker."""
        arguments = new_parser().parse_args(argv)
        files = ExitStack()
        arguments.folder = folder_of(arguments, files)
        name = arguments.served_model_name or PurePath(arguments.model).name
        config = WorkerConfig(
            namespace=arguments.namespace,
            component="backend",
            endpoint="generate",
            model_name=arguments.folder,  # Dynamo reads tokenizer and template there
            served_model_name=name,
            endpoint_types="chat,completions",
            discovery_backend=arguments.discovery_backend,
            request_plane=arguments.request_plane,
            event_plane=arguments.event_plane,
            enable_kv_routing=True,  # for the load that `_publish` tells; there are no events
        )
        arguments.served_model_name = name
        return cls(arguments, files), config

    async def start(self, worker_id: int) -> Any:
        """Loads the models, and says what the worker takes on."""
        return await asyncio.to_thread(self._start)

    def _start(self) -> Any:
        told = self._arguments
        decoder = SpeculativeDecoder.load(told.model, told.drafter, load_options(told))
        self._engine = engine = Engine(
            decoder, EngineLimits(told.max_num_seqs, told.max_queued, told.cache_bytes)
        )
        self._metrics = Metrics(engine)
        length = engine.max_model_len
        blocks = None if length is None else -(-length // CACHE_BLOCK) * told.max_num_seqs
        return EngineConfig(
            model=told.folder,
            served_model_name=told.served_model_name,
            llm=LlmRegistration(
                context_length=length,
                kv_cache_block_size=CACHE_BLOCK,
                total_kv_blocks=blocks,
                max_num_seqs=told.max_num_seqs,
                max_num_batched_tokens=length,
            ),
        )

    async def generate(self, request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
        """Yields new tokens as they come, and at last why the text ended."""
        assert self._engine is not None, "start comes first"
        assert self._metrics is not None, "start comes first"
        asked_at = perf_counter()
        normalize_request_token_ids(request)
        try:
            ticket = await asyncio.to_thread(submit, self._engine, request)
        except InvalidInputError as error:
            raise InvalidArgument(str(error)) from error
        stopping = asyncio.create_task(_cancel_with(context, ticket))
        ends, num_new, is_cut = end_token_ids(request), 0, False
        try:
            async for _, piece in self._metrics.counted_pieces([ticket], asked_at):
                if is_cut or piece is None or not piece.token_ids:
                    continue
                num_kept, is_cut = num_before_end(piece.token_ids, ends)
                num_new += num_kept
                yield chunk_of(piece, num_kept)
                if is_cut:
                    ticket.cancel()
        finally:
            stopping.cancel()
            ticket.cancel()
        reason = "stop" if is_cut else FINISHED.get(ticket.generation.finish_reason, "stop")
        num_prompt = len(ticket.prompt)
        self._publish()
        yield {
            "token_ids": list[int](),
            "index": 0,
            "finish_reason": reason,
            "completion_usage": {
                "prompt_tokens": num_prompt,
                "completion_tokens": num_new,
                "total_tokens": num_prompt + num_new,
            },
        }

    async def abort(self, context: Any) -> None:
        """Does nothing: a text is cancelled by whoever waits for its context."""

    async def register_prometheus(self, metrics: Any) -> None:
        """Adds the numbers of `treesnake serve` to those of Dynamo's page of metrics."""
        assert self._metrics is not None, "start comes first"
        register_engine_registry(metrics, self._metrics.registry, prefix_filters=["treesnake_"])

    def component_metrics_dp_ranks(self) -> list[int]:
        """Returns the one rank."""
        return [0]

    def attach_snapshot_publisher(self, publisher: Any) -> None:
        """Takes what the worker's load is published with."""
        self._publisher = publisher

    def _publish(self) -> None:
        if self._publisher is None or self._engine is None:
            return
        stats, limit = self._engine.stats, self._engine.limits.max_num_seqs
        load = stats.num_running / limit
        self._publisher.publish(
            0,
            ComponentSnapshot(
                kv_used_blocks=stats.num_running,
                kv_total_blocks=limit,
                gpu_cache_usage=load,
                dp_rank=0,
                kv_cache_hit_rate=stats.num_cached_tokens / max(1, stats.num_prompt_tokens),
            ),
        )

    async def cleanup(self) -> None:
        """Ends all texts and the workers; may be called at any time, and again."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.close, finish_s=0)
        self._files.close()


async def _cancel_with(context: Any, ticket: Ticket) -> None:
    """Ends a text when its client is gone or has what it wants."""
    await context.async_killed_or_stopped()
    ticket.cancel()


def main() -> None:
    """Runs a worker until a signal ends it."""
    run(TreesnakeEngine)


if __name__ == "__main__":
    main()
