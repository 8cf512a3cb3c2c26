"""The report in a real browser without a network: it draws every chart, and logs no error."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import zlib
from collections import deque
from pathlib import Path

import polars as pl
import pytest

import dpo_pipeline
from dpo_pipeline import Outputs
from pair_tools import ROOT

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.outside,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open a page with"),
]

EVIL = [
    "</script><script>document.title='broken'</script>",
    "<img src=x onerror=\"document.title='broken'\">",
    "<!-- <script>",
    '" autofocus onfocus="document.title=1',
    "{{7*7}} ${7*7} \u2028 \\u003cb\\u003e",
]
WAIT = 300  # seconds for what takes one where nothing else runs


class Browser:
    """A headless Chromium, spoken to over the pipes of its own debugging protocol."""

    def __init__(self, profile):
        to_read, self._to_write = os.pipe()
        self._to_read, to_write = os.pipe()
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]
        if has_namespaces():
            command = ["unshare", "-n", *command]

        # Chromium reads from 3 and writes to 4. First out of the way, for they may be 3 and 4.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in (to_read, to_write)]
        with open(os.devnull, "wb") as nowhere:
            actions = [
                (os.POSIX_SPAWN_DUP2, nowhere.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, nowhere.fileno(), 2),
                (os.POSIX_SPAWN_DUP2, high[0], 3),
                (os.POSIX_SPAWN_DUP2, high[1], 4),
            ]
            self._process = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
        for fd in high:
            os.close(fd)
        os.close(to_read)
        os.close(to_write)
        self._buffer, self._calls, self.events = b"", 0, deque()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session = _open = None

    def call(self, method, **parameters):
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to_write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._calls:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _next(self):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._to_read], [], [], WAIT)
            assert ready, "the browser does not answer"
            some = os.read(self._to_read, 1 << 20)
            assert some, "the browser ended"
            self._buffer += some
        one, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(one)

    def run(self, script):
        """Return the value of an expression in the page; promises are waited for."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, path, *, width=1100, height=900, scheme="light", media=""):
        """Open a page, unless it is open like that already, as a test before may have left it."""
        asked = (path, width, height, scheme, media)
        if asked == self._open:
            return
        self._open = asked
        self.events.clear()
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Page.navigate", url=Path(path).as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())
        self.run(
            """new Promise((done) => { (function look() {
                document.documentElement.dataset.drawn === "all" ? done() : setTimeout(look, 20);
            })(); })"""
        )

    def complaints(self):
        """Return what the page logged or threw, and what it asked for that is not itself."""
        self.run("0")  # events of before have come by now
        found = []
        for event in self.events:
            method, facts = event.get("method"), event.get("params", {})
            if method in {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}:
                found.append(facts)
            elif method == "Network.requestWillBeSent":
                url = facts["request"]["url"]
                if not url.startswith("file:"):
                    found.append(url)
        return found

    def picture(self, width, height):
        """Return the top of the page as rows of pixels, three bytes each."""
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        answer = self.call("Page.captureScreenshot", clip=clip)
        return pixels(base64.b64decode(answer["data"]))

    def close(self):
        os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._to_read)
        os.close(self._to_write)


def has_namespaces():
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    return subprocess.run([unshare, "-n", "true"], check=False, capture_output=True).returncode == 0


def pixels(png):
    """Return the rows of an 8-bit RGB picture (PNG specification, sections 5 and 9)."""
    at, data, width = 8, b"", 0
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, _, depth, colours = struct.unpack(">IIBB", body[:10])
            assert (depth, colours) in {(8, 2), (8, 6)}
            step = 3 if colours == 2 else 4
        data += body if kind == b"IDAT" else b""
        at += length + 12
    raw, stride = zlib.decompress(data), width * step
    rows, before = [], bytes(stride)
    for start in range(0, len(raw), stride + 1):
        row = bytearray(raw[start + 1 : start + 1 + stride])
        for i in range(stride):
            left = row[i - step] if i >= step else 0
            corner = before[i - step] if i >= step else 0
            row[i] = (row[i] + predicted(raw[start], left, before[i], corner)) & 255
        rows.append(bytes(row))
        before = rows[-1]
    return [[row[i : i + 3] for i in range(0, stride, step)] for row in rows]


