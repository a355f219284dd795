"""Recent outputs of a namespace, and chances."""

from __future__ import annotations

from octavo.engine.recent import DRAFTED, KINDS, ORIGINS, Chances, Namespace, Namespaces, kind_of


def test_old_outputs_and_namespaces_make_room():
    namespace = Namespace()
    for i in range(40):
        namespace.add(list(range(i * 1000, i * 1000 + 1000)))
    assert sum(len(index.tokens) for index in namespace._texts) <= 2 * 8192
    while namespace.find([39_500, 39_501, 39_502, 39_503])[2] != 4:
        pass  # a few hundred tokens are indexed each time
    assert namespace.find([7, 8, 9])[2] == 0
    spaces = Namespaces()
    first = spaces.of(b"0")
    for i in range(100):
        spaces.of(b"%d" % i).add([1, 2, 3, 4, 5, 6])
    assert spaces.of(b"0") is not first
    assert spaces.of(b"99") is spaces.of(b"99")


def test_an_output_is_found_with_what_followed_there():
    namespace = Namespace()
    namespace.add([1, 2, 3, 4, 5, 6, 7])
    namespace.add([8, 2, 3, 4, 9, 9, 9])
    index, place, length = namespace.find([8, 2, 3, 4])
    assert (index.tokens[place], length) == (9, 4)
    index, place, length = namespace.find([1, 2, 3, 4])
    assert (index.tokens[place], length) == (5, 4)
    namespace.add([5, 5, 5])  # nothing can follow there
    assert namespace.find([5, 5, 5])[2] == 0


def test_chances_follow_what_was_seen_lately():
    chances = Chances(0.9)
    assert chances.of(3, 0.7, 4) == 0.7
    for _ in range(50):
        chances.learn(3, right=True)
    assert chances.of(3, 0.5, 4) > 0.8
    for _ in range(20):
        chances.learn(3, right=False)
    assert chances.of(3, 0.5, 4) < 0.3
    assert chances.of(2, 0.5, 4) == 0.5


def test_kinds_are_told_apart():
    kinds = [kind_of(length, origin) for origin in ORIGINS[:-1] for length in range(3, 100)]
    assert kinds == sorted(kinds)
    assert {*kinds, DRAFTED} == set(range(KINDS))
    assert DRAFTED not in kinds
