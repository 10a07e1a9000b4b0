// Charts in SVG, drawn at the width they have and again when it changes.

const MARGIN = { left: 58, right: 14, top: 10, bottom: 36 };

// Calls `draw(width)` for a box's content whenever its width changes.
function responsive(draw) {
  const box = html("div", { class: "chart" });
  let width = 0;
  const again = () => {
    const now = Math.floor(box.clientWidth);
    if (now > 0 && now !== width) {
      width = now;
      box.replaceChildren(draw(now));
    }
  };
  new ResizeObserver(() => requestAnimationFrame(again)).observe(box);
  requestAnimationFrame(again);
  return box;
}

// Round numbers from 0 (or below) to `high`; bytes in steps of their unit.
function ticks(low, high, wanted, bytes) {
  const base = bytes ? 1024 ** unit(high) : 1;
  const span = (high - low) / base || 1;
  const rough = span / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= rough * 0.999);
  const found = [];
  for (let n = Math.ceil(low / base / step - 1e-9); n * step <= (high / base) * (1 + 1e-9); n += 1) found.push(n * step * base + 0);
  return found;
}

function legend(items) {
  if (items.length < 2 && !items.some((item) => item.always)) return null;
  return html("ul", { class: "legend" }, items.map((item) => html("li", { title: item.title || null }, swatch(item.color), item.label)));
}

// The frame of a chart: axes with their units, and a crosshair that mouse, touch and arrow keys move. `xTicks` are [where, text],
// where 0 is the left end of the axis and 1 the right end.
function frame({ width, height, low, high, bytes, yFormat, yTitle, xTitle, xTicks, xAt, points, describe, label }, content) {
  const inner = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: height - MARGIN.bottom };
  const y = (value) => inner.bottom - ((value - low) / (high - low || 1)) * (inner.bottom - inner.top);
  const x = (i) => inner.left + xAt(i) * (inner.right - inner.left);
  const power = bytes ? unit(high) : 0;
  const rows = ticks(low, high, 4, bytes);
  const cross = svg("line", { class: "cross", y1: inner.top, y2: inner.bottom, visibility: "hidden" });
  const node = svg(
    "svg",
    { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": label },
    rows.map((value) => [
      svg("line", { class: "grid", x1: inner.left, x2: inner.right, y1: y(value), y2: y(value) }),
      svg("text", { x: inner.left - 8, y: y(value) + 4, "text-anchor": "end" }, yFormat ? yFormat(value) : bytes ? `${number(value / 1024 ** power)} ${UNITS[power]}` : number(value)),
    ]),
    yTitle ? svg("text", { x: -(inner.top + inner.bottom) / 2, y: 12, transform: "rotate(-90)", "text-anchor": "middle" }, yTitle) : null,
    content(x, y, inner),
    svg("line", { class: "axis", x1: inner.left, x2: inner.right, y1: inner.bottom, y2: inner.bottom }),
    xTicks(Math.max(2, Math.floor((inner.right - inner.left) / 70))).map(([at, text]) =>
      svg("text", { x: inner.left + at * (inner.right - inner.left), y: inner.bottom + 16, "text-anchor": "middle" }, text),
    ),
    svg("text", { x: inner.right, y: height - 4, "text-anchor": "end" }, xTitle),
    cross,
  );
  let current = 0;
  const show = (i) => {
    current = Math.min(Math.max(i, 0), points - 1);
    cross.setAttribute("x1", x(current));
    cross.setAttribute("x2", x(current));
    cross.setAttribute("visibility", "visible");
    const box = node.getBoundingClientRect();
    const [title, lines] = describe(current);
    tip.show(box.left + window.scrollX + x(current), box.top + window.scrollY + inner.top, title, lines);
  };
  const hide = () => {
    cross.setAttribute("visibility", "hidden");
    tip.hide();
  };
  node.addEventListener("pointermove", (event) => {
    const at = event.clientX - node.getBoundingClientRect().left;
    let best = 0;
    for (let i = 1; i < points; i += 1) if (Math.abs(x(i) - at) < Math.abs(x(best) - at)) best = i;
    show(best);
  });
  node.addEventListener("pointerleave", hide);
  node.addEventListener("blur", hide);
  node.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    show(step === -Infinity ? 0 : step === Infinity ? points - 1 : current + step);
  });
  return node;
}

// Some of the points 0 … n − 1, the first and the last among them, with a text each.
function spread(n, wanted, text) {
  const step = Math.max(1, [1, 2, 4, 5, 8, 10, 16, 20, 25, 50].map((s) => s).find((s) => (n - 1) / s <= wanted) || Math.ceil(n / wanted));
  const found = [];
  for (let i = 0; i < n; i += step) if (i === 0 || n - 1 - i >= step * 0.6 || i === n - 1) found.push([i, text(i)]);
  if (n > 1 && found[found.length - 1][0] !== n - 1) found.push([n - 1, text(n - 1)]);
  return found;
}

const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

