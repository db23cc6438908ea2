"""The trained drafter that comes with the package."""

import json

from treesnake import SpeculativeDecoder
from treesnake.drafters.composite import CompositeDrafterModel
from treesnake.drafters.load import SHIPPED_FOLDER, SHIPPED_FOR, load_drafter
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.loading.checkpoint import DEFAULT_MODEL, find_checkpoint

FOLDER = SHIPPED_FOLDER / "treesnake-smol"
MOST_BYTES = 25e6


def test_auto_is_prompt_lookup_beside_what_was_trained_for_the_default_target() -> None:
    target = find_checkpoint(DEFAULT_MODEL)
    assert SHIPPED_FOR[target.name] == FOLDER.name
    both = load_drafter("auto", target=target)
    assert isinstance(both, CompositeDrafterModel)
    assert isinstance(both.first, NetworkDrafterModel)
    assert isinstance(both.second, NgramDrafterModel)


def test_the_target_accepts_much_of_what_it_drafts() -> None:
    decoder = SpeculativeDecoder.from_pretrained(
        drafter=FOLDER.name, dtype="int8", search="chain(3)"
    )
    question = "Tom has 3 boxes with 12 apples each. He gives 7 away. How many apples has he left?"
    generation = decoder.generate([{"role": "user", "content": question}], max_new_tokens=48)
    assert generation.mean_tokens_per_step > 1.4


def test_it_is_small_and_says_where_it_comes_from() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MOST_BYTES
    run = json.loads((FOLDER / "provenance.json").read_text())
    names = []
    while run is not None:
        names.append(run["recipe"]["name"])
        (stage,) = [each for each in run["stages"] if each["name"] == "distil"]
        best = max(each["judgement"]["tokens_per_step"] for each in stage["evaluations"])
        assert best > 1.5
        assert stage["num_answer_tokens"] > 0
        run = run.get("trained_before")
    assert names[-1] == FOLDER.name
    assert json.loads((FOLDER / "config.json").read_text())["dtype"] == "float16"
