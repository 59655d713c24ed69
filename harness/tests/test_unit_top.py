# SPDX-License-Identifier: GPL-2.0-only
"""`linux-um top` without a guest: samples, rates, texts, the screen, and the socket."""

from __future__ import annotations

import json
import os
import re
import struct
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from linux_um import top, watch  # noqa: E402
from linux_um.agent import Guest  # noqa: E402
from linux_um.errors import SessionError  # noqa: E402
from linux_um.outcome import GuestGone  # noqa: E402
from linux_um.protocol import (  # noqa: E402
    PROTOCOL_VERSION,
    Frame,
    ProtocolError,
    SurveyedFile,
    ToHost,
    survey_frame,
)
from linux_um.top_screen import Glyphs, State, chart, compose, text_of  # noqa: E402

RO, RW = 0o100444, 0o100644
FILES = {
    "/proc/uptime": (RO, "12.50 11.00\n"),
    "/proc/meminfo": (RO, "MemTotal:  102400 kB\nMemFree: 10 kB\nMemAvailable:   51200 kB\n"),
    "/proc/cmdline": (RO, "mem=100M console=tty0\n"),
}


def files(engine: str = "pksm", **values: object) -> dict[str, tuple[int, str]]:
    """Return the files of a guest; counters are those whose value is not a text."""
    directory = f"/sys/kernel/mm/{engine}"
    return FILES | {
        f"{directory}/{name}": (RW if isinstance(value, str) else RO, f"{value}\n")
        for name, value in values.items()
    }


def sample(when: float = 0.0, **values: object) -> top.Sample:
    """Return a sample of PKSM."""
    found = top.parse_sample(files("pksm", **values), when)
    assert found is not None
    return found


TYPICAL: dict[str, Any] = {
    "pages_shared": 100, "pages_new": 1, "pages_unshared": 20, "pages_volatile": 3,
    "pages_sharing": 256, "zero_pages": 256, "general_profit": 2 << 20, "pages_scanned": 1000,
    "pages_merged": 500, "cpu_usecs": 0, "rmap_items": 356, "stable_nodes": 100,
    "run": "1", "domain": "user", "settle_millisecs": "200",
}  # fmt: skip


# Samples


def test_what_can_be_written_is_a_control_whatever_it_holds() -> None:
    """The files themselves say what they are; so a new one needs no change here."""
    found = sample(**TYPICAL, pages_from_mars=7, max_from_mars="9")
    assert found.controls["max_from_mars"] == "9"
    assert found.controls["settle_millisecs"] == "200"
    assert list(found.controls)[0] == "run"
    assert found.counters["pages_from_mars"] == 7
    assert "run" not in found.counters
    # In the order of the groups, the unknown ones last.
    names = list(found.counters)
    assert names[:4] == ["pages_new", "pages_unshared", "pages_volatile", "pages_shared"]
    assert names[-1] == "pages_from_mars"
    assert top.kind_of("pages_from_mars") is top.OTHER


def test_a_sample_has_the_savings_the_memory_and_the_clock() -> None:
    found = sample(5.0, **TYPICAL)
    assert (found.engine, found.when, found.uptime) == ("pksm", 5.0, 12.5)
    assert found.saved == (256 + 256) * 4096
    assert (found.memory, found.available) == (100 << 20, 50 << 20)
    assert not found.time_travel


def test_stock_ksm_is_a_sample_too_and_pksm_goes_first() -> None:
    ksm = files("ksm", pages_sharing=10, ksm_zero_pages=2, advisor_mode="[none] scan-time")
    found = top.parse_sample(ksm, 0.0)
    assert found is not None and found.engine == "ksm" and found.saved == 12 * 4096
    assert found.controls["advisor_mode"] == "[none] scan-time"
    both = top.parse_sample(ksm | files(pages_sharing=1), 0.0)
    assert both is not None and both.engine == "pksm" and both.counters == {"pages_sharing": 1}
    assert top.parse_sample(FILES, 0.0) is None