def predicted(kind, left, up, corner):
    if kind == 4:
        guess = left + up - corner
        return min((left, up, corner), key=lambda each: abs(guess - each))
    return (0, left, up, (left + up) // 2)[kind]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory, real_pairs):
    names = pl.Series("kind", [EVIL[i % len(EVIL)] for i in range(real_pairs.height)])
    path = tmp_path_factory.mktemp("page") / "report.html"
    dpo_pipeline.evaluate(real_pairs.with_columns(names), by="kind", outputs=Outputs(report=path))
    return path


@pytest.fixture(scope="module")
def comparison_page(tmp_path_factory, real_pairs):
    other = real_pairs.with_columns(pl.col("policy_chosen_logps") - 0.5)
    path = tmp_path_factory.mktemp("page") / "comparison.html"
    dpo_pipeline.compare(real_pairs, other, by="turns").report(path)
    return path


@pytest.fixture(scope="module")
def policies_page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "policies.html"
    dpo_pipeline.compare(ROOT / "examples" / "steps.parquet").report(path)
    return path


CHARTS = """Array.from(document.querySelectorAll("[data-spec]"), (each) => [
    each.dataset.spec, each.dataset.state, each.querySelectorAll("svg path, svg text").length])"""


# Tests of one page, width and scheme follow each other: it is opened once.


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        ("dark", 360),
        ("light", 1100),
        # The two the other way about.
        pytest.param("dark", 1100, marks=pytest.mark.slow),
        pytest.param("light", 360, marks=pytest.mark.slow),
    ],
)
def test_every_chart_is_drawn_and_nothing_is_logged(browser, page, scheme, width):
    browser.open(page, scheme=scheme, width=width)
    charts = browser.run(CHARTS)
    assert [name for name, _, _ in charts] == [
        f"spec-{name}"
        for name in (
            *("margins", "accuracy", "subsets", "rewards"),
            *("course", "calibration", "lengths", "betas"),
        )
    ]
    for name, state, marks in charts:
        assert state == "drawn", name
        assert marks > 10, name
    assert browser.complaints() == []


def test_text_of_the_dataset_stays_text(browser, page):
    browser.open(page)
    heads = browser.run(
        """Array.from(document.querySelector("#by-subset table").querySelectorAll("tbody th"),
            (e) => e.textContent)"""
    )
    assert sorted(heads) == sorted(EVIL)
    assert browser.run("document.title").startswith("pairs: ")
    assert browser.run("document.querySelectorAll('img, [onfocus], [autofocus]').length") == 0


# Between the two there is no other rule.
@pytest.mark.parametrize("width", [1100, pytest.param(500, marks=pytest.mark.slow), 320])
def test_the_page_fits_the_window_and_charts_are_not_shrunk_to_it(browser, page, width):
    browser.open(page, width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width
    sizes = browser.run(
        """Array.from(document.querySelectorAll("[data-spec] svg"), (each) => {
            const box = each.getBoundingClientRect();
            return [Number(each.getAttribute("width")), box.width, box.right]; })"""
    )
    assert len(sizes) == 8
    for drawn, shown, right in sizes:
        assert drawn == pytest.approx(shown, abs=1)
        assert right <= width


def test_texts_over_a_histogram_do_not_meet(browser, page):
    browser.open(page, width=320)
    boxes = browser.run(
        """Array.from(document.querySelectorAll("[data-spec=spec-margins] .mark-text text"),
        (each) => { const b = each.getBoundingClientRect();
            return [b.left, b.top, b.right, b.bottom]; })"""
    )
    assert len(boxes) >= 3
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] + 2 or b[3] <= a[1] + 2


def test_a_table_says_whether_it_scrolls(browser, page):
    for width, fits in ((320, False), (1400, True)):
        browser.open(page, width=width)
        said = browser.run("document.querySelector('#lowest .tools .hint').hidden")
        assert said == fits


