"""A target and its drafter, as one thing to load, to serve and to measure."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

from treesnake.chance import TorchRng
from treesnake.drafters.composite import CompositeDrafter
from treesnake.drafters.image_views import Caption
from treesnake.drafters.load import DRAFTS_FOR_ITSELF, JOIN, WEIGHTLESS, load_drafter, parts_of
from treesnake.drafters.self_drafting import SelfDrafter
from treesnake.errors import InvalidInputError, TreesnakeError, UnsupportedModelError
from treesnake.generate import generate
from treesnake.kernels.cpu.best_tokens import compile_rankings
from treesnake.loading.networks import STORED_INTEGERS, LoadedNetwork, load_network
from treesnake.loading.options import LoadOptions
from treesnake.models.gguf import mean_bits
from treesnake.models.hybrid_cpu import CpuHybrid
from treesnake.models.transformer import Transformer
from treesnake.models.tree_network import TreeNetwork
from treesnake.prompt import Prompt
from treesnake.protocols import Drafter, DrafterModel, PairModel, Target, TargetModel
from treesnake.sampling import SamplingParams
from treesnake.search.static import StaticSearch
from treesnake.shape import chain
from treesnake.targets.network import NetworkTargetModel

COPIED_DTYPES = ("float32", "float16", "bfloat16", "int8")
"""The dtypes of targets whose copy in int4 drafts."""

LEAST_COPIED_BITS = 6
"""A packed file of fewer bits, on average, has no copy in int4 that would be much smaller."""

WARM_UP_TOKENS = (0, 1)
"""Two different tokens, so that prompt lookup finds nothing and the drafter must draft."""


@dataclass(frozen=True)
class Pair:
    """Two models that know nothing of each other.

    Attributes:
        target: the model whose output is wanted.
        drafter: the model that guesses.

    Raises:
        InvalidInputError: if one of them makes no sessions, as a bare network does not.
    """

    target: TargetModel
    drafter: DrafterModel

    def __post_init__(self) -> None:
        for model in (self.target, self.drafter):
            if not isinstance(model, TargetModel | DrafterModel):
                raise InvalidInputError(
                    f"{type(model).__name__} has no new_session; load a drafter by its name with "
                    "load_drafter, and put a network into NetworkTargetModel or NetworkDrafterModel"
                )

    def new_sessions(self) -> tuple[Target, Drafter]:
        """Returns a session of each."""
        return self.target.new_session(), self.drafter.new_session()


@dataclass(frozen=True)
class SelfPair:
    """A model that drafts for itself: its copy reads what it has made of the text.

    Attributes:
        target: the model.
        copy: a network of the same form with weights of fewer bits.
        beside: what drafts in one tree with the copy, such as prompt lookup.
    """

    target: NetworkTargetModel
    copy: TreeNetwork
    beside: DrafterModel | None = None

    def new_sessions(self) -> tuple[Target, Drafter]:
        """Returns a session of the target, and one of the copy on the same text."""
        target = self.target.new_session()
        drafter = SelfDrafter(target.lent_to(self.copy))
        if self.beside is None:
            return target, drafter
        return target, CompositeDrafter(drafter, self.beside.new_session())


def warm_up(pair: PairModel) -> None:
    """Runs steps of a text of its own, so that the first step of a real text compiles nothing.

    Searches learn what a step takes. One that compiles a kernel, or reads it from disk, takes up to
    a thousand times as long as the next, and a search would not draft such trees again. A model
    that fails here fails in the first real step, too, which tells why.
    """
    prompt, shape = Prompt(WARM_UP_TOKENS), chain(1, sampled=False)
    params = SamplingParams(temperature=1.0)
    with suppress(TreesnakeError):
        target, drafter = pair.new_sessions()
        if isinstance(pair, Pair):  # so that kernels are compiled at the same time
            with ThreadPoolExecutor(2) as beside:
                beside.submit(compile_rankings)
                drafter.prefill(prompt)
                beside.submit(drafter.draft, prompt.token_ids[-1], shape, params, TorchRng(0))
                target.prefill(prompt)
        for _ in range(2):  # the second time moves a state that the first one left behind
            steps = generate(
                target,
                drafter,
                prompt,
                search=StaticSearch(shape),
                params=params,
                rng=TorchRng(0),
                max_length=len(WARM_UP_TOKENS) + 3,
            )
            for _ in steps:
                pass


def pair_by_name(
    model: NetworkTargetModel,
    loaded: LoadedNetwork,
    drafter: str,
    options: LoadOptions,
    caption: Caption | None = None,
) -> PairModel:
    """Returns a loaded target with a drafter by name.

    Args:
        model: the target.
        loaded: what is known of it.
        drafter: as in `load_drafter`; or "self", a copy of the target with weights of fewer bits,
            perhaps with prompt lookup beside it, as in "self+prompt-lookup".
        options: how the drafter is loaded.
        caption: says in words what an image shows, for streams C.

    Raises:
        LoadError: if there is no such drafter, or its files are broken.
        UnsupportedModelError: if it is of a kind that cannot draft, or the target cannot draft for
            itself.
        InvalidInputError: for a tokenizer that does not serve.
    """
    parts = parts_of(drafter)
    if DRAFTS_FOR_ITSELF not in parts:
        return Pair(
            model, load_drafter(drafter, options, target=loaded.checkpoint, caption=caption)
        )
    others = [part for part in parts if part != DRAFTS_FOR_ITSELF]
    if not {*others} <= {*WEIGHTLESS}:
        raise InvalidInputError(
            f"{drafter!r} joins a model that drafts for itself with another one; join it with "
            "prompt-lookup, or name the other one alone"
        )
    beside = load_drafter(JOIN.join(others), options) if others else None
    return SelfPair(model, _load_copy(loaded, options), beside)


def _load_copy(loaded: LoadedNetwork, options: LoadOptions) -> TreeNetwork:
    """Loads a target once more, with weights of fewer bits.

    Raises:
        UnsupportedModelError: if there is no such copy that could read the target's memory.
    """
    name = loaded.checkpoint.name
    if loaded.engine != "native" or loaded.device != "cpu":
        raise UnsupportedModelError(
            f"{name} cannot draft for itself: that needs the native engine on a CPU, and it runs "
            f"in the {loaded.engine} engine on {loaded.device}; choose another drafter"
        )
    if not _has_bits_to_spare(loaded):
        raise UnsupportedModelError(
            f"{name} cannot draft for itself: its weights ({loaded.dtype}) have about 4 bits, and "
            "a copy of fewer would guess little; choose another drafter"
        )
    network = loaded.network
    cache_dtype = network.cache_dtype if isinstance(network, Transformer | CpuHybrid) else None
    copied = replace(options, dtype="int4", engine="native")
    return load_network(loaded.checkpoint, copied, cache_dtype=cache_dtype).network


def _has_bits_to_spare(loaded: LoadedNetwork) -> bool:
    """Tells whether a copy in int4 takes much less time than a model."""
    gguf = loaded.checkpoint.gguf
    if loaded.dtype == STORED_INTEGERS and gguf is not None:
        return mean_bits(gguf.tensors) >= LEAST_COPIED_BITS
    return loaded.dtype in COPIED_DTYPES
