"""One family of errors. A message says what is wrong, where, what was found and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable


class UnspoolError(Exception):
    """Anything the caller can fix. The command line prints it on one line and exits with code 2."""

    def __init__(
        self, what: str, *, where: str = "", found: object = None, allowed: object = None
    ) -> None:
        self.what, self.where, self.found, self.allowed = what, where, found, allowed
        super().__init__(_sentence(what, where, found, allowed))


class DeclarationError(UnspoolError):
    """A format, code, program, scale or rotation that cannot exist."""


class WeightError(UnspoolError):
    """A weight matrix that cannot be quantized: NaN, Inf, wrong rank, a size that does not fit."""


class CheckpointError(UnspoolError):
    """A checkpoint that is missing, truncated, newer than this version, or not what it declares."""


class ModelError(UnspoolError):
    """A model that cannot be loaded or has nothing to quantize."""


class EvaluationError(UnspoolError):
    """A text or setting that quality cannot be measured on."""


class NativeError(UnspoolError):
    """The compiled library refused a call; its arguments contradict each other."""


class SlowPathWarning(UserWarning):
    """A slower path runs than this machine could offer; said once, with the reason."""


def _sentence(what: str, where: str, found: object, allowed: object) -> str:
    parts = [f"{where}: {what}" if where else what]
    if found is not None:
        parts.append(f"found {_shown(found)}")
    if allowed is not None:
        parts.append(f"allowed: {_shown(allowed)}")
    return "; ".join(parts)


def _shown(thing: object) -> str:
    if isinstance(thing, str):
        return thing
    if isinstance(thing, Iterable):
        return ", ".join(str(part) for part in thing)
    return str(thing)
