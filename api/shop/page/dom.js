// Elements from data: every value becomes text or an attribute, never markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Make an element.
 * @param {string} tag a tag name, with classes behind dots: "li.item"
 * @param {object} props attributes; on: {event: listener}; null and false leave one out
 * @param {...(Node|string|null)} children
 */
export function h(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  return fill(document.createElement(name), classes, props, children);
}

/** The same for SVG. */
export function s(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  return fill(document.createElementNS(SVG, name), classes, props, children);
}

function fill(element, classes, props, children) {
  if (classes.length) element.classList.add(...classes);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) {
        element.addEventListener(event, listener);
      }
    } else {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const $ = (id) => document.getElementById(id);

/** An icon of the page's own set (the symbols in index.html). */
export function icon(name) {
  return s("svg.icon", { "aria-hidden": "true" }, s("use", { href: `#i-${name}` }));
}

/** Tell it to those who do not see it. */
export function announce(text) {
  $("announce").textContent = text;
}

/** A short note at the edge of the page, with an action where there is one. */
export function toast(text, action = null) {
  const note = h("div.toast", {}, h("span", {}, text));
  const close = () => note.remove();
  if (action) {
    note.append(
      h("button.link", { type: "button", on: { click: () => (close(), action.run()) } }, action.text),
    );
  }
  const box = $("toasts");
  box.append(note);
  while (box.children.length > 3) box.firstChild.remove();
  setTimeout(close, action ? 8000 : 4500);
}

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

const money = new Intl.NumberFormat(undefined, { minimumFractionDigits: 2, maximumFractionDigits: 2 });
/** A price; the catalogue knows no currency. */
export const price = (value) => (value === null ? "–" : money.format(value));

const whole = new Intl.NumberFormat();
export const count = (value) => whole.format(value);

/** "12 s ago" of a time and now, both in epoch milliseconds. */
export function ago(ts, now) {
  const seconds = Math.max(0, Math.round((now - ts) / 1000));
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} d ago`;
}

/** Call `run` when nothing has called it again for `ms`. */
export function debounce(ms, run) {
  let timer = 0;
  const later = (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...given), ms);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}
