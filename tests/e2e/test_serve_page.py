"""The page of alexnet2012.serve in a browser: uploads, keyboard use, small screens, errors."""

from __future__ import annotations

import base64
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from browsing import unreachable, unreadable
from programs import finish, module, start
from serving import serving

from alexnet2012.inference.activations import Inspection, inspect_image
from alexnet2012.inference.images import stored_pixels
from alexnet2012.inference.trained_model import TrainedModel
from alexnet2012.inference.web.server import Server

Open = Callable[..., Any]
GIVE = """([data, name, kind]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const given = new DataTransfer();
  given.items.add(new File([bytes], name));
  const event = kind === "drop"
    ? new DragEvent("drop", {dataTransfer: given, bubbles: true, cancelable: true})
    : new ClipboardEvent("paste", {clipboardData: given, bubbles: true});
  document.body.dispatchEvent(event);
}"""
# Reads the colour at the centre of each value of a canvas: [maps, height, width, RGB].
READ = """([layer, tower, count, height, width, gap]) => {
  const at = `[data-layer=${layer}][data-tower="${tower}"]`;
  const canvas = document.querySelector(`${at} canvas, canvas${at}`);
  const { columns, zoom } = canvas.dataset;
  const copy = new OffscreenCanvas(canvas.width, canvas.height);
  const context = copy.getContext("2d", { willReadFrequently: true }); // or Chromium warns
  context.drawImage(canvas, 0, 0);
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const found = [];
  for (let map = 0; map < count; map++)
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        const row = Math.floor(map / columns) * (height + gap) + y;
        const column = (map % columns) * (width + gap) + x;
        const [down, right] = [row, column].map((place) => Math.floor((place + 0.5) * zoom));
        const pixel = 4 * (down * canvas.width + right);
        found.push(...data.slice(pixel, pixel + 3));
      }
  return found;
}"""


@pytest.fixture(scope="module")
def server(net: TrainedModel) -> Iterator[Server]:
    with serving(net, views=10) as server:
        yield server


@pytest.fixture
def open_page(browser: Any, server: Server) -> Iterator[Open]:
    """Opens the page; at the end checks for console errors and requests to other servers."""
    complaints: list[str] = []
    asked: list[str] = []
    pages = []

    def opened(width: int = 1280, **settings: Any) -> Any:
        page = browser.new_page(viewport={"width": width, "height": 800}, **settings)
        pages.append(page)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server.address)
        return page

    yield opened
    for page in pages:
        page.close()
    # Browsers log error responses themselves.
    assert [words for words in complaints if "status of 4" not in words] == []
    assert [url for url in asked if not url.startswith((server.address, "data:"))] == []


@pytest.fixture(scope="module")
def picture(photos_folder: Path) -> Path:
    return photos_folder / "val" / "coffee" / "0000.jpg"


@pytest.fixture(scope="module")
def inspection(net: TrainedModel, picture: Path) -> Inspection:
    return inspect_image(net, stored_pixels(picture.read_bytes(), len(net.mean_image)), 10)


def give(page: Any, data: bytes, name: str, kind: str = "drop") -> None:
    page.evaluate(GIVE, [base64.b64encode(data).decode(), name, kind])


def predictions(page: Any) -> list[str]:
    page.wait_for_selector("#predictions li")
    return [re.sub(r"\s+", " ", text) for text in page.locator("#predictions li").all_inner_texts()]


def as_text(inspection: Inspection) -> list[str]:
    return [
        f"{prediction.name} {100 * prediction.probability:.1f}%"
        for prediction in inspection.predictions
    ]


def colours(page: Any, tower: int) -> np.ndarray[Any, Any]:
    """The colours of zero, the tower, its peak, and negative values: [4, RGB]."""
    names = ["--zero", f"--tower-{tower}", f"--peak-{tower}", "--below"]
    read = "(name) => getComputedStyle(document.documentElement).getPropertyValue(name)"
    return np.array([list(bytes.fromhex(page.evaluate(read, n).strip()[1:])) for n in names])


