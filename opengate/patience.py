"""Connections to Postgres that do not wait for ever: for processes whose callers wait with them."""

from typing import Any, ClassVar

import psycopg
from psycopg.errors import _WaitTimeout


class PatientConnection(psycopg.Connection[Any]):
    """Gives itself up when Postgres does not answer for so long; raises OperationalError then, as any that is lost.

    A server that stands still keeps its connections open, and no time limit of its own would end that.
    """

    seconds: ClassVar[float | None] = None  # a worker waits as long as its work takes

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, self.seconds if timeout is None else timeout)
        except _WaitTimeout as error:
            if timeout is not None:
                raise
            self.pgconn.finish()
            raise psycopg.OperationalError(f"Postgres did not answer within {self.seconds} s.") from error
