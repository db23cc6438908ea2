"""Probabilities against a naive definition and transformers' own filters; the laws of TorchRng."""

from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from treesnake.chance import TorchRng
from treesnake.errors import InvalidInputError
from treesnake.sampling import SamplingParams, log_of, to_probs

SAMPLING = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([None, 1, 3, 100]),
    top_p=st.sampled_from([0.2, 0.75, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
)
SEEDS = st.integers(0, 2**31)

CHI_SQUARE_LIMIT = {5: 25.74, 7: 29.88, 11: 37.37, 19: 50.80}
"""What a chi-square statistic exceeds once in 10,000 times, by degrees of freedom."""


def random_logits(seed: int, *axes: int) -> Tensor:
    return 2 * torch.randn(*axes, generator=torch.Generator().manual_seed(seed))


def naive_probs(logits: list[float], params: SamplingParams) -> list[float]:
    """The filters one after the other on lists, for logits without ties."""
    scaled = torch.tensor(logits, dtype=torch.float64) / params.temperature
    order = sorted(range(len(logits)), key=lambda token: -logits[token])
    kept = order[: params.top_k]
    weights = scaled.exp().tolist()
    mass = sum(weights[token] for token in kept)
    nucleus: list[int] = []
    while sum(weights[token] for token in nucleus) < params.top_p * mass:
        nucleus.append(kept[len(nucleus)])
        if len(nucleus) == len(kept):
            break
    kept = [token for token in nucleus if weights[token] >= params.min_p * weights[order[0]]]
    mass = sum(weights[token] for token in kept)
    return [weights[token] / mass if token in kept else 0.0 for token in range(len(logits))]


def chi_square(counts: list[int], expected_probs: list[float]) -> float:
    expected = [sum(counts) * probability for probability in expected_probs]
    assert min(expected) >= 5, "the chi-square approximation needs five expected counts a cell"
    return sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected, strict=True))


def test_logarithms_of_probabilities_are_those_of_torch() -> None:
    probs = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert torch.allclose(log_of(probs), probs.log())
    assert torch.allclose(log_of(probs.double()), probs.double().log())


@given(SEEDS, SAMPLING)
def test_probabilities_are_those_of_the_naive_definition(seed: int, params: SamplingParams) -> None:
    logits = random_logits(seed, 3, 11)
    expected = torch.tensor([naive_probs(row, params) for row in logits.tolist()])
    torch.testing.assert_close(to_probs(logits, params), expected, rtol=1e-4, atol=1e-6)


@given(SEEDS, SAMPLING)
def test_probabilities_are_those_of_transformers(seed: int, params: SamplingParams) -> None:
    logits = random_logits(seed, 3, 11)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k is not None:
        warpers.append(TopKLogitsWarper(params.top_k))
    warpers.append(TopPLogitsWarper(params.top_p))
    warpers.append(MinPLogitsWarper(params.min_p))
    no_tokens = torch.LongTensor(3, 0)
    expected = warpers(no_tokens, logits.clone()).softmax(-1)
    torch.testing.assert_close(to_probs(logits, params), expected, rtol=1e-4, atol=1e-6)


@given(SEEDS, SAMPLING)
def test_each_row_is_a_distribution_of_its_own(seed: int, params: SamplingParams) -> None:
    logits = random_logits(seed, 2, 3, 11)
    probs = to_probs(logits, params)
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs.sum(-1), torch.ones(2, 3))
    torch.testing.assert_close(probs[1, 2], to_probs(logits[1, 2], params))


@pytest.mark.parametrize("sharpness", [0.0, 0.01, 1.0, 8.0])
@pytest.mark.parametrize("top_p", [0.05, 0.9, 0.99])
def test_the_nucleus_is_that_of_the_full_sort(sharpness: float, top_p: float) -> None:
    vocab_size = 2000
    generator = torch.Generator().manual_seed(0)
    rows = sharpness * torch.randn(4, vocab_size, generator=generator)
    logits = torch.cat([rows, torch.linspace(-40, 0, vocab_size)[None]])
    probs = logits.softmax(-1)
    descending = probs.sort(descending=True).values
    num_kept = (descending.cumsum(-1) - descending < top_p).sum(-1, keepdim=True)
    kept = probs >= descending.gather(-1, num_kept - 1)
    expected = probs * kept / (probs * kept).sum(-1, keepdim=True)
    actual = to_probs(logits, SamplingParams(temperature=1.0, top_p=top_p))
    torch.testing.assert_close(actual, expected)


def test_temperature_zero_puts_all_mass_on_the_first_of_the_largest() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]])
    greedy = SamplingParams(top_k=1, top_p=0.1, min_p=0.9)
    assert greedy.is_greedy
    assert to_probs(logits, greedy).tolist() == [[0, 1, 0], [1, 0, 0]]


def test_tokens_that_tie_with_the_last_kept_one_are_kept() -> None:
    logits = torch.tensor([2.0, 1.0, 1.0, 0.0])
    assert (to_probs(logits, SamplingParams(1.0, top_k=2)) > 0).tolist() == [1, 1, 1, 0]
    assert (to_probs(logits, SamplingParams(1.0, top_p=0.7)) > 0).tolist() == [1, 1, 1, 0]