def painted(numbers: np.ndarray[Any, Any], peak: float, of: np.ndarray[Any, Any]) -> Any:
    """The expected colours of values: [...] → [..., RGB]."""
    part = np.round(255 * np.sqrt(np.abs(numbers) / peak))[..., None] / 255
    up = np.where(part < 0.6, of[0] + (of[1] - of[0]) * part / 0.6,
                  of[1] + (of[2] - of[1]) * (part - 0.6) / 0.4)  # fmt: skip
    return np.where(numbers[..., None] < 0, of[0] + (of[3] - of[0]) * part, up)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_dropped_image_is_classified_and_canvases_show_the_activations(
    open_page: Open, net: TrainedModel, picture: Path, inspection: Inspection, scheme: str
) -> None:
    page = open_page(color_scheme=scheme)
    give(page, picture.read_bytes(), "my coffee.jpg")
    assert predictions(page) == as_text(inspection)
    assert "my coffee.jpg" in page.inner_text("#status")
    page.check("input[value=all]")
    for stage, found in (("handed_on", inspection.handed_on), ("result", inspection.results)):
        page.check(f"input[value={stage}]")
        for layer in ("conv1", "conv3", "fc6", "fc8"):
            x = (found if layer.startswith("conv") else inspection.handed_on)[layer]
            x = x.reshape(len(x), *(x.shape[1:] or (1, 1)))
            for tower, part in enumerate(np.split(x, 2)):
                shape = [*part.shape, int(layer.startswith("conv"))]
                drawn = np.reshape(page.evaluate(READ, [layer, tower, *shape]), (*part.shape, 3))
                expected = painted(part, np.abs(x).max(), colours(page, tower))
                assert np.abs(drawn - expected).max() <= 1.01, (layer, tower, stage)
                assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 2
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (int(background[4:].split(",")[0]) < 60) == (scheme == "dark")


def test_exchanges_are_shown_between_the_layers(open_page: Open, server: Server) -> None:
    page = open_page()
    joins = page.locator(".join").all()
    layers = server.session.description["layers"]
    assert len(joins) == len(layers) + 1
    for join, layer in zip(joins, layers, strict=False):
        crosses = layer["name"] in ("conv3", "fc6", "fc7", "fc8")
        assert join.locator(".crossing").count() == 2 * crosses
        words = f"{layer['crossing_bytes']:,} bytes exchanged" if crosses else ""
        assert "".join(join.locator(".bytes").all_inner_texts()) == words
    assert joins[-1].locator(".crossing").count() == 2  # the logits
    assert page.locator("img.kernels").count() == 2


@pytest.mark.parametrize("way", ["chosen", "pasted"])
def test_an_image_can_be_chosen_or_pasted(
    open_page: Open, picture: Path, inspection: Inspection, way: str
) -> None:
    page = open_page()
    if way == "chosen":
        page.set_input_files("#file", picture)
    else:
        give(page, picture.read_bytes(), "image.png", "paste")
    assert predictions(page) == as_text(inspection)


def test_the_page_can_be_used_by_keyboard(open_page: Open) -> None:
    page = open_page(reduced_motion="reduce")
    focused = "document.activeElement.dataset.photo ?? document.activeElement.id"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "file"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "astronaut"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Enter")
    predictions(page)
    assert page.locator("[data-photo=astronaut]").get_attribute("aria-pressed") == "true"
    for _ in range(16):
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert page.locator("input[value=all]").is_checked()
    for _ in range(2):
        page.keyboard.press("Tab")
    words = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert re.fullmatch(r"conv1, tower 0: all \d+ maps of \d+ by \d+; strongest .*Enlarge", words)
    page.keyboard.press("Enter")
    title = page.inner_text("#loupe-title")
    assert title.startswith("conv1, kernel ")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#loupe-title") != title
    page.keyboard.press("Escape")
    assert not page.locator("#loupe").is_visible()


def test_a_click_enlarges_the_map_under_the_pointer(open_page: Open, picture: Path) -> None:
    page = open_page()
    give(page, picture.read_bytes(), "coffee.jpg")
    predictions(page)
    page.check("input[value=all]")
    canvas = page.locator("[data-layer=conv3][data-tower='1'] canvas")
    box, columns = canvas.bounding_box(), int(canvas.get_attribute("data-columns"))
    canvas.click(position={"x": box["width"] * 1.5 / columns, "y": 3})
    first = page.evaluate(
        "JSON.parse(document.getElementById('model').textContent).layers[2].rows[1][0]"
    )
    assert page.inner_text("#loupe-title") == f"conv3, kernel {first + 1}, tower 1"
    assert not page.locator("#loupe-kernel").is_visible()


