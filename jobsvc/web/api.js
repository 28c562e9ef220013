// The way to the API: the token, problem documents, streams. Addresses are relative, so any prefix works.

import { store, update } from "./store.js";

const TOKEN = "jobsvc.token";

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

export async function getJson(path, signal) {
  const response = await request(path, { signal });
  return response.json();
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
      const response = await request(path, options);
      return await response.json();
    } catch (error) {
      const again = error instanceof Problem ? error.retryable : error instanceof TypeError;
      if (!again || Date.now() + wait > deadline) throw error;
    }
    await pause(wait * (0.5 + Math.random()));
  }
}

// Server-sent events as [name, data], read by fetch: EventSource can neither send a token nor see a 401.
export async function* events(path, signal) {
  const response = await request(path, { headers: { Accept: "text/event-stream" }, signal });
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
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
    reader.cancel().catch(() => {});
  }
}
