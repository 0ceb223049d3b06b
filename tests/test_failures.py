"""failures.py: reasons as people read them."""

import ray.exceptions
from ray.train import ControllerError, WorkerGroupError

from posepipe import failures


def test_a_reason_is_what_went_wrong_inside_all_wrappers() -> None:
    error = ValueError("3 train samples are too few")
    inside = type("UserExceptionWithTraceback", (Exception,), {"_base_exc": error})()
    wrapped = [WorkerGroupError("", {1: inside}), ControllerError(error), ray.exceptions.RayTaskError("f", "trace", error), error]
    assert [failures.find_reason(each) for each in wrapped] == [error] * 4
    assert {failures.describe_reason(each) for each in wrapped} == {"ValueError: 3 train samples are too few"}


def test_a_reason_is_one_short_line() -> None:
    assert failures.one_line("none\n  left\n") == "none left"
    assert len(failures.one_line("process " * 1000)) == failures.MAX_REASON + 1