def test_time_travel_is_seen_on_the_kernels_command_line() -> None:
    changed = files(**TYPICAL) | {"/proc/cmdline": (RO, "mem=1G time-travel=inf-cpu\n")}
    found = top.parse_sample(changed, 0.0)
    assert found is not None and found.time_travel


def test_rates_are_per_second_and_only_of_what_was_there_before() -> None:
    before = sample(10.0, pages_scanned=100, pages_new=50, cpu_usecs=1000)
    now = sample(10.5, pages_scanned=300, pages_new=40, cpu_usecs=6000, pages_merged=3)
    rate = top.rates(before, now)
    assert rate == {"pages_scanned": 400.0, "pages_new": -20.0, "cpu_usecs": 10000.0}
    assert top.cpu_percent(rate) == 1.0
    assert top.rates(None, now) == {}
    assert top.rates(now, now) == {}
    assert top.cpu_percent({}) is None


# Texts


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (1023, "1023"), (1024, "1.0 KiB"), (102400, "100 KiB"), (-12288, "-12.0 KiB"),
     (66584576, "63.5 MiB"), (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB")],
)  # fmt: skip
def test_bytes_are_written_for_people(count: int, text: str) -> None:
    assert top.human_bytes(count) == text
    assert top.short_bytes(count) == text.replace(" ", "").replace("iB", "")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.04, "0.0"), (1.25, "1.2"), (99.96, "100"), (12345.4, "12345"), (99999, "99999"),
     (1234567, "1235k"), (1.5e9, "1500M"), (3e11, "3e+11"), (-5, "-5.0")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert top.short_number(value) == text
    assert top.short_number(value, signed=True) == ("+" if value > 0 else "") + text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (12.34, "12.3 s"), (65, "1 min 05 s"), (3725, "1 h 02 min"), (90000, "1 d 01 h")],
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert top.duration(seconds) == text


def test_a_line_of_json_has_all_there_is() -> None:
    before, now = sample(1.0, **TYPICAL), sample(2.0, **TYPICAL | {"cpu_usecs": 25000})
    line = top.json_line(now, top.rates(before, now), 1700000000.5)
    assert "\n" not in line
    value = json.loads(line)
    assert value["counters"] == {k: v for k, v in (TYPICAL | {"cpu_usecs": 25000}).items()
                                 if isinstance(v, int)}  # fmt: skip
    assert value["controls"] == {k: v for k, v in TYPICAL.items() if isinstance(v, str)}
    assert value["saved_bytes"] == 512 * 4096
    assert value["cpu_percent"] == 2.5
    assert value["per_second"]["pages_scanned"] == 0
    assert (value["time"], value["uptime"], value["engine"]) == (1700000000.5, 12.5, "pksm")
    assert json.loads(top.json_line(now, {}, 0.0))["cpu_percent"] is None


def test_the_table_repeats_its_headings_and_shows_them_for_a_new_counter() -> None:
    table = top.Table()
    now = sample(**TYPICAL)
    lengths = [len(table.lines(now, {}, "12:00:00")) for _ in range(2 * top.HEADING_EVERY + 1)]
    assert [n for n, length in enumerate(lengths) if length == 2] == [
        0, top.HEADING_EVERY, 2 * top.HEADING_EVERY,
    ]  # fmt: skip
    heading, line = table.lines(sample(**TYPICAL, pages_from_mars=7), {}, "12:00:01")
    assert heading.split()[-1] == "from_mars" and line.split()[-1] == "7"
    assert len(heading) == len(line)


