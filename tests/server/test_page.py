"""The page in a headless Chromium (`make page`)."""

import io
import re
import shutil
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs ddfm[server]")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")

import PIL.Image
from conftest import made_image

from ddfm.server import app as app_module
from ddfm.server import worker

pytestmark = pytest.mark.page
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
sync_api.expect.set_options(timeout=30_000)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address, request):
    """The page, which asks nobody else and throws nothing; `pytest.mark.parametrize("page", ...)`: without its CSP."""
    bypass = getattr(request, "param", False)
    context = browser.new_context(viewport={"width": 1300, "height": 800}, accept_downloads=True, bypass_csp=bypass)
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.problems, page.asked = [], []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("#examples button")
    yield page
    assert not page.problems
    assert all(url.startswith((address, "blob:", "data:")) for url in page.asked)  # nothing from outside
    context.close()


def give(page, *sizes):
    files = []
    for k, (height, width) in enumerate(sizes):
        buffer = io.BytesIO()
        PIL.Image.fromarray(made_image(height, width, seed=k)).save(buffer, "PNG")
        files.append({"name": f"source{k}.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
    page.set_input_files("#file", files)
    page.wait_for_selector("#list img")


def fuse(page):
    page.click("#fuse")
    page.wait_for_selector("#metrics:not([hidden])")


def test_weight():
    assert sum(path.stat().st_size for path in app_module.PAGE.iterdir()) < 300_000


def test_drop_fuse_compare_download(page):
    page.evaluate(
        """async () => {
            const transfer = new DataTransfer();
            for (const name of ["infrared", "visible"]) {
                const blob = await (await fetch(`/v1/examples/night_street/${name}.png`)).blob();
                transfer.items.add(new File([blob], `${name}.png`));
            }
            dispatchEvent(new DragEvent("drop", { dataTransfer: transfer }));
        }"""
    )
    page.wait_for_selector("#stage .pane:nth-child(2)")  # both at once
    fuse(page)  # the only click
    shown = {"sides": 3, "swipe": 2, "difference": 1, "onion": 2, "checker": 2, "flicker": 2}
    for mode, images in shown.items():
        page.check(f"#modes input[value={mode}]", force=True)
        sync_api.expect(page.locator("#stage img")).to_have_count(images)
        for image in page.locator("#stage img").all():
            sync_api.expect(image).to_have_js_property("naturalWidth", 640)
    page.check("#modes input[value=swipe]", force=True)
    assert page.locator("#stage .tag").all_inner_texts() == ["infrared.png", "Fused"]
    page.select_option("#against", label="visible.png")
    assert "visible.png" in page.inner_text("#stage")
    page.focus("#stage")
    page.keyboard.press("ArrowRight")
    assert page.input_value("#position") == "55"
    page.keyboard.press("+")
    assert page.evaluate("document.querySelector('#scale').value") != ""
    with page.expect_download() as download:
        page.click("#download")
    assert PIL.Image.open(download.value.path()).size == (640, 480)
    assert "Edge transfer" in page.inner_text("#table")
    page.click("#tuning summary >> nth=0")
    page.select_option("#set-contrast", "strong")
    sync_api.expect(page.locator("#said")).to_contain_text("fuse again")


def test_uncertainty_and_command(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    give(page, (40, 50), (40, 50))
    page.fill("#set-num_samples", "2")
    fuse(page)
    page.check("#modes input[value=uncertainty]", force=True)
    page.click("#command")
    sync_api.expect(page.locator("#said")).to_contain_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == "ddfm fuse source0.png source1.png -o fused.png --samples 2"


def test_one_image_asks_for_another(page):
    give(page, (40, 50))
    assert "Add a second image" in page.inner_text("#said") and page.is_disabled("#fuse") and page.is_hidden("#error")
    give(page, (40, 50))
    sync_api.expect(page.locator("#fuse")).to_be_enabled()


def test_an_error_is_shown_at_the_start(page):
    page.set_input_files("#file", [{"name": "notes.txt", "mimeType": "text/plain", "buffer": b"notes"}])
    page.wait_for_selector("#error:not([hidden])")
    assert "notes.txt is not an image" in page.inner_text("#error") and page.is_visible("#choose")


def test_an_error_is_shown(page):
    give(page, (40, 50), (41, 50))
    page.click("#fuse")
    page.wait_for_selector("#error:not([hidden])")
    assert "could not be aligned with confidence" in page.inner_text("#error")
    page.select_option("#set-align", "skip")  # as the sentence says
    page.wait_for_selector("#error", state="hidden")
    fuse(page)


def test_a_palette_shows_at_once_and_is_downloaded(page):
    page.click("#examples button >> nth=0")
    page.wait_for_selector("#list img")
    fuse(page)
    assert page.is_disabled("#set-blend")
    page.click("#tuning summary >> nth=0")
    page.select_option("#set-palette", "ironbow")
    page.locator("#stage .tag", has_text="ironbow").wait_for()
    page.locator("#set-blend").press("End")
    with page.expect_download() as download:
        page.click("#download")
    image = PIL.Image.open(download.value.path()).convert("RGB")
    person, sky = (image.getpixel(at) for at in ((30, 260), (320, 40)))
    assert person[0] > 180 > person[2] and max(sky) < 90  # hot and cold


def test_progress_survives_a_lost_connection(page):
    """A proxy that ends the events early, or a laptop that slept: the page asks again."""
    give(page, (40, 50), (40, 50))
    lost = []
    page.route("**/events", lambda route: route.continue_() if lost else (lost.append(1), route.abort()))
    fuse(page)
    assert lost and page.is_hidden("#error")


@pytest.mark.parametrize("leave", [lambda page: page.click("#cancel"), lambda page: page.reload()])
def test_cancel(page, monkeypatch, leave):
    ended = threading.Event()

    def slow(pipe, scenes, settings, progress):
        try:
            for k in range(3000):
                progress(float(k), 3000)
                time.sleep(0.01)
        finally:
            ended.set()

    monkeypatch.setattr(worker, "fuse_scenes", slow)
    give(page, (40, 50), (40, 50))
    page.click("#fuse")
    sync_api.expect(page.locator("#doing")).to_contain_text("Fusing")
    leave(page)
    assert ended.wait(3)
    sync_api.expect(page.locator("#running")).to_be_hidden()


def delay(page, part):
    """Requests whose address has this part are sent half a second later."""
    page.evaluate(
        """(part) => {
            const { fetch } = window;
            window.fetch = async (address, options) => {
                const late = `${options?.method} ${address}`.includes(part);
                await new Promise((resolve) => setTimeout(resolve, late ? 500 : 0));
                return fetch(address, options);
            };
        }""",
        part,
    )


def test_the_result_of_other_images_is_not_shown(page):
    give(page, (40, 50), (40, 50))
    delay(page, "POST /v1/jobs")
    page.click("#fuse")
    give(page, (40, 50))  # a third one, while the two are sent
    sync_api.expect(page.locator("#list img")).to_have_count(3)
    page.wait_for_timeout(1500)
    assert page.is_hidden("#have") and page.inner_text("#said") == ""


def test_the_last_palette_is_shown(page):
    give(page, (40, 50), (40, 50))
    fuse(page)
    delay(page, "palette=hot")
    page.click("#tuning summary >> nth=0")
    for palette in ("hot", "ironbow"):
        page.select_option("#set-palette", palette)
    page.wait_for_timeout(1500)
    sync_api.expect(page.locator("#stage .tag")).to_have_text("Fused, ironbow")


def test_a_result_that_is_gone_cannot_be_looked_at(page):
    give(page, (40, 50), (40, 50))
    fuse(page)
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"})
    sync_api.expect(page.locator("#error")).to_contain_text("notes.txt is not an image")
    assert page.locator("#stage .pane").count() == 2 and not page.locator("#modes input[value=result]").count()


def test_an_example_clicked_twice_is_loaded_once(page):
    page.dblclick("#examples button >> nth=0")
    page.wait_for_selector("#list img")
    page.wait_for_timeout(500)
    assert page.locator("#list li").count() == 2


def test_enter_in_a_setting_fuses(page):
    give(page, (40, 50), (40, 50))
    page.click("text=Advanced")
    page.press("#set-seed", "Enter")
    page.wait_for_selector("#metrics:not([hidden])")


def test_the_token_is_asked_for(browser, serving, tiny_prior):
    with serving(tiny_prior, token="secret") as address:
        page = browser.new_page()
        page.goto(address)
        for token in ("wrong", "secret"):
            page.wait_for_selector("#ask[open]")
            assert page.is_visible("#wrong") == (token == "secret")
            page.fill("#token", token)
            page.keyboard.press("Enter")
        page.wait_for_selector("#examples button")
        give(page, (40, 50), (40, 50))
        fuse(page)
        page.close()


def test_keyboard_only(page):
    """From an example to the download without looking for the focus, which is never lost."""

    def has_focus(id):
        sync_api.expect(page.locator(id)).to_be_focused()

    def to(key, script):
        for _ in range(20):
            page.keyboard.press(key)
            if page.evaluate(script):
                return
        raise AssertionError(script)

    to("Tab", "document.activeElement.textContent.startsWith('Night street')")
    page.keyboard.press("Enter")
    has_focus("#fuse")
    page.keyboard.press("Enter")
    has_focus("#download")
    to("Shift+Tab", "document.activeElement.name === 'mode'")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    has_focus("#stage")
    sync_api.expect(page.locator("#stage")).to_have_attribute("aria-label", re.compile("^Swipe: infrared.png, Fused"))
    page.keyboard.press("ArrowRight")
    assert page.input_value("#position") == "55"
    to("Tab", "document.activeElement.id === 'download'")
    with page.expect_download():
        page.keyboard.press("Enter")
    to("Shift+Tab", "document.activeElement.id === 'restart'")
    page.keyboard.press("Enter")
    has_focus("#choose")


def test_what_a_screen_reader_is_told(page):
    page.click("#examples button >> nth=0")
    page.wait_for_selector("#list img")
    fuse(page)
    page.check("#modes input[value=swipe]", force=True)
    tree = page.locator("body").aria_snapshot()
    for line in (
        'heading "ddfm"',
        'radiogroup "View"',
        'radio "Swipe" [checked]',
        'application "Swipe: infrared.png, Fused. Arrow keys move',
        'slider "Position"',
        'button "Zoom in"',
        'button "Download"',
        'combobox "File format"',
        'button "Remove infrared.png"',
        "status: Fused in",
        'table "Measures"',
        'columnheader "Fused"',
        'rowheader "Entropy (EN)',
    ):
        assert line in tree, f"{line}\n{tree}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(page, scheme):
    page.set_viewport_size({"width": 375, "height": 740})
    page.emulate_media(color_scheme=scheme)
    give(page, (40, 50), (40, 50))
    fuse(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(ground[4:].split(",")[0]) < 128) == (scheme == "dark")


@pytest.fixture(scope="module")
def axe():
    """The script of axe-core."""
    package = pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python, for its axe-core")
    return Path(package.__file__).with_name("axe.min.js").read_text()


@pytest.mark.parametrize("page", [True], indirect=True)  # the page's CSP lets no script in that is not its own
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(page, axe, scheme):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # no colour is caught half-way to the scheme's own
    for step in ("start", "loaded", "fused"):
        if step == "loaded":
            give(page, (40, 50), (40, 50))
        if step == "fused":
            fuse(page)
        page.evaluate(axe)
        found = page.evaluate("async () => (await axe.run()).violations")
        assert not [f"{step}: {v['impact']} {v['id']}: {v['nodes'][0]['html']}" for v in found]
