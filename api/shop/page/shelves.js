// The shelves: categories, search as it is typed, and the products to click on.

import { ApiError, get } from "./api.js";
import { openCartWith } from "./cart.js";
import { dislike, isDisliked } from "./dislikes.js";
import { $, count, debounce, h, icon, price, toast } from "./dom.js";
import { Poll } from "./poll.js";
import { openProduct } from "./product.js";
import { remember } from "./products.js";
import { on, track } from "./session.js";
import { knowCategories, readable, tile, tint } from "./tiles.js";

const PAGE = 48;
// A search counts as one when nothing more is typed for so long, or with the Enter key.
const SEARCHED_MS = 900;
const LEAST_CHARACTERS = 3;

// The catalogue changes under the visitor's eyes, but not every moment.
const LOOK_MS = 2000;

const shown = { category: null, limit: PAGE };
const poll = new Poll(path, take, (error) => {
  if (error) $("shelf-note").textContent = `The shelves cannot be read: ${error.message}`;
}, LOOK_MS);
let searched = "";

export async function startShelves() {
  $("search").addEventListener("input", () => {
    shown.limit = PAGE;
    refreshSoon();
    searchSoon();
  });
  $("search").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && $("search").value) {
      event.preventDefault();
      $("search").value = "";
      searchSoon.cancel();
      shown.limit = PAGE;
      refresh();
    }
  });
  $("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    searchSoon.cancel();
    searchNow();
    refresh();
  });
  $("more").addEventListener("click", () => {
    shown.limit += PAGE;
    refresh();
  });
  on("user", () => {
    searched = "";
    refresh();
  });
  await refreshCategories();
  poll.start();
}

/** Look at the shelves again and again while they are shown. */
export function watchShelves(open) {
  if (open && !poll.running) poll.start();
  else if (!open) poll.stop();
}

const refreshSoon = debounce(160, () => refresh());
const searchSoon = debounce(SEARCHED_MS, () => searchNow());

function searchNow() {
  const query = typed();
  if ([...query].length < LEAST_CHARACTERS || query === searched) return;
  searched = query;
  track("search", { query }).catch((error) => toast(`The search was not sent: ${error.message}`));
}

export async function refreshCategories() {
  let found;
  try {
    ({ categories: found } = await get("/shop/categories"));
  } catch (error) {
    if (error instanceof ApiError) return;
    throw error;
  }
  knowCategories(found.map(([name]) => name));
  const chip = (name, text) =>
    h(
      "button.chip",
      {
        type: "button",
        "aria-pressed": String(shown.category === name),
        on: { click: () => choose(name) },
      },
      name === null ? null : tint(h("i.swatch"), name),
      text,
    );
  const chips = $("chips");
  const at = chips.scrollLeft;
  const focused = [...chips.children].indexOf(document.activeElement);
  chips.replaceChildren(
    chip(null, "All"),
    ...found.filter(([, , inStock]) => inStock).map(([name]) => chip(name, readable(name))),
  );
  chips.scrollLeft = at;
  if (focused >= 0) chips.children[focused]?.focus();
  $("known-categories").replaceChildren(...found.map(([name]) => h("option", { value: name })));
}

function choose(category) {
  shown.category = category;
  shown.limit = PAGE;
  refreshCategories();
  refresh();
}

/** Show what the shelves hold now. */
export function refresh() {
  if (poll.running) poll.now();
}

const typed = () => $("search").value.trim();

function path() {
  const asked = new URLSearchParams({ limit: Math.min(shown.limit, 500) });
  if (typed()) asked.set("query", typed());
  if (shown.category) asked.set("category", shown.category);
  return `/shop/products?${asked}`;
}

function take(found) {
  const query = typed();
  remember(found.products);
  const category = shown.category ? readable(shown.category) : null;
  $("shelf-title").textContent = query
    ? `“${query}”${category ? ` in ${category}` : ""}`
    : (category ?? "All products");
  $("shelf-note").textContent = found.complete
    ? `${count(found.total)} ${found.total === 1 ? "product" : "products"}`
    : "The catalogue is being read …";
  $("more").hidden = found.products.length >= found.total || shown.limit >= 500;
  const tiles = [];
  let before = null;
  for (const one of found.products) {
    if (one.match === "meaning" && before !== "meaning") {
      tiles.push(h("li.divider", {}, before ? "Close in meaning" : "No such words; close in meaning"));
    }
    before = one.match;
    tiles.push(item(one));
  }
  if (!tiles.length) {
    tiles.push(h("li.empty", {}, query ? `Nothing is found for “${query}”.` : "The shelves are empty."));
  }
  const focused = document.activeElement?.closest("#grid .item");
  const at = focused ? [...focused.querySelectorAll("button")].indexOf(document.activeElement) : -1;
  $("grid").replaceChildren(...tiles);
  if (focused) {
    const again = tiles.find((one) => one.dataset.product === focused.dataset.product);
    again?.querySelectorAll("button")[at]?.focus({ preventScroll: true });
  }
}

function item(product) {
  return h(
    `li.item${isDisliked(product.product_id) ? ".disliked" : ""}`,
    { "data-product": product.product_id },
    tile(product),
    h(
      "div.text",
      {},
      h("p.kind", {}, readable(product.category)),
      h(
        "button.name",
        { type: "button", title: product.title, on: { click: () => openProduct(product) } },
        product.title,
      ),
    ),
    h(
      "div.foot",
      {},
      h("span.price", {}, price(product.price)),
      h(
        "span.acts",
        {},
        h(
          "button.round",
          {
            type: "button",
            "aria-label": `Not for me: ${product.title}`,
            title: "Not for me",
            on: { click: () => dislike(product) },
          },
          icon("no"),
        ),
        h(
          "button.round",
          {
            type: "button",
            "aria-label": `Add to cart: ${product.title}`,
            title: "Add to cart",
            on: { click: () => openCartWith(product) },
          },
          icon("plus"),
        ),
      ),
    ),
  );
}