def test_the_table_has_counts_as_they_are_and_events_per_second() -> None:
    before = sample(1.0, **TYPICAL)
    now = sample(3.0, **TYPICAL | {"pages_scanned": 1500, "pages_new": 11, "cpu_usecs": 400_000})
    heading, line = top.Table().lines(now, top.rates(before, now), "12:00:00")
    row = dict(zip(heading.split(), line.split(), strict=True))
    assert row["scanned/s"] == "250" and row["merged/s"] == "0"
    assert (row["new"], row["sharing"], row["zero"], row["rmap_items"]) == ("11", "256", "256", "356")
    assert (row["saved"], row["profit"], row["cpu%"]) == ("2.0M", "2.0M", "20.0")
    assert (row["time"], row["uptime"]) == ("12:00:00", "12.5")
    heading, line = top.Table().lines(now, {}, "12:00:00")
    row = dict(zip(heading.split(), line.split(), strict=True))
    assert (row["scanned/s"], row["cpu%"]) == ("-", "-")


def test_two_counters_never_share_a_column() -> None:
    heading, line = top.Table().lines(sample(zero_pages=1, pages_zero=2), {}, "12:00:00")
    row = dict(zip(heading.split(), line.split(), strict=True))
    assert (row["zero"], row["pages_zero"]) == ("1", "2")


# The screen


def state(**values: object) -> State:
    """Return a screen that has seen two samples."""
    shown = State("20261124-120000-boot-1.0", "6.12.117-pksm", 1.0, Glyphs.for_encoding("UTF-8"))
    shown.take(sample(1.0, **TYPICAL))
    shown.take(sample(2.0, **(TYPICAL | {"pages_scanned": 1250, "pages_new": 11} | values)))
    return shown


def screen(shown: State, rows: int, columns: int) -> list[str]:
    """Return the text of a screen, and see that it is one."""
    lines = [text_of(line) for line in compose(shown, rows, columns)]
    assert len(lines) == rows
    assert all(len(line) <= columns for line in lines)
    return lines


@pytest.mark.parametrize(("rows", "columns"), [(24, 80), (40, 120), (50, 200)])
def test_everything_is_on_the_screen(rows: int, columns: int) -> None:
    text = "\n".join(screen(state(pages_from_mars=7), rows, columns))
    for name in [*TYPICAL, "pages_from_mars"]:
        assert re.search(rf"\b{name}\b", text), name
    for words in ("boot-1.0", "6.12.117-pksm", "up 12.5 s", "PKSM running", "pksmd   0.0 % of a CPU",
                  "memory 50.0 MiB used of 100 MiB", "saved 2.0 MiB", "every 1 s", "q quit"):
        assert words in text
    assert re.search(r"pages_sharing +256 +1\.0 MiB", text)
    assert re.search(r"pages_scanned +1250 +250", text)
    assert re.search(r"settle_millisecs +200", text)
    assert bool(re.search(r"pages_new +11 +44\.0 KiB +\+10\.0", text)) == (columns > 100)


@pytest.mark.parametrize("columns", [1, 10, 40, 71, 72, 150])
@pytest.mark.parametrize("rows", [1, 2, 5, 12, 60])
def test_any_size_of_a_terminal_will_do(rows: int, columns: int) -> None:
    shown = state(name_that_is_longer_than_a_column_can_hold="a text that is longer still")
    screen(shown, rows, columns)
    shown.help = True
    screen(shown, rows, columns)
    screen(State("run", "6.12", 1.0, Glyphs.for_encoding("ascii")), rows, columns)


def test_what_does_not_fit_is_reached_by_scrolling() -> None:
    shown = state()
    seen = "\n".join(screen(shown, 10, 60))
    assert "stable_nodes" not in seen
    shown.scroll = 1000
    # The last line of the last group, just above the keys.
    assert screen(shown, 10, 60)[-2].split() == ["settle_millisecs", "200"]
    bottom = shown.scroll
    assert 0 < bottom < 1000
    screen(shown, 60, 60)
    assert shown.scroll == 0


def test_messages_take_the_place_of_the_keys() -> None:
    shown = state()
    shown.message = "held; space goes on"
    assert screen(shown, 24, 80)[-1] == "held; space goes on"


