// The cart: what is put in, and what is bought, go out as events.

import { $, count, h, icon, price, toast } from "./dom.js";
import { on, track, trackAll } from "./session.js";
import { tile } from "./tiles.js";

/** Product id -> {product, quantity}, of the present visitor. */
const held = new Map();

export function startCart() {
  $("open-cart").addEventListener("click", open);
  on("user", () => {
    held.clear();
    show();
  });
}

/** Put a product into the cart. */
export async function openCartWith(product) {
  const line = held.get(product.product_id) ?? { product, quantity: 0 };
  line.quantity += 1;
  held.set(product.product_id, line);
  show();
  try {
    await track("add_to_cart", { product_id: product.product_id });
    toast(`In your cart: ${product.title}`, { text: "Open", run: open });
  } catch (error) {
    toast(`It was not sent: ${error.message}`);
  }
}

/** Buy lines of {product, quantity}. */
export async function buy(lines) {
  try {
    await trackAll(
      "purchase",
      lines.map(({ product, quantity }) => ({ product_id: product.product_id, quantity })),
    );
  } catch (error) {
    toast(`Nothing was bought: ${error.message}`);
    return;
  }
  for (const { product } of lines) held.delete(product.product_id);
  show();
  const what = lines.length === 1 ? lines[0].product.title : `${lines.length} products`;
  toast(`Bought: ${what}. It leaves your list.`);
}

function open() {
  show();
  if (!$("cart").open) $("cart").showModal();
}

function show() {
  const lines = [...held.values()];
  const pieces = lines.reduce((sum, line) => sum + line.quantity, 0);
  $("cart-count").hidden = pieces === 0;
  $("cart-count").textContent = count(pieces);
  $("open-cart").setAttribute("aria-label", pieces ? `Cart, ${pieces} pieces` : "Cart, empty");
  const dialog = $("cart");
  const close = () => dialog.close();
  const sum = lines.reduce((all, { product, quantity }) => all + (product.price ?? 0) * quantity, 0);
  dialog.replaceChildren(
    h(
      "button.round.closer",
      { type: "button", "aria-label": "Close", on: { click: close } },
      icon("close"),
    ),
    h("h2", { id: "cart-title" }, "Cart"),
    lines.length
      ? h("ul", {}, lines.map(row))
      : h("p.muted", {}, "It is empty. The plus beside a product puts one in."),
    lines.length ? h("p.sum", {}, h("span", {}, "Together"), h("span", {}, price(sum))) : null,
    lines.length
      ? h(
          "button.strong",
          { type: "button", on: { click: () => (close(), buy(lines)) } },
          "Buy",
        )
      : null,
  );
}

function row({ product, quantity }) {
  return h(
    "li.row",
    {},
    tile(product, true),
    h(
      "div",
      {},
      h("span.name", {}, product.title),
      h("p.kind", {}, quantity > 1 ? `${quantity} pieces` : "1 piece"),
    ),
    h("span", {}, price(product.price === null ? null : product.price * quantity)),
    h(
      "button.round",
      {
        type: "button",
        "aria-label": `Take out of the cart: ${product.title}`,
        on: {
          click: () => {
            held.delete(product.product_id);
            show();
          },
        },
      },
      icon("close"),
    ),
  );
}
