"""Names and other texts from outside, as they can be shown."""

import re

# Control characters, what turns a text around or parts it into lines, and halves of characters.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text with escapes, such as `\\x1b`, for what would act on a terminal or a page.

    A byte of a file's name that is not UTF-8 is shown as an escape too.
    """
    return text if text.isprintable() else _UNPRINTABLE.sub(_escape, text)


def printable_lines(text: str) -> str:
    """As `printable`, of a text whose lines are meant."""
    return "\n".join(map(printable, text.split("\n")))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte, as `os.fsdecode` has it
        code -= 0xDC00
    return chr(code).encode("unicode_escape").decode()
