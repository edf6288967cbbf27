"""Times as people read them. The API's are RFC 3339, UTC."""

from datetime import UTC, datetime


def parse(text: str) -> "datetime | None":
    """The time that *text* is; None when it is none."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def since(text: str, now: "datetime | None" = None) -> str:
    """How long ago *text* was, in one unit: ``12s``, ``5m``, ``3h``, ``9d``; empty when it is no time."""
    time = parse(text)
    if time is None:
        return ""
    seconds = int(((now or datetime.now(UTC)) - time).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{max(seconds, 0)}s"


def age(text: str, now: "datetime | None" = None) -> "float | None":
    """Seconds since *text*; None when it is no time."""
    time = parse(text)
    return None if time is None else max(0.0, ((now or datetime.now(UTC)) - time).total_seconds())


def local(text: str) -> str:
    """*text* as the clock on the wall shows it."""
    time = parse(text)
    return text if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
