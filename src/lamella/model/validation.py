"""What msgspec says of data that does not fit, as a sentence for the person who sent it."""

import re

from lamella.model.errors import Invalid
from lamella.model.quantity import format_size

_BOUND = re.compile(r"Expected `(?:int|float)` (>=|<=|>|<) (-?\d+)(?:\.0)?", re.ASCII)
_WORDS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}
_FORMS = {
    "hostname": "1 to 63 letters, digits and dashes, with a letter or digit at both ends",
    "stop_signal": "a signal such as TERM, INT or RTMIN+3",
}
_SIZES = frozenset({"memory", "disk", "size", "bandwidth"})


def invalid(message: str, what: str, root: str = "") -> Invalid:
    """msgspec's ``Expected `int`, got `str` - at `$.spec.cpu``` as an :class:`Invalid` whose ``field`` is ``spec.cpu``.

    *what* is what was read, *root* the path of its outermost object.
    """
    sentence, _, place = message.partition(" - at `")
    # Of a dict's key it says "at `key` in `$.labels`".
    place = place.removesuffix("`").removeprefix("key` in `")
    field = ".".join(part for part in (root, place.removeprefix("$").removeprefix(".")) if part)
    bound = _BOUND.fullmatch(sentence)
    if bound is not None and field:
        number = int(bound[2])
        size = f" ({format_size(number)})" if field.rpartition(".")[2] in _SIZES and number > 0 else ""
        return Invalid(f"{field} has to be {_WORDS[bound[1]]} {number}{size}", field=field)
    if sentence.startswith("Invalid enum value ") and field:
        return Invalid(
            f"{field} cannot be {sentence.removeprefix('Invalid enum value ')}",
            hint="/v1/openapi.json lists what it can be",
            field=field,
        )
    if sentence.startswith("Expected `str` matching regex ") and field:
        hint = _FORMS.get(field.rpartition(".")[2], "/v1/openapi.json tells the form")
        return Invalid(f"{field} is not written as it has to be", hint=hint, field=field)
    return Invalid(f"{what} is not valid: {sentence}" + (f", in {field}" if field else ""), field=field)
