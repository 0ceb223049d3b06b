"""Why something failed, as one short line: without the wrappers that Ray puts around it."""

MAX_REASON = 300  # characters; Ray's own reasons list the memory of a whole node


def find_reason(error: BaseException) -> BaseException:
    """What went wrong, inside all wrappers."""
    while True:
        failures = list(getattr(error, "worker_failures", {}).values())
        inner = [getattr(error, name, None) for name in ("controller_failure", "_base_exc", "cause")]
        found = next((each for each in [*failures, *inner] if isinstance(each, BaseException)), None)
        if found is None:
            return error
        error = found


def describe_reason(error: BaseException) -> str:
    """The kind of `find_reason` and what it says."""
    reason = find_reason(error)
    return one_line(f"{type(reason).__name__}: {reason}")


def one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}…"
