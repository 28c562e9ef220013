// How numbers, times and sizes are written.

import { serverNow, store } from "./store.js";

export function count(number) {
  return number === null || number === undefined ? "–" : Math.round(number).toLocaleString("en");
}

export function rate(number) {
  if (number === null || number === undefined) return "–";
  return number >= 100 ? count(number) : number >= 10 ? number.toFixed(1) : number.toFixed(2);
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "–";
  if (seconds <= 0) return "0 s";
  if (seconds < 0.001) return `${(seconds * 1e6).toFixed(0)} µs`;
  if (seconds < 1) return `${(seconds * 1000).toFixed(0)} ms`;
  if (seconds < 10) return Number.isInteger(seconds) ? `${seconds} s` : `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3600)} h`;
}

export function bytes(size) {
  if (size === null || size === undefined) return "–";
  if (size < 1024) return `${size} B`;
  const units = ["KiB", "MiB", "GiB"];
  let value = size / 1024;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value.toFixed(value < 10 ? 1 : 0)} ${units[unit]}`;
}

export function money(dollars) {
  if (dollars === 0) return "$0";
  return dollars < 0.01 ? `$${dollars.toFixed(5)}` : `$${dollars.toFixed(2)}`;
}

const two = (number) => String(number).padStart(2, "0");

export function clock(moment, withDate = false) {
  const date = new Date(moment);
  const utc = store.utc;
  const get = (name) => date[`get${utc ? "UTC" : ""}${name}`]();
  const time = `${two(get("Hours"))}:${two(get("Minutes"))}:${two(get("Seconds"))}`;
  const now = new Date(serverNow());
  const sameDay = now.toDateString() === date.toDateString();
  if (!withDate && sameDay) return time;
  return `${get("FullYear")}-${two(get("Month") + 1)}-${two(get("Date"))} ${time}`;
}

export function secondsSince(text) {
  return text ? Math.max(0, (serverNow() - Date.parse(text)) / 1000) : null;
}

export function ago(text) {
  const seconds = secondsSince(text);
  return seconds === null ? "–" : `${duration(seconds < 10 ? Math.floor(seconds) : seconds)} ago`;
}

// What terminals understand and people do not.
export function withoutAnsi(text) {
  // eslint-disable-next-line no-control-regex
  return text.replace(/\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\r(?=\n)/g, "");
}
