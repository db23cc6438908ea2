"""The stages of benchmarks/gpu.py, which runs each in a process of its own.

Every measurement has a name and is a function. What it returns, or the end of its traceback, goes
into the stage's file at once, and one that is there already is not made again.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent
Run = Callable[[], Any]

DRY_CONFIG = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
PAPER_TREE = "3x2x2x1x1"


class Book:
    """A stage's file: named measurements, written one by one.

    Args:
        path: the file; what it holds is not measured again.
        dry_run: whether everything is tiny, on a CPU.
    """

    def __init__(self, path: Path, *, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.device = torch.device("cpu" if dry_run else "cuda")
        self.dtype = torch.float32 if dry_run else torch.bfloat16
        self._path = path
        try:
            self._held = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            self._held = {}
        self._held["environment"] = environment(self.device)
        self._held.setdefault("measured", {})
        self._held["failed"] = {}
        self._write()

    def measure(self, name: str, run: Run) -> Any:
        """Returns what a function measured, now or in an earlier run; None if it failed."""
        if name not in self._held["measured"]:
            started = time.perf_counter()
            try:
                self._held["measured"][name] = run()
            except Exception:  # noqa: BLE001 - the others are measured all the same
                self._held["failed"][name] = traceback.format_exc()[-2500:]
            if not self.dry_run:
                torch.cuda.empty_cache()
            self._write()
            print(f"{name}: {self._shown(name)} ({time.perf_counter() - started:.1f} s)")
        return self._held["measured"].get(name)

    def _shown(self, name: str) -> str:
        if name in self._held["failed"]:
            return "FAILED: " + self._held["failed"][name].strip().splitlines()[-1]
        return json.dumps(self._held["measured"][name])

    def _write(self) -> None:
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._held, indent=1) + "\n", "utf-8")
        partial.replace(self._path)


def environment(device: torch.device) -> dict[str, Any]:
    """Says what runs here."""
    found: dict[str, Any] = {"python": sys.version.split()[0]}
    for package in ("torch", "triton", "transformers", "numpy", "numba"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
        }
    return found


def milliseconds(book: Book, run: Run, *, at_most_s: float = 1.5) -> float:
    """Returns the median time of a function, once it has been run and captured."""
    if book.dry_run:
        run()
        return 0.0
    for _ in range(3):
        run()
    _synchronize(book)
    started = time.perf_counter()
    times: list[float] = []
    while len(times) < 50 and (len(times) < 3 or time.perf_counter() - started < at_most_s):
        begun = time.perf_counter()
        run()
        _synchronize(book)
        times.append(time.perf_counter() - begun)
    return round(statistics.median(times) * 1e3, 4)


def _synchronize(book: Book) -> None:
    if not book.dry_run:
        torch.cuda.synchronize(book.device)


def gpu_milliseconds(book: Book, run: Run) -> float:
    """Returns the mean time on the device of many runs that are launched without waiting."""
    if book.dry_run:
        return milliseconds(book, run)
    for _ in range(5):
        run()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(50):
        run()
    end.record()
    end.synchronize()
    return round(begin.elapsed_time(end) / 50, 4)


def bandwidth(book: Book) -> float:
    """Returns the bytes a second that a copy reads and writes."""
    size = 1 << (16 if book.dry_run else 31)
    source = torch.zeros(size, dtype=torch.uint8, device=book.device)
    target = torch.empty_like(source)
    seconds = gpu_milliseconds(book, lambda: target.copy_(source)) * 1e-3
    return round(2 * size / seconds) if seconds else 1.0


def launches(book: Book) -> dict[str, float]:
    """Returns the milliseconds of 1000 tiny kernels, launched one by one and in a graph."""
    number = torch.zeros(32, device=book.device)

    def run() -> Tensor:
        for _ in range(10 if book.dry_run else 1000):
            number.add_(1)
        return number

    captured = capture_of(book)(run, book.device)
    return {
        "eager": milliseconds(book, run),
        "in_a_graph": milliseconds(book, captured),
    }


def capture_of(book: Book) -> Callable[[Run, torch.device], Run]:
    """Returns how passes are captured: as CUDA graphs, or in a dry run by their operations."""
    if book.dry_run:
        return import_module("treesnake.testing.captures").RecordedCapture()
    return import_module("treesnake.models.cuda_graphs").capture


# --- kernels against their references ---


def kernels(book: Book) -> None:
    """Every Triton kernel against its reference, at the sizes of networks with 130M weights."""
    book.measure("bandwidth", lambda: bandwidth(book))
    book.measure("1000 kernels, ms", lambda: launches(book))
    for name, case in kernel_cases(book).items():
        book.measure(name, lambda case=case: compared(book, case))
    for name in ("llama", "qwen3", "windows"):
        for nodes, length in ((1, 500), (13, 500), (64, 3000)):
            book.measure(
                f"fused layers, {name}, {nodes} nodes behind {length} tokens",
                lambda name=name, nodes=nodes, length=length: fused_against_plain(
                    book, name, nodes, length
                ),
            )


@dataclass(frozen=True)
class Case:
    """A function of a kernel's module with its arguments; `written` are changed in place."""

    module: str
    function: str
    arguments: tuple[Any, ...]
    written: tuple[int, ...] = ()


