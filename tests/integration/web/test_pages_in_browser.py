"""The review pages as people meet them: headless Chromium, the keyboard, a phone, no JavaScript, and axe's rules.

It needs Debian's packages `chromium` and `chromium-driver`, which CI installs. CORRIGENDA_SCREENSHOTS names a folder
for pictures of every page.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from selenium import webdriver
from selenium.webdriver.chromium.webdriver import ChromiumDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from pipeline.domain.review.approvals import Decision
from pipeline.domain.review.people import Role
from tests.support.factories import make_request
from tests.support.store_rig import LINEAGE, StoreRig
from tests.support.waiting import eventually, patience
from tests.support.web_rig import PASSWORD, WebRig

AXE = (Path(__file__).parents[2] / "support" / "axe" / "axe.min.js").read_text(encoding="utf-8")
PHONE, TABLET, DESK = (360, 740), (768, 1024), (1280, 900)
HOME = f"/review/lineages/{LINEAGE}"
PAGES = {
    "queue": "/review/queue",
    "snapshots": f"{HOME}/snapshots",
    "snapshot": f"{HOME}/snapshots/1",
    "edits": f"{HOME}/edits",
    "stream": f"{HOME}/stream",
    "upkeep": f"{HOME}/upkeep",
    "operations": "/review/operations",
    "missing": f"{HOME}/snapshots/9",
}


@pytest.fixture
def rig(postgres_url: str, tmp_path: Path) -> Iterator[StoreRig]:
    """A lineage with one candidate: edits in several scripts, one without a blank to break at."""
    found = StoreRig(url=postgres_url, folder=tmp_path)
    found.new_lineage()
    found.correct("capital", target="Canberra")
    found.submit(
        make_request("arabic", prompt="عاصمة أستراليا هي", target_new="كانبرا", submitted_by="ليلى"),
        make_request("chinese", prompt="澳大利亚的首都是" * 20, target_new="堪培拉 🦘"),
        make_request("long", prompt="x" * 400, target_new="y" * 300),
    )
    found.commit_batch(found.acquire())
    found.correct("doomed")
    found.query("UPDATE edit_requests SET status = 'dead', reason = 'out of memory' WHERE request_id = 'doomed'")
    found.query("UPDATE outbox SET given_up_at = clock_timestamp(), error = 'MLflow said no' WHERE kind = 'register'")
    yield found
    found.close()


@pytest.fixture
def address(web: WebRig, rig: StoreRig) -> Iterator[str]:
    """Where a real server answers."""
    server = uvicorn.Server(uvicorn.Config(web.app, port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started, "a server that listens")
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    # Streams that are open would hold it.
    server.force_exit = True
    thread.join()


@contextmanager
def chromium(folder: Path, *, has_scripts: bool = True) -> Iterator[ChromiumDriver]:
    """A browser with a profile of its own."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(word)
    if not has_scripts:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        found.set_window_size(*DESK)
        found.set_script_timeout(patience(60))
        yield found
    finally:
        found.quit()


def log_in(browser: WebDriver, address: str, web: WebRig, name: str = "ada") -> None:
    """Log a reviewer in by the form, with the keyboard."""
    web.token_of(name, [Role.reviewer, Role.operator])
    browser.get(f"{address}/review/")
    # The field gets the focus by itself, a moment after the page is there.
    WebDriverWait(browser, 60).until(lambda one: one.switch_to.active_element.get_attribute("id") == "token")
    browser.switch_to.active_element.send_keys(f"{name}:{PASSWORD}", Keys.ENTER)
    WebDriverWait(browser, 60).until(lambda one: one.current_url.endswith("/review/queue"))


def show_on(browser: ChromiumDriver, size: tuple[int, int], *, scheme: str) -> None:
    """Show the page that is open on a screen of this size, in light or dark colours."""
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size != DESK}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    colours = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": colours})


