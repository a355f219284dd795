"""Shards that give each other KV blocks, over real sockets, through a line that fails at any byte."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from octavo.block_hash import hash_chain, root_hash
from octavo.config import EngineConfig
from octavo.engine import arrivals
from octavo.engine.async_engine import AsyncEngine
from octavo.engine.engine import Engine
from octavo.engine.served_engine import ServedEngine
from octavo.errors import ConfigError
from octavo.kvcache.slot_file import checksum
from octavo.request import Placement, Request, SamplingParams
from octavo.source import resolve_source
from octavo.text.tokenizer import load_tokenizer
from octavo_serve.shard import sharing
from octavo_serve.shard.sharing import PeerShard, PeerShards, Sharing
from octavo_serve.wire.blocks import Form, Wanted, Wire
from octavo_serve.wire.challenge import Challenge
from octavo_serve.wire.messages import Address

PROMPT = list(range(30, 190))  # ten blocks


@pytest.fixture(autouse=True)
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long blocks take, computing so small a model would take longer."""
    monkeypatch.setattr(arrivals, "compute_seconds", lambda *_: float("inf"))


class Shard:
    """An engine with a real model, its share of others' blocks, and what it is asked."""

    def __init__(self, source: Path, **settings: Any) -> None:
        found = resolve_source(str(source))
        config = EngineConfig(**{"kv_cache_bytes": 2**21, "max_model_len": 512, "share_kv_cache": True} | settings)
        self.engine = AsyncEngine(Engine.load(found, config, load_tokenizer(found)))
        self.sharing = Sharing(ServedEngine(self.engine), found, "127.0.0.1", secrets.token_hex(4))
        self.sharing._warmed = True  # it begins cold
        end = time.monotonic() + 60
        while self.sharing._peers is None:
            assert time.monotonic() < end
            time.sleep(0.01)

    def ask(self, prompt: list[int], blocks: int = 0, salt: str = "") -> tuple[list[int], list[float]]:
        """What it says, with log probabilities; it is said that another shard has blocks."""
        placement = Placement("", "here", "fetch", 0, 0.0, "other" if blocks else "", blocks)
        params = SamplingParams(max_tokens=6, ignore_eos=True, temperature=0.0, logprobs=0)
        request = Request(
            request_id=secrets.token_hex(8), prompt_token_ids=prompt, params=params, cache_salt=salt,
            placement=placement,
        )  # fmt: skip
        return self.engine.call(lambda engine: _run(engine, request)).result(60)

    @property
    def stats(self) -> Any:
        return self.engine.stats()

    def close(self) -> None:
        self.sharing.close()
        self.engine.close()


def _run(engine: Engine, request: Request) -> tuple[list[int], list[float]]:
    tokens: list[int] = []
    logprobs: list[float] = []
    engine.add(request)
    while engine.has_work:
        for update in engine.step():
            tokens += update.token_ids
            logprobs += [
                each[token].logprob for token, each in zip(update.token_ids, update.logprobs or (), strict=True)
            ]
        engine.check_integrity()
    return tokens, logprobs


class Line:
    """A line to a shard. After so many bytes of its answers something happens to them, once."""

    def __init__(self, to: Address) -> None:
        self.to, self.after, self.happens = to, 1 << 60, "nothing"
        self.passed = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._listener.getsockname()[1], to.secret)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self.to[:2])
            for pair in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        try:
            while data := bytearray(source.recv(1000)):
                if answers and self.passed + len(data) > self.after:
                    place, self.after = self.after - self.passed, 1 << 60
                    if self.happens == "flip":
                        data[place] ^= 1 << place % 8
                    elif self.happens == "stall":
                        time.sleep(3)
                    else:
                        target.sendall(data[:place])
                        break
                self.passed += len(data) if answers else 0
                target.sendall(data)
        except OSError:
            pass
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture(scope="module")
def giver(tiny_model: Callable[[str], Path]) -> Iterator[Shard]:
    shard = Shard(tiny_model("llama3"))
    yield shard
    shard.close()


