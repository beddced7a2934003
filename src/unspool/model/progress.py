"""How long work tells how far it is: one signature for models, evaluations and the bars."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, what comes next)."""
