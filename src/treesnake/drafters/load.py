"""Drafters by name."""

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Literal, get_args

import transformers
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from treesnake.drafters.composite import CompositeDrafterModel
from treesnake.drafters.heads import check_config_is_of_a_model, check_tensors_are_of_a_model
from treesnake.drafters.image_views import Caption, Views
from treesnake.drafters.network import NetworkDrafterModel
from treesnake.drafters.ngram import NgramDrafterModel
from treesnake.drafters.none import NoDrafterModel
from treesnake.drafters.streams import StreamSpec, join_models
from treesnake.drafters.text import TextDrafterModel, Translation
from treesnake.drafters.vocabulary import (
    DraftVocabulary,
    PaddedVocabulary,
    VocabularyMap,
    check_same_tokens,
    has_same_tokens,
    read_draft_vocabulary,
    share_tokens,
)
from treesnake.errors import InvalidInputError, LoadError
from treesnake.loading.architecture import Architecture, FoundModel, identify
from treesnake.loading.checkpoint import (
    DEFAULT_MODEL,
    GENERATION_CONFIG_FILE,
    HYBRID,
    PACKAGED_MODELS,
    SHAPEWORLD,
    Checkpoint,
    end_token_ids,
    local_path,
    locate,
    open_checkpoint,
    token_ids_in,
    tokenizer_beside,
)
from treesnake.loading.networks import load_network
from treesnake.loading.options import DEFAULT_OPTIONS, LoadOptions
from treesnake.loading.pretrained import resolve_device
from treesnake.loading.processors import check_same_images
from treesnake.models.checkpoint import CONFIG_FILE, PICKLE_FILE, TOKENIZER_FILES, open_tensors
from treesnake.models.hf_images import image_token
from treesnake.protocols import DrafterModel

MAX_PADDING = 512
"""By how many rows of padding two embeddings of one vocabulary differ at most."""

PROMPT_WINDOW = "prompt_window"
"""The key of a Mamba's config that says how many tokens of a prompt it has a use for."""

AUTO = "auto"
PROMPT_LOOKUP = "prompt-lookup"
NO_DRAFTER = "none"
DRAFTS_FOR_ITSELF = "self"
JOIN = "+"

SHIPPED_FOLDER = Path(__file__).parent / "shipped"
SHIPPED_FOR = {
    **dict.fromkeys(
        (DEFAULT_MODEL, "HuggingFaceTB/SmolLM2-135M-Instruct", HYBRID), "treesnake-smol"
    ),
    SHAPEWORLD: "shapeworld-drafter",
}
"""The trained drafters that come with the package, by the targets that they were trained for, and
by what was made of those."""

SHIPPED_FOR_OTHERS = "treesnake-smol"
"""What drafts in text for all other targets."""

WEIGHTLESS: dict[str, Callable[[], DrafterModel]] = {
    PROMPT_LOOKUP: NgramDrafterModel,
    NO_DRAFTER: NoDrafterModel,
}

NO_MODELS = frozenset({AUTO, DRAFTS_FOR_ITSELF, *WEIGHTLESS})
"""Names of drafters that have no streams."""

Tokens = Literal["auto", "same", "text", "shared"]
"""How the drafter's tokens become the target's: they are the same; the drafter writes text, which
the target's tokenizer encodes; or only those are drafted that both tokenizers have in common."""