def kernel_cases(book: Book) -> dict[str, Case]:
    """Makes random arguments for each function."""
    make = _Maker(book)
    channels, state = (8, 4) if book.dry_run else (1536, 16)
    heads, head_dim, dim = (2, 4, 8) if book.dry_run else (24, 64, 128)
    rows, text = make.rows(), make.random
    x, step = text(1, 13, channels), make.positive(1, 13, channels)
    A, B, D = -make.positive(channels, state), text(1, 13, state), text(channels)
    committed, states = text(1, channels, state), text(1, 14, channels, state)
    x2, step2 = text(1, 13, heads, head_dim), make.positive(1, 13, heads)
    A2, B2, D2 = -make.positive(heads), text(1, 13, 1, dim), text(heads)
    held = text(1, heads, head_dim, dim)
    conv = (text(1, 13, channels), text(channels, 4), text(channels), text(1, 3, channels))
    key, value = text(13, heads, dim) * 0.1, text(13, heads, head_dim)
    delta = (key, value, -make.positive(13, heads, 1), make.positive(13, heads))
    linear = (text(13, channels), text(channels), 1e-5, text(4 * channels, channels) * 0.03)
    new = slice(5, 13)
    return {
        "conv.causal_conv": Case("conv", "causal_conv", conv),
        "conv.tree_conv": Case("conv", "tree_conv", (*conv, rows)),
        "ssm.scan": Case("ssm", "scan", (x, step, A, B, B, D, committed)),
        "ssm.extend_copies": Case(
            "ssm",
            "extend_copies",
            (x[:, new], step[:, new], A, B[:, new], B[:, new], D, committed, states, rows),
            written=(7,),
        ),
        "ssm.extend_sums": Case(
            "ssm", "extend_sums", (x, step, A, B, B[:, new], D, committed, rows)
        ),
        "ssm.commit_sums": Case(
            "ssm", "commit_sums", (x, step, A[None], B, committed), written=(4,)
        ),
        "ssd.scan": Case("ssd", "scan", (x2, step2, A2, B2, B2, D2, held)),
        "ssd.extend_sums": Case(
            "ssd", "extend_sums", (x2, step2, A2, B2, B2[:, new], D2, held, rows)
        ),
        "ssd.commit_sums": Case(
            "ssd", "commit_sums", (x2, step2, A2[None], B2, held), written=(4,)
        ),
        "gated_delta.scan": Case("gated_delta", "scan", (key, *delta, text(heads, dim, head_dim))),
        "gated_delta.extend_sums": Case(
            "gated_delta",
            "extend_sums",
            (key[5:], *delta, make.mask(), text(heads, dim, head_dim)),
        ),
        "fused_linear.normed_linear": Case("fused_linear", "normed_linear", linear),
        "fused_linear.normed_gate": Case("fused_linear", "normed_gate", linear),
        "fused_linear.add_linear": Case(
            "fused_linear", "add_linear", (text(13, 4 * channels), linear[0], linear[3])
        ),
    }