def test_an_unusable_file_is_reported_and_the_next_image_works(
    open_page: Open, picture: Path, inspection: Inspection
) -> None:
    page = open_page()
    for data, words in (
        (b"some words", "not an image in a supported format"),
        (picture.read_bytes()[:900], "The image cannot be used"),
        (b"", "the file is empty"),
    ):
        give(page, data, "notes <b>.txt")
        alert = page.locator("#problem", has_text=words)
        alert.wait_for()
        assert alert.inner_text().startswith("notes <b>.txt: ")
        assert alert.get_attribute("role") == "alert"
    assert page.locator("#predictions li").count() == 0
    give(page, picture.read_bytes(), "coffee.jpg")
    assert predictions(page) == as_text(inspection)
    assert not page.locator("#problem").is_visible()
    page.evaluate("""() => {
      const text = new DataTransfer();
      text.setData("text/plain", "words");
      document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: text, bubbles: true}));
    }""")
    assert "No image file was dropped" in page.inner_text("#problem")
    assert predictions(page) == as_text(inspection)


@pytest.mark.parametrize(
    ("width", "scheme"),
    [(390, "light"), (390, "dark"), (900, "light"), (1280, "light"), (1280, "dark")],
)
def test_the_page_fits_and_can_be_read_before_and_after_an_upload(
    open_page: Open, picture: Path, width: int, scheme: str
) -> None:
    page = open_page(width, color_scheme=scheme)
    scroll_width = "document.documentElement.scrollWidth"
    assert page.evaluate(scroll_width) <= width
    assert unreadable(page) == []
    give(page, picture.read_bytes(), "a-name-without-any-space-" * 4 + ".jpg")
    predictions(page)
    assert page.evaluate(scroll_width) <= width
    assert unreadable(page) == []


def test_tab_reaches_every_control(open_page: Open, picture: Path) -> None:
    page = open_page()
    give(page, picture.read_bytes(), "coffee.jpg")
    predictions(page)
    assert unreachable(page) == []


def test_elements_have_accessible_names_and_predictions_are_announced(
    open_page: Open, picture: Path
) -> None:
    page = open_page()
    give(page, picture.read_bytes(), "coffee.jpg")
    predictions(page)
    assert page.locator("#predictions").locator("xpath=ancestor::*[@aria-live]").count() == 1
    nameless = """() => [...document.querySelectorAll("img, button, input, canvas[role]")]
      .filter((e) => !(e.alt || e.getAttribute("aria-label") || e.textContent.trim()
        || e.closest("label") || e.querySelector("img[alt]"))).map((e) => e.outerHTML)"""
    assert page.evaluate(nameless) == []
    levels = page.evaluate(
        "[...document.querySelectorAll('main h2, main h3')].map((h) => h.tagName)"
    )
    assert levels[:3] == ["H2", "H2", "H2"] and set(levels[3:]) == {"H3"}


def test_the_program_prints_its_address_and_stops_on_an_interrupt(
    saved_run: Path, tmp_path: Path, picture: Path
) -> None:
    words = module("serve", f"checkpoint={saved_run}", "port=0", "device=cpu")
    program, mark = start(words, tmp_path)
    assert program.stdout is not None
    line = program.stdout.readline()
    found = re.fullmatch(r"Open (http://127\.0\.0\.1:\d+/) \(press Ctrl-C to stop\)\n", line)
    assert found is not None
    headers = {"Origin": found[1].rstrip("/")}
    data = picture.read_bytes()
    with requests.Session() as browser:  # keeps its connection open
        answer = browser.post(found[1] + "look", data, headers=headers, timeout=30)
        assert answer.status_code == 200
        program.send_signal(signal.SIGINT)
        ended = finish(program, mark)
    assert (ended.code, ended.err, ended.left) == (0, "", [])
    assert list(tmp_path.iterdir()) == []