def test_a_narrow_page_shows_all_its_sections_and_is_no_wider(browser, page):
    browser.open(page, width=400)
    ends = browser.run(
        "Array.from(document.querySelectorAll('nav a'), (a) => a.getBoundingClientRect().right)"
    )
    assert len(ends) > 8
    assert max(ends) <= 400
    assert browser.run("document.documentElement.scrollWidth") <= 400


def test_dark_and_light_have_their_colours(browser, page):
    for scheme, paper in (("light", b"\xff\xff\xff"), ("dark", b"\x14\x17\x1b")):
        browser.open(page, scheme=scheme, width=400)
        rows = browser.picture(400, 300)
        counts: dict[bytes, int] = {}
        for row in rows[::4]:
            for pixel in row[::4]:
                counts[pixel] = counts.get(pixel, 0) + 1
        assert max(counts, key=counts.get) == paper
        fills = browser.run(
            """Array.from(document.querySelectorAll("[data-spec=spec-margins] .mark-rect path"),
                (each) => getComputedStyle(each).fill)"""
        )
        blue, orange = {
            "light": ("rgb(10, 100, 164)", "rgb(217, 96, 10)"),
            "dark": ("rgb(92, 176, 234)", "rgb(240, 145, 62)"),
        }[scheme]
        assert set(fills) == {blue, orange}


def test_print_is_light_whatever_the_screen_is(browser, page):
    browser.open(page, scheme="dark", media="print")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"


def test_a_table_sorts_by_value_and_back(browser, page):
    browser.open(page)
    click = """(() => { const head = document.querySelectorAll("#lowest thead th")[%d];
        head.querySelector("button").click();
        const cells = Array.from(document.querySelectorAll("#lowest tbody tr"),
            (row) => Number(row.cells[%d].dataset.value));
        return [head.getAttribute("aria-sort"), cells]; })()"""
    for column in (2, 3):
        for direction in ("ascending", "descending"):
            said, cells = browser.run(click % (column, column))
            assert said == direction
            assert cells == sorted(cells, reverse=direction == "descending")
            assert len(cells) == 20
    assert browser.run("document.querySelectorAll('#lowest [aria-sort]').length") == 1


def test_text_of_the_dataset_stays_text_in_a_tooltip(browser, page):
    browser.open(page)
    browser.run(
        "document.querySelector('[data-spec=spec-subsets]')"
        ".scrollIntoView({behavior: 'instant', block: 'center'})"
    )
    spot = browser.run(
        """(() => { const box = document.querySelector(
            "[data-spec=spec-subsets] svg .mark-symbol path").getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2]; })()"""
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=spot[0], y=spot[1])
    text = browser.run(
        """new Promise((done) => { (function look() {
            const tip = document.querySelector("#vg-tooltip-element.visible");
            tip ? done(tip.textContent) : setTimeout(look, 20); })(); })"""
    )
    assert any(name in text for name in EVIL)
    assert browser.run("document.querySelectorAll('#vg-tooltip-element script').length") == 0
    assert browser.run("document.querySelectorAll('#vg-tooltip-element img').length") == 0
    assert browser.run("document.title").startswith("pairs: ")


def test_no_other_script_may_run(browser, page, tmp_path):
    text = page.read_text().replace(
        "<main",
        "<script>document.title = 'broken'</script><img src=x onerror='document.title=1'><main",
    )
    changed = tmp_path / "changed.html"
    changed.write_text(text)
    browser.open(changed)
    assert browser.run("document.title").startswith("pairs: ")
    assert browser.complaints()


def test_keys_reach_what_scrolls_and_what_sorts(browser, page):
    browser.open(page)
    browser.run("document.querySelector('#by-subset th button').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r")
    assert browser.run("document.querySelector('#by-subset th').getAttribute('aria-sort')")
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tabbed = browser.run("Array.from(document.querySelectorAll('.wide'), (e) => e.tabIndex)")
    assert set(tabbed) == {0}


