"""Requests of Dynamo in our words, and our tokens in Dynamo's."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from treesnake.constraints import Constraint, OccurrencePenalty, RepetitionPenalty
from treesnake.decoder import SpeculativeDecoder
from treesnake.errors import ContextLengthError, InvalidInputError
from treesnake.prompt import Prompt
from treesnake.sampling import SamplingParams
from treesnake.serving.engine import Engine
from treesnake.serving.tickets import StreamPiece, Ticket

MOST_NEW_TOKENS = 4096
"""Tokens of an answer where neither the client nor the model's context says anything."""

FORMS = ("json", "regex", "grammar")
"""What an answer can keep to."""

OPTIONAL_LISTS = ("stop_token_ids", "stop_token_ids_visible", "stop_token_ids_hidden")


def submit(engine: Engine, request: Mapping[str, Any]) -> Ticket:
    """Puts a request into the queue of an engine.

    Raises:
        InvalidInputError: for what cannot be done losslessly, or not at all.
        QueueFullError: if too many wait.
    """
    prompt = Prompt(tuple(request["token_ids"]))
    stops = _given(request, "stop_conditions")
    sampling = _given(request, "sampling_options")
    _check(sampling)
    room = _room(engine, prompt)
    most = min(stops.get("max_tokens", room), room)
    return engine.submit(
        prompt,
        _params(sampling),
        max_new_tokens=most,
        min_new_tokens=most if stops.get("ignore_eos") else min(stops.get("min_tokens", 0), most),
        constraints=_constraints(engine.decoder, sampling, len(prompt)),
        logprobs=_given(request, "output_options").get("logprobs"),
    )


def end_token_ids(request: Mapping[str, Any]) -> frozenset[int]:
    """Returns the tokens after which a client wants no more; those of the model end it anyway."""
    stops = _given(request, "stop_conditions")
    return frozenset(token for name in OPTIONAL_LISTS for token in stops.get(name, ()))


def num_before_end(token_ids: Sequence[int], ends: Collection[int]) -> tuple[int, bool]:
    """Returns how many tokens a client gets of these, the one that ends the text included.

    Returns:
        The number, and whether the text has ended.
    """
    end = next((index for index, token in enumerate(token_ids) if token in ends), None)
    return (len(token_ids), False) if end is None else (end + 1, True)


def chunk_of(piece: StreamPiece, num_kept: int) -> dict[str, Any]:
    """Returns the first tokens of a step, with their log probabilities if those were asked for."""
    chunk: dict[str, Any] = {"token_ids": list(piece.token_ids[:num_kept]), "index": 0}
    if piece.logprobs:
        told = piece.logprobs[:num_kept]
        chunk["log_probs"] = [each.logprob for each in told]
        chunk["top_logprobs"] = [
            [
                {"rank": rank, "token_id": token, "token": None, "logprob": logprob}
                for rank, (token, logprob) in enumerate(each.top, 1)
            ]
            for each in told
        ]
    return chunk


def _given(request: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Returns the options of a part that a client or the model gave."""
    options: Mapping[str, Any] = request.get(part) or {}
    return {name: value for name, value in options.items() if value is not None}


def _check(sampling: Mapping[str, Any]) -> None:
    if sampling.get("n", 1) > 1 or sampling.get("best_of", 1) > 1:
        raise InvalidInputError("a worker of treesnake gives one answer; leave out n and best_of")
    if sampling.get("use_beam_search"):
        raise InvalidInputError("treesnake samples or decodes greedily; leave out use_beam_search")


def _room(engine: Engine, prompt: Prompt) -> int:
    most_length = engine.max_model_len
    if most_length is None:
        return MOST_NEW_TOKENS
    if len(prompt) >= most_length:
        raise ContextLengthError(
            f"the prompt has {len(prompt)} tokens, and prompt and answer can have {most_length}; "
            "shorten the prompt"
        )
    return most_length - len(prompt)


def _params(sampling: Mapping[str, Any]) -> SamplingParams:
    """Returns how to sample; Dynamo hands numbers on in single precision."""
    top_k = sampling.get("top_k")
    return SamplingParams(
        sampling.get("temperature", 1.0),
        None if top_k in (None, 0, -1) else top_k,
        sampling.get("top_p", 1.0),
        sampling.get("min_p", 0.0),
        sampling.get("seed"),
    )


def _constraints(
    decoder: SpeculativeDecoder, sampling: Mapping[str, Any], num_prompt_tokens: int
) -> list[Constraint]:
    found: list[Constraint] = []
    repetition = sampling.get("repetition_penalty", 1)
    if repetition != 1:
        found.append(RepetitionPenalty(repetition))
    presence = sampling.get("presence_penalty", 0.0)
    frequency = sampling.get("frequency_penalty", 0.0)
    if presence or frequency:
        found.append(OccurrencePenalty(num_prompt_tokens, presence, frequency))
    form = sampling.get("guided_decoding") or {}
    asked = {name: value for name, value in form.items() if value is not None}
    if not asked:
        return found
    if len(asked) > 1 or not asked.keys() <= {*FORMS}:
        raise InvalidInputError(
            f"guided_decoding asks for {', '.join(sorted(asked))}; give one of {', '.join(FORMS)}"
        )
    if "json" in asked:
        schema = {"type": "json_schema", "json_schema": {"schema": asked["json"]}}
        kept = decoder.form_constraint(num_prompt_tokens, response_format=schema)
    else:
        kept = decoder.form_constraint(num_prompt_tokens, **asked)
    return [*found, kept] if kept else found
