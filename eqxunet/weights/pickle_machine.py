"""Reads a pickled tree of arrays without unpickling it.

Unpickling calls whatever a file names. This machine steps over the opcodes that an array needs and
builds symbols instead, so a file can do no more than be refused.
"""

import pickletools
import re
from typing import Any, no_type_check

from ..errors import IntegrityError
from .pickle_symbols import ARRAYS, Grammar, Leaf, Payload, Refused, Text, flatten, show

# Longer texts can only be array data, as protocol 2 writes it, and are not decoded here.
MAX_TEXT = 200

_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


def read_tree(data: bytes) -> dict[str, Leaf]:
    """Returns the arrays of a pickled tree of dicts by their path, such as "conv_init/kernel".

    Raises IntegrityError for anything else than dicts of arrays.
    """
    tree = Machine(data).run()
    try:
        return flatten(tree)
    except Refused as error:
        raise IntegrityError(f"it {error}") from None


# Checking the types at run time would take ten times as long as the steps themselves.
@no_type_check
class Machine:
    """One pass over a pickle, protocols 2 to 5, of what a grammar allows."""

    def __init__(self, data: bytes | memoryview, grammar: Grammar = ARRAYS):
        self.data = memoryview(data)
        self.grammar = grammar
        self.at = self.frame_end = self.protocol = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, *, is_all: bool = True) -> Any:
        """Returns what stands on the stack at the end, made of symbols.

        Arguments:

        - `is_all`: whether nothing may follow it; `at` is where that begins.
        """
        if bytes(self.data[:2]) not in (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5"):
            raise IntegrityError("it is no pickle of protocol 2 to 5")
        self.protocol, self.at = self.data[1], 2
        for _ in range(self.grammar.max_opcodes):
            start, name = self.at, "end"
            try:
                code = self._uint(1)
                name = _NAMES.get(code, f"0x{code:02x}")
                if name == "STOP":
                    return self._result(is_all)
                self._step(name)
                if start < self.frame_end < self.at:
                    raise Refused("crosses the end of its frame")
            except Refused as error:
                raise IntegrityError(f"its pickle opcode {name} at byte {start} {error}") from None
        raise IntegrityError(f"its pickle has over {self.grammar.max_opcodes} opcodes")

    def _step(self, opcode: str) -> None:
        push = self.stack.append
        match opcode:
            case "MARK":
                self.marks.append(len(self.stack))
            case "EMPTY_DICT":
                push({})
            case "EMPTY_TUPLE":
                push(())
            case "NONE":
                push(None)
            case "NEWTRUE":
                push(True)
            case "NEWFALSE":
                push(False)
            case "BININT1":
                push(self._uint(1))
            case "BININT2":
                push(self._uint(2))
            case "BININT":
                push(int.from_bytes(self._take(4), "little", signed=True))
            case "SHORT_BINUNICODE":
                push(self._text(self._take(self._uint(1))))
            case "BINUNICODE":
                push(self._text(self._take(self._uint(4))))
            case "SHORT_BINBYTES":
                push(Payload(self._take(self._uint(1))))
            case "BINBYTES":
                push(Payload(self._take(self._uint(4))))
            case "BYTEARRAY8":
                push(Payload(self._take(self._uint(8))))
            case "EMPTY_LIST" if self.grammar.has_lists:
                push([])
            case "APPEND" if self.grammar.has_lists:
                self._extend(self._pop(1))
            case "APPENDS" if self.grammar.has_lists:
                self._extend(self._pop_to_mark())
            case "BINPERSID" if self.grammar.load is not None:
                [where] = self._pop(1)
                push(self.grammar.load(where))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(self._pop(int(opcode[-1]))))
            case "TUPLE":
                push(tuple(self._pop_to_mark()))
            case "SETITEM":
                self._set_items(self._pop(2))
            case "SETITEMS":
                self._set_items(self._pop_to_mark())
            case "MEMOIZE":
                self._put(len(self.memo))
            case "BINPUT":
                self._put(self._uint(1))
            case "LONG_BINPUT":
                self._put(self._uint(4))
            case "BINGET":
                push(self._get(self._uint(1)))
            case "LONG_BINGET":
                push(self._get(self._uint(4)))
            case "GLOBAL" if self.protocol < 4:
                push(self.grammar.named_global(self._line(), self._line()))
            case "STACK_GLOBAL" if self.protocol >= 4:
                push(self.grammar.named_global(*self._pop(2)))
            case "REDUCE":
                function, arguments = self._pop(2)
                push(self.grammar.reduce(function, arguments))
            case "BUILD":
                [state] = self._pop(1)
                self.grammar.build(self._top(), state)
            case "FRAME" if self.at > self.frame_end:
                size = self._uint(8)
                self.frame_end = self.at + size
                if self.frame_end > len(self.data):
                    raise Refused(f"announces {size} bytes: the file is truncated")
            case _:
                raise Refused("is not allowed")

    def _result(self, is_all: bool) -> Any:
        if is_all and self.at != len(self.data):
            raise Refused(f"is followed by {len(self.data) - self.at} bytes that belong to nothing")
        if len(self.stack) != 1 or self.marks:
            raise Refused("leaves something unfinished")
        return self.stack[0]

    def _take(self, size: int) -> memoryview:
        left = len(self.data) - self.at
        if size > left:
            raise Refused(f"needs {size} bytes where {left} are left: the file is truncated")
        self.at += size
        return self.data[self.at - size : self.at]

    def _uint(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _line(self) -> str:
        line = bytes(self.data[self.at : self.at + MAX_TEXT]).split(b"\n")[0]
        self._take(len(line) + 1)
        return line.decode("latin-1")

    def _text(self, raw: memoryview) -> str | Text:
        if len(raw) > MAX_TEXT:
            return Text(raw)
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            raise Refused("holds a text that is not UTF-8") from None

    def _pop(self, count: int) -> list[Any]:
        self._need(count)
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise Refused("has no mark to go back to")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _top(self) -> Any:
        self._need(1)
        return self.stack[-1]

    def _need(self, count: int) -> None:
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
            raise Refused("finds too little on the stack")

    def _put(self, slot: int) -> None:
        if slot >= self.grammar.max_opcodes or slot in self.memo:
            raise Refused(f"writes memo slot {slot}, which is in use or too high")
        self.memo[slot] = self._top()

    def _get(self, slot: int) -> Any:
        if slot not in self.memo:
            raise Refused(f"reads memo slot {slot}, which is empty")
        return self.memo[slot]

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise Refused("has no list")
        target += items

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(items) % 2:
            raise Refused("has no dict, or no whole pairs")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str) or not re.fullmatch(self.grammar.key, key):
                raise Refused(f"has a dict key that is not a word: {show(key)}")
            if key in target:
                raise Refused(f"has the dict key {key!r} twice")
            target[key] = value