def test_a_table_is_searched_and_saved(browser, page):
    browser.open(page)
    searched = browser.run(
        """(() => { const field = document.querySelector("#figures .tools input");
        field.value = "BETTER than"; field.dispatchEvent(new Event("input"));
        return Array.from(document.querySelectorAll("#figures tbody tr:not([hidden]) th"),
            (head) => head.textContent); })()"""
    )
    assert searched
    assert all(name.startswith("better than: ") for name in searched)
    saved = browser.run(
        """new Promise((done) => {
        URL.createObjectURL = (blob) => { blob.text().then(done); return "#"; };
        document.querySelector("#lowest .tools button").click(); })"""
    )
    lines = saved.splitlines()
    assert lines[0].startswith('"pair_id","row","margin"')
    assert len(lines) == 21
    margins = [float(line.split(",")[2].strip('"')) for line in lines[1:]]
    assert margins == sorted(margins)


def test_empty_cells_sort_last_either_way(browser, tmp_path, pairs):
    path = tmp_path / "report.html"
    dpo_pipeline.evaluate(pairs, by="pair_id", outputs=Outputs(report=path))
    browser.open(path)
    click = """(() => { const head = document.querySelectorAll("#by-subset thead th")[8];
        head.querySelector("button").click();
        return Array.from(document.querySelector("#by-subset table").querySelectorAll("tbody tr"),
            (row) => row.cells[8].dataset.value).map(Number); })()"""
    assert browser.run(click) == pytest.approx([-1, -0.2, 0, 0.1, 0.5, 1])
    assert browser.run(click) == pytest.approx([1, 0.5, 0.1, 0, -0.2, -1])


def test_a_chart_that_cannot_be_drawn_says_so(browser, page, tmp_path):
    text = page.read_text().replace('"layer":[', '"layer":3,"was":[', 1)
    changed = tmp_path / "changed.html"
    changed.write_text(text)
    browser.open(changed)
    states = [state for _, state, _ in browser.run(CHARTS)]
    assert states.count("failed") == 1
    assert "could not be drawn" in browser.run(
        "document.querySelector('[data-state=failed]').textContent"
    )


def test_a_comparison_is_drawn(browser, comparison_page):
    browser.open(comparison_page)
    assert [(name, state) for name, state, _ in browser.run(CHARTS)] == [
        ("spec-differences", "drawn"),
        ("spec-margins", "drawn"),
        ("spec-changes", "drawn"),
    ]
    assert browser.complaints() == []


@pytest.mark.parametrize(
    ("scheme", "width"),
    # The two the other way about.
    [("light", 1200), ("dark", 400)]
    + [pytest.param(*each, marks=pytest.mark.slow) for each in (("dark", 1200), ("light", 400))],
)
def test_several_policies_are_drawn_and_fit(browser, policies_page, scheme, width):
    browser.open(policies_page, width=width, scheme=scheme)
    charts = browser.run(CHARTS)
    assert len(charts) == 7
    assert {state for _, state, _ in charts} == {"drawn"}
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.complaints() == []


def test_texts_are_read_without_scrolling(browser, tmp_path, pairs):
    path = tmp_path / "report.html"
    long = pl.lit("some words of an answer, " * 30)
    texts = pairs.with_columns(prompt=pl.lit("a question?"), chosen=long, rejected=long)
    shown = Outputs(report=path, show=["prompt", "chosen", "rejected"])
    dpo_pipeline.evaluate(texts, by="subset", outputs=shown)
    for width in (1200, 400):
        browser.open(path, width=width)
        assert browser.run("document.documentElement.scrollWidth") <= width
        fits = browser.run(
            """Array.from(document.querySelectorAll("details:not(.text), .texts"), (e) => {
                e.open = true; return e; }).filter((e) => e.matches(".texts")).map(
                (e) => e.scrollWidth <= e.clientWidth)"""
        )
        assert len(fits) == 4  # of all pairs, and of the subsets x, y and null
        assert all(fits)
    read = "document.querySelector('#lowest .text').innerText"
    assert browser.run(read).endswith("...")
    browser.run("document.querySelector('#lowest .text').open = true")
    assert browser.run(read).count("some words") == 30  # its beginning is not there twice
