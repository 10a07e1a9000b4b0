// The page, section by section, from the data.

const STATES = {
  new: "The output folder is new: everything will be done.",
  unfinished: "The output folder holds an unfinished result.",
  complete: "The output folder holds the complete result of this very plan: there is nothing to do.",
  another: "The output folder holds the complete result of another plan.",
  foreign: "The output folder holds other files: weft run will refuse it.",
};

const section = (id, title, lead, ...content) => html("section", { id }, html("h2", {}, title), lead ? html("p", { class: "lead" }, lead) : null, content);

const tile = (name, value, under, share) =>
  html("div", { class: "tile" }, html("dt", {}, name), html("dd", {}, value,
    share === undefined ? null : html("span", { class: "meter", role: "presentation", style: "display:block" }, html("i", { style: `width:${Math.min(100, share * 100).toFixed(1)}%` })),
    under ? html("span", { class: "under" }, under) : null));

function header(data) {
  const about = data.about;
  const models = plural(data.models.length, "model");
  return [
    html("p", { class: "eyebrow" }, data.measured ? "weft · what a run did" : "weft · a plan"),
    html("h1", {}, data.title),
    html("p", { class: "soft" }, `${about.method} of ${models} · ${plural(about.layers, "layer")} · ${count(about.parameters)} parameters · ${about.dtype || "mixed types"} · from ${data.source}`),
  ];
}

function glance(data) {
  const about = data.about;
  const gpu = about.device !== "cpu";
  const tasks = about.tasks;
  const shared = data.models.some((model) => model.bytes_to_download);
  return section("glance", "At a glance", null,
    html("dl", { class: "tiles" },
      tile("Reads", size(about.bytes_read), `${plural(tasks.load, "load")} from ${plural(data.models.length, "model")}`),
      tile("Writes", size(about.bytes_written), `${plural(about.tensors, "tensor")} in ${plural(about.shards.length, "file")}`),
      tile("Downloads", about.bytes_to_download ? size(about.bytes_to_download) : "nothing", about.bytes_to_download ? "before the merge begins" : "all models are here"),
      tile("Peak RAM", size(about.ram.predicted_peak), `of ${size(about.ram.budget)} allowed`, about.ram.predicted_peak / about.ram.budget),
      tile("Peak VRAM", gpu ? size(about.vram.predicted_peak) : "none", gpu ? `of ${size(about.vram.budget)} allowed` : "computed on the CPU", gpu ? about.vram.predicted_peak / about.vram.budget : undefined),
      tile("Time", duration(about.seconds), `estimated, ${plural(about.workers, "worker")}${shared ? ", beside the download" : ""}`)),
    html("div", { class: "scroll" }, html("table", {},
      html("thead", {}, html("tr", {}, html("th", {}, "model"), html("th", { class: "n" }, "layers"), html("th", { class: "n" }, "read"), shared ? html("th", { class: "n" }, "to download") : null)),
      html("tbody", {}, data.models.map((model, m) => html("tr", {},
        html("td", {}, swatch(color(m)), model.model, model.model === about.base_model ? html("span", { class: "soft" }, " · base model") : "", model.commit ? html("span", { class: "soft mono" }, ` @${model.commit.slice(0, 7)}`) : ""),
        html("td", { class: "n" }, model.layers || "–"),
        html("td", { class: "n" }, size(model.bytes_read)),
        shared ? html("td", { class: "n" }, model.bytes_to_download ? size(model.bytes_to_download) : "–") : null))))),
    about.notes.length ? html("ul", { class: "notes" }, about.notes.map((note) => html("li", {}, note))) : null);
}

