// Why a product is in the list, as a sentence: the one place that knows the codes.

import { readable } from "./tiles.js";

const SENTENCES = [
  [/^viewed:(.+)$/s, (it, name) => `You looked at ${name(it)}`],
  [/^bought:(.+)$/s, (it, name) => `You bought ${name(it)}`],
  [/^searched:(.+)$/s, (it) => `You searched for “${it}”`],
  [/^profile$/, () => "Close to what you did lately"],
  [/^trending in (.+)$/s, (it) => `Popular now in ${readable(it)}`],
  [/^trending$/, () => "Popular now"],
  [/^new in (.+)$/s, (it) => `New in ${readable(it)}`],
  [/^new$/, () => "New in the shop"],
  [/^in the catalogue$/, () => "From the whole shop, to begin with"],
  [/^in (.+)$/s, (it) => `From ${readable(it)}`],
  [/^similar$/, () => "Similar"],
  [/^bought together$/, () => "Bought with it"],
];

/**
 * @param {string} reason the code, as the service gives it
 * @param {(productId: string) => string} name a product's title, or what stands in for it
 * @returns {string} a sentence; a code that is not known stays as it is
 */
export function sentence(reason, name) {
  for (const [code, text] of SENTENCES) {
    const found = code.exec(reason);
    if (found) return text(found[1], name);
  }
  return reason;
}

/** The product that a reason names, if it names one. */
export function productOf(reason) {
  const found = /^(?:viewed|bought):(.+)$/s.exec(reason);
  return found ? found[1] : null;
}
