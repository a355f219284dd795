"""Lets gateways read what the autoscaler decided, and why: Serve tells replicas nothing of it."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable

from octavo.scaling.policy import ScalingDecision
from octavo_serve.ray_private import keep
from octavo_serve.wire.scaling import MAX_CHANGES, Change, Scaling, encode_scaling, scaling_key

logger = logging.getLogger("ray.serve")

QUIET_SECONDS = 5.0
"""Between two writes while the number of shards stays as it is."""


class Journal:
    """One deployment's decisions, written in a thread of its own, for a write waits for Ray's GCS.

    Args:
        write: takes a key and its value.
    """

    def __init__(self, write: Callable[[str, bytes], None] = keep) -> None:
        self._write = write
        self._changes: deque[Change] = deque(maxlen=MAX_CHANGES)
        self._counts: Counter[str] = Counter()
        self._written: tuple[float, str, float] = (float("-inf"), "", 0.0)  # when, reason, demand
        self._latest: Scaling | None = None  # to be written
        self._writes = False
        self._lock = threading.Lock()

    def add(self, where: tuple[str, str], now: float, before: int, wanted: int, running: int,
            decision: ScalingDecision) -> None:  # fmt: skip
        """A decision; what comes while one is written is written together.

        Args:
            where: application and deployment.
            now: seconds since 1970.
            before, wanted: shards to have until now, and from now on.
            running: that serve.
        """
        reason, demand = decision.reason, round(decision.demand, 2)
        if wanted != before:
            met = wanted >= decision.replicas
            self._changes.append(Change(round(now, 1), before, wanted, reason, demand, met))
            self._counts[reason] += 1
        elif now - self._written[0] < QUIET_SECONDS or (reason, demand) == self._written[1:]:
            return
        self._written = now, reason, demand
        latest = Scaling(now, wanted, running, reason, demand, dict(self._counts), list(self._changes))
        with self._lock:
            self._latest = latest
            if self._writes:
                return
            self._writes = True
        threading.Thread(target=self._write_all, args=(scaling_key(*where),), daemon=True).start()

    def _write_all(self, key: str) -> None:
        while (latest := self._next()) is not None:
            try:
                self._write(key, encode_scaling(latest))
            except Exception as error:  # whatever ails Ray's GCS: gateways show the decision before, and its age
                logger.info("The autoscaler's decision cannot be read by gateways: %s", error)

    def _next(self) -> Scaling | None:
        with self._lock:
            latest, self._latest = self._latest, None
            self._writes = latest is not None
            return latest