def load_drafter(
    name: str,
    options: LoadOptions = DEFAULT_OPTIONS,
    *,
    target: Checkpoint | None = None,
    window: int | None = None,
    tokens: Tokens = "auto",
    caption: Caption | None = None,
) -> DrafterModel:
    """Returns a drafter.

    Args:
        name: "auto", prompt lookup beside the drafter that comes with the package, which drafts in
            text for targets that it was not trained for; "prompt-lookup"; "none", which never
            drafts anything; a folder, a GGUF file or a name at the hub, of a Mamba, Mamba-2 or
            Transformer; or one of these and prompt lookup, as in
            "state-spaces/mamba-130m-hf+prompt-lookup". Several models, joined by "+", draft as a
            mixture. So does one that sees images for a target that does: "owner/name:MTC" says how
            it reads them (M with images, T text alone, C captions, P pooled images; "MT" if nothing
            is said), and "owner/name:MT:grid" which rule moves the weights, see `weight_rules`.
        options: how its model is loaded. What is drafted depends on the dtype, and so does the
            speed; the text does not.
        target: what it drafts for; without it the drafter's tokens are taken for the target's.
        window: how many tokens a model sees at most, of a Mamba how many of a prompt, since its
            memory has one size. None is what `"prompt_window"` in its config says, where it drafts
            alone, or else all.
        tokens: "same" checks that the tokenizer is the target's; "text" drafts text for a target
            with another one; "shared" drafts the tokens that two different ones have in common, at
            a low acceptance. "auto" is the first where the tokenizers agree, else the second.
        caption: says in words what an image shows, for streams C.

    Raises:
        LoadError: if there is no such drafter, or its files are broken.
        UnsupportedModelError: if it is of a kind that cannot draft.
        InvalidInputError: for options that do not exist, and for a tokenizer that does not serve.
    """
    if tokens not in get_args(Tokens):
        choice = ", ".join(get_args(Tokens))
        raise InvalidInputError(f"unknown tokens {tokens!r}; choose one of {choice}")
    check_drafter_name(name)
    if DRAFTS_FOR_ITSELF in parts_of(name):
        raise InvalidInputError(
            f"{name!r} drafts with the target's own memory of the text, so it is loaded with the "
            "target: SpeculativeDecoder.from_pretrained(target, drafter)"
        )
    load = partial(_load_model, options=options, target=target, window=window, tokens=tokens)
    parts = [
        known
        for part in parts_of(name)
        for known in (default_drafters(target) if part == AUTO else (part,))
    ]
    parts = list(dict.fromkeys(parts))
    specs = [StreamSpec.parse(part) for part in parts if part not in WEIGHTLESS]
    drafters = [WEIGHTLESS[part]() for part in parts if part in WEIGHTLESS]
    if specs:
        is_alone = len(specs) == 1 and specs[0].letters is None
        models = [load(spec.model, sees=spec.sees, is_alone=is_alone) for spec in specs]
        # Models come first: their nodes are drawn, and what is drawn precedes what is chosen.
        drafters.insert(0, join_models(specs, models, _views(target, caption)))
    return reduce(CompositeDrafterModel, drafters)


def _views(target: Checkpoint | None, caption: Caption | None) -> Views | None:
    """Returns the views of a target's prompts, if it sees images."""
    if target is None or not _sees_images(target):
        return None
    return Views(target.tokenizer, caption)


def _check_images(drafter: Checkpoint, target: Checkpoint) -> None:
    """Checks that a drafter that sees images can see those of its target."""
    if _sees_images(drafter) and _sees_images(target):
        check_same_images(drafter, target)


def _sees_images(target: Checkpoint) -> bool:
    return image_token(target.config) is not None


def drafter_for(
    model: "transformers.PreTrainedModel | str", tokenizer: PreTrainedTokenizerBase | str
) -> DrafterModel:
    """Returns what "auto" stands for, for a model of transformers that is loaded already.

    Args:
        model: the target.
        tokenizer: the target's.

    Raises:
        InvalidInputError: if the tokenizer is none of the package tokenizers, or one of both is
            given by its name.
    """
    if not isinstance(model, nn.Module) or not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InvalidInputError(
            "drafter_for takes a model of transformers and its tokenizer, both loaded, got "
            f"{type(model).__name__} and {type(tokenizer).__name__}; for a model by name call "
            "SpeculativeDecoder.from_pretrained(name), whose default drafter is the same"
        )
    options = LoadOptions(device=str(model.device))
    shipped = open_checkpoint(identify(SHIPPED_FOR_OTHERS, SHIPPED_FOLDER / SHIPPED_FOR_OTHERS))
    kept = read_draft_vocabulary(shipped.path)
    network = load_network(shipped, _drafting_options(options), draft_vocab=kept).network
    reads_text = not has_same_tokens(shipped.tokenizer, tokenizer)
    text_config = (shipped if reads_text else model).config.get_text_config(decoder=True)
    size = text_config.vocab_size
    drafter = NetworkDrafterModel(network, _vocabulary(shipped, size, kept))
    if not reads_text:
        return CompositeDrafterModel(drafter, NgramDrafterModel())
    stated = getattr(model.generation_config, "eos_token_id", None)
    ends = token_ids_in(stated, Path(GENERATION_CONFIG_FILE))
    in_text = _in_text(drafter, shipped, tokenizer, ends)
    return CompositeDrafterModel(in_text, NgramDrafterModel())


