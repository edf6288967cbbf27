"""What hands do, as people write it, for the command and the library: ``ctrl-alt-delete``, ``root\\n``, ``0.5,0.25``."""

_OTHERWISE = {
    "control": "ctrl",
    "altgr": "alt_r",
    "win": "meta_l",
    "windows": "meta_l",
    "super": "meta_l",
    "meta": "meta_l",
    "enter": "ret",
    "return": "ret",
    "escape": "esc",
    "space": "spc",
    "del": "delete",
    "ins": "insert",
    "bs": "backspace",
    "pageup": "pgup",
    "pagedown": "pgdn",
    "capslock": "caps_lock",
    "printscreen": "print",
}
_ESCAPES = {"n": "\n", "r": "\n", "t": "\t", "\\": "\\"}


def _invalid(message: str, hint: str, field: str) -> Exception:
    from lamella.model.errors import Invalid

    return Invalid(message, hint=hint, field=field)


def chord(text: str) -> list[str]:
    """Keys that are pressed together, as QEMU calls them: ``ctrl-alt-delete``, ``f12``, ``shift+enter``.

    :raise Invalid: when *text* is none.
    """
    keys = [_OTHERWISE.get(part, part) for part in text.lower().replace("+", "-").split("-")]
    plain = all(key and len(key) <= 24 and key.isascii() and key.replace("_", "").isalnum() for key in keys)
    if not plain or len(keys) > 8:
        hint = "write it like ctrl-alt-delete, enter or f12; the keys themselves are called minus and plus"
        raise _invalid(f"{text!r} is no key", hint, "key")
    return keys


def unescape(text: str) -> str:
    """*text* with ``\\n`` (the Enter key), ``\\t`` and ``\\\\`` understood.

    :raise Invalid: when another letter follows a backslash.
    """
    if "\\" not in text:
        return text
    made: list[str] = []
    letters = iter(text)
    for letter in letters:
        if letter != "\\":
            made.append(letter)
            continue
        code = next(letters, "")
        if code not in _ESCAPES:
            raise _invalid(
                f"'\\{code}' is not understood", "write \\n for Enter, \\t for Tab, \\\\ for a backslash", "text"
            )
        made.append(_ESCAPES[code])
    return "".join(made)


def click(text: str) -> dict[str, object]:
    """A place on the screen and what is clicked there: ``0.5,0.25`` (parts of its width and height), ``0.5,0.25,right``,
    ``0.5,0.25,none`` to move only.

    :raise Invalid: when *text* is none.
    """
    across, _, rest = text.partition(",")
    down, comma, button = rest.partition(",")
    try:
        x, y = float(across), float(down)
    except ValueError:
        x = y = -1.0
    if not (0 <= x <= 1 and 0 <= y <= 1) or button not in (("left", "middle", "right", "none") if comma else ("",)):
        raise _invalid(
            f"{text!r} is no place on a screen",
            "write it like 0.5,0.5 (the middle) or 0.1,0.9,right; also left, middle, none",
            "click",
        )
    return {"x": x, "y": y, "buttons": [] if button == "none" else [button or "left"]}
