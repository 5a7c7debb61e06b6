"""The one exception that a user is meant to read, and the check of a name against a list."""


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one line: the thing, what is wrong, the way out."""


def choose(kind, name, choices):
    """choices[name] of a dict, or name itself of any other collection. Raises InputError that lists the choices."""
    if name not in choices:
        raise InputError(f"{kind} {name!r}: unknown; choose one of {', '.join(choices)}")
    return choices[name] if isinstance(choices, dict) else name
