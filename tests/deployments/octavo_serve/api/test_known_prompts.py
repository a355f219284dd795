"""Which earlier prompt a new one is nearest to."""

from __future__ import annotations

from octavo.block_hash import hash_chain
from octavo.request import Request
from octavo_serve.api.known_prompts import KnownPrompt, KnownPrompts, in_common


def prompt(tokens: list[int], owner: str = "", at: float = 0.0, name: str = "r") -> KnownPrompt:
    request = Request(request_id=name, prompt_token_ids=tokens, block_hashes=hash_chain(b"root", tokens, 16))
    return KnownPrompt.of(request, owner, "m", None, at)


def kept(*prompts: KnownPrompt, max_bytes: int = 2**20) -> KnownPrompts:
    known = KnownPrompts(max_bytes, lambda _: None)
    for each in prompts:
        known.add(each)
    return known


def test_whichever_part_changes_the_prompt_is_found() -> None:
    text = list(range(100, 400))
    known = kept(prompt([7, *range(9000, 9300)]), near := prompt(text))
    for changed in ([5, *text], [*text[:150], 5, *text[150:]], [*text[:-1], 5], text[100:], text):
        assert known.nearest(now := prompt(changed)) is near
        assert in_common(now, near) == next((i for i, (a, b) in enumerate(zip(text, changed, strict=False)) if a != b),
                                            len(text))  # fmt: skip
    assert known.nearest(prompt(list(range(20_000, 20_300)))) is None
    assert known.nearest(prompt([1])) is None


def test_a_conversation_goes_on_from_its_own_turn_not_from_another_with_the_same_beginning() -> None:
    system, mine = list(range(200)), [*range(200), *range(5000, 5040)]
    known = kept(turn := prompt(mine, at=1.0), prompt([*system, *range(6000, 6040)], at=2.0))
    turn.tokens.extend([8, 9])
    known.weigh(turn)
    assert known.nearest(now := prompt([*mine, 8, 9, 10])) is turn
    assert in_common(now, turn) == 242


def test_what_says_the_same_and_more_hides_nothing() -> None:
    text, tools = list(range(200)), list(range(7000, 7100))
    known = kept(plain := prompt(text, at=1.0), prompt([*text[:20], *tools, *text[20:]], at=2.0))
    now = prompt(text)
    now.chain = hash_chain(b"another namespace", text, 16)
    assert known.nearest(now) is plain


def test_nobody_finds_what_others_asked() -> None:
    tokens = list(range(100))
    known = kept(theirs := prompt(tokens, "bob"), prompt(list(range(500, 600)), "alice"))
    assert known.nearest(now := prompt(tokens, "alice")) is None
    assert known.of_others(now) is theirs
    known.add(prompt(tokens, "alice"))
    assert known.nearest(prompt(tokens, "bob")) is theirs


def test_the_oldest_are_forgotten_and_said_to_be() -> None:
    gone: list[str] = []
    known = KnownPrompts(30_000, lambda prompt: gone.append(prompt.request_id))
    for number in range(10):
        known.add(prompt(list(range(100 * number, 100 * number + 100)), name=f"r{number}"))
    assert gone == [f"r{number}" for number in range(10 - len(known))]
    assert known.nearest(prompt(list(range(100)))) is None
    assert known.nearest(prompt(list(range(900, 1000)))) is not None
    assert len(known._found) <= 18 * len(known)  # a block, four beginnings, four runs: each for its owner and for all


def test_what_was_never_computed_is_not_near() -> None:
    tokens = list(range(100))
    known = kept(never := prompt(tokens))
    known.hide(never)
    assert known.nearest(prompt(tokens)) is None
