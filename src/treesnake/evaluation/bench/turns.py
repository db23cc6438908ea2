"""The prompts of a question's turns, each behind the answers before it."""

from collections.abc import Sequence

from treesnake.conversation import Message, image_sources, user_message
from treesnake.decoder import PromptLike, SpeculativeDecoder
from treesnake.errors import InvalidInputError
from treesnake.evaluation.bench.record import TurnRecord
from treesnake.evaluation.tasks import Question
from treesnake.prompt import Prompt


def prompt_behind(
    decoder: SpeculativeDecoder, question: Question, turns: Sequence[TurnRecord]
) -> Prompt:
    """Returns the prompt of the turn that comes after some answers."""
    conversation: list[Message] = []
    asked = _user_messages(question)
    for message, turn in zip(asked, turns, strict=False):
        conversation += [message, {"role": "assistant", "content": _answer_text(decoder, turn)}]
    conversation.append(asked[len(turns)])
    return decoder.encode(_as_prompt(decoder, conversation))


def _as_prompt(decoder: SpeculativeDecoder, conversation: Sequence[Message]) -> PromptLike:
    """Returns a conversation, or its texts one below the other where there is no chat template."""
    if decoder.has_chat_template:
        return conversation
    if image_sources(conversation):
        raise InvalidInputError(
            "a question about images needs the chat template, which says where they stand; choose "
            "a target that has one"
        )
    return "\n\n".join(str(message["content"]) for message in conversation)


def _user_messages(question: Question) -> list[Message]:
    """Returns what the user says turn by turn; the first one is about the images."""
    first, *others = question.turns
    return [user_message(first, question.images), *map(user_message, others)]


def _answer_text(decoder: SpeculativeDecoder, turn: TurnRecord) -> str:
    """Returns an answer as the next turn has it, without the token that ended it."""
    assert decoder.tokenizer is not None
    return decoder.tokenizer.decode(turn.token_ids, skip_special_tokens=True)
