// What the whole page knows. Change it by `update`, which draws the page anew once per frame.

const draws = [];
let planned = false;

export const store = {
  summary: null, // the latest one
  summaryAt: 0, // of this browser's clock, ms
  knownAt: 0, // when its counts came from a manager
  skew: 0, // server's clock minus ours, ms
  link: "connecting", // connecting | live | polling | lost
  linkSince: Date.now(),
  leaderlessSince: null,
  takeover: null, // {epoch, leader, at}
  tokenAsked: false,
  tokenWrong: false,
  utc: localStorage.getItem("jobsvc.utc") === "1",
  theme: localStorage.getItem("jobsvc.theme") || "auto",
  paused: localStorage.getItem("jobsvc.paused") === "1",
  dialog: null, // a function that draws it
  notice: "",
  route: { view: "", id: null, query: new URLSearchParams() },
};

export function onDraw(draw) {
  draws.push(draw);
}

export function update(changes = {}) {
  Object.assign(store, changes);
  if (planned) return;
  planned = true;
  const go = () => {
    planned = false;
    for (const draw of draws) draw();
  };
  if (document.hidden) setTimeout(go, 0);
  else requestAnimationFrame(go);
}

export function remember(name, value) {
  localStorage.setItem(`jobsvc.${name}`, value);
}

let noticeEnds = 0;

export function notify(text) {
  clearTimeout(noticeEnds);
  update({ notice: text });
  noticeEnds = setTimeout(() => update({ notice: "" }), 6000);
}

// The server's time, in ms: ages must not depend on this machine's clock.
export function serverNow() {
  return Date.now() + store.skew;
}

// Nothing may be changed while nobody leads, or while we cannot know.
export function canAct() {
  return store.summary?.ready === true && store.link !== "lost";
}