function parameters(data) {
  const value = (p, v) => (p.boolean ? (v ? "true" : "false") : number(v));
  const title = (p) => (p.merge ? `${p.merge}: ${p.name}` : p.name);
  if (!data.parameters.length) return null;
  let next = 0;
  const paints = new Map();
  const paint = (label) => { if (!paints.has(label)) paints.set(label, next++); return color(paints.get(label)); };
  const ofModel = (label, i) => { const at = data.models.findIndex((m) => m.model === label); return color(at < 0 ? data.models.length + i : at); };
  const drawnWhole = new Set();
  const outside = (p, items) => (items.length ? html("figcaption", {}, `Outside the layers: ${items.slice(0, 6).map(([name, v]) => `${name.replace(/\.weight$/, "")} ${value(p, v)}`).join(", ")}${items.length > 6 ? ", …" : ""}`) : null);
  const figure = (p, who, stack, series, caption) => html("figure", {},
    html("h3", {}, title(p), html("span", { class: "soft" }, who ? ` of ${who}` : "", stack ? ` in ${stack}` : "")),
    legend(series),
    lineChart({ series, xTitle: "layer of the result", whole: p.boolean, point: (i) => `layer ${i}`, label: `${title(p)}${who ? ` of ${who}` : ""} by layer` }),
    caption);
  const drawn = data.parameters.flatMap((p) => {
    const varied = p.models.filter((m) => m.constant === null);
    if (!varied.length) return [];
    const stacks = [...new Set(varied.flatMap((m) => m.series.map((s) => s.stack)))];
    if (!stacks.length) return varied.map((m) => html("figure", {}, html("h3", {}, title(p), m.model ? html("span", { class: "soft" }, ` of ${m.model}`) : ""), outside(p, m.outside)));
    const alike = p.models.length > 1 && stacks.length === 1 && varied.every((m) => m.series.length === 1);
    if (alike) { // one curve a model
      drawnWhole.add(p);
      const layers = largest(varied.map((m) => m.series[0].values.length));
      const series = p.models.map((m, i) => ({ label: m.model, color: ofModel(m.model, i), values: m.constant === null ? m.series[0].values : new Array(layers).fill(m.constant) }));
      return [figure(p, "", "", series, html("figcaption", {}, "The same for all kinds of tensors in a layer."))];
    }
    return varied.flatMap((m) => stacks.map((stack) => {
      const series = m.series.filter((s) => s.stack === stack).map((s) => ({ label: shorten(s.label, 420), color: paint(s.label), values: s.values, title: s.kinds.slice(0, 40).join("\n") }));
      const caption = outside(p, m.outside);
      return figure(p, m.model, stacks.length > 1 ? stack : "", series, series.length > 1 ? caption : [html("figcaption", {}, "The same for all kinds of tensors in a layer."), caption]);
    }));
  });
  const facts = [];
  for (const p of data.parameters) {
    const fixed = p.models.filter((m) => m.constant !== null);
    if (fixed.length && !drawnWhole.has(p)) facts.push([title(p), p, fixed]);
  }
  return section("parameters", "Parameters", drawn.length ? "What the config's numbers come to in each layer, by kind of tensor." : null,
    drawn.length ? html("div", { class: "charts" }, drawn) : null,
    facts.length ? html("dl", { class: "facts", style: "margin-top:18px" }, facts.map(([name, p, fixed]) => [
      html("dt", {}, name),
      html("dd", {}, fixed.length === 1 && fixed[0].model === null ? value(p, fixed[0].constant)
        : fixed.every((m) => m.constant === fixed[0].constant) && fixed.length === p.models.length ? `${value(p, fixed[0].constant)} for every model`
        : fixed.map((m) => html("div", {}, value(p, m.constant), m.model === null ? "" : html("span", { class: "soft" }, ` of ${m.model}`)))),
    ])) : null);
}

