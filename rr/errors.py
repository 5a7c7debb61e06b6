"""The exception for users, and the check of a name against a list of choices."""


class InputError(ValueError):
    """The user gave something that cannot be used.

    The message is one line: it names the thing, what is wrong, and the way out.
    """


def choose(kind, name, choices):
    """choices[name] of a dict, or `name` itself if it is in another collection.

    Raises InputError, which lists the choices.
    """
    if name not in choices:
        raise InputError(f"{kind} {name!r}: unknown; choose one of {', '.join(choices)}")
    return choices[name] if isinstance(choices, dict) else name