@pytest.fixture(scope="module")
def plain(tiny_model: Callable[[str], Path]) -> Iterator[Callable[[list[int]], Any]]:
    """What a shard says that computes everything, asked once for each prompt."""
    shard = Shard(tiny_model("llama3"), enable_prefix_caching=True)
    yield lambda prompt: shard.ask(prompt, salt=secrets.token_hex(8))
    shard.close()


@pytest.fixture
def line(giver: Shard) -> Iterator[Line]:
    line = Line(giver.sharing.address)
    yield line
    line.close()


@pytest.fixture
def asker(tiny_model: Callable[[str], Path], line: Line) -> Iterator[Shard]:
    shard = Shard(tiny_model("llama3"))
    shard.sharing.introduce({"other": line.address})
    yield shard
    shard.close()


def test_blocks_come_and_say_the_same(giver: Shard, asker: Shard, plain: Any) -> None:
    expected = plain(PROMPT)
    assert giver.ask(PROMPT) == expected
    given = giver.stats.given
    assert asker.ask(PROMPT, blocks=9) == expected
    stats = asker.stats
    assert (stats.peers.came, stats.peers.wanted, stats.counters.cached_tokens) == (9, 9, 144)
    assert giver.stats.given - given == 9
    assert not sum(stats.peers.failures.values())
    assert stats.peers.bytes_read == 9 * asker.engine.engine.executor.kv.block_bytes


def test_blocks_come_before_the_request_that_wants_them(giver: Shard, asker: Shard, plain: Any) -> None:
    expected = plain(PROMPT)
    assert giver.ask(PROMPT) == expected
    chain = hash_chain(root_hash(giver.engine.engine.limits.name), PROMPT, 16)
    asker.sharing.bring("other", chain[:5])
    end = time.monotonic() + 60
    while asker.stats.peers.came < 5:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert asker.ask(PROMPT) == expected, "no router has said a word of another shard"
    assert asker.stats.counters.cached_tokens == 80