def keep_picture(browser: WebDriver, name: str) -> None:
    """Write what is seen into the folder for pictures, if there is one."""
    folder = os.environ.get("CORRIGENDA_SCREENSHOTS")
    if folder:
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def test_every_page_keeps_the_rules_of_accessibility_and_fits_each_screen(
    web: WebRig, rig: StoreRig, address: str, tmp_path: Path
) -> None:
    with chromium(tmp_path) as browser:
        browser.get(f"{address}/review/login")
        assert problems(browser) == []
        keep_picture(browser, "login")
        log_in(browser, address, web)
        pages = {**PAGES, "edit": f"{HOME}/edits/{rig.edit_id('arabic')}"}
        for name, path in pages.items():
            browser.get(address + path)
            for size, scheme in ((DESK, "light"), (TABLET, "light"), (PHONE, "dark")):
                show_on(browser, size, scheme=scheme)
                wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
                assert browser.execute_script(wide) <= 0, (name, size)
                # What scrolls inside the page at a desk is read row by row on a phone.
                hidden = (
                    "return [...document.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth).length"
                )
                assert size != PHONE or browser.execute_script(hidden) == 0, name
                assert size == TABLET or problems(browser) == [], (name, size)
                keep_picture(browser, f"{name}-{size[0]}")
        errors = [entry["message"] for entry in browser.get_log("browser") if "404" not in entry["message"]]
        assert errors == []


def test_a_reviewer_approves_with_the_keyboard_alone_and_without_javascript(
    web: WebRig, rig: StoreRig, address: str, tmp_path: Path
) -> None:
    with chromium(tmp_path, has_scripts=False) as browser:
        log_in(browser, address, web)
        browser.find_element(By.PARTIAL_LINK_TEXT, "snapshot 1").send_keys(Keys.ENTER)
        WebDriverWait(browser, 60).until(lambda one: one.current_url.endswith("/snapshots/1"))
        reason = browser.find_element(By.ID, "reason")
        reason.send_keys("looked at it", Keys.TAB)
        button = browser.switch_to.active_element
        assert button.text == "Approve"
        button.send_keys(Keys.ENTER)
        WebDriverWait(browser, 60).until(lambda one: "said=approved" in one.current_url)
        assert "is the champion now" in browser.find_element(By.CSS_SELECTOR, "[role=status]").text
    assert rig.lineage().champion_seq == 1


def test_lines_come_in_while_the_page_is_open(web: WebRig, rig: StoreRig, address: str, tmp_path: Path) -> None:
    with chromium(tmp_path) as browser:
        log_in(browser, address, web)
        browser.get(f"{address}{HOME}/stream")
        before = len(browser.find_elements(By.CSS_SELECTOR, "tbody tr"))
        rig.correct("another")
        WebDriverWait(browser, 60).until(lambda one: len(one.find_elements(By.CSS_SELECTOR, "tbody tr")) == before + 1)
        assert "edit:received" in browser.find_element(By.CSS_SELECTOR, "tbody tr").text
        errors = [entry["message"] for entry in browser.get_log("browser")]
        assert errors == []


def test_what_goes_live_too_is_shown_anew_while_the_page_is_open(
    web: WebRig, rig: StoreRig, address: str, tmp_path: Path
) -> None:
    rig.correct("another")
    rig.expire_lease()
    newer = rig.commit_batch(rig.acquire("worker:b"))
    with chromium(tmp_path) as browser:
        log_in(browser, address, web)
        browser.get(f"{address}{HOME}/snapshots/{newer.seq}")
        assert "a candidate" in browser.find_element(By.ID, "also-live").text
        browser.find_element(By.ID, "reason").send_keys("half written")
        rig.decide(rig.snapshots.snapshot(LINEAGE, "1"), Decision.approved)
        nothing = "Nothing else goes live with it."
        WebDriverWait(browser, 60).until(lambda one: one.find_element(By.ID, "also-live").text == nothing)
        assert browser.find_element(By.ID, "reason").get_attribute("value") == "half written"
        assert [entry["message"] for entry in browser.get_log("browser")] == []


def problems(browser: WebDriver) -> list[str]:
    """What axe finds wrong with the page that is open."""
    browser.execute_script(AXE)
    found = browser.execute_async_script("axe.run().then(arguments[0])")
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found["violations"]]