def test_the_help_names_the_keys() -> None:
    shown = state()
    shown.help = True
    text = "\n".join(screen(shown, 24, 80))
    assert "page up" in text and "more often" in text and "pages_new" not in text


def test_under_time_travel_the_leap_of_the_clock_is_shown() -> None:
    shown = State("run", "6.12", 1.0, Glyphs.for_encoding("UTF-8"))
    for when, uptime in ((1.0, "100.00"), (2.0, "3700.00")):
        changed = files(**TYPICAL) | {
            "/proc/cmdline": (RO, "time-travel=inf-cpu"), "/proc/uptime": (RO, f"{uptime} 0")
        }  # fmt: skip
        found = top.parse_sample(changed, when)
        assert found is not None
        shown.take(found)
    assert "time travel 1 h 01 min (+1 h 00 min)" in screen(shown, 24, 100)[0]


def test_the_chart_reaches_the_top_and_shows_the_least() -> None:
    levels = Glyphs.for_encoding("utf8").levels
    assert chart([0, 4, 8], 4, 1, levels) == [" " + " ▄█"]
    assert chart([1, 1000], 2, 2, levels) == [" █", "▁█"]
    assert chart([0, 0], 2, 2, levels) == ["  ", "  "]
    assert chart([], 3, 1, levels) == ["   "]
    assert chart(list(range(100)), 3, 1, levels) == ["███"]
    assert chart([5], 1, 1, Glyphs.for_encoding("ANSI_X3.4-1968").levels) == ["#"]


# The socket