class _Maker:
    """Makes random tensors of float32, always the same."""

    PARENTS = (-1, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8)
    NUM_NEW = 8

    def __init__(self, book: Book) -> None:
        self._device = book.device
        self._random = torch.Generator().manual_seed(0)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._random).to(self._device)

    def positive(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._random).to(self._device) * 0.5 + 0.05

    def rows(self) -> Any:
        layout = import_module("treesnake.states.tree_layout")
        new = layout.tree_rows(
            [layout.tree_layout(self.PARENTS, 4, torch.device("cpu"))],
            [self.NUM_NEW],
            [0],
            layout.RowsSize(1, self.NUM_NEW, len(self.PARENTS)),
            spare_row=len(self.PARENTS),
        )
        kind = import_module("treesnake.kernels.tree_rows").TreeRows
        return kind(**{name: part.to(self._device) for name, part in vars(new).items()})

    def mask(self) -> Tensor:
        layout = import_module("treesnake.states.tree_layout")
        return layout.tree_layout(self.PARENTS, 4, torch.device("cpu")).ancestor_mask.to(
            self._device
        )


def compared(book: Book, case: Case) -> dict[str, float]:
    """Returns how far a kernel is from its reference, and the times of both on the device."""
    form = "reference" if book.dry_run else "triton"
    kernel, reference = (
        getattr(import_module(f"treesnake.kernels.{each}.{case.module}"), case.function)
        for each in (form, "reference")
    )
    ours, theirs = (_results(function, case) for function in (kernel, reference))
    differences = [
        float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-9))
        for a, b in zip(ours, theirs, strict=True)
    ]
    return {
        "difference": max(differences),
        "ms": gpu_milliseconds(book, lambda: kernel(*case.arguments)),
        "reference_ms": gpu_milliseconds(book, lambda: reference(*case.arguments)),
    }


def _results(function: Any, case: Case) -> list[Tensor]:
    arguments = list(case.arguments)
    for index in case.written:
        arguments[index] = arguments[index].clone()
    returned = function(*arguments)
    made = returned if isinstance(returned, tuple) else (returned,)
    return [*(part for part in made if part is not None), *(arguments[i] for i in case.written)]


def fused_against_plain(book: Book, name: str, num_nodes: int, length: int) -> dict[str, Any]:
    """Returns how far the logits of fused layers are from those of plain torch, in four layers."""
    nowhere = import_module("treesnake.models.cuda_graphs").GraphCache(device_type="nowhere")
    engine = new_engine(book, decoder_config(book, name, num_layers=4), nowhere)
    cache = filled_cache(book, engine, min(length, 100) if book.dry_run else length)
    part = tree_part(cache, num_nodes)
    plain = engine.forward_all([part])[0]
    if book.dry_run:
        return {"difference": 0.0}
    inputs = import_module("treesnake.models.transformer_inputs")
    size = inputs.Size.fitting([part], 1)
    told = inputs.Inputs.of([part], [0], size).copied_to(book.device)
    fused = import_module("treesnake.models.transformer_fused").run_fused
    with torch.inference_mode():
        logits = fused(engine.config, engine._tensors, told, size.rows, cache.bank)[:num_nodes]
    return {
        "difference": float((logits - plain).abs().max() / plain.abs().max()),
        "same_tokens": float((logits.argmax(-1) == plain.argmax(-1)).float().mean()),
    }


# --- networks ---


def decoder_config(book: Book, name: str, num_layers: int | None = None) -> Any:
    """Returns the config of a decoder in the layout of a model, without its weights."""
    hf = import_module("transformers")
    classes = {"qwen3": hf.Qwen3Config, "windows": hf.MistralConfig}
    llama_3_8b = {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 16384,
        "head_dim": 128,
    }
    smollm2 = {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "head_dim": 64,
        "tie_word_embeddings": True,
    }
    sizes = dict(smollm2 if name == "smollm2" else llama_3_8b)
    if book.dry_run:
        sizes = {**DRY_CONFIG, "head_dim": 8}
    if num_layers is not None:
        sizes["num_hidden_layers"] = min(num_layers, sizes["num_hidden_layers"])
    if name == "windows":
        sizes["sliding_window"] = 256
    return classes.get(name, hf.LlamaConfig)(**sizes)


def new_engine(book: Book, hf_config: Any, graphs: Any = None) -> Any:
    """Returns our decoder with random weights, made on the device."""
    ours = import_module("treesnake.models.transformer_config").TransformerConfig.from_hf(hf_config)
    shapes = import_module("treesnake.models.transformer_layers").promised_tensors(ours).shapes
    torch.manual_seed(0)
    tensors = {name: random_weight(book, shape) for name, shape in shapes.items()}
    engine = import_module("treesnake.models.transformer_torch").TorchEngine
    return engine(ours, tensors, book.dtype, book.device, graphs)


