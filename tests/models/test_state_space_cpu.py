"""The compiled networks against the readable ones, and their bits against themselves."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treesnake.errors import InvalidInputError
from treesnake.models.mamba import Mamba, MambaConfig
from treesnake.models.mamba2 import Mamba2, Mamba2Config
from treesnake.models.state_space_cpu import CpuMamba, CpuMamba2, to_cpu
from treesnake.models.state_space_state import StateSpaceState
from treesnake.prompt import Prompt
from treesnake.states.branching import PathSums, ReplayedPaths, StateCopies
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import check_target

VOCAB = 50
ARCHITECTURES = ["mamba", "mamba2"]
BRANCHINGS = [StateCopies, PathSums, ReplayedPaths]
Branching = type[StateCopies] | type[PathSums] | type[ReplayedPaths]

each_way = pytest.mark.parametrize("branching", BRANCHINGS)
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


@cache
def tiny_network(architecture: str) -> Mamba | Mamba2:
    """No width is a multiple of a vector's, and everything has a bias."""
    torch.manual_seed(0)
    if architecture == "mamba":
        network: Mamba | Mamba2 = Mamba(
            MambaConfig(
                vocab_size=VOCAB,
                hidden_size=20,
                num_layers=2,
                state_dim=10,
                time_step_rank=3,
                use_bias=True,
                tie_embeddings=False,
            )
        )
    else:
        network = Mamba2(
            Mamba2Config(
                vocab_size=VOCAB,
                hidden_size=20,
                num_layers=2,
                num_heads=4,
                head_dim=10,
                num_groups=2,
                state_dim=20,
                use_bias=True,
                tie_embeddings=False,
            )
        )
    for name, parameter in network.named_parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
        if name.endswith(("dt_bias", "dt_proj.bias")):
            parameter.data += 2
    return network.eval()


@cache
def compiled(architecture: str, dtype: torch.dtype = torch.float32) -> CpuMamba | CpuMamba2:
    return to_cpu(tiny_network(architecture), dtype)


def text(length: int, seed: int) -> list[int]:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (length,), generator=random).tolist()


def held(
    network: CpuMamba | CpuMamba2 | Mamba | Mamba2,
    tokens: list[int],
    branching: Branching | None = None,
) -> StateSpaceState:
    """A state that holds a text."""
    state = network.new_state(branching)
    state.prefill(Prompt.of([*tokens, 0]))
    return state


def path_to(node: int, parents: list[int]) -> list[int]:
    path = [node]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return path


@each_way
@each_architecture
@settings(max_examples=25)
@given(data=st.data(), prompt_length=st.integers(0, 300), num_rounds=st.integers(1, 3))
def test_compiled_networks_equal_readable_ones(
    architecture: str,
    branching: Branching,
    data: st.DataObject,
    prompt_length: int,
    num_rounds: int,
) -> None:
    readable, fast = tiny_network(architecture), compiled(architecture)
    state, prompt = fast.new_state(branching), text(prompt_length, seed=1)
    expected = held(readable, prompt, branching)
    chunk = data.draw(st.integers(1, 150), label="chunk")
    borders = tuple(range(chunk, prompt_length, chunk))
    state.prefill(Prompt((*prompt, 0), borders=borders))
    for _ in range(num_rounds):
        num_nodes = data.draw(st.integers(1, 12), label="nodes")
        parents = [-1] + [data.draw(st.integers(0, node - 1)) for node in range(1, num_nodes)]
        tokens, first = text(num_nodes, seed=num_nodes), 0
        while first < num_nodes:
            end = data.draw(st.integers(first + 1, num_nodes))
            torch.testing.assert_close(
                state.extend(tokens[first:end], parents[first:end]),
                expected.extend(tokens[first:end], parents[first:end]),
                rtol=1e-4,
                atol=1e-4,
            )
            first = end
        path = path_to(data.draw(st.integers(0, num_nodes - 1), label="accepted"), parents)
        state.commit(path)
        expected.commit(path)
        assert state.length == expected.length


