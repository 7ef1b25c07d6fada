"""Words for error messages about a name that does not exist."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """ "did you mean 'x'? (choices: a, b, x)"; without a close match, the choices alone."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(str(name), known, n=1)
    choices = f"expected one of: {', '.join(known)}"
    return f"did you mean {close[0]!r}? ({choices})" if close else choices