def random_weight(book: Book, shape: Sequence[int]) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=book.dtype, device=book.device)
    weight = torch.empty(shape, dtype=book.dtype, device=book.device)
    return weight.normal_(std=shape[-1] ** -0.5)


def filled_cache(book: Book, engine: Any, length: int) -> Any:
    """Returns a cache that holds so many tokens, with random keys and values."""
    cache = engine.new_cache(length + 128)
    with torch.inference_mode():
        for rows in (cache.keys, cache.values):
            rows.normal_()
    cache.commit(range(length))
    return cache


def tree_part(cache: Any, num_nodes: int) -> Any:
    """Returns a tree of so many nodes behind the text of a cache: a chain of pairs."""
    parents = (-1, *((node - 1) // 2 for node in range(1, num_nodes)))
    layout = import_module("treesnake.states.tree_layout").tree_layout
    mask = layout(parents, 1, torch.device("cpu")).ancestor_mask
    kind = import_module("treesnake.models.transformer_pass").NewNodes
    tokens = torch.arange(num_nodes) % 60
    return kind(tokens, mask, cache, num_nodes)


def mamba(book: Book, architecture: str, capture: Any = None, device_type: str = "cuda") -> Any:
    """Returns a drafter of 130M weights, random ones."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_layers": 2} if book.dry_run else {}
    torch.manual_seed(0)
    with book.device:
        if architecture == "mamba":
            module = import_module("treesnake.models.mamba")
            network = module.Mamba(module.MambaConfig(**sizes))
        else:
            module = import_module("treesnake.models.mamba2")
            if book.dry_run:
                sizes |= {"num_heads": 4, "head_dim": 16, "state_dim": 8}
            network = module.Mamba2(module.Mamba2Config(**sizes))
    banks = import_module("treesnake.models.state_space_banks").StateSpaceBanks
    if capture is not None:
        network.banks = banks(network.config.state_shape, capture, device_type)
    return network.to(book.dtype).eval()


def weights_bytes(network: Any) -> int:
    return sum(parameter.nbytes for parameter in network.parameters())


# --- drafters ---


def drafters(book: Book) -> None:
    """Levels and whole trees of Mamba drafters, captured and not, beside the time of the bytes."""
    rate = book.measure("bandwidth", lambda: bandwidth(book))
    for architecture in ("mamba2", "mamba"):
        for captured in (True, False):
            kind = "captured" if captured else "eager"
            book.measure(
                f"{architecture}-130m, {kind}",
                lambda architecture=architecture, captured=captured: levels(
                    book, architecture, captured, rate
                ),
            )


def levels(book: Book, architecture: str, captured: bool, rate: float) -> dict[str, Any]:
    """Returns the milliseconds of a level by its nodes, and of a whole tree level by level."""
    capture = capture_of(book) if captured else None
    nowhere = ("cpu" if book.dry_run else "cuda") if captured else "nowhere"
    network = mamba(book, architecture, capture or capture_of(book), nowhere)
    part = import_module("treesnake.models.tree_network").Part
    state = network.new_state()
    state.prefill(import_module("treesnake.prompt").Prompt.of(range(40)))

    def level(number: int) -> None:
        network.extend_all([part(state, [7] * number, [-1] * number)])
        state.commit([])

    def tree() -> None:
        before = -1
        for width in (1, 3, 6, 12, 12):
            parents = [-1] * width if before < 0 else [before] * width
            network.extend_all([part(state, [7] * width, parents)])
            before += width
        state.commit([0])

    return {
        "floor_ms": round(weights_bytes(network) / rate * 1e3, 4) if rate else None,
        "level_ms": {
            str(number): milliseconds(book, lambda number=number: level(number))
            for number in (1, 3, 8, 16, 32)
        },
        f"tree_{PAPER_TREE}_ms": milliseconds(book, tree),
        **(whole_trees(book, network) if captured else {}),
    }


def whole_trees(book: Book, network: Any) -> dict[str, Any]:
    """Returns the milliseconds of a draft in one graph and level by level, and if both agree."""
    shape = import_module("treesnake.shape").parse_shape(PAPER_TREE)
    greedy = import_module("treesnake.sampling").SamplingParams()
    chance = import_module("treesnake.chance")
    drafters = import_module("treesnake.drafters.network")
    session = drafters.NetworkDrafterModel(network).new_session()
    session.prefill(import_module("treesnake.prompt").Prompt.of(range(40)))
    found: dict[str, Any] = {}
    trees = []
    for name in ("in one graph", "level by level"):
        if name == "level by level":
            network.can_grow_fixed = lambda shape: False
        trees.append(session.draft(7, shape, greedy, chance.TorchRng(0)).tree)
        found[f"draft {name}, ms"] = milliseconds(
            book, lambda: session.draft(7, shape, greedy, chance.TorchRng(0))
        )
    return {**found, "same_tree": trees[0] == trees[1]}


# --- targets ---


def targets(book: Book) -> None:
    """A target of 8 billion weights: 1 to 64 nodes, against the bytes and against transformers."""
    rate = book.measure("bandwidth", lambda: bandwidth(book))
    lengths = (20, 100) if book.dry_run else (512, 8192)
    with one_engine(book) as engine:
        for length in lengths:
            book.measure(
                f"llama-3-8b, fused and captured, behind {length} tokens",
                lambda length=length: steps(book, engine(), length, rate),
            )
        book.measure(
            "llama-3-8b, fused and captured, prompt of 2048",
            lambda: prompt_seconds(book, engine(), 64 if book.dry_run else 2048),
        )
        for length in lengths:
            book.measure(
                f"llama-3-8b, plain and captured, behind {length} tokens",
                lambda length=length: steps(book, plain(engine()), length, rate),
            )
    book.measure("llama-3-8b, transformers eager", lambda: transformers_step(book, "llama"))
    book.measure("pythia-6.9b, generic engine", lambda: generic_steps(book, rate))
    book.measure(
        "llama-3-8b, transformers compiled", lambda: transformers_step(book, "llama", True)
    )


@contextmanager
def one_engine(book: Book) -> Iterator[Callable[[], Any]]:
    """Gives the large engine when it is first asked for, and forgets it at the end."""
    made: list[Any] = []

    def engine() -> Any:
        if not made:
            graphs = None
            if book.dry_run:
                cache = import_module("treesnake.models.cuda_graphs").GraphCache
                graphs = cache(capture_of(book), "cpu")
            made.append(new_engine(book, decoder_config(book, "llama"), graphs))
        return made[0]

    yield engine
    made.clear()


def plain(engine: Any) -> Any:
    """Returns the engine without fused kernels."""
    engine._fuses = False
    engine._graphs.forget()
    return engine


def steps(book: Book, engine: Any, length: int, rate: float | None) -> dict[str, Any]:
    """Returns the milliseconds of a step by its nodes, and what the bytes alone would take."""
    cache = filled_cache(book, engine, length)
    embedding = engine._tensors.embedding.nbytes
    read = engine.num_bytes - (0 if engine.config.tied_embeddings else embedding)
    read += 2 * cache.keys[:, :, :length].nbytes
    counts = (1, 2, 4, 8, 16, 32, 64)
    return {
        "floor_ms": round(read / rate * 1e3, 4) if rate else None,
        "fused": bool(engine._fuses),
        "step_ms": {
            str(nodes): milliseconds(
                book, lambda nodes=nodes: engine.forward_all([tree_part(cache, nodes)])
            )
            for nodes in counts
        },
    }


def prompt_seconds(book: Book, engine: Any, length: int) -> dict[str, float]:
    """Returns the milliseconds of reading a prompt in the chunks of the engine."""
    kind = import_module("treesnake.models.transformer_pass").NewNodes

    def read() -> None:
        cache = engine.new_cache(length)
        for first in range(0, length, engine.prefill_chunk):
            size = min(engine.prefill_chunk, length - first)
            engine.forward_all([kind.of_text(torch.arange(size) % 60, cache, num_logits=0)])
            cache.commit(range(size))

    return {"ms": milliseconds(book, read)}


def transformers_step(book: Book, name: str, compiled: bool = False) -> dict[str, Any]:
    """Returns the milliseconds of a token in transformers' own model."""
    hf = import_module("transformers")
    model = hf_model(book, decoder_config(book, name))
    token = torch.full((1, 1), 7, device=book.device)
    length = 20 if book.dry_run else 512
    prompt = torch.arange(length, device=book.device)[None] % 60
    if not compiled:
        cache = hf.DynamicCache(config=model.config)
        with torch.inference_mode():
            model(prompt, past_key_values=cache)

            def step() -> None:
                model(token, past_key_values=cache)

            return {"ms": milliseconds(book, step)}
    cache = hf.StaticCache(config=model.config, max_cache_len=2 * length)
    mode = {} if book.dry_run else {"mode": "reduce-overhead"}
    if book.dry_run:
        return {"ms": None}
    run = torch.compile(model, **mode)
    place = torch.tensor([length], device=book.device)
    with torch.inference_mode():
        model(prompt, past_key_values=cache)

        def compiled_step() -> None:
            run(token, past_key_values=cache, cache_position=place)

        return {"ms": milliseconds(book, compiled_step)}


def generic_steps(book: Book, rate: float | None) -> dict[str, Any]:
    """Returns the milliseconds of a step of Pythia-6.9B in the generic engine, by its nodes."""
    hf = import_module("transformers")
    config = hf.GPTNeoXConfig() if book.dry_run else None
    if config is None:
        config = hf.GPTNeoXConfig(
            vocab_size=50432,
            hidden_size=4096,
            intermediate_size=16384,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=2048,
        )
    else:
        config = hf.GPTNeoXConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    model = hf_model(book, config)
    network = import_module("treesnake.models.hf_network").hf_network(model)
    part = import_module("treesnake.models.tree_network").Part
    state = network.new_state()
    state.prefill(import_module("treesnake.prompt").Prompt.of([7] * (20 if book.dry_run else 512)))

    def step(nodes: int) -> None:
        parents = [-1, *((node - 1) // 2 for node in range(1, nodes))]
        network.extend_all([part(state, [7] * nodes, parents)])
        state.commit([])

    return {
        "floor_ms": round(weights_bytes(model) / rate * 1e3, 4) if rate else None,
        "step_ms": {
            str(nodes): milliseconds(book, lambda nodes=nodes: step(nodes))
            for nodes in (1, 4, 16, 64)
        },
    }


def hf_model(book: Book, config: Any) -> Any:
    """Returns a model of transformers with random weights, made on the device."""
    hf = import_module("transformers")
    with book.device:
        return hf.AutoModelForCausalLM.from_config(config, dtype=book.dtype).eval()


# --- a pair ---


def pair(book: Book) -> None:
    """Greedy decoding by trees against plain decoding: the same tokens, and how many a second.

    The real pair if its target is here; and pairs with random weights, of which one drafts for
    itself, so that whole paths are accepted.
    """
    real = book.measure("smollm2 with treesnake-smol", lambda: real_pair(book))
    print(f"the real pair: {real}")
    prompt = [(7 * index + 3) % 60 for index in range(40)]
    for name in ("smollm2, drafting for itself", "smollm2 with a mamba2-130m"):
        book.measure(
            f"random {name}", lambda name=name: decoding(book, random_pair(book, name), prompt)
        )


def random_pair(book: Book, name: str) -> Any:
    """Returns a target of the size of SmolLM2-135M and a drafter.

    In a dry run it is a Mamba-2: on a CPU our decoder would compile its kernels first.
    """
    transformer = import_module("treesnake.models.transformer")
    config = decoder_config(book, "smollm2")
    ours = import_module("treesnake.models.transformer_config").TransformerConfig.from_hf(config)
    shapes = import_module("treesnake.models.transformer_layers").promised_tensors(ours).shapes
    torch.manual_seed(0)
    if book.dry_run:
        target = mamba(book, "mamba2")
    else:
        tensors = {key: random_weight(book, shape) for key, shape in shapes.items()}
        target = transformer.Transformer(ours, tensors, book.dtype, book.device)
    drafter = target if name.endswith("itself") else mamba(book, "mamba2")
    return import_module("treesnake.pairs").Pair(
        import_module("treesnake.targets.network").NetworkTargetModel(target),
        import_module("treesnake.drafters.network").NetworkDrafterModel(drafter),
    )


def real_pair(book: Book) -> dict[str, Any]:
    """Returns the same of SmolLM2-135M-Instruct with the drafter that ships."""
    decoder = import_module("treesnake").SpeculativeDecoder
    if book.dry_run:
        return {"skipped": "a dry run loads no weights"}
    loaded = decoder.from_pretrained(device="cuda", dtype="float16")
    question = "Explain in a few paragraphs why the sky is blue and sunsets are red."
    prompt = loaded.encode([{"role": "user", "content": question}])
    return decoding(book, loaded.pair, list(prompt.token_ids))


def decoding(book: Book, models: Any, prompt: list[int]) -> dict[str, Any]:
    """Returns tokens a second and tokens a step of several shapes, and whether tokens are equal."""
    decoder = import_module("treesnake").SpeculativeDecoder
    number = 12 if book.dry_run else 192
    texts: dict[str, Sequence[int]] = {}
    found: dict[str, Any] = {}
    for search in ("off", "chain(5)", PAPER_TREE, "self-tuning"):
        speculative = decoder(models, search=search)
        speculative.generate(prompt, max_new_tokens=number)  # captures the sizes that it meets
        _synchronize(book)
        started = time.perf_counter()
        generation = speculative.generate(prompt, max_new_tokens=number)
        seconds = time.perf_counter() - started
        texts[search] = generation.token_ids
        found[search] = {
            "tokens_per_s": round(generation.num_emitted / seconds, 1),
            "tokens_per_step": round(generation.mean_tokens_per_step, 3),
            "same_as_plain": _num_equal(texts["off"], generation.token_ids),
            "tokens": generation.num_emitted,
        }
    return found


def _num_equal(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns for how many tokens two texts are the same."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


# --- memory ---


def memory(book: Book) -> None:
    """What the text takes in a Mamba drafter and in a Transformer of its size, by its length."""
    for length in (16, 64) if book.dry_run else (1024, 8192, 16384):
        book.measure(f"{length} tokens", lambda length=length: state_bytes(book, length))


def state_bytes(book: Book, length: int) -> dict[str, int]:
    """Returns the bytes of the states of one text; the Transformer has 135 million weights."""
    prompt = import_module("treesnake.prompt").Prompt.of([7] * length)
    state = mamba(book, "mamba2").new_state()
    state.prefill(prompt)
    engine = new_engine(book, decoder_config(book, "smollm2"))
    cache = engine.new_cache(length)
    cache.commit(range(length))
    found = {"mamba2-130m": state.num_bytes, "transformer-135m": cache.num_bytes}
    if book.device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated(book.device)
    return found


# --- tests and training ---


def tests(book: Book) -> None:
    """The tests that are marked for a GPU, and those of the Triton kernels."""
    for folder in ("tests/kernels/triton", "tests/gpu"):
        book.measure(folder, lambda folder=folder: tested(folder))


def tested(folder: str) -> dict[str, Any]:
    """Runs the tests in a folder; returns the end of what pytest says."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {"status": finished.returncode, "end": finished.stdout[-3000:] + finished.stderr[-500:]}


def training(book: Book) -> None:
    """How many tokens a second a Mamba-2 of 130M weights learns."""
    for architecture in ("mamba2", "mamba"):
        book.measure(
            f"{architecture}-130m",
            lambda architecture=architecture: trained(book, architecture),
        )


def trained(book: Book, architecture: str) -> dict[str, float]:
    """Returns the milliseconds and the tokens a second of a pass forwards and backwards."""
    texts, length = (2, 16) if book.dry_run else (8, 1024)
    network = mamba(book, architecture).float().train()
    tokens = torch.randint(0, 60, (texts, length), device=book.device)

    def update() -> None:
        with torch.autocast(book.device.type, torch.bfloat16, enabled=not book.dry_run):
            network.features(tokens).float().square().mean().backward()
        network.zero_grad(set_to_none=True)

    spent = milliseconds(book, update, at_most_s=5)
    return {"ms": spent, "tokens_per_s": round(texts * length / spent * 1e3) if spent else 0}


STAGES: dict[str, Callable[[Book], None]] = {
    "kernels": kernels,
    "drafters": drafters,
    "targets": targets,
    "pair": pair,
    "memory": memory,
    "tests": tests,
    "training": training,
}


def main() -> None:
    """Runs one stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("result", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    STAGES[arguments.stage](Book(arguments.result, dry_run=arguments.dry_run))


if __name__ == "__main__":
    main()
