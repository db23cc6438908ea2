"""The server of `treesnake serve` on Ray Serve: replicas, autoscaling, conversations that stay.

    serve run treesnake.integrations.ray_serve:build target=smollm2 max_replicas=4

Each replica loads the model for itself. Requests with one `x-session-id` go to one replica, which
keeps the state of their conversation; without that header they go to whichever has room.
"""

from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from starlette.applications import Starlette

from treesnake.decoder import SpeculativeDecoder
from treesnake.loading.options import DtypeName, EngineName, LoadOptions
from treesnake.serving.app import Served, create_app
from treesnake.serving.engine import Engine, EngineLimits
from treesnake.serving.server import try_decoding

SESSIONS = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
"""Sends what has one x-session-id to one replica, as long as that replica lives."""


class Settings(BaseModel):
    """What `serve run` or a config file of Ray may say; names are those of `treesnake serve`.

    Attributes:
        target: the model, by name; replicas on other machines must find it there.
        api_keys: one of them must come with each request; none lets everybody in.
        num_cpus: cores that Ray sets aside for a replica.
        num_gpus: GPUs that it sets aside.
        min_replicas: replicas that always run.
        max_replicas: replicas that run under load.
        target_ongoing_requests: requests a replica, beyond which Ray starts another one; None is
            half of what it runs at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: str = "smollm2"
    drafter: str = "auto"
    search: str = "self-tuning"
    dtype: DtypeName = "auto"
    device: str = "auto"
    engine: EngineName = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    served_model_name: str | None = None
    api_keys: tuple[str, ...] = ()
    max_num_seqs: PositiveInt = 8
    max_queued: PositiveInt = 64
    max_model_len: PositiveInt | None = None
    cache_bytes: int = 512 << 20
    num_cpus: float = 1
    num_gpus: float = 0
    min_replicas: PositiveInt = 1
    max_replicas: PositiveInt = 1
    target_ongoing_requests: float | None = None

    def new_app(self) -> Starlette:
        """Loads the models and returns the server's application; each replica calls it once."""
        options = LoadOptions(
            self.dtype,
            self.device,
            self.engine,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
        )
        decoder = SpeculativeDecoder.load(self.target, self.drafter, options, search=self.search)
        limits = EngineLimits(
            self.max_num_seqs, self.max_queued, self.cache_bytes, self.max_model_len
        )
        name = self.served_model_name or PurePath(self.target).name or self.target
        return create_app(
            Served(Engine(decoder, limits), name, self.api_keys, try_decoding(decoder))
        )


def build(settings: Settings) -> Any:
    """Returns the application that `serve run` deploys."""
    ongoing = settings.target_ongoing_requests or max(1, settings.max_num_seqs / 2)
    deployment = serve.deployment(
        # Ray takes a method for an application, and a function for a maker.
        serve.ingress(lambda: settings.new_app())(),  # noqa: PLW0108
        name="treesnake",
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        max_ongoing_requests=settings.max_num_seqs,
        max_queued_requests=settings.max_queued,
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=max(settings.min_replicas, settings.max_replicas),
            target_ongoing_requests=ongoing,
        ),
        request_router_config=RequestRouterConfig(
            request_router_class=SESSIONS, request_router_kwargs={"num_fallback_replicas": 2}
        ),
    )
    return deployment.bind()
