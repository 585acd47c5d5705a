// The map: every product a dot in the colour of its category, and the visitor moving among them.
//
// The service fits the two axes; places are x = axis · vector - offset, for products and visitors
// alike, so the visitor's trail and the dots are of one picture whichever worker has answered.

import { get, id, request } from "./api.js";
import { $, calm, h } from "./dom.js";
import { product, recall } from "./products.js";
import { openProduct } from "./product.js";
import { on, session } from "./session.js";
import { hue, readable } from "./tiles.js";

const TRAIL = 12;
const GLIDE_MS = 900;
const MAP_EVERY_MS = 5000;
// The products lie within about -1 and 1; a little air around them.
const REACH = 1.3;

let etag = null;
let map = null;
let centres = new Map();
let trail = [];
let glide = { from: null, to: null, began: 0 };
let drawing = false;
const views = [];
let round = 0;

export function startMap() {
  views.push(makeView($("map"), 3));
  $("grow").addEventListener("click", grow);
  on("user", () => {
    trail = [];
    glide = { from: null, to: null, began: 0 };
    draw();
  });
  on("list", locate);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("resize", draw);
  setInterval(() => document.hidden || refresh(), MAP_EVERY_MS);
  refresh().then(locate);
}

async function refresh() {
  try {
    const found = await request("GET", "/shop/map", { etag });
    if (found.body === null) return;
    // New axes, new places: the old trail is of another picture.
    if (map && map.axes.join() !== found.body.axes.join()) trail = [];
    etag = found.etag;
    map = found.body;
    centres = centresOf(map);
    $("map-note").textContent =
      map.products > map.points.length
        ? `${map.points.length} of ${map.products} products; the axes set their categories apart.`
        : "Each dot a product; the axes set the categories apart. Your trail shows where you came from.";
    draw();
  } catch (error) {
    $("map-note").textContent = `No map: ${error.message}`;
  }
}

function centresOf({ points, categories }) {
  const sums = categories.map(() => [0, 0, 0]);
  for (const [, x, y, category] of points) {
    sums[category][0] += x;
    sums[category][1] += y;
    sums[category][2] += 1;
  }
  return new Map(categories.map((one, at) => [one, sums[at].slice(0, 2).map((sum) => sum / sums[at][2])]));
}

async function locate() {
  const mine = ++round;
  let found;
  try {
    found = await get(`/shop/users/${id(session.user)}/vector`);
  } catch {
    // The list says already that the service does not answer.
    return;
  }
  if (mine !== round || !map || found.space !== map.space) return;
  if (!found.vector) {
    trail = [];
    glide.to = null;
    draw();
    return;
  }
  const place = map.axes.map((axis, at) => axis.reduce((sum, a, i) => sum + a * found.vector[i], 0) - map.offset[at]);
  const last = trail.at(-1);
  if (last && Math.hypot(last[0] - place[0], last[1] - place[1]) < 1e-3) return;
  glide = { from: last ?? place, to: place, began: performance.now() };
  trail = [...trail, place].slice(-TRAIL);
  draw();
}

function grow() {
  const dialog = $("big-map");
  const box = h("div.map");
  dialog.replaceChildren(
    h("div.bar", {}, h("h2", {}, "Where you are among the products"), h("button.soft", { type: "button", autofocus: true, on: { click: () => dialog.close() } }, "Close")),
    box,
  );
  dialog.showModal();
  const view = makeView(box, Infinity);
  views.push(view);
  dialog.addEventListener("close", () => views.splice(views.indexOf(view), 1), { once: true });
  draw();
}

function makeView(box, labels) {
  const canvas = h("canvas", { role: "img", "aria-label": "Map of the products" });
  const tip = h("div.tip", { hidden: true });
  const view = { canvas, tip, labels, under: null };
  box.replaceChildren(canvas, tip);
  canvas.addEventListener("pointermove", (event) => hover(view, event));
  canvas.addEventListener("pointerleave", () => {
    view.under = null;
    tip.hidden = true;
  });
  canvas.addEventListener("click", async () => {
    const found = view.under && (await product(view.under));
    if (found) {
      if ($("big-map").open) $("big-map").close();
      openProduct(found);
    }
  });
  return view;
}

function scale({ canvas }) {
  const { width, height } = canvas.getBoundingClientRect();
  return {
    width,
    height,
    x: (x) => width / 2 + (x / REACH) * (width / 2),
    y: (y) => height / 2 - (y / REACH) * (height / 2),
  };
}

async function hover(view, event) {
  if (!map) return;
  const { x, y } = scale(view);
  let best = 14;
  let found = null;
  for (const point of map.points) {
    const away = Math.hypot(x(point[1]) - event.offsetX, y(point[2]) - event.offsetY);
    if (away < best) {
      best = away;
      found = point;
    }
  }
  view.under = found?.[0] ?? null;
  view.canvas.style.cursor = found ? "pointer" : "";
  if (!found) {
    view.tip.hidden = true;
    return;
  }
  const known = recall(found[0]) ?? (await product(found[0]));
  if (view.under !== found[0] || !known) return;
  view.tip.textContent = `${known.title} · ${readable(known.category)}`;
  view.tip.style.left = `${x(found[1])}px`;
  view.tip.style.top = `${y(found[2])}px`;
  view.tip.hidden = false;
}

