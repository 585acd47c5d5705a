// The catalogue tab: change products, and see them appear and vanish.

import { get, id, request } from "./api.js";
import { $, announce, debounce, h, price, toast } from "./dom.js";
import { lookAgain } from "./foryou.js";
import { openProduct } from "./product.js";
import { forget, remember } from "./products.js";
import { on, session } from "./session.js";
import { refreshCategories } from "./shelves.js";
import { readable, tile } from "./tiles.js";

const ROWS = 30;
const AGAIN_MS = 1000;
// A worker has read its own write's way through Kafka long before.
const WAIT_MS = 10000;

let round = 0;
let shown = "";
let timer = 0;

export function startCatalogue() {
  $("add-form").addEventListener("submit", add);
  for (const field of ["add-title", "add-category"]) $(field).addEventListener("input", preview);
  $("find").addEventListener("input", debounce(160, refresh));
  on("list", places);
  preview();
}

/** Look at the catalogue again and again while its tab is open. */
export function watchCatalogue(open) {
  clearInterval(timer);
  if (!open) return;
  refresh();
  timer = setInterval(() => document.hidden || refresh(), AGAIN_MS);
}

function draft() {
  const title = $("add-title").value.trim();
  const category = $("add-category").value.trim();
  return { product_id: title || "new", title, category };
}

function preview() {
  $("preview").replaceChildren(tile(draft()));
}

async function add(event) {
  event.preventDefault();
  const { title, category } = draft();
  const words = title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 60);
  const product = `${words || "product"}-${Date.now().toString(36)}`;
  const given = $("add-price").value;
  try {
    await request("PUT", `/v1/products/${id(product)}`, {
      body: { title, category, price: given === "" ? null : Number(given), in_stock: true },
    });
  } catch (error) {
    toast(`It was not added: ${error.message}`);
    return;
  }
  const began = performance.now();
  event.target.reset();
  preview();
  // Among the last changed and not by its id: until the service has read it, that would be an error.
  const found = await until(async () =>
    (await ledger("")).products.find((one) => one.product_id === product),
  );
  if (!found) return;
  const seconds = ((performance.now() - began) / 1000).toFixed(1);
  remember([found]);
  toast(`“${title}” is in the shop, ${seconds} s after it was added.`, {
    text: "Look at it",
    run: () => openProduct(found),
  });
  refresh();
  refreshCategories();
  lookAgain();
}

function ledger(query) {
  const asked = new URLSearchParams({ stock: "all", order: "newest", limit: ROWS });
  if (query) asked.set("query", query);
  return get(`/shop/products?${asked}`);
}

async function until(look) {
  const end = performance.now() + WAIT_MS;
  while (performance.now() < end) {
    const found = await look().catch(() => null);
    if (found) return found;
    await new Promise((later) => setTimeout(later, 150));
  }
  toast("Kafka has the change; the service has not read it yet.");
  return null;
}

async function refresh() {
  const mine = ++round;
  let found;
  try {
    found = await ledger($("find").value.trim());
  } catch (error) {
    $("ledger").replaceChildren(h("li.empty", {}, `The catalogue cannot be read: ${error.message}`));
    shown = "";
    return;
  }
  if (mine !== round) return;
  remember(found.products);
  const state = JSON.stringify(found.products.map((one) => [one.product_id, one.in_stock, one.updated_at]));
  // A row that somebody is about to click shall not be made anew under the hand.
  if (state !== shown) {
    shown = state;
    const focused = document.activeElement?.dataset?.keep;
    $("ledger").replaceChildren(...found.products.map(row));
    if (!found.products.length) $("ledger").append(h("li.empty", {}, "Nothing is found."));
    if (focused) document.querySelector(`[data-keep="${CSS.escape(focused)}"]`)?.focus();
  }
  places();
}

function row(product) {
  const stock = h(
    "button.switch",
    {
      type: "button",
      role: "switch",
      "aria-checked": String(product.in_stock),
      "aria-label": `In stock: ${product.title}`,
      "data-keep": `stock ${product.product_id}`,
      on: { click: () => setStock(product, stock) },
    },
    h("i"),
    product.in_stock ? "in stock" : "sold out",
  );
  const remove = h(
    "button.danger.remove",
    {
      type: "button",
      "aria-label": `Delete: ${product.title}`,
      "data-keep": `delete ${product.product_id}`,
      on: { click: () => sure(product, remove), blur: () => unsure(product, remove) },
    },
    "Delete",
  );
  return h(
    `li.row${product.in_stock ? "" : ".out"}`,
    { "data-product": product.product_id },
    tile(product, true),
    h(
      "div.what",
      {},
      h("span.name", { title: product.title }, product.title || product.product_id),
      h("p.kind", {}, `${readable(product.category)} · ${price(product.price)}`, h("span.place")),
    ),
    stock,
    remove,
  );
}

/** Say beside each product where it stands in the visitor's list. */
function places() {
  const list = session.list?.items ?? [];
  for (const one of $("ledger").querySelectorAll(".row")) {
    const at = list.findIndex((item) => item.product_id === one.dataset.product);
    const place = one.querySelector(".place");
    place.textContent = at < 0 ? "" : ` · number ${at + 1} in your list`;
  }
}

async function setStock(product, button) {
  const wanted = !product.in_stock;
  button.setAttribute("aria-checked", String(wanted));
  try {
    const path = `/v1/products/${id(product.product_id)}`;
    await request("PATCH", path, { body: { in_stock: wanted } });
  } catch (error) {
    button.setAttribute("aria-checked", String(product.in_stock));
    toast(`It was not changed: ${error.message}`);
    return;
  }
  announce(`${product.title} is ${wanted ? "back in stock" : "out of stock"}.`);
  await changed();
}

function sure(product, button) {
  if (button.classList.contains("sure")) {
    remove(product);
    return;
  }
  button.classList.add("sure");
  button.textContent = "Really?";
  button.setAttribute("aria-label", `Really delete: ${product.title}`);
}

function unsure(product, button) {
  button.classList.remove("sure");
  button.textContent = "Delete";
  button.setAttribute("aria-label", `Delete: ${product.title}`);
}

async function remove(product) {
  try {
    await request("DELETE", `/v1/products/${id(product.product_id)}`);
  } catch (error) {
    toast(`It was not deleted: ${error.message}`);
    return;
  }
  forget(product.product_id);
  toast(`Deleted: ${product.title}`);
  await changed();
}

async function changed() {
  lookAgain();
  // Kafka, the workers' followers and the next look of the list take a moment.
  await new Promise((later) => setTimeout(later, 300));
  refresh();
  refreshCategories();
}
