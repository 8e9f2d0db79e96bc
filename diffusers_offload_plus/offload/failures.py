"""Errors of work that has to be finished whatever goes wrong: tearing down, rolling back."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Failures"]

Step = Callable[[], object]


class Failures:
    """Steps that are all taken, and the errors of those that failed.

    An interruption (``KeyboardInterrupt``) counts as an error of the step that it hits: what has to be finished is
    finished first, and then it is raised.
    """

    def __init__(self) -> None:
        self._failed: list[tuple[Step, BaseException, str]] = []
        self._interruptions: list[BaseException] = []

    def attempt(self, step: Step, said: str = "") -> bool:
        """Take a step; whether it succeeded.

        Args:
            said: what it means if it fails, for the error.
        """
        try:
            step()
        except BaseException as error:
            self._failed.append((step, error, said))
            if not isinstance(error, Exception):
                self._interruptions.append(error)
            return False
        return True

    def retry(self) -> None:
        """Take each step that failed once more: there may be memory now. One that succeeds has no error any more, but
        an interruption is still raised."""
        failed, self._failed = self._failed, []
        for step, _, said in failed:
            self.attempt(step, said)

    def raise_first(self) -> None:
        """Raise the first error, or the first interruption if there was one, with notes that tell of all others."""
        failed, errors = self._failed, [*self._interruptions, *(error for _, error, _ in self._failed)]
        self._failed, self._interruptions = [], []
        if not errors:
            return
        _note(errors[0], failed)
        raise errors[0]

    def note_on(self, cause: BaseException) -> None:
        """Tell of the errors in notes on ``cause``, which is about to be raised."""
        failed, self._failed, self._interruptions = self._failed, [], []
        _note(cause, failed)


def _note(first: BaseException, failed: list[tuple[Step, BaseException, str]]) -> None:
    """Tell of what failed in notes on ``first``."""
    for _, error, said in failed:
        told = "" if error is first else f"{type(error).__name__}: {error}"
        if said or told:
            first.add_note(": ".join(filter(None, [said, told])))
