"""Tables in Markdown pages: what stands between a pair of markers is made anew, the rest of the page stays.

`<!-- FAMILY:NAME:begin -->` and `<!-- FAMILY:NAME:end -->` are the markers of the table NAME.
"""

import re
from collections.abc import Callable, Iterable


def rebuilt(text: str, family: str, table: Callable[[str], str], known: Iterable[str] | None = None) -> str:
    r"""`text` with the tables between its markers of one family made anew.

    >>> rebuilt("<!-- t:a:begin -->old<!-- t:a:end -->!", "t", lambda name: f"new {name} ")
    '<!-- t:a:begin -->\nnew a <!-- t:a:end -->!'

    Args:
        text: A page.
        family: First word of its markers.
        table: From a name to the table, which ends with a line break.
        known: The names that there may be; None for any.

    Raises:
        ValueError: There is no pair of markers, one is without its other half, or a name is unknown.
    """
    found = re.findall(rf"<!-- {family}:([\w.+-]+):(begin|end) -->", text)
    names = list(dict.fromkeys(name for name, _ in found))
    unknown = known is not None and any(name not in list(known) for name in names)
    if not names or unknown or found != [(name, end) for name in names for end in ("begin", "end")]:
        allowed = ["NAME"] if known is None else known
        wanted = " or ".join(f"<!-- {family}:{name}:begin --> ... <!-- {family}:{name}:end -->" for name in allowed)
        given = ", ".join(f"{family}:{name}:{end}" for name, end in found) or "none"
        raise ValueError(f"The text needs the markers {wanted}, each pair once and in this order; it has {given}.")
    for name in names:
        begin, end = (f"<!-- {family}:{name}:{which} -->" for which in ("begin", "end"))
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{table(name)}{end}{rest.split(end)[1]}"
    return text
