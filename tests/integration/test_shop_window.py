"""The shop window in a real browser, over the real pipeline: what a person does, and then sees.

Playwright, because it drives the system's Chromium through its debugging protocol and needs
nothing beside it: Selenium needs a chromedriver of exactly that version. It also sets dark mode,
reduced motion and a phone's screen without a profile of settings.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from local import demo_catalogue
from local.cli import CATALOGUE, EVENTS
from local.processes import LOOPBACK
from tests.integration.helpers import Pipeline, eventually
from tests.integration.service import Service, serving

NAMES = ("chromium", "chromium-browser", "google-chrome")
# Until a change is seen; a list follows in about a second, on a machine that does all at once.
PATIENCE_MS = 20_000
PHONE = {"width": 390, "height": 844}

expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    named = os.environ.get("RECOMMENDER_CHROMIUM")
    found = named or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(
            "no Chromium for the browser tests: apt-get install chromium,"
            " or name one in RECOMMENDER_CHROMIUM"
        )
    # As root, as in a container, Chromium starts without its sandbox only.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=arguments)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def pipeline(
    browser: Browser, stack: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    with Pipeline.create(stack, "window") as made:
        demo_catalogue.publish(stack.kafka.bootstrap, made.topics[CATALOGUE])
        made.submit()
        made.wait_metric("catalogue_size", demo_catalogue.PRODUCTS)
        yield made


@pytest.fixture(scope="module")
def service(
    pipeline: Pipeline, stack: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with serving(
        stack,
        tmp_path_factory.mktemp("service"),
        RECOMMENDER_CASSANDRA_KEYSPACE=pipeline.keyspace,
        RECOMMENDER_KAFKA_EVENTS_TOPIC=pipeline.topics[EVENTS],
        RECOMMENDER_KAFKA_CATALOGUE_TOPIC=pipeline.topics[CATALOGUE],
        RECOMMENDER_KAFKA_PRODUCTS_TOPIC=pipeline.topics["products"],
        RECOMMENDER_FLINK_URL=stack.flink.rest_url,
        RECOMMENDER_SHOP_USERS="shopper-1,shopper-2",
    ) as running:

        def reading() -> str:
            # Of both workers.
            answers = [running.ask("GET", "/shop/products").json() for _ in range(6)]
            return "" if all(one["complete"] for one in answers) else "the catalogue is not read"

        eventually(reading, 30)
        yield running


class Window:
    """A browser's page with the shop window of a new visitor."""

    def __init__(self, browser: Browser, service: Service, **screen: Any) -> None:
        self.context = browser.new_context(
            **{"viewport": {"width": 1360, "height": 900}, "locale": "en-GB", **screen}
        )
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._console)
        self.page.on("request", lambda one: self.hosts.add(one.url.split("/")[2].split(":")[0]))
        self.page.goto(service.url + "/")
        expect(self.page.locator("#grid .item").first).to_be_visible()
        expect(self.entries.first).to_be_attached()

    def _console(self, message: Any) -> None:
        # Also what the policy against foreign content has refused.
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    @property
    def entries(self) -> Locator:
        return self.page.locator("#list .entry")

    @property
    def user(self) -> str:
        return str(self.page.evaluate("localStorage.getItem('recommender-user')"))

    def listed(self) -> list[str]:
        found = self.entries.evaluate_all("all => all.map(one => one.dataset.product)")
        return [str(one) for one in found]

    def whole_list(self) -> None:
        button = self.page.get_by_role("button", name=re.compile("^Show all"))
        if button.is_visible():
            button.click()

    def search(self, text: str) -> None:
        self.page.get_by_role("searchbox", name="Search the shop").fill(text)
        self.page.keyboard.press("Enter")
        expect(self.page.locator("#shelf-title")).to_contain_text(text)

    def wait_followed(self, what: str) -> None:
        expect(self.page.locator("#fresh")).to_contain_text(f"followed your {what}")

    def look_at_first(self) -> str:
        """Open the first product on the shelves and close it again; the list follows."""
        item = self.page.locator("#grid .item").first
        product = str(item.get_attribute("data-product"))
        item.locator(".name").click()
        self.page.keyboard.press("Escape")
        self.wait_followed("click")
        return product

    def in_list(self, product: str) -> Locator:
        return self.page.locator(f'#list [data-product="{product}"]')

    def on_shelf(self, product: str) -> Locator:
        return self.page.locator(f'#grid [data-product="{product}"]')

    def go(self, view: str) -> None:
        self.page.get_by_role("navigation").get_by_role("button", name=view).click()


