// The way to the API: the token, problem documents, streams. Addresses are relative, so any prefix works.

import { store, update } from "./store.js";

const TOKEN = "jobsvc.token";
const ANSWER_MS = 30_000; // a replica answers within 15 s, and be it that nobody leads
const STREAM_SILENCE_MS = 30_000; // a stream sends something every 10 s, a failover lasts up to 15

export class Problem extends Error {
  constructor(status, document) {
    super(document.detail || document.title || `HTTP ${status}`);
    this.status = status;
    this.code = document.code || "";
    this.retryable = document.retryable === true;
    this.title = document.title || "";
    this.requestId = document.request_id || "";
  }
}

export class Silence extends Error {
  constructor(milliseconds) {
    super(`The service has said nothing for ${milliseconds / 1000} s.`);
  }
}

// A connection that is half open says nothing and never ends: it is given up after so much silence.
function watchSilence(outer, milliseconds) {
  const controller = new AbortController();
  const leave = () => controller.abort();
  let timer = 0;
  const heard = () => {
    clearTimeout(timer);
    timer = setTimeout(() => controller.abort(new Silence(milliseconds)), milliseconds);
  };
  const end = () => {
    clearTimeout(timer);
    outer?.removeEventListener("abort", leave);
  };
  if (outer?.aborted) leave();
  outer?.addEventListener("abort", leave);
  heard();
  return { signal: controller.signal, heard, end };
}

export function setToken(token) {
  sessionStorage.setItem(TOKEN, token);
  update({ tokenAsked: false, tokenWrong: false });
}

export function forgetToken() {
  sessionStorage.removeItem(TOKEN);
  location.reload();
}

// Links that the browser follows by itself carry no token.
export function hasToken() {
  return sessionStorage.getItem(TOKEN) !== null;
}

export async function request(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  const response = await fetch(path, { ...options, headers, cache: "no-store", redirect: "error" });
  if (response.ok) return response;
  const document = await response.json().catch(() => ({}));
  if (response.status === 401) update({ tokenAsked: true, tokenWrong: token !== null });
  throw new Problem(response.status, document);
}

async function wholeJson(path, options) {
  const watch = watchSilence(options.signal, ANSWER_MS);
  try {
    const response = await request(path, { ...options, signal: watch.signal });
    return await response.json();
  } finally {
    watch.end();
  }
}

export function getJson(path, signal) {
  return wholeJson(path, { signal });
}

// `crypto.randomUUID` is not there on plain http to a name that is not localhost; this is.
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `page-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

const pause = (milliseconds) => new Promise((go) => setTimeout(go, milliseconds));

// A change, sent again under the same key until it is answered: a failover is a pause and not an error.
export async function change(method, path, body, text) {
  const options = { method, headers: { "Idempotency-Key": newKey() } };
  if (body !== undefined || text !== undefined) {
    options.body = text ?? JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  const deadline = Date.now() + 60_000;
  for (let wait = 250; ; wait = Math.min(wait * 2, 4000)) {
    try {
      return await wholeJson(path, options);
    } catch (error) {
      const again = error instanceof Problem ? error.retryable : error instanceof TypeError || error instanceof Silence;
      if (!again || Date.now() + wait > deadline) throw error;
    }
    await pause(wait * (0.5 + Math.random()));
  }
}

// Server-sent events as [name, data], read by fetch: EventSource can neither send a token nor see a 401.
export async function* events(path, signal, silence = STREAM_SILENCE_MS) {
  const watch = watchSilence(signal, silence);
  const decoder = new TextDecoder();
  let reader = null;
  let rest = "";
  try {
    const response = await request(path, { headers: { Accept: "text/event-stream" }, signal: watch.signal });
    reader = response.body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      watch.heard();
      rest += decoder.decode(value, { stream: true });
      const blocks = rest.split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const fields = {};
        for (const line of block.split("\n")) {
          const colon = line.indexOf(":");
          if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
        }
        yield fields.event ? [fields.event, JSON.parse(fields.data)] : ["alive", null];
      }
    }
  } finally {
    watch.end();
    reader?.cancel().catch(() => {});
  }
}
