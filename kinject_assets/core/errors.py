"""Errors that a user can act on: the message says what is wrong, where, and what to do."""


class KinjectError(Exception):
    """Base of all errors whose message is meant for the user. The command line exits with 2."""


class ProfileError(KinjectError):
    """A profile cannot be read or holds a wrong field."""


class MissingArtefact(KinjectError):
    """An artefact that a step reads has not been made."""


class BrokenArtefact(KinjectError):
    """An artefact on disk does not match its manifest or cannot be read."""


class SourceError(KinjectError):
    """A wiki, folder or data set cannot be read."""


class ModelError(KinjectError):
    """A model or encoder cannot be loaded."""


class LLMError(KinjectError):
    """The language model service refused or gave nothing usable."""


class BudgetExceeded(LLMError):
    """The next request would cross the profile's budget; nothing was sent."""
