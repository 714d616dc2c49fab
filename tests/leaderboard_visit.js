// Runs inside the page, uses it as a reader does, and tells the frame around it what was seen.
(async () => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const section = (key) => document.querySelector(`section[data-key="${key}"]`);
  const seen = (key) =>
    [...section(key).querySelectorAll("tr.line:not([hidden]) th")].map(
      (cell) => cell.querySelector("button").textContent,
    );
  const button = (key, column) => section(key).querySelector(`th[data-key="${column}"] button`);
  const sorting = (key, column) => section(key).querySelector(`th[data-key="${column}"]`).getAttribute("aria-sort");
  const status = () => document.querySelector("[role=status]").textContent;
  const text = (key) => section(key).textContent;
  const type = (words) => {
    const field = document.querySelector("input[type=search]");
    field.value = words;
    field.dispatchEvent(new Event("input"));
  };
  const log = { width: innerWidth, fits: document.documentElement.scrollWidth <= innerWidth };
  log.shared = [sorting("Set11_block_33", "0.3"), text("Set11_block_33").includes("0.5000")];
  document.querySelector("input[value=psnr_db]").click();
  log.score = text("Set11_block_33").includes("0.5000");
  button("Set11_block_33", "0.1").click();
  log.descending = [seen("Set11_block_33"), sorting("Set11_block_33", "0.1"), sorting("Set11_block_33", "0.3")];
  button("Set11_block_33", "0.1").click();
  log.ascending = [seen("Set11_block_33"), sorting("Set11_block_33", "0.1")];
  button("Set11_block_33", "name").click();
  log.names = seen("Set11_block_33");
  log.bold = all(".best").map((element) => element.textContent);
  log.beside = all("td small.printed").map((element) => element.textContent);
  type("TV");
  log.found = [seen("Set11_block_33"), /^1 of \d+ lines$/.test(status()), section("Set11_column").hidden];
  type("");
  const origin = document.querySelector("input[value=training-free]");
  origin.click();
  log.filtered = [seen("Set11_block_33"), location.hash.includes("hide=training-free")];
  origin.click();
  document.querySelector("input[value=printed]").click();
  log.unprinted = [section("Set11_printed").hidden, all("td small.printed").length];
  const line = all("tr.line").find((row) => row.querySelector("button").textContent === "tv");
  line.lastElementChild.click();
  log.open = line.querySelector("button").getAttribute("aria-expanded");
  const pictures = [...line.nextElementSibling.querySelectorAll("img")];
  await Promise.all(pictures.map((picture) => picture.decode()));
  log.pictures = pictures.map((picture) => [picture.alt, picture.naturalWidth, picture.naturalHeight]);
  line.querySelector("button").click();
  log.closed = [line.querySelector("button").getAttribute("aria-expanded"), all(".details").length];
  section("Set11_column").querySelector("tr.line button").click();
  log.without = text("Set11_column").includes("No images were kept");
  log.foreign = all("img:not(.strip img), script").length;
  log.heads =
    all("thead th").every((cell) => cell.scope) &&
    all("tbody > tr > :first-child:not([colspan])").every((cell) => cell.scope === "row");
  log.nameless = all("button, input, select, [role=region]").filter(
    (one) => !(one.textContent.trim() || one.labels?.length || one.getAttribute("aria-labelledby")),
  ).length;
  parent.postMessage(log, "*");
})().catch((error) => parent.postMessage({ width: innerWidth, error: String(error) }, "*"));
