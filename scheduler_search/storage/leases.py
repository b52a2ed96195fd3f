"""Leases in the database: at most one coordinator writes to a study.

Knows: that a study has one owner, that an owner who falls silent gives way to another, and that every write of an owner
is refused from then on. Does not know: how often an owner renews its lease, or what it writes.

A lease is lost by its epoch, not by time: an owner that slept and was not replaced goes on. The epoch is compared in
the transaction of each write, under the database's write lock, so that a write is either before a claim or refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, bindparam, event, or_, select
from sqlalchemy.orm import Session

from scheduler_search.errors import LeaseLostError
from scheduler_search.storage import queries
from scheduler_search.storage.connection import Connection
from scheduler_search.storage.refusals import lease_held
from scheduler_search.storage.retries import retried
from scheduler_search.storage.tables import StudyRow, Table
from scheduler_search.study.states import Holder, Lease, StudyRecord, StudyState

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

SILENT_SECONDS = 15.0

# Asked in every transaction: made once and without objects, it takes a fifth of the time.
_STUDIES = Table.metadata.tables[StudyRow.__tablename__]
_PRESENT = select(_STUDIES.c.epoch, _STUDIES.c.state, _STUDIES.c.owner).where(_STUDIES.c.id == bindparam("study"))
_PRESENT_LOCKED = _PRESENT.with_for_update(read=True)


class Leases(Connection):
    """The part of ``StudyDatabase`` that is about leases."""

    _held: Lease | None = None

    @retried
    def claim(
        self, study: StudyRecord, owner: str, *, silent_seconds: float = SILENT_SECONDS, take_over: bool = False
    ) -> Lease:
        """Make ``owner`` the one that writes to a study; whoever was it before loses its lease.

        Args:
            owner: different for every coordinator; shown to users.
            silent_seconds: how long the present owner must not have renewed its lease.
            take_over: claim it all the same.

        Raises:
            LeaseHeldError: another owner renewed its lease since.
        """
        with self._write() as session:
            row = queries.get(session, StudyRow, study.id, f"study {study.name!r}")
            now = self._now(session)
            silent = _silent_seconds(row, now)
            if row.owner not in (None, owner) and silent < silent_seconds and not take_over:
                raise lease_held(study.name, row.owner, silent)
            return grant(row, owner, now)

    @retried
    def renew(self, lease: Lease) -> None:
        """Say that the owner is still there; LeaseLostError where it is not the owner any more."""
        with self._write() as session:
            require(session, lease)
            queries.get(session, StudyRow, lease.study_id, f"study {lease.name!r}").heartbeat = self._now(session)

    @retried
    def release(self, lease: Lease) -> None:
        """Leave the study to whoever claims it next; nothing where the lease is lost."""
        with self._write() as session:
            row = session.get(StudyRow, lease.study_id)
            if row is not None and row.epoch == lease.epoch:
                row.owner = row.heartbeat = None

    @retried
    def holder(self, study: StudyRecord) -> Holder | None:
        """Who holds the lease of a study, and for how long it has been silent; None where nobody does."""
        with self._read() as session:
            row = queries.get(session, StudyRow, study.id, f"study {study.name!r}")
            return None if row.owner is None else Holder(row.owner, _silent_seconds(row, self._now(session)))

    @contextmanager
    def holding(self, lease: Lease) -> Iterator[None]:
        """Refuse every write of this database object with LeaseLostError as soon as the lease is lost."""
        self._held = lease
        try:
            yield
        finally:
            self._held = None

    def guard(self, storage: RDBStorage) -> None:
        """Let Optuna commit only what the lease of this database object allows; LeaseLostError otherwise."""

        def check(session: Session) -> None:
            if self._held is not None:
                # What Optuna wrote must take its locks before the epoch is read.
                session.flush()
                require(session, self._held, lock=True)

        event.listen(storage.scoped_session, "before_commit", check)

    def _now(self, session: Session) -> float:
        """Seconds of the database's clock: leases of several machines are compared by it alone."""
        return session.execute(select(self._server.clock())).scalar_one()

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with super()._write() as session:
            if self._held is not None:
                require(session, self._held)
            yield session


def grant(row: StudyRow, owner: str, now: float) -> Lease:
    """Give the lease of a study to ``owner``."""
    row.owner, row.heartbeat = owner, now
    row.epoch += 1
    return Lease(row.id, row.name, owner, row.epoch)


def require(session: Session, lease: Lease, *, lock: bool = False) -> None:
    """LeaseLostError, with who has it now, unless the lease is the study's present one.

    Args:
        lock: keep it from being claimed until the transaction ends, for sessions without the database's write lock.
    """
    found = session.execute(_PRESENT_LOCKED if lock else _PRESENT, {"study": lease.study_id}).one_or_none()
    if found is None or found.epoch != lease.epoch:
        raise LeaseLostError(
            "only the coordinator that holds a study's lease writes to it",
            actual="a study that was deleted" if found is None else _lost(found.state, found.owner),
            place=f"study {lease.name!r}",
            remedy="nothing was written since, and nothing is lost",
        )


def is_free(owner: str, silent_seconds: float, now: float) -> ColumnElement[bool]:
    """Condition: nobody else holds the lease, or only an owner that is silent."""
    silent = or_(StudyRow.heartbeat.is_(None), StudyRow.heartbeat <= now - silent_seconds)
    return or_(StudyRow.owner.is_(None), StudyRow.owner == owner, silent)


def _lost(state: str, owner: str | None) -> str:
    if state == StudyState.CANCELLED.value:
        return "a study that was cancelled"
    return "a study that was taken over" + (f" by {owner}" if owner else "")


def _silent_seconds(row: StudyRow, now: float) -> float:
    return float("inf") if row.heartbeat is None else max(0.0, now - row.heartbeat)
