"""Picking shards, on stand-ins for the parts of Ray Serve that a `Picker` reaches into."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from octavo.errors import EngineDead
from octavo.request import Request
from octavo_serve.picker import ADDRESS, Picker


class Books:
    """Serve's metrics of one handle."""

    def __init__(self) -> None:
        self.running: Counter[str] = Counter()
        self.queued = 0
        self.most_queued = 0

    @contextlib.contextmanager
    def wrap_request_assignment(self, metadata: Any) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def wrap_queued_request(self, is_retry: bool, num_replicas: int) -> Iterator[None]:
        self.queued += 1
        self.most_queued = max(self.most_queued, self.queued)
        try:
            yield
        finally:
            self.queued -= 1

    def inc_num_running_requests_for_replica(self, replica: str) -> None:
        self.running[replica] += 1

    def dec_num_running_requests_for_replica(self, replica: str) -> None:
        self.running[replica] -= 1


class LastFirst:
    """A request router that prefers the shard that joined last."""

    def __init__(self) -> None:
        self.curr_replicas: dict[str, Any] = {}
        self.told: list[tuple[str, str]] = []

    def join(self, name: str, room: int) -> None:
        self.curr_replicas[name] = SimpleNamespace(
            replica_id=name, max_ongoing_requests=room, replica_metadata={ADDRESS: ["127.0.0.1", len(name), "00"]}
        )

    async def choose_replicas(self, candidates: list[Any], pending: Any) -> list[list[Any]]:
        assert isinstance(pending.args[0], Request)
        return [[replica] for replica in reversed(candidates)]

    def on_request_routed(self, pending: Any, replica: str, result: Any) -> None:
        self.told.append(("routed", pending.metadata.internal_request_id))

    def on_request_completed(self, replica: str, request_id: str) -> None:
        self.told.append(("completed", request_id))

    def on_replica_actor_died(self, replica: str) -> None:
        self.curr_replicas.pop(replica, None)


class Fake:
    """A handle, as far as a picker looks into it."""

    def __init__(self) -> None:
        self.router = LastFirst()
        self.books = Books()
        self.serve = SimpleNamespace(
            _event_loop=asyncio.get_running_loop(),
            _request_router_initialized=asyncio.Event(),
            _metrics_manager=self.books,
            _deployment_available=True,
            deployment_id="shard-m",
            request_router=self.router,
        )
        self.serve._request_router_initialized.set()
        self._router = SimpleNamespace(_asyncio_router=self.serve)

    def options(self, method_name: str) -> Fake:
        return self


def picker() -> tuple[Picker, Fake]:
    fake = Fake()
    return Picker(fake), fake  # type: ignore[arg-type]


def request(name: str) -> Request:
    return Request(request_id=name, prompt_token_ids=[1])


def test_the_routers_first_choice_is_on_the_books_until_the_request_has_ended() -> None:
    async def main() -> None:
        pick, fake = picker()
        fake.router.join("first", 8)
        fake.router.join("second", 8)
        picked = await pick.pick(request("a"))
        assert picked.address == ("127.0.0.1", len("second"), "00")
        assert fake.books.running == {"second": 1}
        picked.ended()
        assert fake.books.running == {"second": 0}
        assert fake.router.told == [("routed", "a"), ("completed", "a")]
        assert fake.books.most_queued == 0

    asyncio.run(main())


def test_of_equals_the_one_with_fewer_requests_is_taken_as_serve_does() -> None:
    async def main() -> None:
        pick, fake = picker()
        fake.router.join("a", 8)
        fake.router.join("bb", 1)

        async def all_alike(candidates: list[Any], pending: Any) -> list[list[Any]]:
            return [[], list(fake.router.curr_replicas.values())]  # full ones too: Serve's own routers do not look

        fake.router.choose_replicas = all_alike  # type: ignore[method-assign]
        assert [(await pick.pick(request(f"r{i}"))).address[1] for i in range(4)] == [1, 2, 1, 1]

    asyncio.run(main())


def test_a_full_shard_is_passed_over_and_requests_wait_in_order_for_room() -> None:
    async def main() -> None:
        pick, fake = picker()
        fake.router.join("a", 1)
        fake.router.join("bb", 1)
        running = [await pick.pick(request(f"r{i}")) for i in range(2)]
        assert [picked.address[1] for picked in running] == [2, 1]
        order: list[str] = []

        async def wait(name: str) -> None:
            picked = await pick.pick(request(name))
            order.append(name)
            picked.ended()

        waiting = [asyncio.create_task(wait(f"w{i}")) for i in range(5)]
        await asyncio.sleep(0.02)
        assert fake.books.queued == 5
        running[0].ended()
        await asyncio.gather(*waiting)
        assert order == [f"w{i}" for i in range(5)]
        assert fake.books.queued == 0

    asyncio.run(main())


def test_a_request_waits_for_the_first_shard() -> None:
    async def main() -> None:
        pick, fake = picker()
        waiting = asyncio.create_task(pick.pick(request("a")))
        await asyncio.sleep(0.02)
        assert fake.books.queued == 1  # which is what brings a shard up where there may be none
        fake.router.join("a", 1)
        assert (await waiting).address == ("127.0.0.1", 1, "00")

    asyncio.run(main())


def test_a_shard_that_is_gone_is_not_picked_again() -> None:
    async def main() -> None:
        pick, fake = picker()
        fake.router.join("a", 8)
        fake.router.join("bb", 8)
        picked = await pick.pick(request("r"))
        picked.gone()
        picked.ended()
        assert (await pick.pick(request("r"))).address[1] == 1

    asyncio.run(main())


def test_a_deployment_that_has_failed_is_an_error_and_a_cancelled_wait_leaves_nothing() -> None:
    async def main() -> None:
        pick, fake = picker()
        waiting = asyncio.create_task(pick.pick(request("a")))
        await asyncio.sleep(0.02)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert fake.books.queued == 0
        fake.serve._deployment_available = False
        with pytest.raises(EngineDead, match="has failed"):
            await pick.pick(request("a"))

    asyncio.run(main())
