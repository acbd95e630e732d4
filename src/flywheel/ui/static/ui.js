"use strict";
// What pages do in the browser: theme, keyboard, whole texts and further steps on demand, saved views. Without it pages
// can be read, narrowed down and compared.

const root = document.documentElement;
const remembered = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
const remember = (name, value) => { try { localStorage.setItem(name, value); } catch { /* a private window */ } };
if (remembered("theme")) root.dataset.theme = remembered("theme");

function otherTheme() {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  remember("theme", root.dataset.theme);
}

async function fetched(address) {
  const answer = await fetch(address);
  const text = await answer.text();
  if (!answer.ok) throw new Error(text.slice(0, 300));
  return text;
}

async function showWhole(button) {
  const text = button.parentElement.querySelector("pre");
  text.textContent = await fetched(button.dataset.whole);
  button.remove();
}

async function showFragment(element, into) {
  into.innerHTML = await fetched(element.dataset.fragment);
  watchRests(into);
}

async function showRest(rest) {
  const holder = document.createElement("div");
  holder.innerHTML = await fetched(rest.dataset.fragment);
  rest.replaceWith(holder);
  watchRests(holder);
}

// Steps that follow are fetched as one comes near them.
const near = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((entry) => entry.isIntersecting)) {
    near.unobserve(entry.target);
    showRest(entry.target).catch(() => near.observe(entry.target));
  }
}, { rootMargin: "1500px" });
const watchRests = (inside) => inside.querySelectorAll(".rest").forEach((rest) => near.observe(rest));

// A step that an address names may not be there yet: fetch until it is.
async function goToStep() {
  const wanted = /^#step-(\d+)$/.exec(location.hash);
  let rest;
  while (wanted && !document.getElementById(`step-${wanted[1]}`) && (rest = document.querySelector(".rest"))) {
    near.unobserve(rest);
    await showRest(rest);
  }
  if (wanted) document.getElementById(`step-${wanted[1]}`)?.scrollIntoView();
}

// Saved views of runs, in this browser.
function showViews() {
  const place = document.getElementById("views");
  if (!place) return;
  const views = JSON.parse(remembered("views") || "{}");
  place.replaceChildren(...Object.entries(views).flatMap(([name, query]) => {
    const link = document.createElement("a");
    link.href = `/runs?${query}`;
    link.textContent = name;
    const drop = document.createElement("button");
    drop.type = "button";
    drop.className = "plain";
    drop.textContent = "×";
    drop.setAttribute("aria-label", `Forget the view ${name}`);
    drop.onclick = () => { delete views[name]; remember("views", JSON.stringify(views)); showViews(); };
    return [link, drop];
  }));
}

function saveView() {
  const name = prompt("Name of this view");
  if (!name) return;
  const views = JSON.parse(remembered("views") || "{}");
  views[name] = document.querySelector(".views").dataset.query;
  remember("views", JSON.stringify(views));
  showViews();
}

// Choosing runs to compare.
function countChosen() {
  const chosen = document.querySelectorAll("input[name=run]:checked").length;
  document.getElementById("compare").disabled = chosen < 2 || chosen > 4;
}

// The drawing's own words about the point under the pointer.
function tip(event) {
  const about = event.target.closest?.(".scroll svg [aria-label][role=graphics-symbol]");
  let box = document.getElementById("tip");
  if (!about || about.getAttribute("aria-roledescription") === "axis") return box?.remove();
  if (!box) {
    box = document.createElement("div");
    box.id = "tip";
    document.body.append(box);
  }
  box.textContent = about.getAttribute("aria-label");
  box.style.left = `${Math.min(event.clientX + 12, innerWidth - box.offsetWidth - 8)}px`;
  box.style.top = `${event.clientY + 16}px`;
}

function move(by) {
  const rows = [...document.querySelectorAll("tr[data-row], .step[id]")].filter((row) => row.offsetParent);
  if (!rows.length) return;
  const here = rows.findIndex((row) => row.classList.contains("here"));
  const next = rows[Math.max(0, Math.min(rows.length - 1, here < 0 ? 0 : here + by))];
  rows[here]?.classList.remove("here");
  next.classList.add("here");
  next.scrollIntoView({ block: "nearest" });
}

let going = false;
const keys = {
  "/": () => document.getElementById("search")?.focus(),
  "?": () => document.getElementById("shortcuts").showModal(),
  t: otherTheme,
  g: () => { going = true; setTimeout(() => { going = false; }, 1500); },
  j: () => move(1),
  k: () => move(-1),
  x: () => document.querySelector("tr.here input[type=checkbox]")?.click(),
  Enter: () => { const here = document.querySelector("tr.here"); if (here) location.assign(here.dataset.row); },
};

function pressed(event) {
  const writes = event.target.matches("input, textarea, select");
  if (writes && event.key === "Enter" && (event.ctrlKey || event.metaKey)) return event.target.form?.requestSubmit();
  if (writes && event.key === "Escape") return event.target.blur();
  if (event.ctrlKey || event.metaKey || event.altKey || (writes && event.target.type !== "checkbox")) return;
  if (event.key === "Enter" && event.target.matches("a, button, summary")) return;
  const page = going && document.querySelector(`nav [data-key="${CSS.escape(event.key)}"]`);
  if (page) return location.assign(page.href);
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
}

function clicked(event) {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.id === "theme") otherTheme();
  if (button.id === "help") keys["?"]();
  if (button.id === "news") location.reload();
  if (button.id === "save-view") saveView();
  if (button.id === "only-different") {
    const only = document.querySelector(".beside").classList.toggle("different");
    button.setAttribute("aria-pressed", only);
  }
  if (button.dataset.whole) showWhole(button).catch((error) => { button.textContent = error.message; });
  if (button.dataset.fragment) {
    const into = document.getElementById(button.dataset.into);
    showFragment(button, into).catch((error) => { into.textContent = error.message; });
  }
  if (button.dataset.insert) {
    const text = document.getElementById("search");
    text.setRangeText(button.dataset.insert, text.selectionStart, text.selectionEnd, "end");
    text.focus();
  }
}

async function lookForNews() {
  if (document.hidden) return;
  try {
    const { state } = await (await fetch("/live")).json();
    document.getElementById("news").hidden = state === root.dataset.state;
  } catch { /* the server has ended */ }
}

document.addEventListener("DOMContentLoaded", () => {
  watchRests(document);
  showViews();
  goToStep();
  addEventListener("hashchange", goToStep);
  document.addEventListener("keydown", pressed);
  document.addEventListener("click", clicked);
  document.addEventListener("change", (event) => { if (event.target.name === "run") countChosen(); });
  document.addEventListener("pointermove", tip);
  setInterval(lookForNews, 5000);
  if (innerWidth < 800) document.querySelectorAll(".facets").forEach((facets) => { facets.open = false; });
  if (document.getElementById("compare")) countChosen();
});
