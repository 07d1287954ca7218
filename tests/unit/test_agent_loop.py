"""The daemon's loop."""

from __future__ import annotations

from edgekit_agent.loop import Loop


def test_a_turn_ends_however_much_is_posted_meanwhile() -> None:
    loop = Loop()
    ran = []

    def again() -> None:
        ran.append(len(ran))
        if len(ran) < 1000:
            loop.post(again)

    loop.post(again)
    loop.turn(1.0)
    assert ran == [0]
    assert loop.waiting == 1
    loop.turn(1.0)
    assert ran == [0, 1]
    loop.close()
