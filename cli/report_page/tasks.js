// The task graph: models → layers → output files, and on a click the tensors of a layer and the tasks of a tensor.

// Pans by dragging, zooms with buttons, + and −, or Ctrl and the wheel; 0 shows all of it again.
function zoomable(node, width, height) {
  let view = { x: 0, y: 0, scale: 1 };
  const apply = () => {
    node.setAttribute("viewBox", `${view.x} ${view.y} ${width / view.scale} ${height / view.scale}`);
    node.style.touchAction = view.scale > 1 ? "none" : "pan-y";
  };
  const zoom = (factor, fx = 0.5, fy = 0.5) => {
    const scale = Math.min(20, Math.max(1, view.scale * factor));
    view.x += (width / view.scale - width / scale) * fx;
    view.y += (height / view.scale - height / scale) * fy;
    view.scale = scale;
    move(0, 0);
  };
  const move = (dx, dy) => {
    view.x = Math.min(Math.max(0, view.x + dx), width - width / view.scale);
    view.y = Math.min(Math.max(0, view.y + dy), height - height / view.scale);
    apply();
  };
  const all = () => { view = { x: 0, y: 0, scale: 1 }; apply(); };
  node.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const box = node.getBoundingClientRect();
    zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }, { passive: false });
  let held = null;
  node.addEventListener("pointerdown", (event) => (held = [event.clientX, event.clientY]));
  window.addEventListener("pointermove", (event) => {
    if (!held || view.scale === 1) return;
    const ratio = width / view.scale / node.getBoundingClientRect().width;
    move((held[0] - event.clientX) * ratio, (held[1] - event.clientY) * ratio);
    held = [event.clientX, event.clientY];
  });
  window.addEventListener("pointerup", () => (held = null));
  window.addEventListener("pointercancel", () => (held = null));
  node.addEventListener("keydown", (event) => {
    const step = 40 / view.scale;
    const action = {
      "+": () => zoom(1.3), "=": () => zoom(1.3), "-": () => zoom(1 / 1.3), 0: all,
      ArrowLeft: () => move(-step, 0), ArrowRight: () => move(step, 0), ArrowUp: () => move(0, -step), ArrowDown: () => move(0, step),
    }[event.key];
    if (!action || event.ctrlKey || event.metaKey || (view.scale === 1 && event.key.startsWith("Arrow"))) return;
    event.preventDefault();
    action();
  });
  apply();
  return { zoom, all };
}

const press = (action) => ({
  tabindex: 0, role: "button", onclick: action,
  onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); action(); } },
});

// What the numbers of the data's tensors mean.
function readTensors(data) {
  const table = data.tensors;
  const at = Object.fromEntries(table.columns.map((name, i) => [name, i]));
  const done = new Set(data.reuse.done);
  return table.items.map((item, i) => ({
    i, row: item[at.row], name: data.rows[item[at.row]].prefix + table.rest[item[at.rest]], shape: table.shape[item[at.shape]],
    dtype: table.dtype[item[at.dtype]], method: table.method[item[at.method]], parameters: table.parameters[item[at.parameters]],
    pattern: table.pattern[item[at.pattern]], shard: item[at.shard], bytes: item[at.bytes], read: table.read[item[at.read]],
    neighbours: table.neighbours[i] || [], done: done.has(i),
  }));
}

const modelName = (data, m) => (m < 0 ? "made by the run" : data.models[m].model);
const modelColor = (m) => (m < 0 ? "var(--c7)" : color(m));

function leafName(data, tensor, leaf) {
  const [, , , shift, name] = leaf;
  if (name !== null) return name;
  const row = data.rows[tensor.row];
  if (!shift) return tensor.name;
  return `${row.stack ? row.stack + "." : ""}${row.layer + shift}.${tensor.name.slice(row.prefix.length)}`;
}