function memory(data, tensors) {
  const m = data.memory;
  const about = data.about;
  if (!m.at.length) return null;
  const fixed = sum(Object.values(m.fixed));
  const peak = about.ram.predicted_peak;
  const near = about.ram.budget <= peak * 1.5;
  const areas = [
    { label: "workers and libraries", color: "var(--c7)", opacity: 0.35, values: m.at.map(() => fixed) },
    { label: "kept for later steps", color: "var(--c3)", opacity: 0.75, values: m.kept },
    { label: "this step", color: "var(--c0)", opacity: 0.85, values: m.own },
    { label: "later steps, read ahead", color: "var(--c0)", opacity: 0.38, values: m.ahead },
  ].filter((area) => area.values.some((v) => v));
  const full = peak > about.ram.budget * 0.96;
  const lines = [];
  if (!full) lines.push({ kind: "peak", value: peak, label: `predicted peak ${size(peak)}`, below: near });
  if (near) lines.push({ kind: "budget", value: about.ram.budget, label: full ? `budget ${size(about.ram.budget)}, used in full` : `budget ${size(about.ram.budget)}` });
  const name = (i) => (m.tensor[i] >= 0 ? tensors[m.tensor[i]].name : "a tensor of an earlier stage");
  return section("memory", "Memory",
    `Host memory while the ${plural(m.steps, "step")} of the schedule run. The peak is decided before anything is read: ${size(peak)} of the ${size(about.ram.budget)} that --ram allows${about.peak_tensor ? `. The largest step is ${about.peak_tensor}` : ""}.`,
    html("figure", {},
      legend(areas.map((area) => ({ label: area.label, color: `color-mix(in srgb, ${area.color} ${Math.round(area.opacity * 100)}%, var(--paper))` }))),
      areaChart({
        areas, lines, high: (near ? about.ram.budget : peak) * 1.12, xTitle: "step of the schedule", label: "Host memory over the steps of the schedule",
        xAt: (i) => (m.at.length > 1 ? m.at[i] / (m.steps - 1) : 0.5),
        xTicks: (wanted) => ticks(0, m.steps - 1, Math.min(wanted, 8)).filter(Number.isInteger).map((step) => [m.steps > 1 ? step / (m.steps - 1) : 0.5, grouped(step)]),
        point: (i) => `step ${grouped(m.at[i])}: ${name(i)}`,
      }),
      html("figcaption", {}, about.device === "cpu" ? "No device memory is used: the merge is computed on the CPU."
        : `On ${about.device}: ${size(about.vram.predicted_peak)} of ${size(about.vram.budget)} from the first step to the last, because each worker has blocks of its own there that never grow.`)));
}

function bytes(data, tensors) {
  const rows = data.rows.map((row, r) => ({ row, tensors: tensors.filter((t) => t.row === r) }));
  const stacks = data.models.map((model, m) => ({ label: model.model, color: color(m), values: rows.map((x) => sum(x.tensors.map((t) => t.read[m]))) }));
  const marks = { label: "written", values: rows.map((x) => sum(x.tensors.map((t) => t.bytes))) };
  const short = (row) => (row.layer === null ? (row.label.startsWith("before") ? "in" : "out") : String(row.layer));
  const named = (wanted) => {
    const step = [1, 2, 4, 8, 16, 32, 64, 128].find((s) => rows.length / s <= wanted * 1.5) || 256;
    return data.rows.map((row, i) => [i, row]).filter(([i, row]) => (row.layer === null ? true : row.layer % step === 0 && i + step * 0.4 < rows.length && (i === 0 || rows.length <= 12 * step || i > step * 0.3)))
      .map(([i, row]) => [i, short(row)]).filter(([i], n, all) => n === 0 || n === all.length - 1 || i - all[n - 1][0] >= Math.ceil(step * 0.5));
  };
  return section("bytes", "Bytes by layer", "What is read from each model, and with a line across each bar what is written. Before the layers stand the embeddings, after them the final norm and the output head.",
    html("figure", {},
      legend([...stacks, { label: "written", color: "var(--ink)" }]),
      barChart({ stacks, marks, names: data.rows.map((row) => row.label), xTitle: "layer of the result", xTicks: named, label: "Bytes read from each model, by layer" })));
}

function reuse(data, tensors) {
  const state = data.reuse.state;
  if (!state || state === "new") return null;
  const done = tensors.filter((t) => t.done);
  const bytes = sum(done.map((t) => t.bytes));
  const all = sum(tensors.map((t) => t.bytes));
  const what = done.length && state !== "complete"
    ? ` ${grouped(done.length)} of ${plural(tensors.length, "tensor")} (${size(bytes)} of ${size(all)}) ${data.measured ? "were not" : "will not be"} computed again; they are green in the graph below.` : "";
  const when = data.measured ? "When the run began: " : "";
  return section("reuse", data.measured ? "What was done already" : "What is done already", when + STATES[state] + what,
    done.length && state !== "complete" ? html("div", { class: "meter", style: "height:10px" }, html("i", { style: `width:${((bytes / all) * 100).toFixed(1)}%;background:var(--good)` })) : null);
}