def found_drafter(model: "transformers.PreTrainedModel") -> DrafterModel:
    """Returns what "auto" stands for, for a model of transformers whose tokenizer lies beside it.

    Without a tokenizer there, that is prompt lookup alone. Nothing is fetched.
    """
    tokenizer = tokenizer_beside(model.name_or_path or "", model.config)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return NgramDrafterModel()
    return drafter_for(model, tokenizer)


def default_drafters(target: Checkpoint | None) -> tuple[str, ...]:
    """Returns what "auto" stands for: prompt lookup, beside a drafter that comes with the package.

    Without a target, or one whose tokenizer is none of the package tokenizers, it is alone.
    """
    if target is None:
        return (PROMPT_LOOKUP,)
    if target.name in SHIPPED_FOR:
        return SHIPPED_FOR[target.name], PROMPT_LOOKUP
    return (SHIPPED_FOR_OTHERS, PROMPT_LOOKUP) if _can_be_read(target) else (PROMPT_LOOKUP,)


def describe_default(target: Checkpoint) -> str:
    """Says what "auto" stands for, and how it drafts for a target."""
    name, *others = default_drafters(target)
    if not others:
        return name
    drafter = open_checkpoint(identify(name, SHIPPED_FOLDER / name))
    is_text = _way(drafter, target, "auto") == "text"
    way = "in text" if is_text else "in the target's tokens"
    is_blind = _sees_images(target) and not _sees_images(drafter)
    blind = "; they see no images" if is_blind else ""
    return f"{name} {way}, and {', '.join(others)}{blind}"


def _can_be_read(target: Checkpoint) -> bool:
    """Tells whether the tokens of a target can be read as text."""
    try:
        return isinstance(target.tokenizer, PreTrainedTokenizerFast)
    except LoadError:
        return False  # it has no tokenizer, and is given token ids


def check_drafter_name(name: str) -> None:
    """Checks what can be checked of a name before anything is looked for at a hub.

    Raises:
        InvalidInputError: if it can be no drafter.
    """
    known = {*PACKAGED_MODELS, *SHIPPED_FOR.values()}
    for part in parts_of(name):
        if part in NO_MODELS:
            continue
        model = StreamSpec.parse(part).model
        if model in NO_MODELS:
            raise InvalidInputError(
                f"{part!r} says how a model takes part in a mixture, and {model} is no name of a "
                "model; name one before the colon, as in owner/name:MT:grid"
            )
        if model not in known and "/" not in model and not local_path(model).exists():
            shipped = dict.fromkeys(SHIPPED_FOR.values())
            choice = ", ".join([AUTO, *shipped, *WEIGHTLESS, DRAFTS_FOR_ITSELF])
            raise InvalidInputError(
                f"there is no drafter {model!r}; choose one of {choice}, a folder, or a model at "
                "the hub as owner/name"
            )


def locate_drafter(name: str, options: LoadOptions = DEFAULT_OPTIONS) -> Path:
    """Returns the folder of a trained drafter: one that comes with the package, or as `locate`."""
    return SHIPPED_FOLDER / name if name in SHIPPED_FOR.values() else locate(name, options)


def reads_captions(name: str) -> bool:
    """Tells whether a drafter's name asks for a stream that reads captions."""
    specs = [StreamSpec.parse(part) for part in parts_of(name) if part not in NO_MODELS]
    return any("C" in (spec.letters or "") for spec in specs)


def parts_of(name: str) -> list[str]:
    """Returns the names of the drafters that a name joins."""
    return [name] if local_path(name).exists() else name.split(JOIN)


