"""Every exception that alignbeam raises on purpose. Each message says what to do."""


class AlignBeamError(Exception):
    """Base of all errors of this package; the command line prints it without a traceback."""


class ConfigError(AlignBeamError, ValueError):
    """A setting is unknown, of the wrong type, or out of range."""


class PromptError(AlignBeamError, ValueError):
    """The messages cannot be answered: empty, unknown role, wrong type, too long for a window.

    Attributes
    ----------
    code : str
        What kind of fault it is, for programs.
    place : str
        The field at fault, such as ``"1.content"`` of message 1; empty where it is none.
    """

    def __init__(self, message: str = "", code: str = "invalid_prompt", place: str = "") -> None:
        super().__init__(message)
        self.code, self.place = code, place


class TokenizerError(AlignBeamError, ValueError):
    """A tokenizer cannot be served exactly: undeclared decoder, failed round trip, broken file."""


class BridgeError(AlignBeamError, ValueError):
    """A bridge does not fit the models: wrong width, foreign table, unusable cache folder."""


class ModelLoadError(AlignBeamError, RuntimeError):
    """A model or tokenizer could not be loaded."""


class EngineShortfall(ModelLoadError):
    """An inference engine cannot play its role as it was started; says which switch mends it."""


class EngineUnavailable(AlignBeamError, RuntimeError):
    """An inference engine is down, slow or restarting; no answer is given.

    Attributes
    ----------
    role : str
        Whose engine it is.
    """

    def __init__(self, message: str = "", role: str = "") -> None:
        super().__init__(message)
        self.role = role


class EngineBusy(EngineUnavailable):
    """An inference engine is there and has no room; no answer is given.

    Attributes
    ----------
    wait_s : float
        For how long it says to stay away; 0 where it does not say.
    """

    def __init__(self, message: str = "", role: str = "", wait_s: float = 0.0) -> None:
        super().__init__(message, role)
        self.wait_s = wait_s


class EngineFault(EngineUnavailable):
    """An inference engine answers what it must not: missing numbers, NaN, another model.

    Attributes
    ----------
    public : str
        The message without the engine's own words: these may quote what it was asked, so they are
        for use at home only.
    """

    def __init__(self, message: str = "", role: str = "", words: str = "") -> None:
        super().__init__(f"{message}: {words}" if words else message, role)
        self.public = message


class BackendUnavailable(AlignBeamError, RuntimeError):
    """A kernel backend that was asked for by name cannot run here; says why and what mends it."""


class NonFiniteLogits(AlignBeamError, ArithmeticError):
    """A model produced NaN or +inf logits; its answer cannot be trusted, so none is given."""


class OutOfMemory(AlignBeamError, RuntimeError):
    """The device has no memory for this request, even alone."""


class DecodingFailed(AlignBeamError, RuntimeError):
    """A model broke while this request was decoded; no answer is given."""


class JudgeUnavailable(AlignBeamError, RuntimeError):
    """The judge failed on every candidate: no candidate's text may leave."""


class JudgeDied(AlignBeamError, RuntimeError):
    """The judge's process ended or did not answer; a new one is on its way."""


class UnsafeAnswer(AlignBeamError, RuntimeError):
    """No candidate was judged safe and the policy is ``on_unsafe="raise"``."""


class Cancelled(AlignBeamError):
    """The request was cancelled between two steps."""


def how_to_install(extra: str) -> str:
    """Return the words for a missing extra; the package is on no index."""
    return f"pip install -c constraints.txt '.[{extra}]' in the checkout of alignbeam"
