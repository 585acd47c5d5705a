// The live list: what is recommended now, why, and what has moved.

import { id } from "./api.js";
import { $, announce, calm, h, price } from "./dom.js";
import { Poll } from "./poll.js";
import { openProduct } from "./product.js";
import { product, recall, remember } from "./products.js";
import { productOf, sentence } from "./reasons.js";
import { on, session, tell } from "./session.js";
import { readable, tile } from "./tiles.js";

const LENGTH = 20;
const SHORT = 8;
const MARKED_MS = 6000;
const DONE = {
  click: "click",
  search: "search",
  scroll: "look",
  purchase: "purchase",
  add_to_cart: "cart",
  dislike: "dislike",
};

let poll;
let long = false;
/** Product id -> element of the rows that are shown. */
let rows = new Map();
let order = [];
let marks = new Map();
let marksEnd = 0;
let followed = null;

export function startForYou() {
  poll = new Poll(
    () => `/v1/users/${id(session.user)}/recommendations?limit=${LENGTH}`,
    take,
    (error) => showFresh(error),
  );
  on("user", () => {
    order = [];
    marks.clear();
    followed = null;
    poll.now();
  });
  on("event", () => {
    followed = null;
    showFresh();
    poll.hurry();
  });
  $("longer").addEventListener("click", () => {
    long = !long;
    show();
  });
  poll.start();
}

export const lookAgain = () => poll.hurry();

function take(list) {
  remember(list.items.map((one) => ({ ...one, in_stock: true })));
  const before = order;
  const first = session.list === null;
  session.list = list;
  // Exact, not a guess: the list names the newest event that it knows of.
  const { last } = session;
  if (last && last.user === list.user_id && list.event_ts !== null && list.event_ts >= last.ts) {
    followed ??= { type: last.type, seconds: (performance.now() - last.at) / 1000 };
  }
  order = list.items.map((one) => one.product_id);
  const changed = order.join("\n") !== before.join("\n");
  if (changed && !first && before.length) {
    mark(before, order);
    $("changed").hidden = document.body.dataset.view === "foryou";
    const fresh = order.filter((one) => !before.includes(one)).length;
    announce(`Your list has changed: ${fresh} new, first is ${list.items[0]?.title ?? "nothing"}.`);
  }
  show();
  showFresh();
  tell("list", list);
}

function mark(before, now) {
  marks = new Map();
  for (const [at, product] of now.entries()) {
    const was = before.indexOf(product);
    if (was < 0) marks.set(product, { text: "new", kind: "new", spoken: "new" });
    else if (was > at) marks.set(product, { text: `▲ ${was - at}`, kind: "up", spoken: `up ${was - at}` });
    else if (was < at) marks.set(product, { text: `▼ ${at - was}`, kind: "down", spoken: `down ${at - was}` });
  }
  clearTimeout(marksEnd);
  marksEnd = setTimeout(() => {
    marks.clear();
    show();
  }, MARKED_MS);
}

function showFresh(error = null) {
  const fresh = $("fresh");
  const { last, list } = session;
  fresh.classList.toggle("away", error !== null || Boolean(list?.degraded));
  fresh.classList.toggle("wait", error === null && last !== null && followed === null);
  if (error) fresh.textContent = `no answer: ${error.message}`;
  else if (list?.degraded) fresh.textContent = "the list cannot be read; what is popular stands in";
  else if (followed && last) fresh.textContent = `followed your ${DONE[followed.type]} in ${followed.seconds.toFixed(1)} s`;
  else if (last) fresh.textContent = `your ${DONE[last.type]} is on its way …`;
  else if (list?.source === "personal") fresh.textContent = "live";
  else fresh.textContent = "live; nothing is known of you yet";
}

function name(productId) {
  const known = recall(productId);
  return known?.title || productId;
}

function why(item) {
  const wanted = productOf(item.reason);
  if (wanted && !recall(wanted)) {
    // Its title comes a moment later.
    product(wanted).then((found) => found && show());
  }
  return sentence(item.reason, name);
}

/** Show the list; rows that stay glide to their new places (first, last, invert, play). */
function show() {
  const box = $("list");
  const items = (session.list?.items ?? []).slice(0, long ? LENGTH : SHORT);
  const was = new Map([...rows].map(([product, row]) => [product, row.element.offsetTop]));
  const focused = [...rows].find(([, row]) => row.element.contains(document.activeElement))?.[0];
  const next = new Map();
  for (const item of items) next.set(item.product_id, rows.get(item.product_id) ?? makeRow(item));
  for (const [at, item] of items.entries()) fillRow(next.get(item.product_id), item, at);
  rows = next;
  box.replaceChildren(...[...next.values()].map((row) => row.element));
  if (focused && next.has(focused)) next.get(focused).name.focus({ preventScroll: true });
  if (!items.length) {
    box.append(h("li.empty", {}, session.list ? "There is nothing to recommend yet." : "…"));
  }
  $("longer").hidden = (session.list?.items.length ?? 0) <= SHORT;
  $("longer").textContent = long ? "Show fewer" : `Show all ${session.list?.items.length ?? 0}`;
  if (calm()) return;
  for (const [product, row] of next) {
    const from = was.get(product);
    const shift = from === undefined ? null : from - row.element.offsetTop;
    if (shift === null && was.size) {
      row.element.animate(
        [{ opacity: 0, transform: "translateX(18px)" }, { opacity: 1, transform: "none" }],
        { duration: 380, easing: "ease-out" },
      );
    } else if (shift) {
      row.element.animate([{ transform: `translateY(${shift}px)` }, { transform: "none" }], {
        duration: 420,
        easing: "cubic-bezier(0.2, 0.8, 0.2, 1)",
      });
    }
  }
}

function makeRow(item) {
  const row = { item };
  row.name = h("button.name", { type: "button", on: { click: () => openProduct(row.item) } });
  row.why = h("span.why");
  row.price = h("span.price");
  row.move = h("span.move");
  row.element = h(
    "li.entry",
    { "data-product": item.product_id },
    tile(item, true),
    row.name,
    row.price,
    row.why,
    row.move,
  );
  return row;
}

function fillRow(row, item, at) {
  row.item = { ...item, in_stock: true };
  row.name.textContent = item.title || item.product_id;
  row.name.title = `${at + 1}. ${item.title} (${readable(item.category)})`;
  row.price.textContent = price(item.price);
  row.why.textContent = row.why.title = why(item);
  const moved = marks.get(item.product_id);
  row.move.className = `move ${moved?.kind ?? ""}`;
  row.move.textContent = moved?.text ?? "";
  if (moved) row.move.setAttribute("aria-label", moved.spoken);
  else row.move.removeAttribute("aria-label");
}
