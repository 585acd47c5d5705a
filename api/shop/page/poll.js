// Asks for one resource again and again, and tells when it has changed.
//
// Why short polling with ETags and not server-sent events: a stream would hold a thread of a
// gunicorn worker (it has eight) for as long as a page is open, and would have to poll Cassandra
// all the same, since nothing tells the service of a saved list. A question takes any worker some
// 11 ms (the mean of 218 beside the whole stack on two cores), keeps working through restarts and
// proxies, and is answered with an empty 304 while nothing is new. After something that the visitor
// did it is asked more often for a few seconds.

import { request } from "./api.js";

const CALM_MS = 1000;
const HURRY_MS = 250;
const HURRY_FOR_MS = 5000;
const MOST_MS = 15000;

export class Poll {
  /**
   * @param {() => string} path of the resource, asked before each request
   * @param {(body: any) => void} changed called with each new answer
   * @param {(error: Error|null) => void} trouble called with a failure, and with null when it is over
   */
  constructor(path, changed, trouble = () => {}, every = CALM_MS) {
    this.path = path;
    this.changed = changed;
    this.trouble = trouble;
    this.every = every;
    this.etag = null;
    this.asked = null;
    this.failures = 0;
    this.hurryUntil = 0;
    this.running = false;
    this.round = 0;
    document.addEventListener("visibilitychange", () => this.running && this.now());
  }

  start() {
    this.running = true;
    this.now();
  }

  stop() {
    this.running = false;
    this.round += 1;
    clearTimeout(this.timer);
  }

  /** Look more often for a while: something is about to change. */
  hurry() {
    this.hurryUntil = performance.now() + HURRY_FOR_MS;
    if (this.running) this.now();
  }

  /** Ask now; an answer to an earlier question no longer counts. */
  now() {
    clearTimeout(this.timer);
    this.round += 1;
    this.ask(this.round);
  }

  async ask(round) {
    if (document.hidden) return;
    const path = this.path();
    // Another resource has other tags.
    if (path !== this.asked) this.etag = null;
    this.asked = path;
    try {
      const { body, etag } = await request("GET", path, { etag: this.etag });
      if (round !== this.round) return;
      this.etag = etag;
      if (this.failures) this.trouble(null);
      this.failures = 0;
      if (body !== null) this.changed(body);
    } catch (error) {
      if (round !== this.round) return;
      this.failures += 1;
      // What was shown instead must be replaced, also by the answer that was there before.
      this.etag = null;
      this.trouble(error);
    }
    if (!this.running || round !== this.round) return;
    const every = performance.now() < this.hurryUntil ? HURRY_MS : this.every;
    this.timer = setTimeout(() => this.now(), Math.min(MOST_MS, every * 2 ** this.failures));
  }
}
