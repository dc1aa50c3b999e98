"""Files of deploy/ as a user has them: copied, with the numbered lines changed and nothing else."""

import re

from tests.small_corpora import ROOT

DEPLOY = ROOT / "deploy"
_NUMBERED = r"^(\w+).*# (\d)\. .*$"


def copied(name: str, lines: dict[str, str]) -> str:
    """A file of deploy/, its numbered lines, each known by its first word, replaced in their order."""
    text = (DEPLOY / name).read_text("utf-8")
    numbered = re.findall(_NUMBERED, text, re.MULTILINE)
    assert numbered == [(word, str(number)) for number, word in enumerate(lines, 1)]
    return re.sub(_NUMBERED, lambda found: lines[found[1]], text, flags=re.MULTILINE)