function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    const done = calm() ? 1 : Math.min(1, (performance.now() - glide.began) / GLIDE_MS);
    for (const view of views) paint(view, 1 - (1 - done) ** 3);
    if (glide.to && done < 1) draw();
  });
}

function paint(view, done) {
  const { canvas } = view;
  const { width, height, x, y } = scale(view);
  // Not in the page at the moment: another view of a narrow screen is.
  if (!width) return;
  const ratio = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const dot = (category, alpha) =>
    `oklch(${colour("--dot-l")} ${colour("--dot-c")} ${hue(category).toFixed(1)} / ${alpha})`;
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  if (!map) return;
  const big = view.labels > 10;
  const shades = map.categories.map((one) => dot(one, 0.62));
  for (const [, px, py, category] of map.points) {
    pen.fillStyle = shades[category];
    pen.beginPath();
    pen.arc(x(px), y(py), big ? 3.2 : 2.1, 0, 7);
    pen.fill();
  }
  const items = session.list?.source === "personal" ? session.list.items : [];
  const listed = new Set(items.map((one) => one.product_id));
  pen.lineWidth = 1.6;
  pen.strokeStyle = colour("--ink");
  for (const [product, px, py] of map.points) {
    if (!listed.has(product)) continue;
    pen.beginPath();
    pen.arc(x(px), y(py), big ? 5.5 : 4.2, 0, 7);
    pen.stroke();
  }
  label(view, pen, colour, items);
  visitor(pen, colour, done, x, y, width, height, big);
  const near = [...new Set(items.map((one) => readable(one.category)))].slice(0, 3);
  canvas.setAttribute(
    "aria-label",
    glide.to && near.length
      ? `Map of ${map.points.length} products; you are near ${near.join(", ")}`
      : `Map of ${map.points.length} products; you have no place yet`,
  );
}

/** Name categories: those of the list on the small map, as many as fit on the large one. */
function label(view, pen, colour, items) {
  const { x, y, width } = scale(view);
  const near = [...new Set(items.map((one) => one.category))];
  const names = [...near.slice(0, view.labels), ...(view.labels > 10 ? map.categories : [])];
  const you = glide.to && [x(glide.to[0]), y(glide.to[1])];
  const taken = you ? [[you[0] - 13, you[1] - 13, you[0] + 13, you[1] + 13]] : [];
  pen.font = `600 12.5px ${colour("--text")}`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.lineJoin = "round";
  for (const name of new Set(names)) {
    const centre = centres.get(name);
    if (!centre) continue;
    const text = readable(name);
    const half = pen.measureText(text).width / 2;
    const left = Math.max(half + 4, Math.min(width - half - 4, x(centre[0])));
    const free = (top) =>
      !taken.some((one) => left - half - 3 < one[2] && one[0] < left + half + 3 && top - 9 < one[3] && one[1] < top + 9);
    // Beside its place where something else stands there.
    const top = [0, -19, 19].map((shift) => y(centre[1]) + shift).find(free);
    if (top === undefined) continue;
    taken.push([left - half - 3, top - 9, left + half + 3, top + 9]);
    const at = [left, top];
    pen.lineWidth = 4;
    pen.strokeStyle = colour("--raised");
    pen.strokeText(text, ...at);
    pen.fillStyle = colour("--ink");
    pen.fillText(text, ...at);
  }
}

function visitor(pen, colour, done, x, y, width, height, big) {
  if (!glide.to) return;
  const inside = ([px, py]) => [
    Math.max(9, Math.min(width - 9, x(px))),
    Math.max(9, Math.min(height - 9, y(py))),
  ];
  const now = glide.to.map((to, at) => glide.from[at] + (to - glide.from[at]) * done);
  const path = [...trail.slice(0, -1), now].map(inside);
  pen.strokeStyle = pen.fillStyle = colour("--accent");
  pen.lineCap = "round";
  for (let at = 1; at < path.length; at += 1) {
    pen.globalAlpha = 0.18 + (0.62 * at) / path.length;
    pen.lineWidth = 2.2;
    pen.beginPath();
    pen.moveTo(...path[at - 1]);
    pen.lineTo(...path[at]);
    pen.stroke();
    pen.beginPath();
    pen.arc(...path[at - 1], 2.6, 0, 7);
    pen.fill();
  }
  pen.globalAlpha = 0.22;
  pen.beginPath();
  pen.arc(...path.at(-1), big ? 17 : 13, 0, 7);
  pen.fill();
  pen.globalAlpha = 1;
  pen.beginPath();
  pen.arc(...path.at(-1), big ? 7.5 : 6, 0, 7);
  pen.fill();
  pen.lineWidth = 2.2;
  pen.strokeStyle = colour("--card");
  pen.stroke();
}
