"""The page of `vessels top`, and how it takes a server's absence, a small window and its end."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from typing import IO, Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.conftest import ROOT
from tests.metered import MIB, Metered, Server, two, two_models
from tests.serving import PATIENCE
from vessels.cli import app
from vessels.cli.top import top
from vessels.cli.top_page import page
from vessels.errors import ServerError, UsageError
from vessels.top import ModelView, View, view

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "python"), "TERM": "xterm"}


@pytest.fixture
def server() -> Server:
    return two_models()


def shown(found: View, width: int, height: int | None = None) -> str:
    text = io.StringIO()
    Console(width=width, file=text).print(page("http://h:1", found, None, width, height))
    return text.getvalue()


def many(count: int) -> View:
    """That many models, of which more is asked the higher their number."""
    models = tuple(
        ModelView(
            f"model_{i:02}", {"ready": 1}, 20 * MIB, 0, 2.0 * i, 1.0, 2.0, 1234.5, 1.0,
            {"overloaded": 1.5} if i % 2 else {}, 1, 0,
        )
        for i in range(count)
    )  # fmt: skip
    return View(2.0, False, 93 * MIB, 40 * MIB, 30000.0, models)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 30), (132, 24), (132, 16), (20, 5)])
def test_a_small_window_has_the_models_that_most_is_asked_of(width: int, height: int) -> None:
    text = " ".join(shown(many(16), width, height).split())
    left = int(text.partition(" more, of which less is asked")[0].rpartition(" ")[2])
    assert 1 <= left <= 15
    named = [f"model_{i:02}" in text.replace(" ", "") for i in range(16)]
    if width > 20:
        assert named == [False] * left + [True] * (16 - left)
        assert len(shown(many(16), width, height).splitlines()) <= height


@pytest.mark.parametrize("width", [40, 66, 80, 132, 200])
def test_no_name_and_no_latency_is_cut_off(width: int) -> None:
    text = shown(many(16), width)
    assert all(f"model_{i:02}" in text.replace("\n", "") for i in range(16)), text
    assert text.count("1234.5") == 16
    assert "more, of which" not in text


def test_the_page_names_everything(server: Server) -> None:
    found, _ = two(server)
    text = shown(found, 80)
    for expected in ("40.00 MiB used of 93.00 MiB, 53.00 MiB free", "2 ready", "1 starting",
                     "20.00 MiB", "10.0", "100.0", "820.0", "3.33", "no_room 1.0", "overloaded 0.5",
                     "interpolated"):  # fmt: skip
        assert expected in " ".join(text.split()), text


def test_a_latency_beyond_the_last_bucket_is_a_bound(server: Server) -> None:
    before = server.read(0.0)
    server.seconds.labels("a").observe(60.0)
    assert ">1000.0" in shown(view(before, server.read(1.0)), 160)


def test_once_prints_one_interval(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    metered = Metered()
    metered.text = server.text
    with metered.open():
        top(f"{metered.url}/", once=True, as_json=True, interval=0.1)
    found = json.loads(capsys.readouterr().out)
    assert [m["name"] for m in found["models"]] == ["a", "b"]
    assert found["epc_free"] == 53 * MIB
    assert 0.1 <= found["seconds"] < PATIENCE


def test_once_refuses_a_server_that_is_not_there(server: Server) -> None:
    metered = Metered()
    with metered.open():
        pass
    with pytest.raises(ServerError, match=rf"{metered.url}/metrics: .*refused"):
        top(metered.url, once=True, as_json=False, interval=0.1)
    metered.text, metered.status = server.text, 503
    with metered.open(), pytest.raises(ServerError, match="HTTP 503"):
        top(metered.url, once=True, as_json=False, interval=0.1)
    metered.text, metered.status = "hello", 200
    with metered.open(), pytest.raises(ServerError, match=rf"{metered.url}/metrics: .*metrics"):
        top(metered.url, once=True, as_json=False, interval=0.1)


@pytest.mark.parametrize("interval", ["0", "nan", "inf", "1e9"])
def test_an_interval_has_bounds(interval: str) -> None:
    done = CliRunner().invoke(app, ["top", "http://127.0.0.1:9", "--interval", interval])
    assert done.exit_code == 2
    assert "--interval" in done.output


def test_a_password_is_sent_and_not_shown(server: Server) -> None:
    metered = Metered()
    metered.text = server.text
    with metered.open():
        url = metered.url.replace("//", "//me:p-w@")
        done = CliRunner().invoke(app, ["top", url, "--once", "--interval", "0.1"])
    assert done.exit_code == 0 and metered.url in done.output
    assert metered.authorizations == {"Basic " + base64.b64encode(b"me:p-w").decode()}
    gone = CliRunner().invoke(app, ["top", url, "--once"])
    assert isinstance(gone.exception, ServerError)
    for said in (done.output, gone.output, str(gone.exception)):
        assert "p-w" not in said


def test_what_is_no_url_is_refused() -> None:
    with pytest.raises(UsageError, match="no URL"):
        top("127.0.0.1:8080", once=True, as_json=False, interval=0.1)


def test_it_outlives_the_server_and_says_since_when_it_is_gone(server: Server) -> None:
    metered = Metered()
    metered.text = server.text
    with metered.open():
        process = subprocess.Popen(
            [sys.executable, "-m", "vessels", "top", metered.url, "--json", "--interval", "0.1"],
            stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )  # fmt: skip
        assert process.stdout is not None
        assert next_with("models", process.stdout)["models"]
    try:
        gone = next_with("gone_since", process.stdout)
        assert "refused" in gone["why"]
        again = next_with("gone_since", process.stdout)
        assert again["gone_since"] == gone["gone_since"]
        with metered.open():
            assert next_with("models", process.stdout)["epc_used"] == 40 * MIB
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 0)])
def test_a_terminal_is_left_as_it_was(server: Server, number: int, code: int) -> None:
    metered = Metered()
    metered.text = server.text
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with metered.open():
        process = subprocess.Popen(
            [sys.executable, "-m", "vessels", "top", metered.url, "--interval", "0.1"],
            stdout=theirs, env=ENVIRONMENT,
        )  # fmt: skip
        os.close(theirs)
        said = b""
        while b"53.00 MiB free" not in said:
            said += os.read(ours, 1 << 16)
        process.send_signal(number)
        # What a terminal gives when nobody has it open any more.
        with suppress(OSError):
            while part := os.read(ours, 1 << 16):
                said += part
        os.close(ours)
        assert process.wait(PATIENCE) == code
    assert b"\x1b[?1049h" in said and said.rindex(b"\x1b[?1049l") > said.rindex(b"\x1b[?1049h")
    assert said.rindex(b"\x1b[?25h") > said.rindex(b"\x1b[?25l")


def next_with(key: str, lines: IO[str]) -> dict[str, Any]:
    """The next document that has ``key``."""
    for line in lines:
        found: dict[str, Any] = json.loads(line)
        if key in found:
            return found
    raise AssertionError("it ended")
