"""A recipe from prompts to a drafter that drafts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from treesnake.drafters.load import load_drafter
from treesnake.loading.checkpoint import find_checkpoint
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams, TorchRng
from treesnake.shape import chain
from treesnake.training.recipe import MambaSizes, Recipe, TransformerSizes
from treesnake.training.reporting import NoReporter
from treesnake.training.run import train_drafter


@pytest.mark.parametrize(
    "sizes",
    [
        None,
        MambaSizes(hidden_size=32, num_layers=2, state_dim=4),
        TransformerSizes(
            hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48
        ),
    ],
    ids=["mamba2", "mamba", "transformer"],
)
def test_a_recipe_makes_a_drafter_of_any_architecture(
    recipe: Recipe,
    sizes: MambaSizes | TransformerSizes | None,
    tmp_path: Path,
    target_folder: Path,
) -> None:
    if sizes is not None:
        recipe = replace(recipe, drafter=sizes)
    if isinstance(sizes, TransformerSizes):
        recipe = replace(recipe, draft_vocabulary=None)
    folder = train_drafter(recipe, tmp_path, NoReporter())
    drafter = load_drafter(
        str(folder), target=find_checkpoint(str(target_folder)), dtype="float32", device="cpu"
    )
    session = drafter.new_session()
    session.prefill(Prompt((5, 6, 7)))
    draft = session.draft(7, chain(3), SamplingParams(), TorchRng(0))
    assert len(draft.tree) == 4
    provenance = json.loads((folder / "provenance.json").read_text())
    (stage,) = provenance["stages"]
    assert stage["evaluations"][-1]["update"] == 9
    first, last = stage["evaluations"][0], stage["evaluations"][-1]
    assert last["judgement"]["loss"] < first["judgement"]["loss"]
