"""Merging what a person wants changed into what is there: JSON merge patches (RFC 7396)."""

from typing import Any


def merge_labels(labels: dict[str, str], patch: dict[str, str | None]) -> None:
    """RFC 7396 over labels, in place."""
    for key, value in patch.items():
        if value is None:
            labels.pop(key, None)
        else:
            labels[key] = value


def merge_patch(target: Any, patch: Any) -> Any:
    """*target* with *patch* merged in: RFC 7396, section 2."""
    if not isinstance(patch, dict):
        return patch
    result: dict[str, Any] = dict(target) if isinstance(target, dict) else {}  # pyright: ignore[reportUnknownArgumentType]
    for key, value in patch.items():  # pyright: ignore[reportUnknownVariableType]
        if value is None:
            result.pop(key, None)  # pyright: ignore[reportUnknownArgumentType]
        else:
            result[key] = merge_patch(result.get(key), value)  # pyright: ignore[reportUnknownArgumentType]
    return result
