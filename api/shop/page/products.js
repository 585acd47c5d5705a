// What the page knows of products: titles for reasons and the map, asked for once.

import { get, id } from "./api.js";

const known = new Map();
const asked = new Map();

export function remember(products) {
  for (const one of products) known.set(one.product_id, { ...known.get(one.product_id), ...one });
}

/** A product as far as it is known; null where it is not. */
export const recall = (productId) => known.get(productId) ?? null;

export function forget(productId) {
  known.delete(productId);
  asked.delete(productId);
}

/** A product, asked for where it is not known; null where there is none. */
export async function product(productId) {
  if (known.has(productId)) return known.get(productId);
  if (!asked.has(productId)) {
    asked.set(
      productId,
      get(`/v1/products/${id(productId)}`).then(
        (found) => (remember([found]), found),
        () => null,
      ),
    );
  }
  return asked.get(productId);
}