def test_forbidden_tokens_have_no_probability() -> None:
    logits = torch.tensor([0.0, float("-inf"), 1.0])
    for params in (SamplingParams(), SamplingParams(0.5), SamplingParams(1.0, 2, 0.9, 0.1)):
        assert to_probs(logits, params)[1] == 0


def test_half_precision_is_widened_before_anything_else() -> None:
    logits = random_logits(0, 50).bfloat16()
    params = SamplingParams(temperature=0.7, top_p=0.9)
    assert torch.equal(to_probs(logits, params), to_probs(logits.float(), params))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"min_p": 1.1}, "min_p"),
    ],
)
def test_values_out_of_range_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        SamplingParams(**values)


@given(SEEDS, st.lists(st.sampled_from([0.0, 1e-30, 0.1, 1.0]), min_size=1, max_size=9))
def test_a_token_without_probability_is_never_drawn(seed: int, weights: list[float]) -> None:
    weights[seed % len(weights)] = 0.5
    probs = torch.tensor(weights)
    rng = TorchRng(seed)
    for _ in range(20):
        assert probs[rng.draw(probs)] > 0
    drawn = rng.draw_distinct(probs, 4)
    assert all(probs[token] > 0 for token in drawn)
    assert len(set(drawn)) == len(drawn) == min(4, int((probs > 0).sum()))


class _EdgeRng(TorchRng):
    """Meets the ends of the unit interval, which seeds hardly ever do."""

    def __init__(self, uniform: float) -> None:
        super().__init__(0)
        self._always = uniform

    def _uniform(self) -> float:
        return self._always


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_zero_probabilities_at_both_ends_are_never_drawn(uniform: float) -> None:
    rng = _EdgeRng(uniform)
    assert rng.draw(torch.tensor([0.0, 0.3, 0.0, 0.3, 0.0])) in (1, 3)
    assert rng.coin(1.0)
    assert rng.coin(7.5)
    assert not rng.coin(0.0)


def test_tokens_are_drawn_with_their_probabilities() -> None:
    rng = TorchRng(1)
    probs = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
    counts = torch.tensor([rng.draw(3 * probs) for _ in range(4000)]).bincount(minlength=6)
    assert chi_square(counts.tolist(), probs.tolist()) < CHI_SQUARE_LIMIT[5]


def test_coins_fall_with_their_probability() -> None:
    rng = TorchRng(2)
    heads = sum(rng.coin(0.3) for _ in range(4000))
    assert abs(heads - 1200) < 4 * (4000 * 0.3 * 0.7) ** 0.5


def test_distinct_tokens_are_drawn_one_after_the_other_without_replacement() -> None:
    rng = TorchRng(3)
    probs = [0.4, 0.3, 0.2, 0.1]
    pairs = list(permutations(range(4), 2))
    counts = dict.fromkeys(pairs, 0)
    for _ in range(3000):
        first, second = rng.draw_distinct(torch.tensor(probs), 2)
        counts[first, second] += 1
    law = [probs[first] * probs[second] / (1 - probs[first]) for first, second in pairs]
    assert chi_square(list(counts.values()), law) < CHI_SQUARE_LIMIT[11]


def test_a_seed_gives_the_same_decisions_again() -> None:
    probs = torch.rand(50, generator=torch.Generator().manual_seed(0))

    def decisions(seed: int | None) -> list[object]:
        rng = TorchRng(seed)
        return [(rng.draw(probs), rng.coin(0.5), *rng.draw_distinct(probs, 3)) for _ in range(9)]

    assert decisions(5) == decisions(5)
    assert decisions(5) != decisions(6)
    assert decisions(None) != decisions(None)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    with pytest.raises(InvalidInputError, match="seed"):
        TorchRng(seed)


TINY_TEMPERATURES = [1e-30, 1e-37, 1e-38, 1e-40, 1e-46, 5e-324]


@pytest.mark.parametrize("temperature", TINY_TEMPERATURES)
@pytest.mark.parametrize("options", [{}, {"top_p": 0.5}, {"top_k": 2}, {"min_p": 0.1}], ids=str)
@pytest.mark.filterwarnings("error")
def test_at_a_temperature_near_zero_all_mass_is_on_the_largest(
    temperature: float, options: dict[str, Any]
) -> None:
    logits = torch.tensor([[1.0, 80.0, -float("inf"), 79.9], [-3e38, -2e38, -1e38, -1.5e38]])
    probs = to_probs(logits, SamplingParams(temperature=temperature, **options))
    assert probs.tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]


@pytest.mark.filterwarnings("error")
def test_at_a_temperature_without_end_all_that_is_possible_is_as_probable() -> None:
    logits = torch.tensor([1.0, 80.0, -float("inf"), 79.9])
    probs = to_probs(logits, SamplingParams(temperature=1e300))
    assert probs.tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])


@pytest.mark.parametrize("top_p", [5e-324, 1e-46, 1e-30])
def test_the_smallest_nucleus_is_the_most_probable_token(top_p: float) -> None:
    logits = random_logits(0, 3, 11)
    probs = to_probs(logits, SamplingParams(temperature=1.0, top_p=top_p))
    assert torch.equal(probs, to_probs(logits, SamplingParams()))


@pytest.mark.parametrize(
    "options",
    [{"temperature": 10**400}, {"seed": -1}, {"seed": 2**63}, {"top_k": -5}],
    ids=lambda options: next(iter(options)),
)
def test_numbers_out_of_all_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        SamplingParams(**options)