// The whole merge: one band for each model and layer, as thick as the bytes.
function overview(data, tensors, open) {
  const rows = data.rows.map((row, i) => ({ ...row, i, tensors: tensors.filter((t) => t.row === i) }));
  const shards = data.about.shards;
  return responsive((width) => {
    const step = Math.min(20, Math.max(9, 700 / rows.length));
    const top = 26;
    const height = Math.max(top + step * rows.length + 10, top + 34 * Math.max(data.models.length, shards.length) + 10);
    const side = Math.min(230, width * 0.3);
    const middle = { x: width * 0.5 - Math.min(132, width * 0.22) / 2, w: Math.min(132, width * 0.22) };
    const place = (n, i) => top + ((i + 0.5) / n) * (height - top - 10);
    const at = rows.map((_, i) => place(rows.length, i));
    const readAt = rows.map((row) => data.models.map((_, m) => sum(row.tensors.map((t) => t.read[m]))));
    const most = largest(readAt.map(sum)) || 1;
    const thick = (bytes) => (bytes ? Math.max(1, (bytes / most) * (step - 3)) : 0);
    const band = (x1, y1, x2, y2, w, paint, keys) => {
      const half = (x1 + x2) / 2;
      return svg("path", { class: "edge", d: `M${x1} ${y1}C${half} ${y1} ${half} ${y2} ${x2} ${y2}`, style: `stroke:${paint};stroke-width:${w.toFixed(2)}`, ...keys });
    };
    const edges = [];
    rows.forEach((row, r) => {
      let offset = -thick(sum(readAt[r])) / 2;
      data.models.forEach((_, m) => {
        const w = thick(readAt[r][m]);
        if (w) edges.push(band(side, place(data.models.length, m), middle.x, at[r] + offset + w / 2, w, color(m), { "data-row": r, "data-model": m }));
        offset += w;
      });
      shards.forEach((_, s) => {
        const bytes = sum(row.tensors.filter((t) => t.shard === s).map((t) => t.bytes));
        if (bytes) edges.push(band(middle.x + middle.w, at[r], width - side * 0.72, place(shards.length, s), thick(bytes), "var(--c7)", { "data-row": r, "data-shard": s }));
      });
    });
    const light = (kind, i) => () => edges.forEach((edge) => {
      edge.classList.toggle("lit", edge.dataset[kind] === String(i));
      edge.classList.toggle("dim", edge.dataset[kind] !== String(i));
    });
    const plain = () => edges.forEach((edge) => edge.classList.remove("lit", "dim"));
    const box = (x, w, y, h, text, title, kind, i, more, action) =>
      svg("g", { class: "node", onpointerenter: light(kind, i), onpointerleave: plain, ...(action ? press(action) : {}), "aria-label": title },
        svg("title", {}, title),
        svg("rect", { class: "box", x, y: y - h / 2, width: w, height: h, rx: Math.min(5, h / 3) }),
        more,
        svg("text", { class: "strong", x: x + 9, y: y + 4, style: h < 12 ? "font-size:9px" : null }, text),
      );
    const every = Math.ceil(11 / step);
    const node = svg("svg", { width, height, tabindex: 0, role: "group", "aria-label": "Task graph: models on the left, layers of the result in the middle, output files on the right" },
      edges,
      [[0, "models"], [middle.x, "result"], [width - side * 0.72, "files"]].map(([x, text]) => svg("text", { x, y: 14 }, text)),
      data.models.map((model, m) => box(0, side, place(data.models.length, m), 30, shorten(model.model, side - 24),
        `${model.model}: ${size(model.bytes_read)} are read`, "model", m,
        svg("rect", { x: 0, y: place(data.models.length, m) - 15, width: 4, height: 30, style: `fill:${color(m)};stroke:none`, rx: 2 }))),
      rows.map((row, r) => {
        const finished = row.tensors.filter((t) => t.done).length;
        return box(middle.x, middle.w, at[r], step - 2, r % every === 0 ? shorten(row.label, middle.w - 12) : "",
          `${row.label}: ${plural(row.tensors.length, "tensor")}, ${size(sum(readAt[r]))} read, ${size(sum(row.tensors.map((t) => t.bytes)))} written${finished ? `, ${finished} done already` : ""}`,
          "row", r,
          finished ? svg("rect", { class: "done", x: middle.x, y: at[r] - (step - 2) / 2, width: (middle.w * finished) / row.tensors.length, height: step - 2, rx: 3 }) : null,
          () => open.row(r));
      }),
      shards.map((shard, s) => box(width - side * 0.72, side * 0.72, place(shards.length, s), 30, shorten(fileLabel(shard.name), side * 0.72 - 10),
        `${shard.name}: ${size(shard.bytes)}, ${plural(shard.tensors, "tensor")}`, "shard", s, null)),
    );
    const control = zoomable(node, width, height);
    return html("div", {},
      html("div", { class: "tools" },
        html("button", { type: "button", onclick: () => control.zoom(1.4), "aria-label": "Zoom in" }, "+"),
        html("button", { type: "button", onclick: () => control.zoom(1 / 1.4), "aria-label": "Zoom out" }, "−"),
        html("button", { type: "button", onclick: control.all }, "Show all"),
        html("span", { class: "soft" }, "Ctrl and the wheel zoom, dragging moves, a click on a layer opens it.")),
      html("div", { class: "graph" }, node));
  });
}

