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


class UnsupportedModelError(TreesnakeError):
    """A model that cannot be run correctly, with the reason."""


class LoadError(TreesnakeError):
    """A model or tokenizer could not be loaded."""


class TrainingError(TreesnakeError):
    """Training cannot go on; the message says where it stands and what to try."""
