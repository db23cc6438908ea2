from math import inf

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treesnake.chance import TorchRng
from treesnake.drafters.growing import with_noise
from treesnake.kernels.cpu.best_tokens import find_best, first_come
from treesnake.sampling import SamplingParams, largest, log_softmax, to_probs
from treesnake.waiting_times import WaitingTimes


@given(
    st.integers(0, 2**32),
    st.integers(1, 70),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.3, 1.0, 1.5]),
    st.integers(0, 3),
)
def test_the_compiled_choice_is_that_of_the_readable_one(
    seed: int, num_columns: int, number: int, temperature: float, depth: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    number, rng = min(number, num_columns), TorchRng(seed)
    logits = 3 * torch.randn(3, num_columns, generator=generator)
    token_ids = torch.randperm(num_columns + 5, generator=generator)[:num_columns].numpy() - 1
    noise, noisy = None, logits
    if temperature:
        noise = rng.waiting_times.noise(temperature, depth)
        noisy = with_noise(logits, [depth] * 3, token_ids, temperature, rng)
    best = find_best(logits.numpy(), number, noise, token_ids)
    expected = largest(log_softmax(noisy), number)
    is_possible = expected.values.numpy() > -inf
    assert (best.columns == np.where(is_possible, expected.indices.numpy(), -1)).all()
    assert np.allclose(best.log_probs, expected.values.numpy(), atol=1e-4)


def test_of_equal_tokens_the_first_is_best() -> None:
    best = find_best(np.zeros((1, 20), np.float32), 3, None, np.arange(20))
    assert best.columns.tolist() == [[0, 1, 2]]
    assert best.log_probs[0] == pytest.approx(-np.log(20))


def test_what_is_ruled_out_is_no_token() -> None:
    logits = np.full((1, 20), -inf, np.float32)
    logits[0, 7] = 1
    best = find_best(logits, 2, None, np.arange(20))
    assert best.columns.tolist() == [[7, -1]]
    assert best.log_probs.tolist() == [[0, -inf]]


@given(
    st.integers(0, 2**63 - 1),
    st.integers(1, 200),
    st.floats(0, 20),
    st.sampled_from([1e-300, 1e-7, 0.3, 1.0, 2.5, 1e30]),
)
def test_the_compiled_draw_is_that_of_the_readable_one(
    seed: int, num_columns: int, spread: float, temperature: float
) -> None:
    chance = np.random.default_rng(seed)
    logits = (spread * chance.standard_normal((3, num_columns))).astype(np.float32)
    logits[chance.random(logits.shape) < 0.2] = -inf
    logits[:, chance.integers(num_columns)] = 1
    probs = to_probs(torch.from_numpy(logits), SamplingParams(temperature=temperature)).numpy()
    times = WaitingTimes(seed)
    for row in range(3):
        token = first_come(logits, row, times.noise(temperature, row))
        assert token == times.first_come(probs[row], row)
        assert logits[row, token] > -inf


def test_rare_tokens_are_drawn_as_often_as_they_should_be() -> None:
    """They come together, as one more token; then one of them is chosen by its probability."""
    logits = np.full((1, 20_000), -10, np.float32)
    logits[0, 0], logits[0, 1:5000] = 0, -10.5
    probs = to_probs(torch.from_numpy(logits), SamplingParams(temperature=1.0)).numpy()[0]
    times = WaitingTimes(3)
    tokens = [first_come(logits, 0, times.noise(1.0, place)) for place in range(2000)]
    assert tokens[:200] == [times.first_come(probs, place) for place in range(200)]
    for first, last in ((0, 1), (1, 5000), (5000, 20_000)):
        mean = 2000 * float(probs[first:last].sum())
        count = sum(first <= token < last for token in tokens)
        assert abs(count - mean) < 4 * mean**0.5
