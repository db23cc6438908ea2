"""The application for Ray Serve, by the contract of Ray 2.60; with Ray itself where it is there."""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra serve is not installed")

from starlette.testclient import TestClient

from treesnake.testing.llama_folder import write_llama

MODULE = "treesnake.integrations.ray_serve"


class AutoscalingConfig(SimpleNamespace):
    """As in Ray, of which names are read only."""

    def __init__(
        self, *, min_replicas: int, max_replicas: int, target_ongoing_requests: float
    ) -> None:
        super().__init__(
            min_replicas=min_replicas,
            max_replicas=max_replicas,
            target_ongoing_requests=target_ongoing_requests,
        )


class RequestRouterConfig(SimpleNamespace):
    """As in Ray."""

    def __init__(self, *, request_router_class: str, request_router_kwargs: dict[str, Any]) -> None:
        super().__init__(
            request_router_class=request_router_class, request_router_kwargs=request_router_kwargs
        )


def ingress(build_asgi: Callable[[], Any]) -> Callable[[], Any]:
    """Takes what is no plain function for an application, as Ray does."""
    return lambda: build_asgi if inspect.isfunction(build_asgi) else lambda: build_asgi


def deployment(
    build_asgi: Any,
    *,
    name: str,
    ray_actor_options: dict[str, Any],
    max_ongoing_requests: int,
    max_queued_requests: int,
    autoscaling_config: AutoscalingConfig,
    request_router_config: RequestRouterConfig,
) -> Any:
    told = SimpleNamespace(**locals())
    told.bind = lambda: told
    return told


@pytest.fixture
def ray_serve(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Our module over a Ray that notes what it is asked for."""
    ray, serve, config = ModuleType("ray"), ModuleType("ray.serve"), ModuleType("ray.serve.config")
    vars(ray).update(serve=serve)
    vars(serve).update(ingress=ingress, deployment=deployment, config=config)
    vars(config).update(
        AutoscalingConfig=AutoscalingConfig, RequestRouterConfig=RequestRouterConfig
    )
    for module in (ray, serve, config):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_llama(tmp_path)
    return tmp_path


def test_replicas_scale_by_requests_and_keep_conversations(ray_serve: Any) -> None:
    settings = ray_serve.Settings(max_num_seqs=6, max_replicas=3, num_gpus=1)
    told = ray_serve.build(settings)
    assert told.max_ongoing_requests == 6
    assert told.ray_actor_options == {"num_cpus": 1, "num_gpus": 1}
    assert vars(told.autoscaling_config) == {
        "min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 3,
    }  # fmt: skip
    assert told.request_router_config.request_router_class.endswith(".ConsistentHashRouter")


def test_each_replica_loads_the_server(ray_serve: Any, folder: Path) -> None:
    told = ray_serve.build(
        ray_serve.Settings(
            target=str(folder),
            drafter="prompt-lookup",
            served_model_name="mine",
            api_keys=["secret"],
        )
    )
    with TestClient(told.build_asgi()) as client:
        body = {"model": "mine", "prompt": "def", "max_tokens": 3, "temperature": 0}
        assert client.post("/v1/completions", json=body).status_code == 401
        headers = {"authorization": "Bearer secret"}
        answer = client.post("/v1/completions", json=body, headers=headers).json()
    assert answer["usage"]["completion_tokens"] == 3


def test_a_setting_that_does_not_exist_is_refused(ray_serve: Any) -> None:
    with pytest.raises(ValueError, match="replicas"):
        ray_serve.Settings(replicas=3)


@pytest.mark.slow
def test_ray_takes_what_the_stub_takes() -> None:
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed")
    from ray import serve  # noqa: PLC0415 - an optional dependency
    from ray.serve import config  # noqa: PLC0415

    names = {*inspect.signature(deployment).parameters} - {"build_asgi"}
    assert names <= {*inspect.signature(serve.deployment).parameters}
    scaling = {*config.AutoscalingConfig.model_fields}
    assert {"min_replicas", "max_replicas", "target_ongoing_requests"} <= scaling
    routing = {*config.RequestRouterConfig.model_fields}
    assert {"request_router_class", "request_router_kwargs"} <= routing
    module = importlib.import_module(MODULE)
    assert module.build(module.Settings(max_replicas=2)) is not None
    importlib.import_module(module.SESSIONS.rsplit(".", 1)[0])
