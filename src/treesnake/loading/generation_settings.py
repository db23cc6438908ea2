"""What a model's generation config asks for beside sampling, and what of it is applied.

End tokens are. Temperature, top-k, top-p and min-p are arguments of ours and greedy is the default.
Everything else makes another distribution of the model's, which nobody gets without asking.
"""

import logging

from transformers import GenerationConfig

logger = logging.getLogger(__name__)

OFF_VALUES: dict[str, tuple[object, ...]] = {
    "bad_words_ids": (),
    "begin_suppress_tokens": (),
    "dola_layers": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "guidance_scale": (1,),
    "max_time": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "repetition_penalty": (1,),
    "sequence_bias": (),
    "stop_strings": (),
    "suppress_tokens": (),
    "token_healing": (False,),
    "top_h": (1,),
    "typical_p": (1,),
    "watermarking_config": (),
}
"""Settings that change greedy text or a distribution, with the values that change nothing; None and
what is empty never do."""


def unapplied_settings(config: GenerationConfig) -> dict[str, object]:
    """Returns the settings that ask for another text than the model's own; none is applied."""
    values = {name: getattr(config, name, None) for name in OFF_VALUES}
    return {
        name: value
        for name, value in values.items()
        if not (value is None or value in OFF_VALUES[name] or value in ([], (), {}, ""))
    }


def warn_of_unapplied_settings(model_name: str, config: GenerationConfig) -> None:
    """Says once for a loaded model what its generation config asks for in vain."""
    settings = unapplied_settings(config)
    if settings:
        logger.warning(
            "the generation config of %s asks for %s, which is not applied: the text is the "
            "model's own; pass constraints or stop for that, or use custom_generate, which obeys",
            model_name,
            ", ".join(f"{name}={value}" for name, value in settings.items()),
        )