@each_way
@each_architecture
def test_a_node_has_the_same_bits_however_many_are_run_with_it(
    architecture: str, branching: Branching
) -> None:
    network = compiled(architecture)
    parents = [-1, 0, 0, 1, 1, 2, 3, 3, 6, 5, 5]
    tokens = text(len(parents), seed=3)
    state = held(network, text(30, seed=4), branching)
    at_once = state.extend(tokens, parents)
    state.commit([])
    one_by_one = [
        state.extend([token], [parent]) for token, parent in zip(tokens, parents, strict=True)
    ]
    assert torch.equal(at_once, torch.cat(one_by_one))
    state.commit([])
    path = path_to(8, parents)
    chain = state.extend([tokens[node] for node in path], range(-1, len(path) - 1))
    assert torch.equal(chain, at_once[path])


@pytest.mark.parametrize(
    ("architecture", "branching"),
    [
        ("mamba", StateCopies),
        ("mamba", PathSums),
        ("mamba2", StateCopies),
        ("mamba2", ReplayedPaths),
    ],
)
def test_a_text_leaves_the_same_bits_however_it_was_run(
    architecture: str, branching: Branching
) -> None:
    network = compiled(architecture)
    tokens = text(40, seed=5)
    whole, stepped = network.new_state(branching), network.new_state(branching)
    network.run_text(tokens, whole.memory, chunk=17)
    for token in tokens:
        stepped.extend([token, 1], [-1, 0])
        stepped.commit([0])
    assert torch.equal(whole.memory.recurrent, stepped.memory.recurrent)
    assert torch.equal(whole.memory.history, stepped.memory.history)
    first, second = (state.extend([3], [-1]) for state in (whole, stepped))
    assert torch.equal(first, second)


def test_committed_nodes_that_are_pending_change_no_logits() -> None:
    network = compiled("mamba2")
    pending, moved = network.new_state(PathSums), network.new_state(StateCopies)
    most = 0
    for number, path in enumerate([[0], [0, 1], [0, 2], [0, 1], [0], [0, 1], [0, 1], [0, 1]] * 3):
        nodes = text(3, seed=number), [-1, 0, 0]
        torch.testing.assert_close(pending.extend(*nodes), moved.extend(*nodes))
        for state in (pending, moved):
            state.commit(path)
        most = max(most, pending.memory.num_pending)
    assert 4 <= most <= 8
    assert pending.held.key == moved.held.key
    copied = network.new_state(PathSums)
    copied.restore(pending.snapshot())
    assert not pending.memory.num_pending
    for state in (pending, copied):
        torch.testing.assert_close(state.extend([3], [-1]), moved.extend([3], [-1]))


def test_the_number_of_threads_changes_no_bit() -> None:
    network = compiled("mamba2")
    results = []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        try:
            state = held(network, text(20, seed=6))
            logits = [state.extend(text(3, seed=7), [-1, 0, 0])]
            state.commit([0, 2])
            logits.append(state.extend([4], [-1]))
        finally:
            torch.set_num_threads(1)
        results.append(torch.cat(logits))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@each_architecture
def test_room_for_larger_trees_is_room_for_all_threads_that_there_were(architecture: str) -> None:
    network = compiled(architecture)
    logits = []
    for num_threads, num_nodes in ((3, 2), (1, 40), (3, 40)):
        torch.set_num_threads(num_threads)
        try:
            state = held(network, text(20, seed=6), ReplayedPaths)
            logits.append(state.extend(text(num_nodes, seed=7), [-1] * num_nodes))
        finally:
            torch.set_num_threads(1)
        assert len(network._work.scratch) >= 3
    assert torch.equal(logits[1], logits[2])


