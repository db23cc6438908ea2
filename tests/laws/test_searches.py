"""Whatever a search chooses, and whatever it learned it from, the text stays the target's own."""

from collections import Counter
from itertools import product

import pytest

from treesnake.chance import TorchRng
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.generate import generate
from treesnake.prompt import Prompt
from treesnake.protocols import DrafterModel, SharedSearch
from treesnake.sampling import SamplingParams, to_probs
from treesnake.search.by_name import SEARCHES, SELF_TUNING, search_by_name
from treesnake.search.self_tuning import SelfTuningSearch
from treesnake.targets.network import NetworkTargetModel
from treesnake.testing import AttentionModel, RecurrentModel, TableModel, TinyModel, TinyNetwork

PROMPT = Prompt((1, 0))
NAMES = [SELF_TUNING, *SEARCHES, "tree(0, 0, 1, 2, 2)", "priced(2; 0, 0.3; 0.1, 0.2, 0.3)"]


def text(
    target: TinyModel,
    drafter: DrafterModel,
    search: SharedSearch,
    rng: TorchRng,
    num_new: int,
    params: SamplingParams,
) -> tuple[int, ...]:
    steps = generate(
        NetworkTargetModel(TinyNetwork(target)).new_session(),
        drafter.new_session(),
        PROMPT,
        search=search.new_session(),
        params=params,
        rng=rng,
        max_length=len(PROMPT) + num_new,
    )
    return tuple(token for step in steps for token in step.emitted)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [RecurrentModel, AttentionModel])
def test_greedy_text_is_the_targets_own_under_every_search(name: str, kind: type) -> None:
    greedy = SamplingParams()
    search = search_by_name(name)
    for seed in range(3):  # what was learned of one pair is put to another
        target, near = kind(5, seed=seed), NetworkDrafterModel(TinyNetwork(kind(5, seed=seed)))
        far = NetworkDrafterModel(TinyNetwork(TableModel(5, seed=seed + 1)))
        plain = text(target, far, search_by_name("off"), TorchRng(0), 60, greedy)
        for drafter in (near, far):
            assert text(target, drafter, search, TorchRng(0), 60, greedy) == plain


def own_probabilities(model: TinyModel, num_new: int) -> dict[tuple[int, ...], float]:
    """The target's own distribution of texts, by the chain rule."""
    law: dict[tuple[int, ...], float] = {}
    for tokens in product(range(model.vocab_size), repeat=num_new):
        state, logits = model.step(model.initial(), PROMPT.token_ids[0])
        state, logits = model.step(state, PROMPT.token_ids[1])
        probability = 1.0
        for token in tokens:
            probability *= float(to_probs(logits, SamplingParams(temperature=1.0))[token])
            state, logits = model.step(state, token)
        law[tokens] = probability
    return law


@pytest.mark.parametrize("search", [SelfTuningSearch(), search_by_name("thompson")])
def test_sampled_texts_have_the_targets_distribution_under_a_search_that_learns(
    search: SharedSearch,
) -> None:
    target, drafter = (
        RecurrentModel(3, seed=1),
        NetworkDrafterModel(TinyNetwork(TableModel(3, seed=2))),
    )
    rng, params, num_texts = TorchRng(3), SamplingParams(temperature=1.0), 400
    counts = Counter(text(target, drafter, search, rng, 3, params) for _ in range(num_texts))
    law = own_probabilities(target, 3)
    cells = [(counts[tokens], num_texts * share) for tokens, share in law.items()]
    large = [cell for cell in cells if cell[1] >= 5]
    small = [cell for cell in cells if cell[1] < 5]
    large.append((sum(count for count, _ in small), sum(mean for _, mean in small)))
    statistic = sum((count - mean) ** 2 / mean for count, mean in large)
    degrees = len(large) - 1
    assert degrees >= 5
    # Mean and deviation of a chi-square: five deviations are for the unlucky once in a million.
    assert statistic < degrees + 5 * (2 * degrees) ** 0.5
