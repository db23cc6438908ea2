"""The errors that a user of treesnake can cause, one tree of them."""


class TreesnakeError(Exception):
    """The root of every error that treesnake raises on purpose."""


class InvalidInputError(TreesnakeError, ValueError):
    """An argument that cannot be right: the message says what was found and what to do."""


class LosslessnessError(TreesnakeError, ValueError):
    """An acceptance rule was given a draft for which it would not be exact."""


class ContextLengthError(InvalidInputError):
    """A prompt that does not fit into the model's context."""


class BrokenModelError(TreesnakeError):
    """A model gave logits that are no numbers: its weights or its dtype are broken."""

    @classmethod
    def in_layer(cls, layer: str | None) -> "BrokenModelError":
        """Returns the error for a network of ours.

        Args:
            layer: the first part of it whose output is not finite; None where only a long text
                shows it.
        """
        return cls(
            f"the model's logits are no numbers: {layer or 'a layer that sees the whole text'} is "
            "the first part of it whose output is not finite; its weights are broken, or too large "
            "for their dtype; load them anew or choose float32"
        )


class UnsupportedModelError(TreesnakeError):
    """A model that cannot be run correctly, with the reason."""


class LoadError(TreesnakeError):
    """A model or tokenizer could not be loaded."""


class TrainingError(TreesnakeError):
    """Training cannot go on; the message says where it stands and what to try."""

    @classmethod
    def unwritten(cls, path: object, error: Exception) -> "TrainingError":
        """Returns the error for a file or folder that cannot be written, as on a full disk."""
        return cls(
            f"{path} cannot be written: {error}; what was written before is whole, so make room "
            "on that disk and run the same command again"
        )


class ServerError(TreesnakeError):
    """A server on the network cannot be reached, or does not answer as it should."""


class OutputError(TreesnakeError):
    """A file cannot be written; the message says which, and how the work goes on."""


def reason_of(error: BaseException) -> str:
    """Returns what an error of another library says, in one line, for a message of ours."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyError) and error.args:
        text = " ".join(str(error.args[0]).split())
        if " " not in text:  # only the key
            return f"{text!r:.80} is missing, or not known to it"
    return f"{text or type(error).__name__:.600}"
