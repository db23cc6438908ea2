"""Mixtures by name."""

from pathlib import Path

import pytest

from treesnake.drafters.image_views import Views
from treesnake.drafters.mixture import MixtureDrafterModel
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.streams import StreamSpec, join_models
from treesnake.drafters.text import TextDrafterModel, Translation
from treesnake.drafters.weight_rules import FixedWeights, Hedge, MatchingGrid
from treesnake.errors import InvalidInputError
from treesnake.testing import RecurrentModel, TinyNetwork
from treesnake.testing.tokenizers import byte_level

SEEING = NetworkDrafterModel(TinyNetwork(RecurrentModel(400, seed=1)))
BLIND = NetworkDrafterModel(TinyNetwork(RecurrentModel(400, seed=2), reads_inputs=False))
VIEWS = Views(byte_level(), lambda _: "a circle")


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("owner/name", StreamSpec("owner/name")),
        ("owner/name:MT", StreamSpec("owner/name", "MT")),
        ("owner/name:MTC:grid", StreamSpec("owner/name", "MTC", "grid")),
        ("owner/name:total-variation", StreamSpec("owner/name", None, "total-variation")),
        ("owner/name:MT:0.7,0.3", StreamSpec("owner/name", "MT", "0.7,0.3")),
        ("C:\\models\\name:MT", StreamSpec("C:\\models\\name", "MT")),
        ("C:/models/name", StreamSpec("C:/models/name")),
    ],
)
def test_a_name_says_how_a_model_takes_part(text: str, spec: StreamSpec) -> None:
    assert StreamSpec.parse(text) == spec


def test_streams_with_images_see_and_others_do_not() -> None:
    sees = {letters: StreamSpec("a", letters).sees for letters in (None, "M", "P", "TP", "TC")}
    assert sees == {None: True, "M": True, "P": True, "TP": True, "TC": False}


def test_the_name_of_a_file_is_a_name(tmp_path: Path) -> None:
    file = tmp_path / "name:MT"
    file.touch()
    assert StreamSpec.parse(str(file)) == StreamSpec(str(file))


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="names a stream twice"):
        StreamSpec.parse("owner/name:MM")
    for rule in ("best", "inverse_kl", "EM", "1e3,x", "1.2.3", ""):
        with pytest.raises(InvalidInputError, match=f"no rule '{rule}' for the weights"):
            StreamSpec.parse(f"owner/name:MT:{rule}")
    with pytest.raises(InvalidInputError, match="must be finite and not negative"):
        StreamSpec.parse("owner/name:MT:-1,2")


def streams(model: object) -> dict[str, object]:
    assert isinstance(model, MixtureDrafterModel)
    return {stream.name: stream.network for stream in model.streams}


def test_one_model_for_a_target_of_text_drafts_alone() -> None:
    assert join_models([StreamSpec("a")], [SEEING], None) is SEEING


def test_a_model_that_sees_images_reads_with_and_without_them() -> None:
    mixture = join_models([StreamSpec("a")], [SEEING], VIEWS)
    assert streams(mixture) == {"M": SEEING.network, "T": SEEING.network}
    assert isinstance(mixture, MixtureDrafterModel)
    assert mixture.rule == Hedge()


def test_a_model_of_text_reads_a_line_break_for_an_image() -> None:
    drafter = join_models([StreamSpec("a")], [BLIND], VIEWS)
    assert isinstance(drafter, NetworkDrafterModel)
    assert drafter.view is not None
    assert drafter.network is BLIND.network


def test_streams_and_their_rule_can_be_chosen() -> None:
    mixture = join_models([StreamSpec("a", "TC", "0.7,0.3")], [BLIND], VIEWS)
    assert streams(mixture) == {"T": BLIND.network, "C": BLIND.network}
    assert isinstance(mixture, MixtureDrafterModel)
    assert mixture.rule == FixedWeights((0.7, 0.3))


def test_several_models_are_a_mixture() -> None:
    specs = [StreamSpec("a"), StreamSpec("b", None, "grid")]
    mixture = join_models(specs, [SEEING, BLIND], None)
    assert streams(mixture) == {"a": SEEING.network, "b": BLIND.network}
    assert isinstance(mixture, MixtureDrafterModel)
    assert mixture.rule == MatchingGrid()
    mixture = join_models(specs, [SEEING, BLIND], VIEWS)
    assert [*streams(mixture)] == ["M of a", "T of a", "T of b"]


def test_mixtures_that_cannot_be_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="the target reads text alone; leave out :MT"):
        join_models([StreamSpec("a", "MT")], [SEEING], None)
    for spec, views in ((StreamSpec("a", None, "em"), None), (StreamSpec("a", "M", "em"), VIEWS)):
        with pytest.raises(InvalidInputError, match=r"rule em weighs .*, and a is one stream"):
            join_models([spec], [SEEING], views)
    specs = [StreamSpec("a", None, "em"), StreamSpec("b", None, "grid")]
    with pytest.raises(InvalidInputError, match="one rule for its weights, got em, grid"):
        join_models(specs, [SEEING, BLIND], None)
    in_text = TextDrafterModel(SEEING, Translation(byte_level(), byte_level()))
    with pytest.raises(InvalidInputError, match="b has another tokenizer than the target"):
        join_models([StreamSpec("a"), StreamSpec("b")], [SEEING, in_text], None)
    windowed = NetworkDrafterModel(SEEING.network, window=4)
    with pytest.raises(InvalidInputError, match="a window is for one model"):
        join_models([StreamSpec("a"), StreamSpec("b")], [windowed, BLIND], None)