def _load_model(
    name: str,
    *,
    options: LoadOptions,
    target: Checkpoint | None,
    window: int | None,
    tokens: Tokens,
    sees: bool,
    is_alone: bool,
) -> NetworkDrafterModel | TextDrafterModel:
    found = identify(name, locate_drafter(name, options))
    is_recurrent = found.architecture is Architecture.STATE_SPACE
    if is_recurrent and window is None and is_alone:
        window = _prompt_window(found)
    check_config_is_of_a_model(name, found.fields)
    if _has_pickle_only(found.path):
        check_tensors_are_of_a_model(name, open_tensors(found.path))
    checkpoint = open_checkpoint(found, options)
    check_tensors_are_of_a_model(name, checkpoint.weights)
    way = _way(checkpoint, target, tokens)
    if sees and target is not None and way == "same":
        _check_images(checkpoint, target)
    kept = None if way == "shared" else read_draft_vocabulary(found.path)
    reader = checkpoint if way != "same" or target is None else target
    vocabulary = _vocabulary(checkpoint, _vocab_size(reader), kept)
    if way == "shared" and target is not None:
        vocabulary = share_tokens(checkpoint.tokenizer, target.tokenizer, _vocab_size(target))
    if is_recurrent:
        options = _drafting_options(options)
    loaded = load_network(
        checkpoint, options, draft_vocab=kept, target=None if way == "text" else target
    )
    drafter = NetworkDrafterModel(loaded.network, vocabulary, window)
    if way == "text" and target is not None:
        return _in_text(drafter, checkpoint, target.tokenizer, end_token_ids(target))
    return drafter


def _prompt_window(found: FoundModel) -> int | None:
    """Returns how many tokens of a prompt a Mamba has a use for, if its config says so."""
    window = found.fields.get(PROMPT_WINDOW)
    if window is not None and type(window) is not int:
        raise LoadError(
            f'{found.path / CONFIG_FILE} says "{PROMPT_WINDOW}": {window!r}; it must be a whole '
            "number of tokens"
        )
    return window


def _way(
    drafter: Checkpoint, target: Checkpoint | None, tokens: Tokens
) -> Literal["same", "text", "shared"]:
    """Returns how a drafter drafts for a target.

    A drafter without a tokenizer is taken to have the target's.
    """
    if target is None or not _has_tokenizer(drafter.found):
        return "same"
    if tokens not in ("auto", "same"):
        return tokens
    if SHIPPED_FOR.get(target.name) == drafter.name:  # two tokenizers need not be read for this
        return "same"
    if tokens == "same":
        check_same_tokens(drafter.tokenizer, target.tokenizer)
        return "same"
    return "same" if has_same_tokens(drafter.tokenizer, target.tokenizer) else "text"


def _in_text(
    own: NetworkDrafterModel,
    drafter: Checkpoint,
    tokenizer: PreTrainedTokenizerBase,
    ends: Collection[int],
) -> TextDrafterModel:
    """Returns a network with its own tokens as a drafter in text for a target's tokenizer."""
    translation = Translation(drafter.tokenizer, tokenizer, end_token_ids(drafter), ends)
    return TextDrafterModel(own, translation)


def _has_pickle_only(folder: Path) -> bool:
    return (folder / PICKLE_FILE).is_file() and not any(folder.glob("*.safetensors"))


def _drafting_options(options: LoadOptions) -> LoadOptions:
    """Returns options that give a Mamba int4 weights on a CPU, where reading them takes the time.

    A target would not be itself in int4; a draft need not be exact.
    """
    is_open = options.dtype == "auto" and options.engine != "generic"
    if is_open and resolve_device(options.device).type == "cpu":
        return replace(options, dtype="int4")
    return options


def _vocabulary(
    drafter: Checkpoint, target_size: int, kept: Int[Tensor, " kept"] | None
) -> VocabularyMap | None:
    """Returns how a drafter's tokens relate to those of a target that has the same; None if alike.

    A drafter in text is its own target.
    """
    network_size = _vocab_size(drafter)
    if not _has_tokenizer(drafter.found) and abs(network_size - target_size) > MAX_PADDING:
        raise InvalidInputError(
            f"{drafter.name} has {network_size} tokens and no tokenizer, the target has "
            f"{target_size} tokens: that is another vocabulary; choose a drafter with the target's "
            "tokenizer, or put the files of its own tokenizer into its folder"
        )
    if kept is not None:
        return DraftVocabulary(kept, network_size, target_size)
    return None if network_size == target_size else PaddedVocabulary(network_size, target_size)


def _has_tokenizer(found: FoundModel) -> bool:
    if found.architecture is not Architecture.STATE_SPACE:
        return True
    return any((found.path / file).is_file() for file in TOKENIZER_FILES)


def _vocab_size(checkpoint: Checkpoint) -> int:
    return checkpoint.config.get_text_config(decoder=True).vocab_size
