"""The plug-in for SGLang, by the contract of SGLang 0.5.23."""

import ast
import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from treesnake.drafters.network import NetworkDrafterModel
from treesnake.integrations.batch_drafts import BatchDrafts
from treesnake.integrations.sglang_trees import Trees
from treesnake.shape import BestFirst
from treesnake.testing import RecurrentModel, TinyNetwork
from treesnake.testing.package_sources import (
    definition,
    is_installed,
    methods,
    parameters,
    set_attributes,
    takes,
)

MODULE = "treesnake.integrations.sglang"
TEXTS = {"a": [3, 1, 4], "b": [2, 7]}


class CustomSpecAlgo:
    """As in SGLang: plain registrations lack three methods that the scheduler calls."""

    def __init__(self, name: str, factory: Any, *, supports_overlap: bool) -> None:
        self.name, self.factory, self.supports_overlap = name, factory, supports_overlap


class BaseSpecWorker:
    """As in SGLang."""


class NGRAMWorker(BaseSpecWorker):
    """As in SGLang, whose constructor compiles."""

    def __init__(self) -> None:
        raise AssertionError("it compiles a corpus")


class SpeculativeAlgorithm:
    """As in SGLang."""

    registered: Any = None

    @classmethod
    def register(
        cls, name: str, *, supports_overlap: bool, spec_class: type[CustomSpecAlgo]
    ) -> Callable[[Any], Any]:
        def decorate(factory: Any) -> Any:
            cls.registered = spec_class(name, factory, supports_overlap=supports_overlap)
            return factory

        return decorate


GROUP = SimpleNamespace(rank_in_group=0, world_size=1, ranks=[0])
SPEC = SimpleNamespace(
    speculative_num_draft_tokens=6, speculative_eagle_topk=2, speculative_num_steps=3
)


