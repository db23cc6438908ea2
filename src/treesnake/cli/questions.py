"""What is typed as a message: a text, and the pictures that it is about."""

from collections.abc import Sequence

from treesnake.conversation import Message


def question(text: str, images: Sequence[object] = ()) -> Message:
    """Returns a message of the user.

    Args:
        text: what is asked.
        images: pictures, which come first: paths, addresses, or images of Pillow.
    """
    if not images:
        return {"role": "user", "content": text}
    parts = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
