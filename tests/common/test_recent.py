"""The values used last, against what a list of them says."""

import random

from abmll.common.recent import Recent


def test_what_was_used_last_is_kept_in_its_bytes() -> None:
    recent: Recent[int, str] = Recent(20)
    order, values, chosen = list[int](), dict[int, str](), random.Random(0)
    for _ in range(500):
        key = chosen.randrange(8)
        if chosen.random() < 0.5:
            found = recent.get(key)
            assert found == (values[key] if key in order else None)
            if found is None:
                continue
        else:
            values[key] = "x" * chosen.randrange(12)
            recent.put(key, values[key], len(values[key]))
        order = [*(one for one in order if one != key), key]
        while sum(len(values[one]) for one in order) > 20:
            order.pop(0)
        assert list(recent) == order
        assert recent.num_bytes == sum(len(values[one]) for one in order)
    recent.drop(order[0])
    recent.drop(99)
    assert list(recent) == order[1:]
    recent.clear()
    assert (list(recent), recent.num_bytes) == ([], 0)


def test_the_fewest_stay_however_large() -> None:
    for fewest, kept in ((0, []), (1, [2])):
        recent: Recent[int, str] = Recent(5, fewest)
        for key in range(3):
            recent.put(key, "x" * 10, 10)
        assert list(recent) == kept
        assert recent.num_bytes == 10 * len(kept)
