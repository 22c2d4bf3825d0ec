"""The states of a run that can be lost and brought back, and the one table of what follows what.

Theory of operation. Four sources report that something failed; whatever comes first makes a
`HEALTHY` run `SUSPECT`. One read of its status confirms the loss or calls it a false alarm. A lost
run admits no more work (`QUIESCING`), then tries checkpoints: each try is an attempt, goes through
`SELECTING`, `RESTORING`, `VERIFYING` and `RESUMING`, and starts a new generation as soon as there is
a new run. A failed try goes through `BACKOFF` to the next; when attempts or checkpoints are used up,
the run is `EXHAUSTED`. Attempts count until work has really gone on, so that an operation that
kills every run it is sent to comes to an end too.

The rule: signals of an older generation, and any after the end, mean nothing; a signal that has no
place in the table is a fault of this library, and changes nothing.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a run stands."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    """Something failed; the run's status is being read."""
    QUIESCING = "quiescing"
    """It is lost: new work waits, what is in flight is given up."""
    SELECTING = "selecting"
    RESTORING = "restoring"
    """A checkpoint is being loaded into a new run."""
    VERIFYING = "verifying"
    """The new run is compared with what is on record."""
    RESUMING = "resuming"
    """The operations since the checkpoint are being repeated."""
    BACKOFF = "backoff"
    EXHAUSTED = "exhausted"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether nothing follows."""
        return self in _OVER

    @property
    def admits_work(self) -> bool:
        """Whether an operation may be sent at once; in the others it waits in the journal."""
        return self in (State.HEALTHY, State.SUSPECT)


class Signal(StrEnum):
    """What can happen to it."""

    FAILURE = "failure"
    """One of the four sources says that something is wrong."""
    FALSE_ALARM = "false_alarm"
    CONFIRMED = "confirmed"
    """The run is lost."""
    QUIESCED = "quiesced"
    SELECTED = "selected"
    """There is a candidate; an attempt begins."""
    NONE_LEFT = "none_left"
    """There is no candidate any more."""
    RESTORED = "restored"
    """There is a new run: a new generation begins."""
    VERIFIED = "verified"
    RESUMED = "resumed"
    """All is repeated; new work goes out at once."""
    FAILED = "failed"
    """The attempt failed."""
    SPENT = "spent"
    """No attempt is left: what `FAILED` and `SELECTED` become then."""
    BACKED_OFF = "backed_off"
    PROGRESS = "progress"
    """An operation succeeded that never had before."""
    CANCEL = "cancel"


_OVER = frozenset({State.EXHAUSTED, State.CANCELLED})
_WORKING = frozenset({State.HEALTHY, State.SUSPECT, State.RESUMING})
"""States in which a success means that the run goes on."""
_ATTEMPT = frozenset({Signal.SELECTED, Signal.FAILED})

TRANSITIONS: dict[tuple[State, Signal], State] = {
    # What other tasks report may come in any state. A run in recovery stays where it is: whoever
    # drives the attempt hears of its failure by itself, as `FAILED`.
    **{
        (state, signal): state
        for state in State
        for signal in (Signal.FAILURE, Signal.PROGRESS)
        if state not in _OVER
    },
    **{(state, Signal.CANCEL): State.CANCELLED for state in State if state not in _OVER},
    (State.HEALTHY, Signal.FAILURE): State.SUSPECT,
    (State.SUSPECT, Signal.FALSE_ALARM): State.HEALTHY,
    (State.SUSPECT, Signal.CONFIRMED): State.QUIESCING,
    (State.QUIESCING, Signal.QUIESCED): State.SELECTING,
    (State.SELECTING, Signal.SELECTED): State.RESTORING,
    (State.SELECTING, Signal.NONE_LEFT): State.EXHAUSTED,
    (State.SELECTING, Signal.SPENT): State.EXHAUSTED,
    (State.RESTORING, Signal.RESTORED): State.VERIFYING,
    (State.VERIFYING, Signal.VERIFIED): State.RESUMING,
    (State.RESUMING, Signal.RESUMED): State.HEALTHY,
    (State.BACKOFF, Signal.BACKED_OFF): State.SELECTING,
    **{
        (state, signal): to
        for state in (State.RESTORING, State.VERIFYING, State.RESUMING)
        for signal, to in ((Signal.FAILED, State.BACKOFF), (Signal.SPENT, State.EXHAUSTED))
    },
}
"""The one table: a state and a signal, and the state that follows."""


class Machine:
    """One run's state, its generation, and the attempts that were made.

    Args:
        max_attempts: Attempts without progress between them.
        generation: To begin with; a program that goes on with a run begins above those on record.
    """

    def __init__(self, max_attempts: int, generation: int = 1) -> None:
        self._max_attempts = max_attempts
        self.state = State.HEALTHY
        self.generation = generation
        """Counts the runs on the server that this one has had."""
        self.attempts = 0
        """Attempts since work last went on."""

    def apply(self, signal: Signal, *, generation: int | None = None) -> State:
        """Let a signal happen, and return the state after it.

        Look at what is returned: after the last attempt `SELECTED` and `FAILED` lead to
        `EXHAUSTED`, and once a run is over it stays so.

        Args:
            signal: What happened.
            generation: The one that it happened to; a signal of an older one, such as a late
                failure of the run that was replaced, changes nothing. None is the present one.

        Raises:
            RuntimeError: It cannot happen in this state; nothing has changed.
        """
        if self.state.is_over or (generation is not None and generation != self.generation):
            return self.state
        if signal in _ATTEMPT and self.attempts >= self._max_attempts:
            signal = Signal.SPENT
        to = TRANSITIONS.get((self.state, signal))
        if to is None:
            raise RuntimeError(f"{signal} cannot happen to a run that is {self.state}")
        self.state = to
        if signal is Signal.SELECTED:
            self.attempts += 1
        elif signal is Signal.RESTORED:
            self.generation += 1
        elif signal is Signal.PROGRESS and to in _WORKING:
            self.attempts = 0
        return to

    def progressed(self) -> None:
        """Let `PROGRESS` happen, which nearly always changes nothing: each operation does."""
        if self.state is not State.HEALTHY:
            self.apply(Signal.PROGRESS)
        else:
            self.attempts = 0

    def __repr__(self) -> str:
        return (
            f"<Machine {self.state}: generation {self.generation}, "
            f"attempt {self.attempts} of {self._max_attempts}>"
        )
