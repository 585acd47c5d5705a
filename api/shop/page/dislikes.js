// What the visitor does not want.

import { toast } from "./dom.js";
import { on, track } from "./session.js";

/** Products that the present visitor has refused, in this tab. */
const refused = new Set();
on("user", () => {
  refused.clear();
  mark();
});

function mark() {
  for (const one of document.querySelectorAll("#grid .item")) {
    one.classList.toggle("disliked", isDisliked(one.dataset.product));
  }
}

export const isDisliked = (productId) => refused.has(productId);

/** Tell that the visitor does not want a product: it leaves the list, and fades on the shelf. */
export async function dislike(product) {
  refused.add(product.product_id);
  mark();
  try {
    await track("dislike", { product_id: product.product_id });
    toast(`Noted: “${product.title}” will not be recommended to you.`);
  } catch (error) {
    toast(`It was not sent: ${error.message}`);
  }
}
