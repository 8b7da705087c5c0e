"""A hub is asked, and is given up where it does not answer: nothing of the network can make a command wait for long."""

import threading

import pytest

from abmll.common import hub_access
from abmll.common.errors import CheckpointError
from abmll.common.hub_access import in_time
from abmll.common.hub_errors import explained


def test_an_answer_or_its_error_is_passed_on() -> None:
    assert in_time(lambda: 3) == 3
    with pytest.raises(KeyError, match="none"):
        in_time(lambda: {}["none"])


def test_what_blocks_for_good_is_given_up_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_access, "ANSWERED", 0.05)
    stuck = threading.Event()  # as a name that is looked up, or the next of a hub's many addresses
    with (
        pytest.raises(CheckpointError, match=r"^a/b: hub cannot be reached \(TimeoutError\); .*HF_HUB_OFFLINE=1"),
        explained("hub", "a/b", None),
    ):
        in_time(stuck.wait)
    [waiting] = [thread for thread in threading.enumerate() if "run" in thread.name]
    assert waiting.daemon  # so that the process can end
    stuck.set()
    waiting.join()