@pytest.fixture
def sglang(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Our module over an SGLang that notes what it is given."""
    contents: dict[str, dict[str, Any]] = {
        "sglang": {},
        "sglang.srt": {},
        "sglang.srt.managers": {},
        "sglang.srt.managers.overlap_utils": {"FutureMap": lambda *arguments: arguments},
        "sglang.srt.runtime_context": {
            "get_device": lambda: SimpleNamespace(device="cuda"),
            "get_parallel": lambda: SimpleNamespace(tp_group=GROUP),
            "get_schedule": lambda: SimpleNamespace(disable_overlap_schedule=False, page_size=1),
            "get_spec": lambda: SPEC,
        },
        "sglang.srt.speculative": {},
        "sglang.srt.speculative.ngram_worker": {"NGRAMWorker": NGRAMWorker},
        "sglang.srt.speculative.spec_info": {"SpeculativeAlgorithm": SpeculativeAlgorithm},
        "sglang.srt.speculative.spec_registry": {"CustomSpecAlgo": CustomSpecAlgo},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE)


@pytest.fixture
def algorithm(sglang: Any) -> Any:
    sglang.register()
    return SpeculativeAlgorithm.registered


def drafts() -> BatchDrafts:
    return BatchDrafts(NetworkDrafterModel(TinyNetwork(RecurrentModel(16, seed=4))), 4)


def arguments(**changes: Any) -> Any:
    default = {
        "device": "cuda",
        "speculative_accept_threshold_single": 1.0,
        "speculative_accept_threshold_acc": 1.0,
        "speculative_num_draft_tokens": None,
        "speculative_eagle_topk": None,
        "speculative_num_steps": 3,
        "max_running_requests": None,
        "enable_mixed_chunk": True,
        "page_size": None,
        "attention_backend": None,
        "speculative_draft_model_path": None,
        "speculative_ngram_external_corpus_path": None,
        "model_path": "none-there",
    }
    return SimpleNamespace(**(default | changes))


def test_the_algorithm_has_what_plain_registrations_lack(algorithm: Any) -> None:
    assert algorithm.name == "TREESNAKE"
    assert algorithm.is_ngram()
    assert not algorithm.has_draft_kv()
    assert not algorithm.need_topk()
    assert not algorithm.carries_draft_hidden_states()
    assert algorithm.create_future_map("cuda", "pool", True, False) == (
        "cuda", algorithm, "pool", True, False,
    )  # fmt: skip


def test_what_is_left_open_is_set(algorithm: Any) -> None:
    told = arguments()
    algorithm.handle_server_args(told)
    assert told.speculative_num_draft_tokens > told.speculative_eagle_topk > 1
    assert told.speculative_num_steps == 3
    assert not told.enable_mixed_chunk


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "cpu"}, "needs CUDA"),
        ({"speculative_accept_threshold_acc": 0.9}, "thresholds of 1"),
        ({"page_size": 16}, "page-size 1"),
        ({"speculative_ngram_external_corpus_path": "texts.jsonl"}, "reads no corpus"),
    ],
)
def test_what_would_not_be_exact_is_refused(
    algorithm: Any, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        algorithm.handle_server_args(arguments(**changes))


def test_the_worker_takes_trees_of_a_drafter(
    sglang: Any, algorithm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Any] = []

    def load(*names: Any) -> Any:
        loads.append(names)
        return NetworkDrafterModel(TinyNetwork(RecurrentModel(16, seed=4)))

    monkeypatch.setattr(sglang, "load_model_drafter", load)
    target = SimpleNamespace(model_runner="runner")
    worker = algorithm.factory(arguments())(
        server_args=arguments(), gpu_id=0, nccl_port=1, target_worker=target
    )
    assert loads == [("none-there", "auto", "cuda")]
    assert worker.model_runner == "runner"
    tokens, masks = worker.ngram_corpus.batch_get(list(TEXTS), list(TEXTS.values()), [3, 2])
    assert tokens.shape == (2 * 6,)
    assert masks.shape == (2 * 6 * 6,)
    with pytest.raises(ValueError, match="reads no corpus"):
        worker.add_external_corpus("name", [[1]])


def test_trees_are_those_of_the_drafter() -> None:
    trees = Trees(drafts(), BestFirst(2, 3, 5), GROUP)
    for _ in range(2):
        tokens, masks = trees.batch_get(list(TEXTS), list(TEXTS.values()), [0, 0])
        tokens, masks = tokens.reshape(2, 6), masks.reshape(2, 6, 6)
        assert tokens[:, 0].tolist() == [text[-1] for text in TEXTS.values()]
        for nodes, mask in zip(tokens, masks, strict=True):
            parents = [
                int(np.flatnonzero(row[:node]).max()) for node, row in enumerate(mask) if node
            ]
            siblings = list(zip(parents, nodes[1:].tolist(), strict=True))
            assert len({*siblings}) == 5  # twins would be counted twice
    trees.synchronize()
    trees.batch_put([])
    trees.erase_match_state(["a"])
    trees.reset()


def test_ranks_that_do_not_draft_take_what_the_first_one_drafted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = SimpleNamespace(rank_in_group=1, world_size=2, ranks=[4, 5], cpu_group="group")

    def broadcast(tensor: Any, *, src: int, group: str) -> None:
        assert (src, group) == (4, "group")
        tensor.fill_(9)

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    trees = Trees(None, BestFirst(2, 3, 5), group)
    tokens, masks = trees.batch_get(list(TEXTS), list(TEXTS.values()), [0, 0])
    assert {*tokens.tolist(), *masks.tolist()} == {9}
    trees.erase_match_state(["a"])


needs_sglang = pytest.mark.skipif(not is_installed("sglang"), reason="SGLang is not installed")


@needs_sglang
def test_the_stub_takes_what_sglang_takes() -> None:
    registry = "sglang.srt.speculative.spec_registry"
    told = {"name", "factory", "supports_overlap"}
    assert told < {*parameters(registry, "CustomSpecAlgo.__init__")}
    assert {"name", "supports_overlap", "spec_class"} < {
        *parameters(registry, "register_algorithm")
    }
    relay = parameters("sglang.srt.managers.overlap_utils", "FutureMap.__init__")
    ours = parameters(MODULE, "Algorithm.create_future_map")
    assert relay == ["self", ours[1], "spec_algo", *ours[2:]]
    for name in ("get_device", "get_parallel", "get_schedule", "get_spec"):
        assert parameters("sglang.srt.runtime_context", name) == []


@needs_sglang
def test_the_algorithm_answers_all_that_sglang_asks_an_algorithm() -> None:
    asked = methods("sglang.srt.speculative.spec_info", "SpeculativeAlgorithm")
    plain = methods("sglang.srt.speculative.spec_registry", "CustomSpecAlgo")
    of_all = {"from_string", "register"}
    asked_by_itself = {"get_platform_worker_cls"}
    assert asked - plain - methods(MODULE, "Algorithm") == of_all | asked_by_itself


@needs_sglang
def test_the_worker_sets_what_sglangs_own_sets() -> None:
    theirs = "sglang.srt.speculative.ngram_worker"
    assert parameters(theirs, "NGRAMWorker.__init__") == parameters(MODULE, "Worker.__init__")
    expected = set_attributes(theirs, "NGRAMWorker.__init__")
    assert expected == set_attributes(MODULE, "Worker.__init__")


@needs_sglang
def test_trees_answer_all_that_the_worker_asks_of_its_corpus() -> None:
    theirs = "sglang.srt.speculative.ngram_worker"
    external = {
        "load_external_corpus_named",
        "commit_external_corpus_load",
        "remove_external_corpus",
        "list_external_corpora",
    }
    trees = Trees(drafts(), BestFirst(2, 3, 5), GROUP)
    asked = {
        node.func.attr: node
        for node in ast.walk(definition(theirs, "NGRAMWorker"))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "self.ngram_corpus"
    }
    assert {*asked} - external == {
        "batch_get", "batch_put", "synchronize", "reset", "erase_match_state",
    }  # fmt: skip
    assert all(takes(getattr(trees, name), asked[name]) for name in asked.keys() - external)
