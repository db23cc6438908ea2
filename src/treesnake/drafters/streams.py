"""Mixtures by name: which models draft together, and how each reads a prompt with images."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from treesnake.drafters.image_views import Views
from treesnake.drafters.mixture import MixtureDrafterModel, Stream
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.text import TextDrafterModel
from treesnake.drafters.vocabulary import SAME_VOCABULARY
from treesnake.drafters.weight_rules import parse_weight_rule
from treesnake.errors import InvalidInputError
from treesnake.loading.checkpoint import local_path
from treesnake.models.tree_network import reads_inputs

SPEC = re.compile(r"(.+?)(?::([A-Z]+))?(?::([^:/\\]*))?")
"""A model, its views and its rule. A colon before a slash is part of the model's name."""

SEEING_STREAMS = "MT"
"""How a model that sees images reads, unless it is said: with and without them."""

BLIND_STREAMS = "T"


@dataclass(frozen=True)
class StreamSpec:
    """A model and how it takes part in a mixture, as in "owner/name:MT:em".

    Attributes:
        model: its name.
        letters: its views; None for what suits it.
        rule: what moves the weights, by name; None for the default.
    """

    model: str
    letters: str | None = None
    rule: str | None = None

    @property
    def sees(self) -> bool:
        """Whether it reads images where it can."""
        return not {*"MP"}.isdisjoint(self.letters or SEEING_STREAMS)

    @classmethod
    def parse(cls, text: str) -> "StreamSpec":
        """Reads a specification; the name of a file that exists is a model and nothing else.

        Raises:
            InvalidInputError: if a stream is named twice, or there is no such rule.
        """
        match = SPEC.fullmatch(text)
        if match is None or local_path(text).exists():
            return cls(text)
        model, letters, rule = match.groups()
        if letters and len({*letters}) < len(letters):
            raise InvalidInputError(f"{text!r} names a stream twice; each letter is one stream")
        if rule is not None:
            parse_weight_rule(rule)
        return cls(model, letters, rule)


Drafting = NetworkDrafterModel | TextDrafterModel


def join_models(
    specs: Sequence[StreamSpec], models: Sequence[Drafting], views: Views | None
) -> Drafting | MixtureDrafterModel:
    """Returns one drafter of all models.

    One model with one view drafts alone. Everything else is a mixture.

    Args:
        specs: what was said of each model.
        models: the models.
        views: those of the target's prompts; None if it reads text alone.

    Raises:
        InvalidInputError: if a model cannot take part in a mixture, or a rule has nothing to weigh.
    """
    if len(specs) == 1 and specs[0].letters is None and specs[0].rule is None:
        alone = _alone(models[0], views)
        if alone is not None:
            return alone
    streams = [
        stream
        for spec, model in zip(specs, models, strict=True)
        for stream in _streams(spec, _checked(spec, model), views, is_only=len(specs) == 1)
    ]
    rule = _rule(specs)
    if len(streams) == 1 and rule is not None:
        raise InvalidInputError(
            f"the rule {rule} weighs the streams of a mixture, and {specs[0].model} is one stream; "
            "leave the rule out, or name more streams"
        )
    if rule is None:
        return MixtureDrafterModel(tuple(streams))
    return MixtureDrafterModel(tuple(streams), parse_weight_rule(rule))


def _alone(model: Drafting, views: Views | None) -> Drafting | None:
    """Returns the drafter of one model of which nothing was said; None if it should be a mixture.

    It is one where it sees the images of a target that does.
    """
    if isinstance(model, TextDrafterModel) or views is None:
        return model
    if reads_inputs(model.network):
        return None
    return NetworkDrafterModel(
        model.network, model.vocabulary, model.window, views.of("T", model.network)
    )


def _checked(spec: StreamSpec, model: Drafting) -> NetworkDrafterModel:
    if isinstance(model, TextDrafterModel):
        raise InvalidInputError(
            f"{spec.model} has another tokenizer than the target and drafts in text, so its "
            "probabilities cannot be mixed; choose a drafter with the target's tokenizer, or "
            'draft the tokens in common with tokens="shared"'
        )
    if model.window is not None:
        raise InvalidInputError(
            "a window is for one model that drafts alone; the streams of a mixture read as much "
            "as their contexts hold"
        )
    return model


def _streams(
    spec: StreamSpec, model: NetworkDrafterModel, views: Views | None, *, is_only: bool
) -> list[Stream]:
    vocabulary = model.vocabulary or SAME_VOCABULARY
    if views is None:
        if spec.letters is not None:
            raise InvalidInputError(
                f"{spec.model}:{spec.letters} names ways to read images, and the target reads text "
                f"alone; leave out :{spec.letters}"
            )
        return [Stream(spec.model, model.network, vocabulary=vocabulary)]
    sees = reads_inputs(model.network)
    return [
        Stream(
            letter if is_only else f"{letter} of {spec.model}",
            model.network,
            views.of(letter, model.network),
            vocabulary,
        )
        for letter in spec.letters or (SEEING_STREAMS if sees else BLIND_STREAMS)
    ]


def _rule(specs: Sequence[StreamSpec]) -> str | None:
    rules = {spec.rule for spec in specs if spec.rule is not None}
    if len(rules) > 1:
        raise InvalidInputError(
            f"a mixture has one rule for its weights, got {', '.join(sorted(rules))}"
        )
    return rules.pop() if rules else None