class FakeGuest:
    """A guest that answers as it is told, or not at all."""

    def __init__(self) -> None:
        self.asked: list[Sequence[str]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.gone = False

    def survey(self, paths: Sequence[str]) -> list[SurveyedFile]:
        """Return a file for each path."""
        self.asked.append(paths)
        self.may_answer.wait()
        if self.gone:
            raise GuestGone("the guest has ended")
        return [SurveyedFile(RO, path, f"of {path}\n") for path in paths]


@pytest.fixture
def served(tmp_path: Path) -> Any:
    """Yield a fake guest, its socket in a directory of a very long name, and its server."""
    directory = tmp_path / ("long" * 40)
    directory.mkdir()
    guest = FakeGuest()
    server = watch.Watch(directory / "watch")
    server.serve(guest)  # type: ignore[arg-type]
    yield guest, directory / "watch", server
    guest.may_answer.set()
    server.close()


def test_onlookers_get_what_they_ask_for(served: Any) -> None:
    guest, path, _ = served
    first, second = watch.Onlooker(path), watch.Onlooker(path)
    first.request(["/a", "/b"])
    assert first.receive(10.0) == {"/a": (RO, "of /a\n"), "/b": (RO, "of /b\n")}
    second.request(["/c"])
    first.request(["/d"])
    assert first.receive(10.0) == {"/d": (RO, "of /d\n")}
    assert second.receive(10.0) == {"/c": (RO, "of /c\n")}
    assert guest.asked[0] == ["/a", "/b"]


def test_an_onlooker_need_not_wait_and_the_guest_is_asked_once_at_a_time(served: Any) -> None:
    """However many look on at a guest that stands still, its line holds one request."""
    guest, path, _ = served
    guest.may_answer.clear()
    onlookers = [watch.Onlooker(path) for _ in range(5)]
    for onlooker in onlookers:
        onlooker.request(["/x"])
        assert onlooker.receive(0.05) is None
    # On a busy host it may not even have come to the first.
    limit = time.monotonic() + 10.0
    while not guest.asked and time.monotonic() < limit:
        time.sleep(0.01)
    assert all(onlooker.receive(0.05) is None for onlooker in onlookers)
    assert len(guest.asked) == 1
    guest.may_answer.set()
    assert all(onlooker.receive(10.0) for onlooker in onlookers)
    assert len(guest.asked) == 5


def test_the_end_of_the_guest_ends_the_answers(served: Any) -> None:
    """Both for who has asked and for who has not."""
    guest, path, server = served
    # They are let in one after the other: when the last has an answer, all are in.
    asking, late, idle = (watch.Onlooker(path) for _ in range(3))
    idle.request(["/x"])
    assert idle.receive(10.0)
    guest.may_answer.clear()
    asking.request(["/x"])
    assert asking.receive(0.05) is None
    guest.gone = True
    guest.may_answer.set()
    with pytest.raises(EOFError):
        asking.receive(10.0)
    server.close()
    for onlooker in (idle, late):
        onlooker.request(["/x"])
        with pytest.raises(EOFError):
            onlooker.receive(10.0)
    with pytest.raises(OSError):
        watch.Onlooker(path)


def test_there_is_a_bound_on_onlookers(served: Any) -> None:
    _, path, _ = served
    onlookers = [watch.Onlooker(path) for _ in range(watch.MAX_ONLOOKERS)]
    for onlooker in onlookers:
        onlooker.request(["/x"])
        assert onlooker.receive(10.0)
    one_more = watch.Onlooker(path)
    one_more.request(["/x"])
    with pytest.raises(SessionError, match="16 onlookers"):
        one_more.receive(10.0)


def test_nonsense_ends_that_connection_alone(served: Any) -> None:
    _, path, _ = served
    good, bad = watch.Onlooker(path), watch.Onlooker(path)
    bad._line.sendall(b"nonsense\n")
    with pytest.raises(EOFError):
        bad.receive(10.0)
    good.request(["/x"])
    assert good.receive(10.0)


def test_a_guest_without_a_place_for_the_socket_runs_all_the_same(tmp_path: Path) -> None:
    server = watch.Watch(tmp_path / "there is no directory" / "watch")
    server.serve(FakeGuest())  # type: ignore[arg-type]
    server.close()


class FakeMachine:
    """A machine that only has a line, whose other end it keeps."""

    def __init__(self) -> None:
        self.line_in, self.says = os.pipe()
        self.hears, self.line_out = os.pipe()
        self.status: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return self.status

    def close(self) -> None:
        """Close the ends of the line."""
        for descriptor in (self.line_in, self.says, self.hears, self.line_out):
            if descriptor >= 0:
                os.close(descriptor)


def survey_in_thread(guest: Guest) -> threading.Thread:
    """Ask a guest that is to end; the thread ends when the guest is said to be gone."""

    def ask() -> None:
        with pytest.raises(GuestGone):
            guest.survey(["/x"])

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread


def test_who_asks_a_guest_that_ends_is_told(tmp_path: Path) -> None:
    """Whether the request came before the end, or after it."""
    machine = FakeMachine()
    guest = Guest(machine, tmp_path, timeout=10.0)  # type: ignore[arg-type]
    hello = Frame(ToHost.HELLO, 0, struct.pack("<I", PROTOCOL_VERSION) + b"6.12")
    os.write(machine.says, hello.encode())
    guest.wait_boot(10.0)
    early = survey_in_thread(guest)
    assert os.read(machine.hears, 1 << 16)
    # The kernel has ended, and its line: there would be room for a request.
    machine.status = 0
    os.close(machine.says)
    machine.says = -1
    guest._reader.join(10.0)
    late = survey_in_thread(guest)
    for thread in (early, late):
        thread.join(10.0)
        assert not thread.is_alive()
    machine.close()


# Frames


def test_survey_frames_have_the_documented_layout() -> None:
    assert survey_frame(3, ["/a", "/b c"]).payload == b"/a\0/b c\0"
    with pytest.raises(ProtocolError):
        survey_frame(3, ["/a" * 1000])
    parsed = SurveyedFile.parse(b"\xa4\x81\x00\x00/sys/x\x0012\n")
    assert parsed == SurveyedFile(0o100644, "/sys/x", "12\n")
    for wrong in (b"", b"\0\0\0\0", b"\0\0\0\0/path without an end"):
        with pytest.raises(ProtocolError):
            SurveyedFile.parse(wrong)
