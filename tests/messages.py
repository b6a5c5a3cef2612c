"""What every error message must be: one line that says it all and can be read."""


def assert_one_line(message: str) -> str:
    assert message.strip()
    assert len(message.splitlines()) == 1, message
    assert len(message) < 600
    assert not message.rstrip().endswith(":"), f"the reason is cut off: {message}"
    return message