// A list of tensors to choose from.
function tensorList(title, tensors, chosen, open) {
  const shown = tensors.slice(0, 400);
  return html("div", {},
    html("h3", {}, title),
    html("div", { class: "list" }, shown.map((t) =>
      html("button", { type: "button", "aria-current": t.i === chosen ? "true" : null, onclick: () => open.tensor(t.name) },
        html("span", { class: "name mono" }, t.name),
        html("span", { class: "soft shape" }, t.shape.join(" × ") || "one number"),
        html("span", { class: "soft" }, size(t.bytes))))),
    shown.length < tensors.length ? html("p", { class: "soft" }, `and ${grouped(tensors.length - shown.length)} more: type a part of a name to find them`) : null);
}

// model-00002-of-00004.safetensors as "file 2 of 4": what tells files apart is in the middle of their names.
function fileLabel(name) {
  const match = /-0*(\d+)-of-0*(\d+)\.\w+$/.exec(name);
  return match ? `file ${match[1]} of ${match[2]}` : name;
}

// The tasks that make one tensor, all tiles of a role as one box.
function neighbourhood(data, tensors, tensor, open) {
  const [leaves, groups, edges] = tensor.pattern;
  const depth = groups.map(() => 0);
  for (let turn = 0; turn < groups.length; turn += 1) for (const [a, b] of edges) depth[b] = Math.max(depth[b], depth[a] + 1);
  const last = largest(depth);
  groups.forEach(([kind], g) => { if (kind === "save") depth[g] = last; });
  const columns = Array.from({ length: last + 1 }, (_, d) => groups.map((_, g) => g).filter((g) => depth[g] === d));
  const describe = ([kind, what, tasks, bytes]) => {
    const many = plural(tasks, kind === "compute" ? "task" : kind);
    if (kind === "load") return [`${many} · ${size(bytes)}`, modelName(data, leaves[what][0]), modelColor(leaves[what][0]), `${modelName(data, leaves[what][0])}: ${leafName(data, tensor, leaves[what])}`];
    if (kind === "save") return [`${many} · ${size(bytes)}`, fileLabel(data.about.shards[what].name), "var(--c7)", data.about.shards[what].name];
    return [`${what[1]} · ${many}`, what[0], "var(--ink)", `${what[0]}: ${what[1]}`];
  };
  const graph = responsive((width) => {
    const rowHeight = 62;
    const narrow = width < 620;
    const count = largest(columns.map((c) => c.length));
    const boxWidth = narrow ? Math.min(width - 20, 260) : Math.min(216, (width - 30 * last) / (last + 1));
    const height = narrow ? sum(columns.map((c) => c.length)) * rowHeight + last * 18 + 8 : count * rowHeight + 8;
    let drop = 4;
    const at = [];
    columns.forEach((column, d) => {
      column.forEach((g, i) => {
        at[g] = narrow ? [10 + (i % 2) * 14, drop + i * rowHeight] : [last ? (d / last) * (width - boxWidth - 2) + 1 : 1, 4 + ((i + 0.5) / column.length) * count * rowHeight - rowHeight / 2];
      });
      drop += column.length * rowHeight + 18;
    });
    return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Tasks of ${tensor.name}` },
      edges.map(([a, b]) => {
        const [x1, y1, x2, y2] = narrow
          ? [at[a][0] + boxWidth - 30, at[a][1] + 48, at[b][0] + boxWidth - 30, at[b][1]]
          : [at[a][0] + boxWidth, at[a][1] + 24, at[b][0], at[b][1] + 24];
        const d = narrow ? `M${x1} ${y1}C${x1 + 26} ${y1 + 16} ${x2 + 26} ${y2 - 16} ${x2} ${y2}` : `M${x1} ${y1}C${(x1 + x2) / 2} ${y1} ${(x1 + x2) / 2} ${y2} ${x2} ${y2}`;
        return svg("path", { class: "edge", d, style: `stroke:${describe(groups[a])[2]};stroke-width:2` });
      }),
      groups.map((group, g) => {
        const [work, name, paint, title] = describe(group);
        const [x, y] = at[g];
        return svg("g", { class: "node" }, svg("title", {}, title),
          svg("rect", { class: "box", x, y, width: boxWidth, height: 48, rx: 6 }),
          svg("rect", { x, y, width: 4, height: 48, rx: 2, style: `fill:${paint};stroke:none` }),
          svg("text", { x: x + 12, y: y + 18 }, shorten(work, boxWidth - 14)),
          svg("text", { class: "strong", x: x + 12, y: y + 36 }, shorten(name, boxWidth - 18)));
      }));
  });
  const truth = new Set(data.parameters.filter((p) => p.boolean).map((p) => p.name));
  const facts = [
    ["shape", `${tensor.shape.join(" × ") || "one number"}, ${tensor.dtype}, ${size(tensor.bytes)}`],
    ["method", tensor.method === "copy" ? "copied as it is" : tensor.method],
    ["read from", leaves.map((leaf, i) => html("div", {}, swatch(modelColor(leaf[0])), modelName(data, leaf[0]), leaf[4] !== null || leaf[3] ? html("span", { class: "mono" }, ` ${leafName(data, tensor, leaf)}`) : "", html("span", { class: "soft" }, ` ${leaf[1]}, ${leaf[2]}`)))],
    tensor.parameters.length ? ["parameters", tensor.parameters.map(([model, name, value]) => html("div", {}, `${name} = ${truth.has(name) ? Boolean(value) : number(value)}`, model ? html("span", { class: "soft" }, ` of ${model}`) : ""))] : null,
    tensor.done ? ["state", "done already: found in the output folder"] : null,
    tensor.neighbours.length ? ["shares what is read with", tensor.neighbours.map((i) => html("div", {}, html("button", { type: "button", onclick: () => open.tensor(tensors[i].name) }, tensors[i].name)))] : null,
  ].filter(Boolean);
  return html("div", {}, html("h3", { class: "mono" }, tensor.name), graph, html("dl", { class: "facts" }, facts.map(([k, v]) => [html("dt", {}, k), html("dd", {}, v)])));
}

// The section: overview, a search, and what is open. What is open stands in the address, so that it can be sent on.
function taskGraph(data, tensors) {
  const panel = html("div", { id: "panel" });
  const open = {
    row: (r) => { location.hash = `part=${encodeURIComponent(data.rows[r].label)}`; },
    tensor: (name) => { location.hash = `tensor=${encodeURIComponent(name)}`; },
  };
  const search = html("input", { type: "search", placeholder: "Find a tensor by a part of its name", "aria-label": "Find a tensor", oninput: () => {
    const wanted = search.value.trim();
    if (wanted) panel.replaceChildren(tensorList(`Tensors with “${wanted}”`, tensors.filter((t) => t.name.includes(wanted)), -1, open));
    else follow();
  } });
  const follow = () => {
    const [key, ...rest] = location.hash.slice(1).split("=");
    let name = rest.join("=");
    try { name = decodeURIComponent(name); } catch { /* not an address of ours */ }
    const r = data.rows.findIndex((row) => row.label === name);
    if (key === "part" && r >= 0) {
      panel.replaceChildren(tensorList(name, tensors.filter((t) => t.row === r), -1, open));
    } else if (key === "tensor") {
      const tensor = tensors.find((t) => t.name === name);
      if (!tensor) return;
      panel.replaceChildren(
        neighbourhood(data, tensors, tensor, open),
        tensorList(data.rows[tensor.row].label, tensors.filter((t) => t.row === tensor.row), tensor.i, open),
      );
    } else panel.replaceChildren();
  };
  window.addEventListener("hashchange", follow);
  follow();
  return [overview(data, tensors, open), html("div", { class: "tools" }, search), panel];
}
