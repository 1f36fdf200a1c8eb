"""A dialogue on a real terminal: what is shown, what is taken, and how it ends."""

from __future__ import annotations

import os
import termios
import threading
from collections.abc import Iterator

import pytest

from sshrec.gateway.talk import Cancelled, Talk
from sshrec.gateway.terminal import Line


class Terminal:
    """A person at a pseudo-terminal. `seen`: all that it was sent; `answers`: what is typed at which prompt."""

    def __init__(self) -> None:
        self.keyboard, self.line = os.openpty()
        self.seen = bytearray()
        self.answers: dict[bytes, bytes] = {}
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self.seen += os.read(self.keyboard, 4096)
            except OSError:
                return
            for prompt in [prompt for prompt in self.answers if self.seen.endswith(prompt)]:
                self.type(self.answers.pop(prompt))

    def type(self, data: bytes) -> None:
        os.write(self.keyboard, data)

    def close(self) -> bytes:
        """Hang up; all that was seen."""
        os.close(self.line)
        self._reader.join(20)
        os.close(self.keyboard)
        return bytes(self.seen)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    one = Terminal()
    yield one
    if one._reader.is_alive():
        one.close()


def modes(terminal: Terminal) -> list[object]:
    return termios.tcgetattr(terminal.line)


def talk(terminal: Terminal, patience: float = 20, term: str = "xterm") -> Talk:
    return Talk(terminal.line, terminal.line, term=term, patience=patience)


def test_what_is_typed_ahead_is_the_next_answer_and_not_shown(terminal: Terminal) -> None:
    before = modes(terminal)
    with talk(terminal) as dialogue:
        terminal.type(b"joe\r\nopen sesame\r123")
        assert dialogue.ask("Name: ") == "joe"
        assert dialogue.ask("Password: ", hidden=True) == "open sesame"
        terminal.type(b"456\r")
        assert dialogue.ask("Code: ") == "123456"
        dialogue.say("In.")
    assert modes(terminal) == before
    assert terminal.close() == b"Name: joe\r\nPassword: \r\nCode: 123456\r\nIn.\r\n"


@pytest.mark.parametrize("key", [b"\x03", b"\x04"])
def test_cancelled(terminal: Terminal, key: bytes) -> None:
    before = modes(terminal)
    terminal.answers[b"Name: "] = b"jo" + key
    with pytest.raises(Cancelled, match=r"^$"), talk(terminal) as dialogue:
        dialogue.ask("Name: ")
    assert modes(terminal) == before


def test_nobody_answers_however_much_is_typed(terminal: Terminal) -> None:
    typing = threading.Event()

    def trickle() -> None:
        while not typing.wait(0.02):
            terminal.type(b"x")

    thread = threading.Thread(target=trickle)
    with talk(terminal, patience=0.3) as dialogue:
        thread.start()
        try:
            with pytest.raises(Cancelled, match="nobody has answered for 1s"):
                dialogue.ask("Name: ")
        finally:
            typing.set()
            thread.join()


def test_a_terminal_that_hangs_up() -> None:
    keyboard, line = os.openpty()
    with pytest.raises(Cancelled), Talk(line, line, term="xterm") as dialogue:
        os.close(keyboard)
        dialogue.ask("Name: ")
    with pytest.raises(Cancelled):
        Talk(line, line, term="xterm").say("to nobody")
    os.close(line)


def test_what_is_erased(terminal: Terminal) -> None:
    with talk(terminal) as dialogue:
        dialogue.say("stays")
        dialogue.mark()
        dialogue.say("a\nb")
        terminal.type(b"1\r")
        dialogue.ask("? ")
        dialogue.erase()
        dialogue.erase()
    assert terminal.close().endswith(b"? 1\r\n\x1b[3F\x1b[J")


def test_nothing_but_text_for_a_dumb_terminal(terminal: Terminal) -> None:
    with talk(terminal, term="dumb") as dialogue:
        dialogue.mark()
        dialogue.say(dialogue.bold("plain"))
        dialogue.erase()
    assert terminal.close() == b"plain\r\n"


# ---- a line -------------------------------------------------------------------------------------------------


def typed(data: bytes, *, hidden: bool = False, at_once: bool = True) -> tuple[str, str]:
    """What is taken of it, and what was shown."""
    line = Line("", hidden=hidden, longest=20)
    pieces = [data] if at_once else [data[at : at + 1] for at in range(len(data))]
    shown = "".join(line.feed(piece) for piece in pieces)
    return line.text, shown


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("data", "text", "shown"),
    [
        (b"jox\x7fe", "joe", "jox\b \be"),
        (b"\x1b[Aj\x1b[1;5Co\x1bOHe", "joe", "joe"),  # arrows and Home
        (b"j\x1b[200~oe\x1b[201~", "joe", "joe"),  # pasted
        (b"j\x1b\x7foe", "oe", "j\b \boe"),
        (b"j\x1b[oe", "je", "je"),
        ("jöe".encode(), "je", "j\ae"),
        (b"j\xffoe", "joe", "j\aoe"),
        (b"j\x00\x0boe", "joe", "j\a\aoe"),
        (b"x" * 23, "x" * 20, "x" * 20 + "\a" * 3),
        (b"xxx\x15joe", "joe", "xxx" + "\b \b" * 3 + "joe"),
    ],
)
def test_what_is_taken_and_what_is_shown(data: bytes, text: str, shown: str, *, at_once: bool) -> None:
    assert typed(data, at_once=at_once) == (text, shown)


@pytest.mark.parametrize("at_once", [True, False])
def test_nothing_hidden_is_shown(*, at_once: bool) -> None:
    data = "pä\x1b[Dssx\x7fwort\x15Grüße\x7f".encode()
    assert typed(data, hidden=True, at_once=at_once) == ("Grüß", "")


@pytest.mark.parametrize("key", [b"\x03", b"\x04"])
def test_a_key_in_the_middle_of_another_still_cancels(key: bytes) -> None:
    line = Line("")
    line.feed(b"\x1b[" + key)
    assert line.cancelled
