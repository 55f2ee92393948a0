"""What the "Raises" sections of docstrings say, clause by clause."""

import inspect
import re

BRACKETS = re.compile(r"[(\[][^()\[\]]*[)\]]")
SEPARATOR = re.compile(r"; or |, or |; |, ")
NAMES_ALONE = re.compile(r"`\w+`")
LATER = re.compile(r"when (?:called|applied), (?:if )?")


def clauses(value):
    """Pairs of the type of an error and of one condition on which it is raised."""
    text = inspect.getdoc(value) or ""
    section = re.search(r"^Raises:\n((?:  .*\n?)+)", text, re.M)
    lines = re.findall(r"^  (\w+): (.*(?:\n    .*)*)", section[1], re.M) if section else []
    return [(kind, clause) for kind, line in lines for clause in _split(" ".join(line.split()))]


def _split(line):
    """The clauses of one line, without the sentences behind the first."""
    line = LATER.sub("", line.split(". ")[0]).rstrip(".")
    # What stands in brackets has no commas that separate.
    line = BRACKETS.sub(lambda match: match[0].replace(", ", "\0"), line)
    found, begun = [], ""
    for piece in SEPARATOR.split(line):
        piece = begun + piece.removeprefix("if ")
        begun = f"{piece}, " if NAMES_ALONE.fullmatch(piece) else ""
        if piece.startswith(("and ", "such as ")):
            found[-1] += f", {piece}"
        elif not begun:
            found.append(piece.replace("\0", ", "))
    return found