@pytest.fixture
def opened(browser: Browser, service: Service) -> Iterator[Any]:
    """Opens windows; each must stay without an error and ask no other host."""
    windows: list[Window] = []

    def open_window(**screen: Any) -> Window:
        windows.append(Window(browser, service, **screen))
        return windows[-1]

    yield open_window
    for one in windows:
        complaints, hosts = one.complaints, one.hosts
        one.context.close()
        assert complaints == []
        assert hosts == {LOOPBACK}


def test_a_click_changes_the_list_and_says_why(opened: Any) -> None:
    window: Window = opened()
    page = window.page
    before = window.listed()
    expect(page.locator("#beliefs")).to_contain_text("Nothing is known")
    window.search("wireless mouse")
    window.wait_followed("search")
    after_search = window.listed()
    window.look_at_first()
    after_click = window.listed()
    assert after_search not in (before, after_click)
    mice = [one for one in after_click if one.startswith("mouse-")]
    assert len(mice) > len(after_click) / 2
    for reason in page.locator("#list .why").all_text_contents():
        assert len(reason) > 5
    # What moved is said to everyone.
    expect(page.locator("#announce")).to_contain_text("Your list has changed")
    expect(page.locator("#list .move.new, #list .move.up").first).to_be_attached()
    expect(page.locator("#beliefs")).to_contain_text("wireless mouse")
    expect(page.locator("#beliefs")).to_contain_text("Mouse")
    expect(page.locator("#map canvas")).to_have_attribute("aria-label", re.compile("near .*Mouse"))


def test_a_search_changes_shelves_and_list(opened: Any) -> None:
    window: Window = opened()
    # One letter is wrong.
    window.search("travel bakpack")
    expect(window.page.locator("#grid .kind").first).to_have_text("Backpack")
    window.search("travel bag")
    expect(window.page.locator("#grid .item").first).to_contain_text("Travel Bag")
    window.wait_followed("search")
    window.whole_list()
    found = window.listed()
    assert sum(one.startswith("backpack-") for one in found) > len(found) / 2


def test_what_is_out_of_stock_is_gone_and_comes_back(opened: Any) -> None:
    window: Window = opened()
    page = window.page
    window.search("fountain pen")
    window.wait_followed("search")
    product = window.listed()[0]
    title = str(window.in_list(product).locator(".name").text_content())
    expect(window.on_shelf(product)).to_be_visible()
    window.go("Catalogue")
    page.get_by_role("searchbox", name="Find in the catalogue").fill(title)
    row = page.locator(f'#ledger [data-product="{product}"]')
    expect(row).to_contain_text("in your list")
    switch = row.get_by_role("switch")
    expect(switch).to_be_checked()
    switch.click()
    expect(window.in_list(product)).to_have_count(0)
    expect(row.get_by_role("switch")).not_to_be_checked()
    expect(row).to_contain_text("sold out")
    window.go("Shop")
    expect(window.on_shelf(product)).to_have_count(0)
    window.go("Catalogue")
    row.get_by_role("switch").click()
    expect(window.in_list(product)).to_have_count(1)


def test_an_added_product_appears_and_a_deleted_one_vanishes(opened: Any) -> None:
    window: Window = opened()
    page = window.page
    window.go("Catalogue")
    # Markup in a title is text: nothing of it runs.
    title = "Hexby 1 TB Portable Memory Card <img src=x onerror=alert(1)> Z99"
    page.get_by_label("Title").fill(title)
    page.get_by_label("Category").fill("STORAGE")
    page.get_by_label("Price").fill("49.90")
    page.get_by_role("button", name="Add to the catalogue").click()
    expect(page.locator("#toasts")).to_contain_text("is in the shop")
    row = page.locator("#ledger .row").first
    expect(row).to_contain_text(title)
    product = str(row.get_attribute("data-product"))
    window.go("Shop")
    window.search("Hexby 1 TB Portable Memory Card")
    expect(window.on_shelf(product)).to_contain_text("49.90")
    window.on_shelf(product).locator(".name").click()
    expect(page.get_by_role("dialog").get_by_role("heading", level=2)).to_have_text(title)
    page.keyboard.press("Escape")
    window.wait_followed("click")
    window.whole_list()
    expect(window.in_list(product)).to_be_visible()
    assert page.locator("img").count() == 1

    window.go("Catalogue")
    row = page.locator(f'#ledger [data-product="{product}"]')
    row.get_by_role("button", name="Delete").click()
    row.get_by_role("button", name="Really delete").click()
    expect(window.in_list(product)).to_have_count(0)
    expect(row).to_have_count(0)
    window.go("Shop")
    expect(window.on_shelf(product)).to_have_count(0)


