// What the recommender believes of the visitor, in words, and the button that ends it.

import { get, id, now, request } from "./api.js";
import { $, ago, h, toast } from "./dom.js";
import { lookAgain } from "./foryou.js";
import { newVisitor, on, session, setUser } from "./session.js";
import { readable, tint } from "./tiles.js";

const DID = {
  click: "looked at",
  search: "searched for",
  scroll: "saw",
  purchase: "bought",
  add_to_cart: "put into the cart",
  dislike: "does not want",
};
const LEANS = 5;
const LAST = 4;
// How long an erasure is waited for before the page stops asking.
const ERASE_MS = 60000;

let round = 0;

export function startBeliefs() {
  on("list", refresh);
  on("user", () => $("beliefs").replaceChildren());
  $("erase").addEventListener("click", confirmErase);
}

async function refresh() {
  const mine = ++round;
  let found;
  try {
    found = await get(`/v1/users/${id(session.user)}/profile?limit=50`);
  } catch (error) {
    $("beliefs").replaceChildren(h("p.muted.small", {}, `It cannot be read: ${error.message}`));
    return;
  }
  if (mine !== round || found.user_id !== session.user) return;
  $("erase").disabled = false;
  if (!found.interactions.length) {
    $("beliefs").replaceChildren(
      h("p.muted", {}, "Nothing is known. Click on something, search, or put it into the cart."),
    );
    return;
  }
  const liked = found.categories.filter((one) => one.score > 0).slice(0, LEANS);
  const away = found.categories.filter((one) => one.score < 0).map((one) => readable(one.category));
  $("beliefs").replaceChildren(
    ...[
      liked.length ? h("div", {}, h("h3", {}, "Leans to"), h("div.lean", {}, liked.flatMap(lean))) : null,
      away.length ? h("p.small", {}, `Turns away from ${away.slice(0, 4).join(", ")}.`) : null,
      found.searches.length
        ? h(
            "div",
            {},
            h("h3", {}, "Searched for"),
            h("ul.words", {}, found.searches.slice(0, 6).map((one) => h("li", {}, one))),
          )
        : null,
      h("div", {}, h("h3", {}, "Last"), h("div.did", {}, found.interactions.slice(0, LAST).flatMap(did))),
      h("p.muted.small", {}, `From ${found.derived_from}.`),
    ].filter(Boolean),
  );
}

function lean(one) {
  const bar = tint(h("i"), one.category);
  bar.style.setProperty("--share", (100 * one.share).toFixed(1));
  return [
    h("span", { title: one.category }, readable(one.category)),
    h("span.track", { "aria-hidden": "true" }, bar),
    h("span.value", {}, `${Math.round(100 * one.share)} %`),
  ];
}

function did(one) {
  const what = one.query ?? one.title ?? one.product_id ?? "";
  return [
    h("b", { title: what }, `${DID[one.type] ?? one.type} ${one.query === null ? what : `“${what}”`}`),
    h("time", { datetime: new Date(one.ts).toISOString() }, ago(one.ts, now())),
  ];
}

function confirmErase() {
  const dialog = $("ask");
  const close = () => dialog.close();
  dialog.setAttribute("aria-label", "Erase me");
  dialog.replaceChildren(
    h(
      "div.body",
      {},
      h("h2", {}, "Erase everything about you?"),
      h("p", {}, "Your list, your events and what the running job remembers of ", h("b", {}, session.user), " are deleted, in Cassandra and in Flink. This cannot be undone."),
      h(
        "div.buttons",
        {},
        h("button.soft", { type: "button", autofocus: true, on: { click: close } }, "Keep"),
        h("button.danger", { type: "button", id: "erase-now", on: { click: () => (close(), erase()) } }, "Erase"),
      ),
    ),
  );
  dialog.showModal();
}

async function erase() {
  const user = session.user;
  const path = `/v1/users/${id(user)}`;
  $("erase").disabled = true;
  session.last = null;
  const began = performance.now();
  try {
    const { body: asked } = await request("DELETE", path);
    toast("The erasure is on its way through Kafka …");
    while (performance.now() - began < ERASE_MS) {
      await new Promise((later) => setTimeout(later, 400));
      const { body } = await request("GET", `${path}/erasure`);
      if (body.status === "done" && body.requested_at >= asked.requested_at) {
        const seconds = ((performance.now() - began) / 1000).toFixed(1);
        toast(`Erased in ${seconds} s: nothing is known of you.`, {
          text: "Come back as somebody new",
          run: () => setUser(newVisitor()),
        });
        lookAgain();
        if (session.user === user) refresh();
        return;
      }
    }
    toast("The erasure is recorded, and not done yet: is the job running?");
  } catch (error) {
    toast(`It was not erased: ${error.message}`);
  } finally {
    $("erase").disabled = false;
  }
}
