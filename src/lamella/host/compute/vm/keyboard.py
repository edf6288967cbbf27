"""From text to keys of a US keyboard, by QEMU's names for them (``QKeyCode``). Pure."""

import difflib

from lamella.model.errors import Invalid

Chord = tuple[str, ...]

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_DIGITS = "1234567890"
_PLAIN = {
    "\n": "ret",
    "\t": "tab",
    "\b": "backspace",
    "\x1b": "esc",
    " ": "spc",
    "-": "minus",
    "=": "equal",
    "[": "bracket_left",
    "]": "bracket_right",
    "\\": "backslash",
    ";": "semicolon",
    "'": "apostrophe",
    "`": "grave_accent",
    ",": "comma",
    ".": "dot",
    "/": "slash",
}
_SHIFTED = dict(zip('!@#$%^&*()_+{}|:"~<>?', "1234567890-=[]\\;'`,./", strict=True))

KEYS = frozenset(
    [
        *_LETTERS,
        *_DIGITS,
        *_PLAIN.values(),
        *(f"f{number}" for number in range(1, 13)),
        *(f"kp_{number}" for number in range(10)),
        *("kp_divide", "kp_multiply", "kp_subtract", "kp_add", "kp_enter", "kp_decimal", "kp_comma", "kp_equals"),
        *("shift", "shift_r", "ctrl", "ctrl_r", "alt", "alt_r", "meta_l", "meta_r", "menu", "compose"),
        *("caps_lock", "num_lock", "scroll_lock", "print", "sysrq", "pause", "less", "ro", "yen"),
        *("home", "end", "pgup", "pgdn", "left", "up", "down", "right", "insert", "delete"),
        *("power", "sleep", "wake", "help", "stop", "volumeup", "volumedown", "audiomute"),
        *("henkan", "muhenkan", "hiragana", "katakanahiragana", "lang1", "lang2"),
    ]
)


def chords(text: str) -> list[Chord]:
    """The keys to press together, one after another, that type *text*. ``\\r\\n`` is one return.

    :raise Invalid: when a character is on no US keyboard; the message says which and where.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return [_chord(character, place) for place, character in enumerate(text)]


def check(keys: list[str]) -> Chord:
    """*keys* to press together.

    :raise Invalid: when one is on no keyboard, or there is none.
    """
    if not keys:
        raise Invalid("keys that are pressed together are none at all", hint="name at least one", field="keys")
    for key in keys:
        if key not in KEYS:
            near = difflib.get_close_matches(key, sorted(KEYS), n=3, cutoff=0.5)
            known = (
                f"did you mean {', '.join(near)}?"
                if near
                else "keys are called as QEMU does: ctrl, alt, delete, ret, f1"
            )
            raise Invalid(f"no keyboard has a key {key!r}", hint=known, field="keys")
    return tuple(dict.fromkeys(keys))


def _chord(character: str, place: int) -> Chord:
    if character in _SHIFTED:
        return ("shift", *_chord(_SHIFTED[character], place))
    if character in _PLAIN:
        return (_PLAIN[character],)
    if character in _DIGITS or character in _LETTERS:
        return (character,)
    if character.lower() in _LETTERS and character.isascii():
        return ("shift", character.lower())
    raise Invalid(
        f"{character!r} (character {place + 1}) is on no US keyboard",
        hint="type what is, or send the text another way (exec, the console)",
        field="text",
    )