def test_what_is_bought_or_disliked_leaves_the_list(opened: Any, pipeline: Pipeline) -> None:
    window: Window = opened()
    page = window.page
    window.search("yoga mat")
    window.wait_followed("search")
    bought, disliked = window.listed()[:2]
    window.on_shelf(bought).get_by_role("button", name="Add to cart").click()
    page.get_by_role("button", name="Cart, 1 pieces").click()
    page.get_by_role("dialog").get_by_role("button", name="Buy").click()
    window.wait_followed("purchase")
    expect(window.in_list(bought)).to_have_count(0)
    window.on_shelf(disliked).get_by_role("button", name="Not for me").click()
    window.wait_followed("dislike")
    expect(window.in_list(disliked)).to_have_count(0)
    expect(page.get_by_role("button", name="Cart, empty")).to_be_visible()
    user = window.user

    def unsaved() -> str:
        found = {row.event.type for row in pipeline.rows() if row.event.user_id == user}
        wanted = {"search", "add_to_cart", "purchase", "dislike"}
        return "" if found == wanted else f"saved: {found}"

    eventually(unsaved, 20)


def test_erase_me_leaves_nothing(opened: Any, pipeline: Pipeline) -> None:
    window: Window = opened()
    page = window.page
    window.search("acoustic guitar")
    window.wait_followed("search")
    window.look_at_first()
    user, personal = window.user, window.listed()
    page.get_by_role("button", name="Erase me").click()
    page.get_by_role("dialog").get_by_role("button", name="Erase").click()
    expect(page.locator("#toasts")).to_contain_text("Erased in")
    expect(page.locator("#beliefs")).to_contain_text("Nothing is known")
    expect(page.locator("#fresh")).to_contain_text("nothing is known of you yet")
    assert window.listed() != personal
    assert pipeline.list_of(user) is None
    assert user not in {row.event.user_id for row in pipeline.rows()}
    # Also in the job's state: what comes now is all that it knows.
    window.search("teapot")
    window.wait_followed("search")
    assert not any(one.startswith("guitar-") for one in window.listed())


