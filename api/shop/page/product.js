// The page of one product, above the shelves; its address can be shared (#product=…).

import { get, id } from "./api.js";
import { buy, openCartWith } from "./cart.js";
import { dislike } from "./dislikes.js";
import { $, h, icon, price, toast } from "./dom.js";
import { product as findProduct, recall, remember } from "./products.js";
import { sentence } from "./reasons.js";
import { session, track } from "./session.js";
import { readable, tile } from "./tiles.js";

const MARK = "#product=";
const ALIKE = 6;

export function startProduct() {
  $("product").addEventListener("close", () => {
    if (location.hash.startsWith(MARK)) history.replaceState(null, "", location.pathname);
  });
  addEventListener("hashchange", openAddressed);
  openAddressed();
}

async function openAddressed() {
  if (!location.hash.startsWith(MARK)) return;
  const found = await findProduct(decodeURIComponent(location.hash.slice(MARK.length)));
  if (found) openProduct(found);
  else toast("There is no such product.");
}

/** Show a product, and tell that the visitor looks at it. */
export function openProduct(product) {
  track("click", { product_id: product.product_id }).catch((error) =>
    toast(`The click was not sent: ${error.message}`),
  );
  history.replaceState(null, "", MARK + id(product.product_id));
  const dialog = $("product");
  const close = () => dialog.close();
  const alike = h("div.alike", { hidden: true });
  dialog.replaceChildren(
    h(
      "button.round.closer",
      { type: "button", "aria-label": "Close", on: { click: close } },
      icon("close"),
    ),
    h(
      "div.detail",
      {},
      tile(product),
      h(
        "div.text",
        {},
        h("p.kind", {}, readable(product.category)),
        h("h2", { id: "product-title" }, product.title || product.product_id),
        h(
          "p.price",
          {},
          price(product.price),
          h("small", {}, product.in_stock === false ? "out of stock" : "in stock"),
        ),
        place(product),
        h(
          "div.buttons",
          {},
          h(
            "button.strong",
            {
              type: "button",
              autofocus: true,
              disabled: product.in_stock === false,
              on: { click: () => (close(), openCartWith(product)) },
            },
            "Add to cart",
          ),
          h(
            "button.soft",
            {
              type: "button",
              disabled: product.in_stock === false,
              on: { click: () => (close(), buy([{ product, quantity: 1 }])) },
            },
            "Buy now",
          ),
          h(
            "button.quiet",
            { type: "button", on: { click: () => (close(), dislike(product)) } },
            "Not for me",
          ),
        ),
      ),
    ),
    alike,
  );
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  fillAlike(alike, product);
}

/** Where the product stands in the visitor's list, and why. */
function place(product) {
  const items = session.list?.items ?? [];
  const at = items.findIndex((one) => one.product_id === product.product_id);
  if (at < 0) return null;
  const why = sentence(items[at].reason, (one) => recall(one)?.title || one);
  return h("p.place", {}, `Number ${at + 1} of your list. ${why}.`);
}

async function fillAlike(box, product) {
  let found;
  try {
    found = await get(`/v1/products/${id(product.product_id)}/similar?limit=${ALIKE}`);
  } catch {
    // A product that was added a moment ago has no neighbours yet; the page is whole without them.
    return;
  }
  remember(found.items);
  if (!found.items.length || !box.isConnected) return;
  box.replaceChildren(
    h("h3", {}, "Similar"),
    h(
      "ul",
      {},
      found.items.map((one) =>
        h(
          "li.item",
          {},
          tile(one),
          h(
            "div.text",
            {},
            h(
              "button.name",
              { type: "button", title: one.title, on: { click: () => openProduct(one) } },
              one.title,
            ),
          ),
        ),
      ),
    ),
  );
  box.hidden = false;
}
