// Puts the parts together: views, visitors, keys.

import { get, onKeyNeeded, setKey } from "./api.js";
import { startBeliefs } from "./beliefs.js";
import { startCart } from "./cart.js";
import { startCatalogue, watchCatalogue } from "./catalogue.js";
import { $, h } from "./dom.js";
import { startForYou } from "./foryou.js";
import { startLive, watchLive } from "./live.js";
import { startMap } from "./map.js";
import { startProduct } from "./product.js";
import { newVisitor, restoreUser, session, setUser } from "./session.js";
import { startShelves, watchShelves } from "./shelves.js";

const NEW = "new";
const OTHER = "other";
let offered = [];

function showView(view) {
  document.body.dataset.view = view;
  for (const button of document.querySelectorAll("[data-go]")) {
    if (button.dataset.go === view) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  if (view === "foryou") $("changed").hidden = true;
  watchShelves(view === "shop");
  watchCatalogue(view === "catalogue");
  watchLive(view === "live");
  // The map is drawn when it has a size.
  dispatchEvent(new Event("resize"));
  scrollTo({ top: 0 });
}

function showUsers() {
  const select = $("user");
  const listed = offered.includes(session.user);
  select.replaceChildren(
    ...[
      listed ? null : h("option", { value: session.user, selected: true }, nameOf(session.user)),
      h("option", { value: NEW }, "New visitor"),
      offered.length
        ? h(
            "optgroup",
            { label: "Demo shoppers" },
            offered.map((one) => h("option", { value: one, selected: one === session.user }, one)),
          )
        : null,
      h("option", { value: OTHER }, "Another user …"),
    ].filter(Boolean),
  );
}

const nameOf = (user) => (user.startsWith("visitor-") ? "You, a visitor" : user);

function become(user) {
  setUser(user);
  showUsers();
}

function chooseUser() {
  const chosen = $("user").value;
  if (chosen === NEW) become(newVisitor());
  else if (chosen === OTHER) {
    showUsers();
    askFor("Another user", "User id", { maxlength: 128 }).then((user) => user && become(user));
  } else become(chosen);
}

/** Ask for one line of text; null where it is not given. */
function askFor(title, name, attributes, text = null) {
  const dialog = $("ask");
  const input = h("input", { id: "asked", required: true, autocomplete: "off", autofocus: true, ...attributes });
  dialog.setAttribute("aria-label", title);
  return new Promise((resolve) => {
    let answer = null;
    dialog.addEventListener("close", () => resolve(answer), { once: true });
    dialog.replaceChildren(
      h(
        "form",
        {
          on: {
            submit: (event) => {
              event.preventDefault();
              answer = input.value.trim() || null;
              dialog.close();
            },
          },
        },
        h("h2", {}, title),
        text ? h("p.muted", {}, text) : null,
        h("label", { for: "asked" }, name),
        input,
        h(
          "div.buttons",
          {},
          h("button.soft", { type: "button", on: { click: () => dialog.close() } }, "Cancel"),
          h("button.strong", { type: "submit" }, "Use it"),
        ),
      ),
    );
    if (!dialog.open) dialog.showModal();
  });
}

let asking = null;
onKeyNeeded(() => {
  // Many requests miss it at once; one question answers them all.
  asking ??= askFor(
    "This service needs an API key",
    "API key",
    { type: "password" },
    "With the scopes read and ingest; catalogue and erase for those buttons. It stays in this tab.",
  ).then((key) => {
    asking = null;
    if (key === null) {
      trouble("Without an API key nothing can be shown. Load the page again to give one.");
      return new Promise(() => {});
    }
    setKey(key);
    return null;
  });
  return asking;
});

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = false;
}

function startKeys() {
  addEventListener("keydown", (event) => {
    const typing = event.target.matches?.("input, select, textarea");
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.querySelector("dialog[open]")) return;
    event.preventDefault();
    showView("shop");
    $("search").focus();
    $("search").select();
  });
  for (const dialog of document.querySelectorAll("dialog")) {
    // A click beside it closes it; Esc does by itself.
    dialog.addEventListener("click", (event) => {
      if (event.target !== dialog) return;
      const box = dialog.getBoundingClientRect();
      const inside =
        event.clientX >= box.left &&
        event.clientX <= box.right &&
        event.clientY >= box.top &&
        event.clientY <= box.bottom;
      if (!inside) dialog.close();
    });
  }
  $("search").addEventListener("focus", () => {
    if (document.body.dataset.view !== "shop") showView("shop");
  });
}

async function start() {
  for (const button of document.querySelectorAll("[data-go]")) {
    button.addEventListener("click", () => showView(button.dataset.go));
  }
  $("user").addEventListener("change", chooseUser);
  startKeys();
  startLive();
  startCart();
  startCatalogue();
  ({ users: offered } = await get("/shop/settings"));
  restoreUser();
  showUsers();
  // The shelves first: their categories choose the colours of all else.
  await startShelves();
  startForYou();
  startMap();
  startBeliefs();
  startProduct();
}

start().catch((error) => trouble(`The service cannot be reached: ${error.message}`));
