"""What was said in earlier texts is drafted, as far as it is worth it."""

from treesnake.chance import TorchRng
from treesnake.draft import Draft
from treesnake.drafters.memory import NUM_CONTEXT, PATIENCE, PIECE, MemoryDrafter
from treesnake.memory.text_memory import TextMemory
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams
from treesnake.shape import OFF, LevelWidths, Priced, Shape, chain

FREE = Priced(8, (0.0,) * 8, (0.0,) * 32)
LONG = [*range(1, 21)]


def draft_after(memory: TextMemory, text: list[int], shape: Shape = FREE) -> Draft:
    session = MemoryDrafter(memory)
    session.prefill(Prompt.of(text))
    return session.draft(text[-1], shape, SamplingParams(), TorchRng(0))


def said(session: MemoryDrafter, prompt: list[int], answer: list[int]) -> None:
    session.prefill(Prompt.of(prompt))
    session.commit([prompt[-1], *answer])


def test_an_answer_is_drafted_again_and_a_prompt_is_not() -> None:
    memory = TextMemory()
    session = MemoryDrafter(memory)
    said(session, LONG, [25, 26, 27, 28])
    session.remember()
    assert draft_after(memory, LONG).tree.tokens == (LONG[-1], 25, 26, 27, 28)
    assert len(draft_after(memory, LONG[:-1]).tree) == 1


def test_where_texts_went_on_differently_the_tree_branches() -> None:
    memory = TextMemory()
    for token in (25, 25, 26):
        memory.add([*LONG, token, 9])
    draft = draft_after(memory, LONG)
    branches = [draft.tree.tokens[child] for child in draft.tree.children[0]]
    assert branches == [25, 26]
    assert draft.node_probs is not None
    first, second = (draft.node_probs[child] for child in draft.tree.children[0])
    assert first > second > 0
    assert first + second <= 1


def test_probabilities_never_rise_along_a_path() -> None:
    memory = TextMemory()
    memory.add([*range(20)])
    draft = draft_after(memory, [*range(8)])
    assert draft.is_chosen
    assert draft.node_probs == tuple(sorted(draft.node_probs or (), reverse=True))


def test_trees_stay_within_their_shape() -> None:
    memory = TextMemory()
    for token in range(5):
        memory.add([1, 2, 3, token, 6, 7, 8] * 2)
    for shape in (OFF, chain(2), LevelWidths((2, 1)), Priced(2, (0.0,) * 3, (0.0,) * 4)):
        tree = draft_after(memory, [7, 8, 1, 2, 3], shape).tree
        assert tree.depth <= shape.depth
        assert tree.num_drafted <= shape.num_drafted
        assert len(tree.children[0]) <= shape.widest


def test_shapes_without_prices_have_only_what_is_more_likely_than_not() -> None:
    memory = TextMemory()
    for token in range(3):
        memory.add([*LONG, token])
    assert len(draft_after(memory, LONG, chain(4)).tree) == 1
    assert len(draft_after(memory, LONG).tree) > 1


def test_guesses_that_never_come_true_lose_their_credit() -> None:
    memory = TextMemory()
    memory.add([1, 2, 3, 4])
    session = MemoryDrafter(memory)
    probs = []
    for _ in range(30):
        session.prefill(Prompt.of([1, 2, 3]))
        draft = session.draft(3, FREE, SamplingParams(), TorchRng(0))
        probs.append(draft.node_probs[1] if draft.node_probs and len(draft.tree) > 1 else 0.0)
        session.commit([3])
        session.draft(9, FREE, SamplingParams(), TorchRng(0))
        session.commit([])
    assert probs == sorted(probs, reverse=True)
    assert probs[-1] < probs[0] / 2


def test_texts_under_way_know_of_each_other_piece_by_piece() -> None:
    memory = TextMemory()
    first, second = MemoryDrafter(memory), MemoryDrafter(memory)
    first.prefill(Prompt.of([500, 501, 502]))
    second.prefill(Prompt.of([600, 601, 602]))
    for begin in range(0, 3 * PIECE, 2):
        first.commit([begin, begin + 1])
        second.commit([1000 + begin, 1001 + begin])
    found = memory.recall([PIECE - 2, PIECE - 1, PIECE], 4).continuations[0]
    assert found[0] == PIECE + 1
    assert memory.recall([2 * PIECE - 3, 2 * PIECE - 2, 2 * PIECE - 1], 1).agreements
    assert NUM_CONTEXT >= 3


def test_the_rest_of_an_answer_is_added_when_the_next_text_begins() -> None:
    memory = TextMemory()
    session = MemoryDrafter(memory)
    said(session, LONG, [25, 26])
    assert len(memory) == 0
    session.prefill(Prompt.of(LONG))
    draft = session.draft(LONG[-1], FREE, SamplingParams(), TorchRng(0))
    assert draft.tree.tokens == (LONG[-1], 25, 26)


def test_a_text_that_gains_nothing_looks_up_long_runs_alone_until_a_guess_comes_true() -> None:
    memory = TextMemory()
    memory.add([1, 2, 3, 4, 5])
    memory.add(LONG)
    session = MemoryDrafter(memory)
    session.prefill(Prompt.of([90, 91]))
    for number in range(PATIENCE + 1):
        session.draft(100 + number, FREE, SamplingParams(), TorchRng(0))
        session.commit([100 + number])
    session.commit([1, 2])
    assert len(session.draft(3, FREE, SamplingParams(), TorchRng(0)).tree) == 1
    session.commit([3, *LONG[:8]])
    assert session.draft(9, FREE, SamplingParams(), TorchRng(0)).tree.tokens[:2] == (9, 10)
    session.commit([9])
    session.draft(10, FREE, SamplingParams(), TorchRng(0))
    session.commit([10, 1, 2])
    assert session.draft(3, FREE, SamplingParams(), TorchRng(0)).tree.tokens[:2] == (3, 4)
