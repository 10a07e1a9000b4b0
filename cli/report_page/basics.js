// Elements, numbers and the tooltip. Texts from the data are only ever set as text, never parsed.

window.addEventListener("error", (event) => trouble(event.message));

function trouble(message) {
  const root = document.documentElement;
  root.dataset.error = (root.dataset.error ? root.dataset.error + "\n" : "") + message;
  const place = document.getElementById("trouble");
  place.hidden = false;
  place.textContent = `A part of this page could not be drawn: ${message}`;
}

const SVG = "http://www.w3.org/2000/svg";

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(9)) {
    if (child !== null && child !== undefined) element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

const html = (name, attributes, ...children) => build(document.createElement(name), attributes, children);
const svg = (name, attributes, ...children) => build(document.createElementNS(SVG, name), attributes, children);

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

function unit(bytes) {
  let power = 0;
  while (power < UNITS.length - 1 && Math.abs(bytes) >= 1024 ** (power + 1)) power += 1;
  return power;
}

function size(bytes, power = unit(bytes)) {
  return `${digits(bytes / 1024 ** power)} ${UNITS[power]}`;
}

// Three significant digits, as people write them.
function digits(value) {
  if (value === 0) return "0";
  const whole = Math.abs(value);
  return whole >= 100 ? value.toFixed(0) : whole >= 10 ? String(+value.toFixed(1)) : whole >= 0.01 ? String(+value.toFixed(2)) : value.toPrecision(2);
}

const number = (value) => String(+Number(value).toPrecision(4));
const grouped = (value) => value.toLocaleString("en");

function count(value) {
  for (const [base, name] of [[1e12, " T"], [1e9, " B"], [1e6, " M"], [1e3, " K"]]) if (value >= base) return digits(value / base) + name;
  return String(value);
}

function duration(seconds) {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : seconds.toFixed(0)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const plural = (n, word) => `${grouped(n)} ${word}${n === 1 ? "" : "s"}`;
const color = (i) => `var(--c${i % 8})`;
const swatch = (paint) => html("span", { class: "swatch", style: `background:${paint}` });
const sum = (values) => values.reduce((a, b) => a + b, 0);
const largest = (values) => values.reduce((a, b) => Math.max(a, b), 0);

function shorten(text, width) {
  const fit = Math.max(3, Math.floor(width / 6.2));
  if (text.length <= fit) return text;
  const head = Math.floor((fit - 1) / 3);
  return text.slice(0, head) + "…" + text.slice(text.length - (fit - 1 - head));
}

const tip = {
  // `lines` are [colour or null, label, value].
  show(x, y, title, lines) {
    const box = document.getElementById("tip");
    box.replaceChildren(
      html("b", {}, title),
      lines.map(([paint, label, value]) => html("div", {}, paint ? swatch(paint) : null, html("span", {}, label), html("span", {}, value))),
    );
    box.hidden = false;
    const left = Math.min(Math.max(x + 14, 4), document.documentElement.clientWidth - box.offsetWidth - 6);
    box.style.left = `${Math.max(4, left)}px`;
    box.style.top = `${y + 16}px`;
  },
  hide() {
    document.getElementById("tip").hidden = true;
  },
};