@pytest.mark.parametrize("happens", ["flip", "cut", "stall"])
def test_whatever_happens_on_the_way_the_tokens_are_the_same(
    happens: str, giver: Shard, asker: Shard, line: Line, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At random bytes of handshake, counts, checksums and blocks; what did not come is computed, and counted."""
    monkeypatch.setattr(sharing, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(sharing, "OTHER_SECONDS", 0.0)
    monkeypatch.setattr(sharing, "READ_SECONDS", 0.3)
    monkeypatch.setattr(arrivals, "UNKNOWN_SECONDS", 30.0)
    rng, line.happens = random.Random(happens), happens
    expected = plain(PROMPT)
    giver.ask(PROMPT)
    size = 9 * (16 + giver.engine.engine.executor.kv.block_bytes)
    first, hit = 150, 0  # bytes until the first block
    for turn in range(3 if happens == "stall" else 25):
        asker.engine.call(lambda engine: engine.pool.clear_cache()).result(60)
        line.after = line.passed + (rng.randrange(first) if turn % 5 == 4 else rng.randrange(size))
        assert asker.ask(PROMPT, blocks=9) == expected
        hit += line.after == 1 << 60
        for peer in asker.sharing._peers._known.values():  # type: ignore[union-attr]
            if happens != "flip":
                peer._leave()
    failures = asker.stats.peers.failures
    assert hit
    assert sum(failures.get(reason, 0) for reason in ("io", "checksum", "gone")) >= hit
    if happens == "flip":
        assert failures["checksum"] > 0
    line.after = 1 << 60
    asker.engine.call(lambda engine: engine.pool.clear_cache()).result(60)
    before = asker.stats.peers.came
    assert asker.ask(PROMPT, blocks=9) == expected
    assert asker.stats.peers.came - before == 9  # and it is well again


def test_a_shard_that_does_not_have_what_is_said_of_it(giver: Shard, asker: Shard, plain: Any) -> None:
    strange = PROMPT[::-1]
    assert asker.ask(strange, blocks=9) == plain(strange)
    assert asker.stats.peers.failures["gone"] == 9
    assert asker.ask(PROMPT[:80], blocks=4000) == plain(PROMPT[:80])


def test_nobody_is_there(asker: Shard, line: Line, plain: Any) -> None:
    line.close()
    nowhere = socket.create_server(("127.0.0.1", 0))
    asker.sharing.introduce({"other": Address("127.0.0.1", nowhere.getsockname()[1], "00" * 32)})
    nowhere.close()
    assert asker.ask(PROMPT, blocks=9) == plain(PROMPT)
    assert asker.stats.peers.failures["io"] == 9
    asker.sharing.introduce({})
    assert asker.ask(PROMPT[1:], blocks=9) == plain(PROMPT[1:])
    assert asker.stats.peers.wanted == 9


def test_blocks_that_lie_on_a_disk_are_given(
    tiny_model: Callable[[str], Path], tmp_path: Path, asker: Shard, plain: Any
) -> None:
    shard = Shard(tiny_model("llama3"), disk_cache_bytes=2**22, disk_cache_path=str(tmp_path / "kv"))
    shard.ask(PROMPT)
    tier = shard.engine.engine.scheduler.fetches.tier  # type: ignore[union-attr]
    end = time.monotonic() + 60
    while len(tier.hashes()) < 10:  # type: ignore[union-attr]
        assert time.monotonic() < end
        time.sleep(0.01)
    shard.engine.call(lambda engine: engine.pool.clear_cache()).result(60)
    asker.sharing.introduce({"other": shard.sharing.address})
    assert asker.ask(PROMPT, blocks=9) == plain(PROMPT)
    assert asker.stats.peers.came == 9
    shard.close()


@pytest.mark.parametrize("other", [{"dtype": "bfloat16"}, {"block_size": 32}, {"kv_cache_dtype": "int8"}])
def test_blocks_of_another_form_are_none(
    other: dict[str, Any], tiny_model: Callable[[str], Path], asker: Shard, plain: Any
) -> None:
    shard = Shard(tiny_model("llama3"), **other)
    shard.ask(PROMPT)
    asker.sharing.introduce({"other": shard.sharing.address})
    assert asker.ask(PROMPT, blocks=9) == plain(PROMPT)
    assert asker.ask(PROMPT[1:], blocks=9) == plain(PROMPT[1:])
    assert (asker.stats.peers.came, asker.stats.peers.failures) == (0, {"gone": 9})
    shard.close()


def test_another_checkpoint_has_another_form(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """By what is in its files: the same ones elsewhere have the same form."""
    forms = []
    for change in (b"", b"", b"\1"):
        folder = tmp_path / f"{len(forms)}"
        folder.mkdir()
        for file in tiny_model("llama3").iterdir():
            data = bytearray(file.read_bytes())
            if change and file.suffix == ".safetensors":
                data[-2] ^= 1
            (folder / file.name).write_bytes(data)
        shard = Shard(folder)
        forms.append(shard.sharing._peers.own)  # type: ignore[union-attr]
        shard.close()
    assert forms[0] == forms[1] != forms[2]


class Liar:
    """A giver that says what it likes."""

    def __init__(self, form: Form, answer: Callable[[Wire, list[bytes]], None], secret: bytes = bytes(32)) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._listener.getsockname()[1], secret.hex())
        self._form, self._answer, self._secret = form, answer, secret
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                wire = Wire(self._listener.accept()[0], 5.0)
            except OSError:
                return
            try:
                wire.prove(Challenge(self._secret, opens=False))
                wire.say(self._form)
                while True:
                    self._answer(wire, wire.hear(Wanted).split())
            except Exception:
                wire.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


FORM = Form("form", 64)


def lies(wire: Wire, hashes: list[bytes], count: int, right: bool = True) -> None:
    wire.put(count.to_bytes(4, "big"))
    for place in range(count):
        block_hash = hashes[place % len(hashes)]
        row = np.full(64, block_hash[0], np.uint8)
        wire.put(checksum(block_hash if right else bytes(15) + b"x", row) + row.tobytes())


def trickles(wire: Wire, hashes: list[bytes]) -> None:
    """A block at a time, each within its time."""
    time.sleep(0.4)
    lies(wire, hashes, 1)


def drips(wire: Wire, hashes: list[bytes]) -> None:
    wire.put((1).to_bytes(4, "big"))
    while True:
        wire.put(b"x")
        time.sleep(0.02)


LIES: dict[str, tuple[Callable[[Wire, list[bytes]], None], int, dict[str, int]]] = {
    "the truth": (lambda wire, hashes: lies(wire, hashes, 3), 3, {"gone": 0}),
    "one at a time": (lambda wire, hashes: lies(wire, hashes, 1), 3, {"gone": 0}),
    "one at a time, and slowly": (trickles, 2, {"gone": 1}),
    "fewer and fewer": (lambda wire, hashes: lies(wire, hashes, len(hashes) // 2), 2, {"gone": 1}),
    "more than was asked for": (lambda wire, hashes: lies(wire, hashes, 4), 0, {"io": 3}),
    "very many": (lambda wire, hashes: wire.put(b"\xff" * 4), 0, {"io": 3}),
    "others": (lambda wire, hashes: lies(wire, hashes, 3, right=False), 0, {"checksum": 3}),
    "nothing": (lambda wire, hashes: wire.close(), 0, {"io": 3}),
    "a byte at a time": (drips, 0, {"io": 3}),
}


@pytest.mark.parametrize(("answer", "good", "failures"), LIES.values(), ids=LIES.keys())
def test_who_lies_is_believed_nothing(
    answer: Any, good: int, failures: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "READ_SECONDS", 0.5)
    liar, counts = Liar(FORM, answer), Counter[Any]()
    peer, rows = PeerShard(liar.address, FORM, counts), np.zeros((3, 64), np.uint8)
    assert peer.read([bytes([place]) * 16 for place in range(3)], rows) == good
    assert counts == failures
    assert rows[:good].tolist() == [[place] * 64 for place in range(good)]
    peer.close()
    liar.close()


def test_who_does_not_know_the_secret_gets_and_gives_nothing(giver: Shard) -> None:
    counts = Counter[Any]()
    own = giver.sharing._peers.own  # type: ignore[union-attr]
    stranger = PeerShard(giver.sharing.address._replace(secret="11" * 32), own, counts)
    assert stranger.read([bytes(16)], np.zeros((1, own.block_bytes), np.uint8)) == 0
    impostor = Liar(own, lambda wire, hashes: lies(wire, hashes, 1), secret=b"\1" * 32)
    peer = PeerShard(impostor.address._replace(secret="00" * 32), own, counts)
    assert peer.read([bytes(16)], np.zeros((1, own.block_bytes), np.uint8)) == 0
    assert counts == {"io": 2}
    impostor.close()


QUESTIONS = {
    "half a hash": Wanted(bytes(8)),
    "too many": Wanted(bytes(16 * 5000)),
    "none of ours": FORM,
}


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS.keys())
def test_a_question_out_of_bounds_ends_the_connection(question: Any, giver: Shard) -> None:
    wire = Wire(socket.create_connection(giver.sharing.address[:2]), 10.0)
    wire.prove(Challenge(bytes.fromhex(giver.sharing.address.secret), opens=True))
    wire.hear(Form)
    wire.say(question)
    with pytest.raises(OSError, match=r"left|reset"):
        wire.take(1)
    wire.close()


def test_noise_on_the_port_hurts_nobody(giver: Shard, asker: Shard, plain: Any) -> None:
    rng = random.Random(0)
    for _ in range(20):
        with socket.create_connection(giver.sharing.address[:2]) as noisy:
            noisy.sendall(rng.randbytes(rng.randrange(1, 3000)))
    assert giver.ask(PROMPT) == asker.ask(PROMPT, blocks=9) == plain(PROMPT)
    assert asker.stats.peers.came == 9


def test_a_handshake_that_was_overheard_opens_nothing(giver: Shard) -> None:
    said = list[bytes]()

    class Overheard(Wire):
        def _send(self, payload: bytes) -> None:
            said.append(payload)
            super()._send(payload)

    opens = Challenge(bytes.fromhex(giver.sharing.address.secret), opens=True)
    first = Overheard(socket.create_connection(giver.sharing.address[:2]), 10.0)
    first.prove(opens)
    assert first.hear(Form).name
    again = Wire(socket.create_connection(giver.sharing.address[:2]), 10.0)
    for payload in said:
        again._send(payload)
    assert len(again._receive(64)) == 64  # another nonce, which the proof is not for
    with pytest.raises(OSError, match=r"left|reset"):
        again.hear(Form)
    for wire in (first, again):
        wire.close()


def test_strangers_who_say_nothing_are_few_and_soon_gone(giver: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "MAX_STRANGERS", 3)
    counts, own = Counter[Any](), giver.sharing._peers.own  # type: ignore[union-attr]
    peer, rows = PeerShard(giver.sharing.address, own, counts), np.zeros((1, own.block_bytes), np.uint8)
    peer.read([bytes(16)], rows)  # it is in
    silent = [socket.create_connection(giver.sharing.address[:2]) for _ in range(3)]
    silent[0].sendall(b"\xff" * 5)  # a length of four billion
    assert silent[0].recv(1) == b""
    while len(giver.sharing._strangers) < 2:
        time.sleep(0.01)
    silent.append(socket.create_connection(giver.sharing.address[:2]))
    late = socket.create_connection(giver.sharing.address[:2])
    assert late.recv(1) == b""
    peer.read([bytes(16)], rows)
    assert counts == {"gone": 2}, "who is in is asked as before"
    for each in silent[1:]:
        each.settimeout(10)
        assert each.recv(1) == b"", "a second is all that they get"
    for each in (*silent, late):
        each.close()
    assert not giver.sharing._strangers
    peer.close()


def test_a_process_without_files_lets_others_in_again(giver: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    accept, failures = giver.sharing._listener.accept, [OSError(24, "Too many open files"), RuntimeError("no thread")]

    class Listener:
        def accept(self) -> Any:
            found = accept()
            if failures:
                found[0].close()
                raise failures.pop()
            return found

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    real, counts = giver.sharing._listener, Counter[Any]()
    monkeypatch.setattr(giver.sharing, "_listener", Listener())
    with socket.create_connection(giver.sharing.address[:2]) as before:  # whom it waited for until now
        before.sendall(b"x")
    own = giver.sharing._peers.own  # type: ignore[union-attr]
    for _ in range(3):
        peer = PeerShard(giver.sharing.address, own, counts)
        peer.read([bytes(16)], np.zeros((1, own.block_bytes), np.uint8))
        peer.close()
    assert counts == {"io": 2, "gone": 1}


def test_who_says_what_has_no_end_is_believed_nothing() -> None:
    """A form that is nested so deeply that reading it takes more than Python's stack."""
    liar = Liar(FORM, lambda wire, hashes: None)
    liar._form = msgspec.Raw(b"\x81\xa1x" + b"\x91" * 100_000)  # type: ignore[assignment]
    counts = Counter[Any]()
    peer = PeerShard(liar.address, FORM, counts)
    assert peer.read([bytes(16)], np.zeros((1, 64), np.uint8)) == 0
    assert counts == {"io": 1}
    liar.close()


def test_an_engine_that_has_ended_gives_nothing(tiny_model: Callable[[str], Path]) -> None:
    shard = Shard(tiny_model("llama3"))
    shard.engine.close()
    own = shard.sharing._peers.own  # type: ignore[union-attr]
    counts = Counter[Any]()
    peer = PeerShard(shard.sharing.address, own, counts)
    assert peer.read([bytes(16)], np.zeros((1, own.block_bytes), np.uint8)) == 0
    assert counts == {"io": 1}
    shard.sharing.close()


def test_peers_that_move_are_found_anew() -> None:
    here = Address("127.0.0.1", 1, "00" * 32)
    peers = PeerShards(FORM, {"a": here, "b": here})
    first = peers.find("a")
    assert first is peers.find("a") is not None
    peers.addresses = {"a": here._replace(port=2)}
    assert peers.find("a") is not first
    assert peers.find("b") is None


def arrives(shard: Shard, blocks: int) -> None:
    end = time.monotonic() + 60
    while shard.stats.peers.came < blocks:
        assert time.monotonic() < end, shard.stats.peers
        time.sleep(0.01)


def test_a_new_shard_begins_with_what_is_hot_elsewhere(
    tiny_model: Callable[[str], Path], giver: Shard, plain: Any
) -> None:
    for _ in range(2):
        giver.ask(PROMPT)
    shard = Shard(tiny_model("llama3"))
    shard.sharing._warmed = False
    nowhere = Address("127.0.0.1", 1, "00" * 32)
    shard.sharing.introduce({"gone": nowhere, "giver": giver.sharing.address})
    arrives(shard, 9)
    assert shard.ask(PROMPT) == plain(PROMPT)
    assert shard.stats.counters.cached_tokens == 144
    shard.sharing.introduce({"giver": giver.sharing.address})
    time.sleep(0.1)
    wanted = shard.stats.peers.wanted
    assert wanted == shard.stats.peers.came  # once
    shard.close()


def test_who_leaves_hands_on_what_is_hot(giver: Shard, asker: Shard, plain: Any) -> None:
    giver.ask(PROMPT)
    asker.sharing.inherit("nobody")
    asker.sharing.inherit("other")
    arrives(asker, 9)
    assert asker.ask(PROMPT) == plain(PROMPT)
    assert asker.stats.counters.cached_tokens == 144


def test_who_leaves_goes_on_giving_until_nobody_asks(
    tiny_model: Callable[[str], Path], plain: Any, asker: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "QUIET_SECONDS", 0.3)
    shard = Shard(tiny_model("llama3"))
    shard.ask(PROMPT)
    shard.sharing.introduce({"heir": asker.sharing.address})
    asker.sharing.introduce({"other": shard.sharing.address})
    leaving = threading.Thread(target=lambda: asyncio.run(shard.sharing.leave()))
    leaving.start()
    assert asker.ask(PROMPT, blocks=9) == plain(PROMPT)
    assert asker.stats.peers.came == 9
    leaving.join(60)
    assert asker.ask(PROMPT[1:], blocks=9) == plain(PROMPT[1:])
    assert asker.stats.peers.failures["io"] == 9
    shard.close()


def test_an_engine_that_wakes_up_finds_the_others_again() -> None:
    """One that goes to sleep leaves them; its successor has the same peers."""
    here = Address("127.0.0.1", 1, "00" * 32)
    peers = PeerShards(FORM, {"a": here})
    first = peers.find("a")
    peers.close()
    assert first is not None
    assert first.read([bytes(16)], np.zeros((1, 64), np.uint8)) == 0
    assert not peers.failures
    assert peers.find("a") not in (None, first)


def test_what_cannot_be_shared_is_refused() -> None:
    for wrong in ({"rehearsal": "llama-8b-h100"}, {"tensor_parallel_size": 2}, {"enable_prefix_caching": False}):
        with pytest.raises(ConfigError, match="share_kv_cache is for a checkpoint"):
            EngineConfig(share_kv_cache=True, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be true or false"):
        replace(EngineConfig(), share_kv_cache="yes")  # type: ignore[arg-type]
