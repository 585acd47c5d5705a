// Pictures for products that have none: a quiet pattern in the colour of the category.

import { s } from "./dom.js";

// Hues by category, in the order in which they were first seen: neighbours differ by the golden
// angle, so that forty categories stay apart as well as they can.
const seen = new Map();
const GOLDEN_ANGLE = 137.508;

export function knowCategories(names) {
  for (const name of names) hue(name);
}

export function hue(category) {
  if (!seen.has(category)) seen.set(category, (25 + seen.size * GOLDEN_ANGLE) % 360);
  return seen.get(category);
}

/** Colour an element's tile, dot or bar by a category. */
export function tint(element, category) {
  element.style.setProperty("--h", hue(category).toFixed(1));
  return element;
}

/** "COFFEE MUGS" as "Coffee mugs". */
export function readable(category) {
  const words = category.replaceAll("_", " ");
  return words === words.toUpperCase() ? words[0] + words.slice(1).toLowerCase() : words;
}

function seeded(text) {
  let state = 2166136261;
  for (const character of text) state = Math.imul(state ^ character.codePointAt(0), 16777619);
  return () => {
    state = Math.imul(state ^ (state >>> 15), 2246822507);
    state = Math.imul(state ^ (state >>> 13), 3266489909);
    state ^= state >>> 16;
    return (state >>> 0) / 4294967296;
  };
}

const PATTERNS = [
  // A sun and its horizon.
  (random) => [
    s("circle.t2", { cx: 40 + random() * 80, cy: 50 + random() * 20, r: 30 + random() * 14 }),
    s("rect.t3", { x: 0, y: 84 + random() * 10, width: 160, height: 60 }),
  ],
  // Two arcs in a corner.
  (random) => {
    const x = random() < 0.5 ? 0 : 160;
    const y = random() < 0.5 ? 0 : 120;
    return [
      s("circle.t2", { cx: x, cy: y, r: 96 + random() * 24 }),
      s("circle.t3", { cx: x, cy: y, r: 44 + random() * 20 }),
    ];
  },
  // Slanted bands.
  (random) => {
    const at = random() * 50;
    const band = (tone, from, width) =>
      s(`path.${tone}`, { d: `M${from} 130 l60 -140 h${width} l-60 140z` });
    return [band("t2", at - 10, 30 + random() * 30), band("t3", at + 66, 14 + random() * 24)];
  },
  // A grid of dots.
  (random) => {
    const dots = [];
    const gap = 18 + Math.floor(random() * 8);
    const size = 2.5 + random() * 3.5;
    for (let x = gap / 2; x < 160; x += gap) {
      for (let y = gap / 2; y < 120; y += gap) dots.push(s("circle.t2", { cx: x, cy: y, r: size }));
    }
    return [...dots, s("circle.t3", { cx: 30 + random() * 100, cy: 30 + random() * 60, r: 22 })];
  },
  // Hills.
  (random) => {
    const top = 50 + random() * 25;
    return [
      s("path.t2", { d: `M0 ${top} q40 -34 80 0 t80 0 v80 h-160z` }),
      s("path.t3", { d: `M0 ${top + 34} q40 26 80 0 t80 0 v60 h-160z` }),
    ];
  },
];

/**
 * The picture of a product: pattern by its id, colour and letters by its category.
 * @param {object} product
 * @param {boolean} mini whether it is small: the letters alone are read then
 */
export function tile(product, mini = false) {
  const random = seeded(product.product_id);
  random();
  // Products of a category are relatives, not twins.
  const shade = (random() - 0.5) * 26;
  const pattern = PATTERNS[Math.floor(random() * PATTERNS.length)];
  const name = readable(product.category || "?");
  const drawing = s(
    mini ? "svg.tile.mini" : "svg.tile",
    { viewBox: "0 0 160 120", preserveAspectRatio: mini ? "xMidYMid slice" : "xMinYMax slice", "aria-hidden": "true" },
    s("rect.t1", { width: 160, height: 120 }),
    pattern(random),
    s(
      "text.t4",
      mini ? { x: 80, y: 81, "text-anchor": "middle" } : { x: 13, y: 106 },
      [...name].slice(0, 2).join(""),
    ),
  );
  drawing.style.setProperty("--h", (hue(product.category) + shade).toFixed(1));
  return drawing;
}
