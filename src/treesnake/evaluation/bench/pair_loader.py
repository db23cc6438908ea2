"""Loads what a pair's methods need, each thing once and only when it is needed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

import torch
from transformers import PreTrainedModel

from treesnake.calibration import known_costs
from treesnake.decoder import SpeculativeDecoder
from treesnake.drafters.composite import CompositeDrafterModel
from treesnake.drafters.load import DRAFTS_FOR_ITSELF, JOIN, load_drafter, parts_of
from treesnake.errors import InvalidInputError
from treesnake.evaluation.bench.bench_recipe import DrafterTable, PairTable
from treesnake.evaluation.bench.llama_cpp import LlamaCppRunner
from treesnake.evaluation.bench.methods import Method, Peer
from treesnake.evaluation.bench.peers import TransformersRunner
from treesnake.evaluation.bench.runners import Runner, SpeculativeRunner
from treesnake.loading.networks import LoadedNetwork
from treesnake.loading.options import LoadOptions
from treesnake.loading.pretrained import load_pretrained
from treesnake.models.hf_network import HfNetwork
from treesnake.pairs import Pair, pair_by_name
from treesnake.protocols import DrafterModel, PairModel, TargetModel
from treesnake.search.by_name import search_by_name
from treesnake.targets.load import load_target
from treesnake.targets.network import NetworkTargetModel

Loaded = TypeVar("Loaded")


class PairLoader:
    """The models of a pair and the runners over them.

    Args:
        pair: what to load.
        drafters: drafters with options, by name.
    """

    def __init__(self, pair: PairTable, drafters: dict[str, DrafterTable]) -> None:
        self._pair = pair
        self._tables = drafters
        self._models: dict[str, object] = {}

    @property
    def loaded(self) -> LoadedNetwork:
        """The target as it was loaded."""
        return self._target()[1]

    @property
    def device(self) -> torch.device:
        """Where the target runs."""
        return torch.device(self.loaded.device)

    @property
    def decoder(self) -> SpeculativeDecoder:
        """The target alone, with its tokenizer, to make prompts and texts."""
        return self._decoder("none")

    def target_model(self) -> TargetModel:
        """Returns what makes the target's sessions."""
        return self._target()[0]

    def drafter(self, name: str) -> DrafterModel:
        """Returns a drafter by its name among the recipe's, or as `load_drafter` knows it."""
        return self._once(f"drafter {name}", lambda: self._load_drafter(name))

    def runner(self, method: Method) -> Runner:
        """Makes a method ready."""
        return self._once(f"method {method.name}", lambda: self._make_runner(method))

    def drafter_name(self, method: Method) -> str:
        """Returns which drafter a method uses."""
        return method.drafter_for(self._pair.drafter)

    def _make_runner(self, method: Method) -> Runner:
        if method.peer is not None:
            return self._make_peer(method.peer)
        name = self.drafter_name(method)
        decoder = self._decoder(name)
        costs = self._once(f"costs {name}", lambda: known_costs(decoder.pair, self.loaded, name))
        return SpeculativeRunner(decoder, search_by_name(method.search, costs))

    def _make_peer(self, peer: Peer) -> TransformersRunner | LlamaCppRunner:
        if peer is Peer.LLAMA_CPP:
            return LlamaCppRunner(self._target_file(), self.decoder.end_token_ids)
        name = self._pair.assisted_by
        drafter = None
        if peer is Peer.ASSISTED and name is not None:
            options = replace(self._pair.load_options, dtype="auto")
            drafter = self._once(f"module {name}", lambda: load_pretrained(name, options).model)
        # A compiled model has another forward, so it is a copy of its own.
        is_shared = peer is not Peer.COMPILED
        kept_as = "module" if is_shared else "module compiled"
        model = self._once(kept_as, lambda: self._target_module(is_shared=is_shared))
        return TransformersRunner(peer, model, self.decoder.end_token_ids, drafter)

    def _target_module(self, *, is_shared: bool) -> PreTrainedModel:
        """Returns the target as a module of transformers, the one in use where there is one."""
        network = self.loaded.network
        if is_shared and isinstance(network, HfNetwork):
            return network.model
        options = self._pair.load_options
        if self.loaded.is_in_integers:
            options = replace(options, dtype="auto")
        return load_pretrained(self._pair.target, options).model

    def _target_file(self) -> Path:
        """Returns the GGUF file that is all of the target."""
        path = self.loaded.checkpoint.gguf_file
        if path is None:
            raise InvalidInputError(
                f"llama.cpp runs GGUF files, and the target {self._pair.target} is none"
            )
        return path

    def _target(self) -> tuple[NetworkTargetModel, LoadedNetwork]:
        pair = self._pair
        return self._once("target", lambda: load_target(pair.target, pair.load_options))

    def _decoder(self, drafter: str) -> SpeculativeDecoder:
        pair = self._once(f"pair {drafter}", lambda: self._make_pair(drafter))
        return SpeculativeDecoder.of_loaded(pair, self.loaded)

    def _make_pair(self, drafter: str) -> PairModel:
        model, loaded = self._target()
        if DRAFTS_FOR_ITSELF in parts_of(drafter):
            return pair_by_name(model, loaded, drafter, LoadOptions(device=self._pair.device))
        return Pair(model, self.drafter(drafter))

    def _load_drafter(self, name: str) -> DrafterModel:
        first, join, rest = name.partition(JOIN)
        if join and first in self._tables:
            return CompositeDrafterModel(self.drafter(first), self.drafter(rest))
        table = self._tables.get(name, DrafterTable(name))
        return load_drafter(
            table.model,
            LoadOptions(table.dtype, self._pair.device),
            target=self.loaded.checkpoint,
            window=table.window,
            tokens=table.tokens,
        )

    def _once(self, name: str, make: Callable[[], Loaded]) -> Loaded:
        if name not in self._models:
            self._models[name] = make()
        return cast(Loaded, self._models[name])