@each_architecture
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        *(pytest.param(each, marks=pytest.mark.slow) for each in (torch.bfloat16, torch.int8)),
    ],
)
def test_as_a_target_it_scores_with_the_bits_of_plain_decoding(
    architecture: str, dtype: torch.dtype
) -> None:
    target = NetworkTargetModel(compiled(architecture, dtype))
    check_target(target, tolerance=0)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_nodes_have_the_bits_of_the_texts_that_they_end(num_threads: int) -> None:
    network = compiled("mamba2")
    parents = [-1, 0, 0, 1, 1, 2, 3, 3, 6, 5, 5]
    tokens, before = text(len(parents), seed=3), text(30, seed=4)
    torch.set_num_threads(num_threads)
    try:
        logits = held(network, before, ReplayedPaths).extend(tokens, parents)
        for node, expected in enumerate(logits):
            path = [tokens[step] for step in path_to(node, parents)]
            plain = held(network, [*before, *path[:-1]], StateCopies).extend([path[-1]], [-1])
            assert torch.equal(plain[0], expected)
    finally:
        torch.set_num_threads(1)


@pytest.mark.slow
@each_architecture
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.int8, 5e-2)]
)
def test_rounded_weights_give_nearly_the_same_logits(
    architecture: str, dtype: torch.dtype, tolerance: float
) -> None:
    readable, fast = tiny_network(architecture), compiled(architecture, dtype)
    assert fast.num_bytes < compiled(architecture).num_bytes
    expected, state = (held(network, text(50, seed=8)) for network in (readable, fast))
    tokens, parents = text(5, seed=9), [-1, 0, 0, 1, 2]
    torch.testing.assert_close(
        state.extend(tokens, parents),
        expected.extend(tokens, parents),
        rtol=0,
        atol=tolerance,
    )


@each_architecture
def test_a_draft_vocabulary_gives_the_logits_of_its_tokens(architecture: str) -> None:
    network = tiny_network(architecture)
    kept = torch.tensor([7, 3, 49])
    restricted = to_cpu(network, draft_vocab=kept)
    logits = restricted.new_state().extend([1, 2], [-1, 0])
    whole = compiled(architecture).new_state().extend([1, 2], [-1, 0])
    assert torch.equal(logits, whole[:, kept])
    with pytest.raises(InvalidInputError, match=f"within the network's {VOCAB} tokens"):
        to_cpu(network, draft_vocab=torch.tensor([-1]))


@each_architecture
@pytest.mark.parametrize("token", [-1, VOCAB])
def test_a_token_that_does_not_exist_is_refused_and_changes_nothing(
    architecture: str, token: int
) -> None:
    network = compiled(architecture)
    state = network.new_state()
    expected = network.new_state().extend([1], [-1])
    # What is negative makes no prompt in the first place.
    reason = f"tokens 0 to {VOCAB - 1}, got" if token > 0 else "token ids cannot be negative"
    with pytest.raises(InvalidInputError, match=reason):
        state.prefill(Prompt.of([2, token, 0]))
    with pytest.raises(InvalidInputError, match=f"tokens 0 to {VOCAB - 1}, got"):
        state.extend([token], [-1])
    assert torch.equal(state.extend([1], [-1]), expected)


@each_way
@each_architecture
def test_the_bytes_of_a_draft_do_not_depend_on_the_length_of_the_text(
    architecture: str, branching: Branching
) -> None:
    network = compiled(architecture)
    sizes = set()
    for length in (1, 400):
        state = held(network, text(length, seed=10), branching)
        state.extend(text(5, seed=11), [-1, 0, 0, 0, 1])
        sizes.add(state.num_bytes)
    assert len(sizes) == 1


def test_tied_embeddings_are_in_memory_once() -> None:
    sizes = {"vocab_size": 4096, "hidden_size": 16, "num_layers": 1}
    tied = to_cpu(Mamba(MambaConfig(**sizes, tie_embeddings=True)))
    untied = to_cpu(Mamba(MambaConfig(**sizes, tie_embeddings=False)))
    assert untied.num_bytes - tied.num_bytes == 4 * 4096 * 16
