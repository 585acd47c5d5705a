// Who is at the shop, and what they do: events go out here, and nowhere else.

import { now, request } from "./api.js";

const USER = "recommender-user";
const listeners = { user: [], event: [], list: [] };

const random = () => crypto.getRandomValues(new Uint32Array(2)).reduce((a, b) => a + b.toString(36), "");

export const session = {
  user: "",
  sessionId: `window-${random()}`,
  /** The newest list of the user, as the service gave it. */
  list: null,
  /** The newest thing that the user did here: {type, ts, at}. */
  last: null,
};

/** Call `listener` at each change of "user", "event" or "list". */
export function on(what, listener) {
  listeners[what].push(listener);
}

export function tell(what, value) {
  for (const listener of listeners[what]) listener(value);
}

export const newVisitor = () => `visitor-${random()}`;

export function restoreUser() {
  setUser(localStorage.getItem(USER) || newVisitor());
}

export function setUser(user) {
  session.user = user;
  session.list = null;
  session.last = null;
  session.sessionId = `window-${random()}`;
  localStorage.setItem(USER, user);
  tell("user", user);
}

/** Send an event of the user; resolves when the service has taken it. */
export async function track(type, fields) {
  const ts = now();
  const event = { user_id: session.user, type, ts, session_id: session.sessionId, ...fields };
  session.last = { type, ts, at: performance.now(), user: session.user };
  tell("event", event);
  await request("POST", "/v1/events", { body: event });
}

/** The same with several at once, of one moment. */
export async function trackAll(type, all) {
  const ts = now();
  const events = all.map((fields) => ({
    user_id: session.user,
    type,
    ts,
    session_id: session.sessionId,
    ...fields,
  }));
  session.last = { type, ts, at: performance.now(), user: session.user };
  tell("event", events.at(-1));
  await request("POST", "/v1/events", { body: events });
}