def test_all_of_it_goes_by_keyboard(opened: Any) -> None:
    window: Window = opened()
    page = window.page
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="To the recommendations")).to_be_focused()
    page.keyboard.press("/")
    search = page.get_by_role("searchbox", name="Search the shop")
    expect(search).to_be_focused()
    page.keyboard.type("desk lamp")
    page.keyboard.press("Enter")
    expect(page.locator("#grid .item").first).to_contain_text("Desk Lamp")
    window.wait_followed("search")
    first = page.locator("#grid .item").first.locator(".name")
    for _ in range(80):
        if first.evaluate("one => one === document.activeElement"):
            break
        page.keyboard.press("Tab")
    expect(first).to_be_focused()
    ring = first.evaluate("one => getComputedStyle(one, '::after').outlineStyle")
    assert ring == "solid"
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    expect(dialog.get_by_role("button", name="Add to cart")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(first).to_be_focused()
    page.keyboard.press("/")
    page.keyboard.press("Escape")
    expect(search).to_have_value("")
    expect(page.locator("#shelf-title")).to_have_text("All products")


def test_a_phone_shows_every_view_without_scrolling_sideways(opened: Any) -> None:
    window: Window = opened(viewport=PHONE, has_touch=True, is_mobile=True)
    page = window.page
    page.locator("#grid .item .name").first.tap()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert fits(page)
    page.get_by_role("dialog").get_by_role("button", name="Close").tap()
    # The list is in another view: its button tells of the change.
    expect(page.locator("#changed")).to_be_visible()
    for view, part in (
        ("Shop", "#grid .item >> nth=0"),
        ("For you", "#list .entry >> nth=0"),
        ("Catalogue", "#ledger .row >> nth=0"),
        ("Live", "#charts .chart >> nth=0"),
    ):
        window.go(view)
        expect(page.locator(part)).to_be_visible()
        assert fits(page), view
    expect(page.locator("#changed")).to_be_hidden()


def fits(page: Page) -> bool:
    return bool(
        page.evaluate(
            "[...document.querySelectorAll('html, dialog[open]')]"
            ".every(one => one.scrollWidth <= one.clientWidth)"
        )
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(opened: Any, scheme: str) -> None:
    window: Window = opened(color_scheme=scheme)
    page = window.page
    paper = luminance(page, "body", "backgroundColor")
    assert (paper < 0.05) == (scheme == "dark")
    for selector, ground in (
        ("#grid .name", "#grid .item"),
        ("#grid .kind", "#grid .item"),
        ("#list .why", "#list .entry"),
        ("#shelf-note", "body"),
        ("#erase", "#erase"),
    ):
        text = luminance(page, selector, "color")
        behind = luminance(page, ground, "backgroundColor")
        contrast = (max(text, behind) + 0.05) / (min(text, behind) + 0.05)
        # What WCAG 2 asks of text, level AA.
        assert contrast >= 4.5, (selector, contrast)


def luminance(page: Page, selector: str, what: str) -> float:
    """The relative luminance of a colour of an element, as WCAG 2 defines it."""
    red, green, blue = page.locator(selector).first.evaluate(
        """(one, what) => {
            const pen = document.createElement('canvas').getContext('2d');
            pen.fillStyle = getComputedStyle(one)[what];
            pen.fillRect(0, 0, 1, 1);
            return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
        }""",
        what,
    )

    def linear(value: int) -> float:
        share = value / 255
        return float(share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4)

    return 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue)


def test_nothing_moves_where_motion_is_not_wanted(opened: Any) -> None:
    window: Window = opened(reduced_motion="reduce")
    window.page.evaluate(
        "() => { window.moved = 0; const old = Element.prototype.animate;"
        " Element.prototype.animate = function (...all)"
        " { window.moved += 1; return old.apply(this, all); }; }"
    )
    window.search("trail running shoes")
    window.wait_followed("search")
    assert window.page.evaluate("window.moved") == 0
    assert window.page.evaluate("document.getAnimations().length") == 0


def test_live_figures_come_from_flink(opened: Any) -> None:
    window: Window = opened()
    page = window.page
    window.go("Live")
    expect(page.locator("#live-state")).to_have_text("connected to Flink")
    window.go("Shop")
    window.look_at_first()
    window.go("Live")
    events = page.locator(".chart", has_text="Events read")
    expect(events.get_by_role("img")).to_have_attribute("aria-label", re.compile("now [0-9]"))
    products = page.locator(".chart", has_text="Products").locator(".now")
    expect(products).to_contain_text(re.compile("[12],[0-9]{3}"))
    expect(page.locator("#live-note")).to_contain_text("events since the job began")


def test_users_can_be_chosen(opened: Any) -> None:
    window: Window = opened()
    page = window.page
    visitor = window.user
    picker = page.get_by_label("Who is at the shop")
    picker.select_option("shopper-1")
    expect(page.locator("#fresh")).to_contain_text("nothing is known of you yet")
    window.search("electric kettle")
    window.wait_followed("search")
    teas = window.listed()
    picker.select_option("New visitor")
    expect(page.locator("#fresh")).to_contain_text("nothing is known of you yet")
    assert window.user not in (visitor, "shopper-1")
    picker.select_option("shopper-1")
    expect(page.locator("#beliefs")).to_contain_text("electric kettle")
    assert window.listed() == teas
    picker.select_option("Another user …")
    page.get_by_role("dialog").get_by_label("User id").fill("shopper/9")
    page.keyboard.press("Enter")
    expect(page.locator("#beliefs")).to_contain_text("Nothing is known")
    assert window.user == "shopper/9"


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("viewed:p:1", "You looked at The p:1"),
        ("bought:p1", "You bought The p1"),
        ("searched:red tea", "You searched for “red tea”"),
        ("profile", "Close to what you did lately"),
        ("trending in OFFICE_CHAIR", "Popular now in Office chair"),
        ("trending", "Popular now"),
        ("new in TEA", "New in Tea"),
        ("new", "New in the shop"),
        ("in the catalogue", "From the whole shop, to begin with"),
        ("in TEA", "From Tea"),
        ("<b>another code", "<b>another code"),
    ],
)
def test_reasons_are_sentences(service: Service, browser: Browser, reason: str, said: str) -> None:
    page = browser.new_page()
    page.goto(service.url + "/shop/settings")
    found = page.evaluate(
        "async (reason) => (await import('/shop/files/reasons.js'))"
        ".sentence(reason, (product) => `The ${product}`)",
        reason,
    )
    page.close()
    assert found == said
