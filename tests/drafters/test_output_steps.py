"""Steps move an output layer towards what is wanted, and nothing else."""

import numpy as np
import pytest
import torch

from treesnake.drafters.output_steps import Places, SecondMoment, log_losses, step_along
from treesnake.drafters.said_texts import ReadText

SIZE = 6


@pytest.fixture
def places() -> Places:
    """Returns places of which each wants the output that a hidden layer has for it."""
    chance = torch.Generator().manual_seed(0)
    hidden = torch.randn(600, SIZE, generator=chance) + 3  # they point much the same way
    teacher = torch.randn(8, SIZE, generator=chance)
    wanted = (hidden @ teacher.T).argmax(1)
    return Places(hidden, torch.stack([wanted, -torch.ones_like(wanted)], 1), _firsts(600))


def _firsts(number: int) -> torch.Tensor:
    return torch.tensor([[1.0, 0.0]]).repeat(number, 1)


def inverse_of(places: Places) -> torch.Tensor:
    moment = SecondMoment(SIZE, damping=0.1, discount=0.9)
    moment.observe(places.hidden)
    return moment.inverse()


def test_steps_make_what_is_wanted_more_probable_also_where_they_were_not_made(
    places: Places,
) -> None:
    shown, other = places[:400], places[400:]
    outputs = places.outputs
    rows = torch.zeros(len(outputs), SIZE)
    losses = [log_losses(rows, other, outputs).mean()]
    for _ in range(4):
        for batch in shown.batches():
            step_along(rows, batch, outputs, inverse_of(shown), 0.5)
        losses.append(log_losses(rows, other, outputs).mean())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.7 * losses[0]


def test_outputs_do_not_rise_on_average_above_those_that_are_not_wanted(places: Places) -> None:
    rows = torch.ones(len(places.outputs), SIZE)
    step_along(rows, places, places.outputs, inverse_of(places), 0.5)
    assert (rows != 1).any(1).all()
    assert torch.allclose(rows.mean(0), torch.ones(SIZE), atol=1e-4)


def test_wanted_shares_become_distributions() -> None:
    wanted = torch.tensor([[5, 2], [9, -1]])
    places = Places(torch.zeros(2, SIZE), wanted, torch.tensor([[0.6, 0.2], [0.5, 0.0]]))
    assert places.outputs.tolist() == [2, 5, 9]
    probs = places.wanted_probs(places.outputs)
    assert torch.allclose(probs, torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]))


def test_hidden_states_are_divided_by_the_temperature_of_the_text() -> None:
    text = ReadText([1, 2, 3], np.array([1]), np.array([[4]]), np.ones((1, 1), np.float32), 0.5)
    hidden = torch.arange(3.0)[:, None].repeat(1, SIZE)
    assert Places.of(text, [hidden[:2], hidden[2:]]).hidden.tolist() == [[2.0] * SIZE]


def test_places_of_several_texts_are_joined_and_cut(places: Places) -> None:
    both = Places.joined([places[:10], places[20:25]])
    assert len(both) == 15
    assert torch.equal(both.hidden[10:], places.hidden[20:25])


def test_later_hidden_states_count_more() -> None:
    moment = SecondMoment(1, damping=0.0, discount=0.5)
    moment.observe(torch.ones(2, 1))
    moment.observe(torch.full((2, 1), 3.0))
    assert 1 / float(moment.inverse()) == pytest.approx((0.5 * 2 + 18) / (0.5 * 2 + 2))
