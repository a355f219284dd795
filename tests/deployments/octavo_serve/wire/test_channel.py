"""A connection as both ends see it, over real sockets: strangers, large messages, peers that do not read."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from octavo_serve.wire import channel
from octavo_serve.wire.messages import Submit

NONCE_AND_PROOF = 4 + 64  # of the shard; it knows by then no more of the other side than that it speaks first


def test_strangers_are_not_listened_to(fleet: Any) -> None:
    """Without the secret nothing runs and nothing is kept: not a request, not an abort, not the length of a message."""

    async def ends(*sent: bytes) -> int:
        """Bytes that a connection that says this is told before it is ended."""
        reader, writer = await asyncio.open_connection(fleet.address.host, fleet.address.port)
        writer.write(b"".join(len(each).to_bytes(4, "big") + each for each in sent))
        try:
            return len(await asyncio.wait_for(reader.read(), 30))
        except ConnectionResetError:  # what it sent last was not even read
            return len(reader._buffer)  # type: ignore[attr-defined]
        finally:
            writer.close()

    async def scenario(client: Any) -> None:
        port = await fleet.add()
        submit = msgspec.msgpack.encode(Submit(fleet.request("stranger")))
        secret = bytes.fromhex(fleet.address.secret)
        assert await ends(submit) == 0
        assert await ends(secret, submit) == NONCE_AND_PROOF
        assert await ends(bytes(32), submit) == NONCE_AND_PROOF
        assert await ends(bytes(32), bytes(32), submit) == NONCE_AND_PROOF
        assert await ends(secret[:-1], submit) == 0
        assert await ends(b"x" * 300_000) == 0
        assert len(port.peers) == 1  # the client
        assert not port.engine._engine._listeners
        await fleet.said(client, fleet.request())

    assert fleet.run(scenario) == []


def test_who_says_nothing_is_sent_away(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(client: Any) -> None:
        monkeypatch.setattr(channel, "INTRODUCTION_SECONDS", 0.2)
        await fleet.add()
        reader, writer = await asyncio.open_connection(fleet.address.host, fleet.address.port)
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()
        await fleet.said(client, fleet.request(max_tokens=100))  # half a second: those that have said it stay

    assert fleet.run(scenario) == []


@pytest.mark.parametrize("length", [channel.MAX_MESSAGE + 1, 2**32 - 1])
def test_a_message_that_is_announced_too_long_is_not_waited_for(fleet: Any, length: int) -> None:
    async def scenario(client: Any) -> None:
        port = await fleet.add()
        await fleet.anybody()
        (link,) = fleet.links.values()
        link._channel._transport.write(length.to_bytes(4, "big"))
        async with asyncio.timeout(60):
            while not link.gone:
                await asyncio.sleep(0.01)
        assert link._channel not in port.peers

    fleet.run(scenario)


def test_parts_wait_until_there_is_room_and_others_overtake_them(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        port = await fleet.add()
        await fleet.anybody()
        (peer,) = port.peers
        sent: list[bytes] = []
        peer._write = sent.append
        peer.pause_writing()
        peer.send_in_parts(iter([b"a1", b"a2", b"a3"]))
        peer.send_in_parts(iter([b"b1"]))
        peer.send_encoded(b"short")
        assert sent == [b"short"]
        peer.resume_writing()
        peer.send_encoded(b"short")
        while peer._in_parts:
            await asyncio.sleep(0)
        assert [each for each in sent if len(each) in (2, 5)] == [b"short", b"a1", b"short", b"b1", b"a2", b"a3"]
        peer.abort()

    fleet.run(scenario)


def test_parts_end_with_their_connection(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        port = await fleet.add()
        await fleet.anybody()
        (peer,) = port.peers
        peer.pause_writing()
        peer.send_in_parts(iter([b"never"]))
        peer.abort()
        while port.peers:
            await asyncio.sleep(0)
        assert not peer._in_parts

    fleet.run(scenario)


def test_a_gateway_that_reads_nothing_is_given_up(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "MAX_UNREAD", 2**16)
    monkeypatch.setattr(channel, "STUCK_SECONDS", 0.1)

    async def scenario(client: Any) -> None:
        port = await fleet.shard_of_a_gateway_that_does_not_read()
        async with asyncio.timeout(60):
            while port.peers:  # its reports go on
                await asyncio.sleep(0.01)

    fleet.run(scenario, silence=1000.0)


def test_requests_of_one_turn_go_in_one_write_and_an_abort_behind_them(fleet: Any) -> None:
    async def scenario(client: Any) -> None:
        await fleet.add()
        await fleet.anybody()
        (link,) = fleet.links.values()
        sent, write = [], link._channel._write

        def counting(payload: bytes) -> None:
            sent.append((len(payload), len(link._channel._soon)))
            write(payload)

        link._channel._write = counting
        requests = [fleet.request(str(number), max_tokens=0) for number in range(20)]
        await asyncio.gather(*(fleet.said(client, request) for request in requests))
        assert sum(waiting > 0 for _, waiting in sent) == 1

        stream = client.generate(fleet.request("leaves"))
        task = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        task.cancel()  # in the turn in which it was sent
        await asyncio.wait([task])
        await stream.aclose()
        await fleet.everything_is_free()  # the shard has heard of it first and then that it is over

    assert fleet.run(scenario) == []
