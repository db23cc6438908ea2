"""Noise on a device is the noise of a host."""

import numpy as np
import torch

from treesnake.drafters.growing import with_noise
from treesnake.kernels.reference import waiting_times
from treesnake.sampling import TorchRng
from treesnake.waiting_times import TOGETHER, WHICH, uniform


def test_noise_has_the_bits_of_the_host() -> None:
    numbers = np.array([0, 1, 77, 128255, TOGETHER, WHICH])
    for seed in (0, 1, 2**63 - 1, 2**64 - 1, 0x123456789ABCDEF):
        own = torch.tensor(waiting_times.signed(seed))
        for place in (0, 5, 100_000):
            found = waiting_times.uniform(own, torch.tensor(place), torch.from_numpy(numbers))
            assert np.array_equal(found.numpy(), uniform(seed, place, numbers))


def test_logits_with_noise_are_those_of_the_host() -> None:
    logits = 4 * torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    token_ids = torch.randperm(300, generator=torch.Generator().manual_seed(1)) + 1000
    rng = TorchRng(7)
    rng.advance(20)
    for depth, temperature in ((0, 1.0), (3, 0.3)):
        expected = with_noise(logits, [depth] * 5, token_ids.numpy(), temperature, rng)
        found = waiting_times.with_noise(
            logits,
            torch.tensor(waiting_times.signed(rng.waiting_times.seed)),
            torch.tensor(rng.waiting_times.place + depth),
            token_ids,
            torch.tensor(temperature, dtype=torch.float64),
        )
        torch.testing.assert_close(found, expected)