function measured(data) {
  const run = data.measured;
  if (!run) return null;
  const done = run.summary;
  const last = run.samples.length - 1;
  const time = run.samples.map((s) => s[0]);
  const column = (i) => run.samples.map((s) => s[i]);
  const end = time[last] || 1;
  const common = {
    xTitle: "seconds", xAt: (i) => time[i] / end, point: (i) => `after ${duration(time[i])}`,
    xTicks: (wanted) => ticks(0, end, Math.min(wanted, 8)).map((t) => [t / end, number(t)]),
  };
  const heading = run.finished ? "What was measured" : "What was measured before the run stopped";
  const seconds = done ? done.seconds : run.seconds;
  const read = column(1);
  const held = column(3);
  const most = Math.max(largest(held), data.memory.pool) * 1.12;
  return section("measured", heading, run.finished ? null : "The same command goes on from here.",
    html("dl", { class: "tiles" },
      tile("Time", duration(seconds), `estimated: ${duration(data.about.seconds)}`),
      tile("Read", size(read[last]), `${size(read[last] / Math.max(seconds, 0.001))}/s`),
      tile("Written", size(column(2)[last]), `${size(column(2)[last] / Math.max(seconds, 0.001))}/s`),
      tile("Tensors", grouped(run.durable), `durable, of ${grouped(data.about.tensors)}${run.reused ? `; ${grouped(run.reused)} found done` : ""}`),
      done ? tile("Peak RAM", size(done.measured_ram), `predicted: ${size(done.predicted_ram)}`, done.measured_ram / done.predicted_ram) : null,
      done && done.predicted_vram ? tile("Peak VRAM", size(done.measured_vram), `predicted: ${size(done.predicted_vram)}`, done.measured_vram / done.predicted_vram) : null,
      done ? tile("Changed", done.compared_elements ? `${digits((done.differing_elements / done.compared_elements) * 100)}%` : "–", `of the elements differ from the base model, in ${plural(done.differing_tensors, "tensor")}`) : null,
      done ? tile("NaN and Inf", grouped(done.nan + done.inf), done.nan + done.inf ? done.nonfinite_tensors.slice(0, 3).join(", ") : "all values are numbers") : null),
    last > 0 ? html("div", { class: "charts" },
      html("figure", {}, html("h3", {}, "Read"),
        areaChart({ ...common, areas: [{ label: "read", color: "var(--c0)", opacity: 0.5, values: read }], lines: [], high: read[last] * 1.1 || 1, height: 190, label: "Bytes read over time" })),
      html("figure", {}, html("h3", {}, "Written"),
        areaChart({ ...common, areas: [{ label: "written", color: "var(--c2)", opacity: 0.5, values: column(2) }], lines: [], high: column(2)[last] * 1.1 || 1, height: 190, label: "Bytes written over time" })),
      html("figure", {}, html("h3", {}, "Memory of the pool in use"),
        areaChart({ ...common, areas: [{ label: "held", color: "var(--c3)", opacity: 0.5, values: held }], lines: [{ kind: "peak", value: data.memory.pool, label: `pool ${size(data.memory.pool)}` }], high: most, height: 190, label: "Bytes of the pool in use over time" }))) : null);
}

function draw() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tensors = readTensors(data);
  document.getElementById("head").append(...header(data).map((x) => x));
  const parts = [
    () => glance(data), () => measured(data), () => reuse(data, tensors), () => parameters(data), () => memory(data, tensors), () => bytes(data, tensors),
    () => section("tasks", "Tasks", "Where every layer of the result comes from and goes to. Bands are as thick as their bytes.", taskGraph(data, tensors)),
    () => section("config", "Config", null, html("details", {}, html("summary", {}, data.source), html("pre", {}, data.config))),
  ];
  for (const part of parts) {
    try {
      const made = part();
      if (made) document.getElementById("page").append(made);
    } catch (error) {
      trouble(String(error && error.stack ? error.stack : error));
    }
  }
  document.getElementById("foot").append(`Written by weft ${data.weft}. Plan ${data.about.digest}.`);
  requestAnimationFrame(() => requestAnimationFrame(() => { document.documentElement.dataset.ready = "true"; }));
}

draw();
