"""The page in a real browser, before the real server and as static files; see `browser.py`."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serve.browser import A_AGAIN, SHAPES, WAVE_POINTS, Visit, chromium
from serve.screenshots import drawing

pytest.importorskip("uvicorn", reason="the page needs the extra serve")

from serve.running import running

from headstart.serve.app import application
from headstart.serve.workers import Models
from headstart.shipped import shipped
from headstart.tasks import omniglot
from headstart.types import Batch, Task

PAGE = Path(__file__).parents[2] / "src" / "headstart" / "serve" / "page"
Visiting = Callable[..., Visit]


@contextmanager
def _serving(app: Any) -> Iterator[str]:
    """The address of an application that is served meanwhile."""
    with running(app) as (host, port):
        yield f"http://{host}:{port}/"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def served(browser: Any) -> Iterator[str]:
    """The page as `headstart serve RUN` gives it; the run is one that comes with the package."""
    characters = shipped("characters")
    models = Models(characters, shipped("curve-maml"), shipped("curve-pretrained"), shipped("characters"))
    with _serving(application(models)) as address:
        yield address


@pytest.fixture(scope="module")
def static(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The static variant, by a server that knows files only, below a path."""
    runtime = Path(os.environ.get("HEADSTART_ORT_WEB", "node_modules/onnxruntime-web/dist"))
    if not (runtime / "ort.wasm.min.mjs").is_file():
        pytest.skip("onnxruntime-web is not here: npm install it, or set HEADSTART_ORT_WEB to its folder dist")
    pytest.importorskip("onnxscript", reason="the graphs need the extra export")
    from headstart.serve.static import build

    folder = tmp_path_factory.mktemp("host")
    build(folder / "below" / "page", runtime)
    handler = partial(_Files, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/below/page/"
        server.shutdown()
        thread.join()


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@pytest.fixture(params=["served", "static"])
def visiting(request: pytest.FixtureRequest, browser: Any) -> Iterator[Visiting]:
    """Opens the page, by server or static; at the end nothing may have gone wrong on it."""
    address = request.getfixturevalue(request.param)
    visits: list[Visit] = []

    def visit(**options: Any) -> Visit:
        visits.append(Visit(browser, address, **options))
        return visits[-1]

    yield visit
    for each in visits:
        each.close()


@pytest.fixture
def by_server(browser: Any, served: str) -> Iterator[Visit]:
    visit = Visit(browser, served)
    yield visit
    visit.close()


def test_the_character_drawn_again_wins(visiting: Visiting):
    visit = visiting()
    for name, strokes in SHAPES.items():
        visit.draw(name, strokes)
    assert "Now draw one of the five again" in visit.page.inner_text(".verdict")
    visit.draw("?", A_AGAIN)

    shown = visit.probabilities()

    assert visit.winner() == "A"
    assert [sum(step) for step in shown] == pytest.approx([1] * 4, abs=1e-3)
    assert shown[3][0] > max(0.5, shown[0][0])
    assert "Adapted in" in visit.page.inner_text("#panel-characters .verdict")


def test_undo_and_clear_ask_for_what_is_missing(visiting: Visiting):
    visit = visiting()
    for name, strokes in SHAPES.items():
        visit.draw(name, strokes)
    visit.draw("?", A_AGAIN)
    visit.probabilities()
    visit.page.click('button[aria-label="Undo in Character B"]')
    visit.page.wait_for_selector("text=Still to draw: B.")
    assert visit.page.locator(".verdict-line").count() == 0
    visit.draw("B", SHAPES["B"])
    visit.probabilities()
    visit.page.click('#panel-characters >> text="Clear all"')
    visit.page.wait_for_selector("text=Draw five characters, or fill")


def test_omniglot_characters_of_another_person_are_mostly_recognised(visiting: Visiting):
    visit = visiting()
    right = 0
    for _ in range(6):
        visit.page.click('#panel-characters >> text="Clear all"', force=True)
        visit.page.click("text=Fill with Omniglot characters")
        visit.probabilities()
        told = visit.page.inner_text(".verdict-line")
        assert "Right: " in told or "Wrong: it is " in told
        right += "Right: " in told
    assert right >= 3  # of 6, where chance gives 1.2


def test_the_curve_bends_to_the_points_and_its_error_falls(visiting: Visiting):
    visit = visiting()
    visit.tab("Curve")
    visit.click_points(WAVE_POINTS)

    maml, pretrained = visit.errors("maml"), visit.errors("pretrained")

    assert len(maml) == len(pretrained) == 11
    assert maml[1] < 0.5 * maml[0]
    assert maml[10] < min(0.2 * maml[0], 0.5 * pretrained[10])
    visit.page.wait_for_function("document.querySelectorAll('.plot .earlier').length === 10")
    last = visit.page.get_attribute(".plot path.maml", "d")
    visit.page.locator("#panel-curve input[type=range]").fill("0")
    assert visit.page.inner_text("#panel-curve output") == "before"
    assert visit.page.get_attribute(".plot path.maml", "d") != last
    assert visit.page.locator(".plot .earlier").count() == 0


def test_a_random_sine_is_played_step_by_step_and_its_true_error_falls(visiting: Visiting):
    visit = visiting(reduced_motion="no-preference")
    visit.tab("Curve")
    visit.page.evaluate(
        """() => {
            window.shown = [];
            const panel = document.querySelector("#panel-curve");
            const note = () => window.shown.push(parseInt(panel.querySelector("output")?.textContent));
            new MutationObserver(note).observe(panel, {subtree: true, childList: true, characterData: true});
        }"""
    )
    visit.page.click("text=Draw a random sine")
    visit.page.wait_for_selector(".plot path.truth")
    visit.page.wait_for_selector('#panel-curve output:text("10 steps")')
    shown = [step for step in visit.page.evaluate("window.shown") if step is not None]
    assert shown == sorted(shown)
    assert len(set(shown)) > 3  # one after the other, and not the last at once
    assert visit.page.locator(".plot .point").count() == 5
    errors = visit.errors("maml")
    assert min(errors[1:]) < errors[0]
    assert visit.page.is_visible("text=Error against the true sine")
    visit.page.click('#panel-curve >> text="Clear all"')
    visit.page.wait_for_selector("text=click or tap to add a point")


def test_a_click_on_a_point_removes_it(visiting: Visiting):
    visit = visiting()
    visit.tab("Curve")
    visit.click_points(WAVE_POINTS[:2])
    visit.page.mouse.click(*visit._pixel(*WAVE_POINTS[0]))
    visit.page.wait_for_selector('.plot[aria-label^="Plot of 1 points"]')


def test_all_of_it_works_by_keyboard(visiting: Visiting):
    visit = visiting()
    press = visit.page.keyboard.press
    press("Tab")  # the tab that is chosen
    press("Tab")
    assert visit.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Character A, empty"
    for key in ("ArrowLeft", "Space", "ArrowRight", "Shift+ArrowDown", "Space"):
        press(key)
    visit.page.wait_for_selector('canvas[aria-label="Character A, drawn"]')
    press("Backspace")
    visit.page.wait_for_selector('canvas[aria-label="Character A, empty"]')
    visit.page.focus("text=Fill with Omniglot characters")
    press("Enter")
    visit.probabilities()

    visit.page.focus("role=tab[name=Characters]")
    press("ArrowRight")
    assert visit.page.evaluate("document.activeElement.textContent.trim()") == "Curve"
    visit.page.focus(".plot")
    for key in ("ArrowUp", "Enter", "Shift+ArrowRight", "Shift+ArrowRight", "Shift+ArrowUp", "Space"):
        press(key)
    visit.page.wait_for_selector('.plot[aria-label^="Plot of 2 points, cross at 2, 1.25"]')
    press("Delete")
    visit.page.wait_for_selector('.plot[aria-label^="Plot of 1 points"]')
    assert visit.errors("maml")


def test_a_phone_shows_it_without_scrolling_sideways_and_draws_by_touch(visiting: Visiting):
    visit = visiting(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    for name in ("Your model", "Curve", "Characters"):
        visit.tab(name)
        assert visit.scroll_width() == 360
    box = visit.pad("A").bounding_box()
    x, y = box["x"] + 20, box["y"] + 20
    touch = visit.context.new_cdp_session(visit.page)
    for kind, at in (("touchStart", y), ("touchMove", y + 20), ("touchMove", y + 60), ("touchEnd", None)):
        points = [] if at is None else [{"x": x, "y": at}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    visit.page.wait_for_selector('canvas[aria-label="Character A, drawn"]')
    assert visit.page.evaluate("scrollY") == 0
    visit.page.click("text=Fill with Omniglot characters")
    visit.probabilities()
    assert visit.scroll_width() == 360


def test_images_of_ones_own_are_named_by_the_run(by_server: Visit, tmp_path: Path):
    page = by_server.page
    by_server.tab("Your model")
    page.click("text=Add a class")
    page.click("text=Adapt and predict")
    page.wait_for_selector("text=Give every class a name.")
    for index, (name, character) in enumerate((("fish", 3), ("boat", 20), ("tree", 41)), start=1):
        page.fill(f'input[aria-label="Name of class {index}"]', name)
        page.set_input_files(f'input[aria-label="Images of {name}"]', drawing(tmp_path, f"{name}-0", character, 0))
        page.wait_for_selector(f'button[aria-label="Remove {name}-0.png from Images of {name}"]')
    queries = [drawing(tmp_path, name, character, 1) for name, character in (("tree", 41), ("fish", 3))]
    page.set_input_files('input[aria-label="Images to name"]', queries)
    page.click("text=Adapt and predict")
    page.wait_for_selector(".predictions")
    assert page.locator(".predictions .winner").all_inner_texts() == ["tree", "fish"]
    assert page.locator(".predictions .bars li").count() == 6


def test_too_much_is_told_before_it_is_sent(by_server: Visit, tmp_path: Path):
    page = by_server.page
    by_server.tab("Your model")
    for index, name in enumerate(("fish", "boat"), start=1):
        page.fill(f'input[aria-label="Name of class {index}"]', name)
        page.set_input_files(f'input[aria-label="Images of {name}"]', drawing(tmp_path, name, 3 * index, 0))
    one = drawing(tmp_path, "new", 3, 1)
    page.set_input_files('input[aria-label="Images to name"]', [one] * 51)
    page.route("**/api/run", lambda route: route.abort())
    page.click("text=Adapt and predict")
    page.wait_for_selector("text=There are 51 images to name: give 50 at most.")
    page.click('button[aria-label="Remove new.png from Images to name"] >> nth=0')
    one.write_bytes(bytes(10 * 2**20 + 1))
    page.set_input_files('input[aria-label="Images of boat"]', one)
    page.click("text=Adapt and predict")
    page.wait_for_selector("text=new.png is larger than 10 MiB: make it smaller.")


def test_an_adapted_model_asks_for_images_to_name_only(browser: Any, tmp_path: Path):
    characters = shipped("characters")
    images = {name: [drawing(tmp_path, name, character, 0)] for name, character in (("fish", 3), ("boat", 20))}
    adapted = characters.adapt(characters.inputs.examples(images, characters.inputs.image))
    models = Models(characters, shipped("curve-maml"), shipped("curve-pretrained"), adapted)
    with _serving(application(models)) as address:
        visit = Visit(browser, address)
        visit.tab("Your model")
        visit.page.wait_for_selector("text=in 3 gradient steps, tells apart fish, boat.")
        assert visit.page.locator(".class").count() == 0
        again = [drawing(tmp_path, f"{name}-1", character, 1) for name, character in (("boat", 20), ("fish", 3))]
        visit.page.set_input_files('input[aria-label="Images to name"]', again)
        visit.page.click('#panel-your-model >> text="Predict"')
        visit.page.wait_for_selector(".predictions")
        assert visit.page.locator(".predictions .winner").all_inner_texts() == ["boat", "fish"]
        visit.close()


def test_dropped_files_are_taken_and_what_is_no_image_is_told(by_server: Visit, tmp_path: Path):
    page = by_server.page
    by_server.tab("Your model")
    for index, name in enumerate(("fish", "boat"), start=1):
        page.fill(f'input[aria-label="Name of class {index}"]', name)
        page.set_input_files(f'input[aria-label="Images of {name}"]', drawing(tmp_path, name, 3 * index, 0))
    transfer = page.evaluate_handle(
        """() => {
          const transfer = new DataTransfer();
          transfer.items.add(new File(["no image"], "letter.txt"));
          return transfer;
        }"""
    )
    page.locator(".files").last.dispatch_event("drop", {"dataTransfer": transfer})
    page.wait_for_selector("text=letter.txt")
    page.click("text=Adapt and predict")
    page.wait_for_selector("#panel-your-model .failure >> text=letter.txt")
    assert any("422" in each for each in by_server.wrong)
    by_server.wrong.clear()  # a browser logs every 4xx


def test_a_refusal_is_shown_in_the_servers_words_and_goes_when_it_is_over(by_server: Visit):
    page = by_server.page
    by_server.tab("Curve")
    refusal = {"status": 422, "content_type": "application/json", "body": json.dumps({"error": "Too steep a curve."})}
    page.route("**/api/curve", lambda route: route.fulfill(**refusal))
    by_server.click_points(WAVE_POINTS[:1])
    page.wait_for_selector("#panel-curve .failure >> text=Too steep a curve.")
    page.unroute("**/api/curve")
    by_server.wrong.clear()
    by_server.click_points([])
    page.mouse.click(*by_server._pixel(2, 2))
    page.wait_for_selector(".plot path.maml")
    assert page.locator("#panel-curve .failure").count() == 0


def test_a_late_answer_to_an_old_question_is_dropped(by_server: Visit):
    page = by_server.page
    by_server.tab("Curve")
    held: list[Any] = []
    page.route("**/api/curve", lambda route: held.append(route))
    for number, point in enumerate(WAVE_POINTS[:2], start=1):
        page.mouse.click(*by_server._pixel(*point))
        while len(held) < number:
            page.wait_for_timeout(20)
    for route, level in ((held[1], 1.0), (held[0], -1.0)):
        curve = {"x": [-5, 5], "maml": [[level] * 2] * 11, "pretrained": [[0, 0]] * 11, "adaptation_ms": 1}
        route.fulfill(content_type="application/json", body=json.dumps(curve))
    page.wait_for_selector(".plot path.maml", state="attached")
    newest = page.get_attribute(".plot path.maml", "d")
    page.wait_for_timeout(200)
    assert page.get_attribute(".plot path.maml", "d") == newest
    assert by_server.errors("maml")[0] == pytest.approx(np.mean([(1 - y) ** 2 for _, y in WAVE_POINTS[:2]]), rel=0.05)


def test_what_the_network_sees_is_what_it_was_trained_on(by_server: Visit, omniglot_data: Path):
    """Drawings through the page's canvas beside the same from the data set, which Lanczos made small."""
    seen = _seen(by_server)
    listing = json.loads((PAGE / "omniglot" / "characters.json").read_text(encoding="utf-8"))
    store = omniglot.split(omniglot.load(omniglot_data), "released", "test")
    rows = [store.names.index(name) for name in listing["characters"]]
    trained = store.images[rows][:, [drawer - 1 for drawer in listing["drawers"]], 0].float()

    assert seen.shape == trained.shape
    assert (seen - trained).abs().mean() < 4
    assert torch.corrcoef(torch.stack([seen.flatten(), trained.flatten()]))[0, 1] > 0.98
    assert abs(_accuracy(seen) - _accuracy(trained)) < 0.03


def _seen(visit: Visit) -> torch.Tensor:
    """What the page's code makes of each of its example drawings, `[characters, drawings, 28, 28]`."""
    values = visit.page.evaluate(
        """async () => {
          const { pixels } = await import("./page/drawing.js");
          const { allCells } = await import("./page/omniglot.js");
          const cells = await allCells();
          return cells.map((drawings) => drawings.map((cell) => pixels({ strokes: [], cell })));
        }"""
    )
    return torch.tensor(values, dtype=torch.float32).unflatten(-1, (28, 28))


def _accuracy(drawings: torch.Tensor, tasks: int = 100) -> float:
    """The shipped model's on 5-way 1-shot tasks, all queries by another person."""
    learner = shipped("characters").learner
    generator = torch.Generator().manual_seed(0)
    right = 0.0
    for _ in range(tasks):
        chosen = torch.randperm(len(drawings), generator=generator)[:5]
        support, query = drawings[chosen][:, torch.randperm(drawings.shape[1], generator=generator)[:2]].unbind(1)
        batches = [Batch((images / 255)[None, :, None], torch.arange(5)[None]) for images in (support, query)]
        outputs = learner.predict(Task(*batches), 3, norm="support")[0, -1]
        right += (outputs.argmax(-1) == torch.arange(5)).float().mean().item()
    return right / tasks