// Lines over layers: series of {label, color, values}; nulls leave a gap.
function lineChart({ series, height = 210, xTitle, point, label, whole }) {
  const n = largest(series.map((s) => s.values.length));
  const known = series.flatMap((s) => s.values).filter((v) => v !== null);
  let low = Math.min(0, ...known);
  let high = Math.max(...known);
  if (whole) [low, high] = [0, 1];
  else if (high <= 1 && low >= 0 && high > 0.5) high = 1;
  if (high === low) high = low + 1;
  return responsive((width) =>
    frame(
      {
        width, height, low, high, label, xTitle, points: n, yFormat: whole ? (v) => (v === 1 ? "true" : v === 0 ? "false" : "") : null,
        xAt: (i) => (n > 1 ? i / (n - 1) : 0.5),
        xTicks: (wanted) => spread(n, wanted, String).map(([i, text]) => [n > 1 ? i / (n - 1) : 0.5, text]),
        describe: (i) => [
          point(i),
          series.filter((s) => s.values[i] !== null && s.values[i] !== undefined).map((s) => [s.color, s.label, whole ? String(!!s.values[i]) : number(s.values[i])]),
        ],
      },
      (x, y) =>
        series.map((s) => {
          const runs = [[]];
          s.values.forEach((v, i) => (v === null ? runs.push([]) : runs[runs.length - 1].push([x(i), y(v)])));
          return svg(
            "g",
            { style: `stroke:${s.color};fill:${s.color}` },
            runs.filter((r) => r.length).map((r) => svg("path", { d: path(r), fill: "none", "stroke-width": 2, "stroke-linejoin": "round" })),
            n <= 80 ? runs.flat().map(([px, py]) => svg("circle", { cx: px, cy: py, r: n <= 48 ? 2.6 : 1.8, stroke: "none" })) : null,
          );
        }),
    ),
  );
}

// Layers of colour on top of each other, with lines for what they must stay under: `areas` of {label, color, values, opacity}.
function areaChart({ areas, lines, height = 240, xTitle, xAt, xTicks, point, label, high }) {
  const n = areas[0].values.length;
  return responsive((width) =>
    frame(
      {
        width, height, low: 0, high, bytes: true, label, xTitle, points: n, xAt, xTicks,
        describe: (i) => [point(i), [...areas].reverse().map((a) => [a.color, a.label, size(a.values[i])])],
      },
      (x, y, inner) => {
        const base = new Array(n).fill(0);
        const drawn = areas.map((area) => {
          const below = base.map((v, i) => [x(i), y(v)]);
          area.values.forEach((v, i) => (base[i] += v));
          const above = base.map((v, i) => [x(i), y(v)]);
          if (n === 1) { below.push([inner.right, below[0][1]]); above.push([inner.right, above[0][1]]); below[0][0] = above[0][0] = inner.left; }
          return svg("path", { d: path([...above, ...below.reverse()]) + "Z", style: `fill:${area.color}`, "fill-opacity": area.opacity });
        });
        return [
          drawn,
          lines.filter((line) => line.value <= high).map((line) => [
            svg("line", { class: line.kind, x1: inner.left, x2: inner.right, y1: y(line.value), y2: y(line.value) }),
            svg("text", { class: "strong", x: inner.right - 4, y: y(line.value) + (line.below ? 14 : -5), "text-anchor": "end" }, line.label),
          ]),
        ];
      },
    ),
  );
}

// Stacked bars: `stacks` of {label, color, values}, and marks, one a bar, for what is compared with them.
function barChart({ stacks, marks, names, height = 230, xTitle, xTicks, label }) {
  const n = names.length;
  const high = Math.max(1, ...names.map((_, i) => sum(stacks.map((s) => s.values[i]))), ...(marks ? marks.values : [])) * 1.04;
  return responsive((width) =>
    frame(
      {
        width, height, low: 0, high, bytes: true, label, xTitle, points: n, xAt: (i) => (i + 0.5) / n,
        xTicks: (wanted) => xTicks(wanted).map(([i, text]) => [(i + 0.5) / n, text]),
        describe: (i) => [
          names[i],
          [...stacks.map((s) => [s.color, s.label, size(s.values[i])]).reverse(), ...(marks ? [["var(--ink)", marks.label, size(marks.values[i])]] : [])],
        ],
      },
      (x, y, inner) => {
        const wide = Math.max(1, Math.min(34, ((inner.right - inner.left) / n) * 0.74));
        const base = new Array(n).fill(0);
        return [
          stacks.map((s) => svg("g", { style: `fill:${s.color}` }, s.values.map((v, i) => {
            const from = base[i];
            base[i] += v;
            return v ? svg("rect", { x: x(i) - wide / 2, width: wide, y: y(base[i]), height: Math.max(0.5, y(from) - y(base[i])) }) : null;
          }))),
          marks ? marks.values.map((v, i) => svg("line", { x1: x(i) - wide / 2 - 1, x2: x(i) + wide / 2 + 1, y1: y(v), y2: y(v), style: "stroke:var(--ink);stroke-width:2" })) : null,
        ];
      },
    ),
  );
}
