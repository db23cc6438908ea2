import torch

from treesnake.prompt import Prompt
from treesnake.states.snapshots import KeptSnapshots, Snapshot


def snapshot(*tokens: int) -> Snapshot:
    return Snapshot(None, tokens, (torch.zeros(3), torch.zeros(2, dtype=torch.float16)))


def test_a_snapshot_takes_the_bytes_of_its_tensors() -> None:
    assert snapshot(1).num_bytes == 16


def test_the_longest_beginning_of_a_prompt_is_found() -> None:
    kept = KeptSnapshots()
    for tokens in ((1,), (1, 2), (1, 2, 3), (1, 3), (2,)):
        kept.keep(snapshot(*tokens))
    found = kept.longest(Prompt((1, 2, 4, 5)))
    assert found is not None
    assert found.key == (1, 2)
    assert kept.longest(Prompt((3, 1))) is None


def test_the_last_token_of_a_prompt_is_not_held() -> None:
    kept = KeptSnapshots()
    kept.keep(snapshot(1, 2))
    assert kept.longest(Prompt((1, 2))) is None
    assert kept.longest(Prompt((1, 2, 0))) is not None


def test_the_one_unused_for_longest_goes_first() -> None:
    kept = KeptSnapshots(most=2)
    kept.keep(snapshot(1))
    kept.keep(snapshot(2))
    assert kept.longest(Prompt((1, 0))) is not None
    kept.keep(snapshot(3))
    assert not kept.has((2,))
    assert kept.has((1,))
    assert len(kept) == 2


def test_a_text_has_one_snapshot() -> None:
    kept = KeptSnapshots()
    kept.keep(snapshot(1))
    kept.keep(snapshot(1))
    assert len(kept) == 1
