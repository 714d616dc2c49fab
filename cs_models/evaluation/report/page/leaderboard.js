"use strict";
// Draws the tables of the page out of the JSON in #board. What is shown (score, search, sorting, the open line) stands
// in the address after "#", so that a view can be shared; every control changes the address and draws again.
(() => {
  const board = JSON.parse(document.getElementById("board").textContent);
  const SCORES = {
    psnr_db: { name: "PSNR", title: "PSNR in dB", digits: 2, interval: 1 },
    ssim: { name: "SSIM", title: "SSIM", digits: 4, interval: 3 },
  };
  const ORIGINS = {
    "training-free": "training-free",
    released: "released weights",
    "fine-tuned": "released, trained further",
    trained: "trained here",
    "own code": "a user's own code",
    "": "origin not recorded",
    printed: "printed in a paper",
  };

  // Elements; text is always text and never HTML.
  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
    return element;
  }

  // A name whose lines may break after its parts
  const breakable = (text) => text.split(/(?<=[_:./])/).flatMap((part) => [make("wbr"), part]);

  // Numbers
  const number = (value) => (value === null || value === undefined ? NaN : Number(value));
  const fixed = (value, digits) => {
    const known = number(value);
    if (Number.isNaN(known)) return "";
    return Number.isFinite(known) ? known.toFixed(digits) : "∞";
  };
  const significant = (value, digits = 3) =>
    value >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(digits)));
  const scaled = (value) => {
    const [divisor, unit] = value >= 1e9 ? [1e9, "G"] : value >= 1e6 ? [1e6, "M"] : value >= 1e3 ? [1e3, "k"] : [1, ""];
    return significant(value / divisor) + (unit && `\u202f${unit}`);
  };
  const range = (values, show) => {
    if (!values.length) return "–";
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return high <= 1.2 * low ? show(high) : `${show(low)}–${show(high)}`;
  };
  const interval = ([, low, high], digits) => (low === null ? "" : `${fixed(low, digits)}–${fixed(high, digits)}`);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

  // The columns beside those of the ratios: what is shown of a line, and by what it is sorted.
  const seconds = (line) => line.cells.map((cell) => cell.seconds);
  const macs = (line) => line.cells.map((cell) => cell.macs).filter((value) => value !== null);
  const COLUMNS = [
    {
      key: "parameters",
      title: "Parameters",
      show: (line) => (line.parameters ? scaled(line.parameters) : "–"),
      by: (line) => line.parameters,
    },
    { key: "macs", title: "MACs", show: (line) => range(macs(line), scaled), by: (line) => mean(macs(line)) },
    {
      key: "seconds",
      title: "Seconds",
      show: (line) => range(seconds(line), (value) => significant(value, 2)),
      by: (line) => mean(seconds(line)),
    },
    { key: "precision", title: "Precision", show: (line) => line.precision, by: (line) => line.precision },
    { key: "device", title: "Device", show: (line) => line.device, by: (line) => line.device },
  ];

  // The view, as the address has it
  const words = () => new URLSearchParams(location.hash.slice(1));
  function change(edit) {
    const query = words();
    edit(query);
    history.replaceState(null, "", `#${query}`);
    draw();
  }
  function choose(key, value, usual) {
    change((query) => (value === usual ? query.delete(key) : query.set(key, value)));
  }
  function view() {
    const query = words();
    return {
      score: Object.hasOwn(SCORES, query.get("score")) ? query.get("score") : "psnr_db",
      find: (query.get("find") ?? "").trim().toLowerCase(),
      set: query.get("set") ?? "",
      hidden: new Set(query.getAll("hide")),
      open: query.get("open"),
      sorting: (table) => {
        const [key, direction] = (query.get(`sort.${table.key}`) ?? "").split(",");
        return heads.get(table).has(key) ? { key, descending: direction === "descending" } : usualSorting(table);
      },
    };
  }
  // By the ratio that most lines have.
  function usualSorting(table) {
    const counts = table.ratios.map((ratio) => linesOf(table).filter((line) => cellOf(line, ratio)).length);
    return { key: String(table.ratios[counts.indexOf(Math.max(...counts))]), descending: true };
  }

  const linesOf = (table) => (table.lines.length ? table.lines : table.printed);
  const cellOf = (line, ratio) => line.cells.find((cell) => cell.ratio === ratio);
  const originOf = (line) => ("source" in line ? "printed" : line.provenance);
  const scoreOf = (cell, score) => number(Array.isArray(cell?.[score]) ? cell[score][0] : cell?.[score]);
  const heads = new Map(); // of each table: its sortable header cells by key
  const lines = new Map(); // of each table: its lines with their elements
  const sections = new Map(); // of each table: its element

  // A table
  function section(table, index) {
    const title = `title${index}`;
    heads.set(table, new Map());
    lines.set(
      table,
      linesOf(table).map((line, number) => row(table, line, `${table.key}.${number}`)),
    );
    const body = make(
      "tbody",
      {},
      lines.get(table).map((item) => item.row),
    );
    const grid = make("table", { "aria-labelledby": title }, head(table), body);
    const name = make(
      "h2",
      { id: title },
      table.problem,
      make("span", { class: "operator" }, table.operator || "as printed in papers"),
    );
    const about = [images(table), table.about].filter(Boolean).join("; ");
    const region = make("div", { class: "scroll", role: "region", tabindex: 0, "aria-labelledby": title }, grid);
    return make("section", { "data-key": table.key }, name, make("p", { class: "about" }, about), region);
  }
  function images(table) {
    const [low, high] = table.images;
    const noun = table.signals ? "signals" : "images";
    if (!table.operator)
      return `means over the whole set, with the paper's own matrices${high ? ` (${high} ${noun})` : ""}`;
    return low === high ? `${high} ${high === 1 ? noun.slice(0, -1) : noun}` : `${low} to ${high} ${noun}`;
  }
  function head(table) {
    const sortable = (key, title, properties) => {
      const button = make("button", { type: "button", onclick: () => sort(table, key) }, title);
      button.append(make("span", { class: "arrow", "aria-hidden": "true" }));
      const cell = make("th", { scope: "col", "data-key": key, ...properties }, button);
      heads.get(table).set(key, cell);
      return cell;
    };
    const method = sortable("name", "Method", { class: "method", rowspan: 2 });
    const ratios = make("th", { scope: "colgroup", colspan: table.ratios.length }, make("span", { class: "score" }));
    const bare = table.lines.length ? COLUMNS : [];
    const others = bare.map((column) =>
      sortable(column.key, column.title, { rowspan: 2, class: column.key === "device" ? "words" : null }),
    );
    if (!table.lines.length) others.push(sortable("source", "Paper", { rowspan: 2, class: "words" }));
    const below = table.ratios.map((ratio) => sortable(String(ratio), String(ratio), {}));
    return make("thead", {}, make("tr", {}, method, ratios, others), make("tr", {}, below));
  }
  function row(table, line, id) {
    const toggle = () => choose("open", view().open === id ? "" : id, "");
    const cells = table.ratios.map(() => make("td"));
    const printed = "source" in line;
    const others = printed
      ? [make("td", { class: "words" }, line.source)]
      : COLUMNS.map((column) => make("td", { class: column.key === "device" ? "words" : null }, column.show(line)));
    const origin = printed
      ? null
      : make(
          "small",
          {},
          ORIGINS[line.provenance] ?? line.provenance,
          line.schedule ? `, schedule ${line.schedule}` : "",
        );
    const button = printed
      ? breakable(line.name)
      : make("button", { type: "button", "aria-expanded": "false", onclick: toggle }, breakable(line.name));
    const element = make(
      "tr",
      printed ? {} : { class: "line", "data-id": id },
      make("th", { scope: "row", class: "method" }, button, origin),
      cells,
      others,
    );
    if (!printed) {
      element.addEventListener("click", (event) => {
        if (!event.target.closest("button") && !String(getSelection())) toggle();
      });
    }
    return { id, line, row: element, cells, button: printed ? null : button, details: null };
  }

  // Sorting
  function sort(table, key) {
    const now = view().sorting(table);
    const descending = now.key === key ? !now.descending : table.ratios.map(String).includes(key);
    change((query) => query.set(`sort.${table.key}`, `${key},${descending ? "descending" : "ascending"}`));
  }
  function order(table, { key, descending }, score) {
    const column = COLUMNS.find((one) => one.key === key);
    const value = (line) => {
      if (column) return column.by(line);
      return key === "name" || key === "source" ? line[key] : scoreOf(cellOf(line, Number(key)), score);
    };
    return lines.get(table).toSorted(({ line: one }, { line: other }) => {
      const [a, b] = [value(one), value(other)];
      if (typeof a === "string") return descending ? b.localeCompare(a) : a.localeCompare(b);
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // what is missing comes last
      if (a === b) return 0;
      return a < b === descending ? 1 : -1;
    });
  }

  // Drawing what depends on the view
  function draw() {
    const now = view();
    let [shown, total] = [0, 0];
    for (const [table, element] of sections) {
      const visible = drawTable(table, element, now);
      element.hidden = !visible || (now.set !== "" && now.set !== table.problem);
      total += lines.get(table).length;
      shown += element.hidden ? 0 : visible;
    }
    status.textContent = shown === total ? `${total} lines` : `${shown} of ${total} lines`;
    drawControls(now);
  }
  function drawTable(table, element, now) {
    const sorting = now.sorting(table);
    for (const [key, cell] of heads.get(table)) {
      const direction = key !== sorting.key ? "none" : sorting.descending ? "descending" : "ascending";
      cell.setAttribute("aria-sort", direction);
      cell.querySelector(".arrow").textContent = { none: "", ascending: "▲", descending: "▼" }[direction];
    }
    element.querySelector(".score").textContent = `${SCORES[now.score].title}, by CS ratio`;
    const sorted = order(table, sorting, now.score);
    const visible = sorted.filter((item) => isShown(item.line, now));
    const best = table.ratios.map((ratio) => leading(visible, table, ratio, now.score));
    for (const item of sorted) {
      item.row.hidden = !visible.includes(item);
      item.row.parentNode.append(item.row);
      table.ratios.forEach((ratio, index) =>
        fill(item.cells[index], cellOf(item.line, ratio), now, best[index], table.images[1]),
      );
      if (item.button) drawDetails(table, item, now.open === item.id && !item.row.hidden);
    }
    return visible.length;
  }
  const isShown = (line, now) =>
    !now.hidden.has(originOf(line)) && [line.name, ...(line.methods ?? [])].join(" ").toLowerCase().includes(now.find);
  // The best of a column as it is shown; means over a part of the images do not count.
  function leading(items, table, ratio, score) {
    const cells = items.map(({ line }) => cellOf(line, ratio)).filter((cell) => cell?.images === table.images[1]);
    const known = cells.map((cell) => scoreOf(cell, score)).filter((value) => !Number.isNaN(value));
    return known.length > 1 ? fixed(Math.max(...known), SCORES[score].digits) : null;
  }
  function fill(element, cell, now, best, images) {
    element.replaceChildren();
    if (!cell) return;
    const { digits, interval: fewer } = SCORES[now.score];
    const text = fixed(scoreOf(cell, now.score), digits);
    element.append(make("span", { class: text === best ? "best" : null }, text));
    if (!Array.isArray(cell[now.score])) return;
    const spread = interval(cell[now.score], fewer);
    if (spread) element.append(make("small", {}, make("span", { class: "unseen" }, "95 % interval "), spread));
    if (cell.images < images) element.append(make("small", {}, `${cell.images} of ${images} images`));
    const printed = cell.printed.find((figure) => figure[now.score] !== null);
    if (printed && !now.hidden.has("printed"))
      element.append(make("small", { class: "printed" }, `printed ${fixed(printed[now.score], digits)}`));
  }

  // The details of a line
  function drawDetails(table, item, open) {
    item.button.setAttribute("aria-expanded", String(open));
    item.row.classList.toggle("open", open);
    if (open && !item.details) {
      const span = 1 + table.ratios.length + COLUMNS.length;
      const parts = [facts(table, item.line), figures(item.line), pictures(table, item.line)];
      item.details = make(
        "tr",
        { class: "details", id: item.id },
        make("td", { colspan: span }, make("div", {}, parts)),
      );
      item.button.setAttribute("aria-controls", item.id);
    }
    if (open) item.row.after(item.details);
    else item.details?.remove();
  }
  function facts(table, line) {
    const values = {
      Method: line.methods.join(", "),
      Origin: ORIGINS[line.provenance] ?? line.provenance,
      Operator: table.about ? `${table.operator}: ${table.about}` : table.operator,
      Precision: line.precision,
      Schedule: line.schedule,
      Device: line.device,
      Parameters: line.parameters ? line.parameters.toLocaleString("en") : "none",
    };
    const known = Object.entries(values).filter(([, value]) => value);
    return make(
      "dl",
      {},
      known.map(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]),
    );
  }
  function figures(line) {
    const names = ["Ratio", "Images", "PSNR in dB", "SSIM", "Seconds", "MACs", "Printed"];
    const rows = line.cells.map((cell) => {
      const measured =
        cell.measured_ratio === null ? null : make("small", {}, `measures ${significant(cell.measured_ratio)}`);
      const exact = cell.exact ? make("small", {}, `${cell.exact} without error, not in the PSNR`) : null;
      const draws = cell.seeds > 1 ? make("small", {}, `${cell.seeds} draws`) : null;
      const scores = Object.entries(SCORES).map(([score, { digits }]) =>
        make("td", {}, fixed(cell[score][0], digits), make("small", {}, interval(cell[score], digits))),
      );
      const printed = cell.printed.map((figure) =>
        make("small", {}, figure.source, `: ${fixed(figure.psnr_db, 2)} dB`),
      );
      return make(
        "tr",
        {},
        make("th", { scope: "row" }, String(cell.ratio), measured),
        make("td", {}, String(cell.images), exact, draws),
        scores,
        make("td", {}, significant(cell.seconds)),
        make("td", {}, cell.macs === null ? "–" : scaled(cell.macs)),
        make("td", { class: "words" }, printed),
      );
    });
    const columns = line.cells.some((cell) => cell.printed.length) ? names : names.slice(0, -1);
    const header = make(
      "tr",
      {},
      columns.map((name) => make("th", { scope: "col", class: name === "Printed" ? "words" : null }, name)),
    );
    const caption = make("caption", { class: "unseen" }, `${line.name}, by ratio`);
    return make(
      "div",
      { class: "scroll" },
      make("table", {}, caption, make("thead", {}, header), make("tbody", {}, rows)),
    );
  }
  function pictures(table, line) {
    if (!line.pictures.length) {
      const why = table.signals
        ? "The curves of signals are in the results folder."
        : "No images were kept with these results; eval.py keeps all of them with --save_images.";
      return make("div", { class: "pictures" }, make("p", { class: "note" }, why));
    }
    const strip = make("div", { class: "strip" });
    const show = (index) => strip.replaceChildren(...shots(line, line.pictures[index]));
    const options = line.pictures.map(({ image, ratio }, index) =>
      make("option", { value: index }, `${image}, ratio ${ratio}`),
    );
    const select = make("select", { onchange: () => show(select.value) }, options);
    show(0);
    return make("div", { class: "pictures" }, make("label", {}, make("span", {}, "Image"), select), strip);
  }
  function shots(line, { image, ratio, psnr_db, ssim, original, reconstruction }) {
    const picture = (source, alt) => make("img", { src: encodeURI(source), alt });
    const shot = (content, caption) => make("figure", {}, content, make("figcaption", {}, caption));
    const both = [
      picture(original, `error of ${line.name} on ${image}, four times enlarged`),
      picture(reconstruction, ""),
    ];
    return [
      shot(picture(original, `${image}, the original`), "original"),
      shot(
        picture(reconstruction, `${image}, reconstructed by ${line.name} at ratio ${ratio}`),
        `reconstruction, ${fixed(psnr_db, 2)} dB, SSIM ${fixed(ssim, 4)}`,
      ),
      shot(make("div", { class: "error" }, both), "error, 4 times"),
    ];
  }

  // Controls
  const status = make("p", { role: "status" });
  const controls = { scores: new Map(), origins: new Map(), find: null, set: null };
  function buildControls() {
    const choice = (score) => {
      const input = make("input", {
        type: "radio",
        name: "score",
        value: score,
        onchange: () => choose("score", score, "psnr_db"),
      });
      controls.scores.set(score, input);
      return make("label", {}, input, SCORES[score].name);
    };
    const origin = (name) => {
      const input = make("input", {
        type: "checkbox",
        value: name,
        onchange: () => change((query) => hide(query, name, !input.checked)),
      });
      controls.origins.set(name, input);
      return make("label", {}, input, ORIGINS[name] ?? name);
    };
    const present = new Set(board.tables.flatMap((table) => linesOf(table).map(originOf)));
    if (board.tables.some((table) => table.lines.some((line) => line.cells.some((cell) => cell.printed.length))))
      present.add("printed");
    const problems = [...new Set(board.tables.map((table) => table.problem))];
    controls.find = make("input", {
      type: "search",
      autocomplete: "off",
      oninput: () => choose("find", controls.find.value, ""),
    });
    controls.set = make(
      "select",
      { onchange: () => choose("set", controls.set.value, "") },
      make("option", { value: "" }, "all"),
      problems.map((name) => make("option", { value: name }, name)),
    );
    const known = Object.keys(ORIGINS).filter((name) => present.has(name));
    const unknown = [...present].filter((name) => !(name in ORIGINS));
    document
      .getElementById("controls")
      .append(
        make("fieldset", {}, make("legend", {}, "Score"), Object.keys(SCORES).map(choice)),
        make("label", {}, make("span", {}, "Set"), controls.set),
        make("label", {}, make("span", {}, "Find"), controls.find),
        make("fieldset", {}, make("legend", {}, "Origin"), [...known, ...unknown].map(origin)),
        status,
      );
  }
  function hide(query, name, hidden) {
    const others = query.getAll("hide").filter((one) => one !== name);
    query.delete("hide");
    for (const one of hidden ? [...others, name] : others) query.append("hide", one);
  }
  function drawControls(now) {
    controls.scores.get(now.score).checked = true;
    for (const [name, input] of controls.origins) input.checked = !now.hidden.has(name);
    controls.set.value = now.set;
    if (controls.find.value.trim().toLowerCase() !== now.find) controls.find.value = now.find;
  }

  buildControls();
  document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const [index, table] of board.tables.entries()) sections.set(table, section(table, index));
  document.getElementById("tables").append(...sections.values());
  document
    .getElementById("notes")
    .append(make("h2", {}, "How to read it"), ...board.notes.map((note) => make("p", {}, note)));
  addEventListener("hashchange", draw);
  draw();
})();
