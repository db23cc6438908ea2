"""Noise on a device is the noise of a host."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treesnake import device_noise
from treesnake.chance import TorchRng
from treesnake.drafters.growing import with_noise
from treesnake.waiting_times import TOGETHER, WHICH, WaitingTimes, uniform


def test_noise_has_the_bits_of_the_host() -> None:
    numbers = np.array([0, 1, 77, 128255, TOGETHER, WHICH])
    for seed in (0, 1, 2**63 - 1, 2**64 - 1, 0x123456789ABCDEF):
        own = torch.tensor(device_noise.signed(seed))
        for place in (0, 5, 100_000):
            found = device_noise.uniform(own, torch.tensor(place), torch.from_numpy(numbers))
            assert np.array_equal(found.numpy(), uniform(seed, place, numbers))


def test_logits_with_noise_are_those_of_the_host() -> None:
    logits = 4 * torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    token_ids = torch.randperm(300, generator=torch.Generator().manual_seed(1)) + 1000
    rng = TorchRng(7)
    rng.advance(20)
    for depth, temperature in ((0, 1.0), (3, 0.3)):
        expected = with_noise(logits, [depth] * 5, token_ids.numpy(), temperature, rng)
        found = device_noise.with_noise(
            logits,
            torch.tensor(device_noise.signed(rng.waiting_times.seed)),
            torch.tensor(rng.waiting_times.place + depth),
            token_ids,
            torch.tensor(temperature, dtype=torch.float64),
        )
        torch.testing.assert_close(found, expected)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    place=st.integers(0, 10_000),
    sharpness=st.sampled_from([0.1, 3.0, 10.0, 30.0]),
    chance=st.integers(0, 1000),
)
def test_a_device_draws_what_a_host_draws(
    seed: int, place: int, sharpness: float, chance: int
) -> None:
    logits = sharpness * torch.randn(4, 300, generator=torch.Generator().manual_seed(chance))
    probs = logits.softmax(1)
    probs[1, :150] = 0
    depths = [0, 1, 1, 2]
    times = WaitingTimes(seed)
    times.advance(place)
    expected = [
        times.first_come(row.numpy(), depth) for row, depth in zip(probs, depths, strict=True)
    ]
    places = torch.tensor(depths) + place
    found = device_noise.first_come(probs, torch.tensor(device_noise.signed(seed)), places)
    assert found.tolist() == expected


def test_a_device_draws_rare_tokens_too() -> None:
    """They come together, as one more token: here they are half of what may come."""
    probs = torch.full((1, 40_001), 1 / 80_000)
    probs[0, 7] = 0.5
    times = WaitingTimes(3)
    expected = [times.first_come(probs[0].numpy(), place) for place in range(40)]
    places = torch.arange(40)
    found = device_noise.first_come(probs.expand(40, -1), torch.tensor(3), places).tolist()
    assert found == expected
    assert 5 < found.count(7) < 35
