// Talks to the service: its routes, its errors, its API key where it wants one.

const KEY = "recommender-api-key";

export class ApiError extends Error {
  constructor(status, problem) {
    super(problem.detail ?? problem.title ?? `the service answered ${status}`);
    this.status = status;
    this.problem = problem;
  }
}

// How far this clock is off the service's, milliseconds; small differences are none.
let skew = 0;
const SKEW_MS = 30000;

/** The time of the service, epoch milliseconds: an event of another time would be refused. */
export const now = () => Date.now() + skew;

/** Called when the service wants a key; resolves when there is one to try. */
let askForKey = null;
export function onKeyNeeded(ask) {
  askForKey = ask;
}

/** The key stays in this tab, and goes with it. */
export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

export const id = encodeURIComponent;

/**
 * Ask the service.
 * @returns {Promise<{status: number, body: any, etag: string|null}>} body null where unchanged
 * @throws {ApiError} with the problem it has answered; TypeError where it cannot be reached
 */
export async function request(method, path, { body, etag, signal } = {}) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (etag) headers["If-None-Match"] = etag;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {
    method,
    headers,
    signal,
    // The ETags are kept by those who poll: an answer from the browser's cache would be an old list.
    cache: "no-store",
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const date = Date.parse(response.headers.get("Date") ?? "");
  if (Math.abs(date - Date.now()) > SKEW_MS) skew = date - Date.now();
  if (response.status === 304) return { status: 304, body: null, etag };
  const found = await response.json().catch(() => ({}));
  if (response.status === 401 && askForKey) {
    await askForKey(key !== null);
    return request(method, path, { body, etag, signal });
  }
  if (!response.ok) throw new ApiError(response.status, found);
  return { status: response.status, body: found, etag: response.headers.get("ETag") };
}

export const get = async (path) => (await request("GET", path)).body;
