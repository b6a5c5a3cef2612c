// Sortable tables, printing, and workarounds for pages opened from disk.
(() => {
  "use strict";
  const root = document.documentElement;
  // Search shows an excerpt of each page it finds, but pages on disk cannot be fetched.
  if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
    DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
  }

  const readText = (row, column) => (row.cells[column] ? row.cells[column].textContent.trim() : "");
  // The number at the beginning of a field: "1,234", "−0.5", "12%", "0.31 [0.28, 0.34]".
  function parseNumber(value) {
    const found = value.replace(/−/g, "-").match(/^-?(?:∞|[\d,]*\.?\d+(?:e[-+]?\d+)?)(?=$|[\s%\[])/);
    return found ? Number(found[0].replace(/,/g, "").replace("∞", "Infinity")) : NaN;
  }

  // Numbers by size, then words; empty fields come last in either direction.
  function compare(left, right, sign) {
    if (left === "" || right === "") return (left === "") - (right === "");
    const [a, b] = [parseNumber(left), parseNumber(right)];
    if (Number.isNaN(a) !== Number.isNaN(b)) return Number.isNaN(a) ? 1 : -1;
    return sign * (Number.isNaN(a) ? left.localeCompare(right, "en", { numeric: true }) : a - b);
  }

  function sort(table, head, column) {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    for (const body of table.tBodies) {
      const blocks = []; // a row, between the names above it and the note below it
      const isSpare = (row) => row.matches(".names, .note");
      for (const row of body.rows) {
        const last = blocks.at(-1);
        if (last && (row.matches(".note") || (!isSpare(row) && last.every((each) => each.matches(".names"))))) last.push(row);
        else blocks.push([row]);
      }
      const read = (block) => readText(block.find((row) => !isSpare(row)) ?? block[0], column);
      blocks.sort((a, b) => compare(read(a), read(b), sign));
      body.append(...blocks.flat());
    }
  }

  for (const table of document.querySelectorAll("table.sortable, .sortable table")) {
    if (!table.tHead) continue;
    const count = Number(/\bnames-(\d+)/.exec(table.className)?.[1] ?? 0); // columns that a phone shows in a row above
    for (const row of table.rows) {
      if (!row.matches(".names, .note")) [...row.cells].slice(0, count).forEach((cell) => cell.classList.add("name"));
    }
    [...table.tHead.rows[table.tHead.rows.length - 1].cells].forEach((head, column) => {
      if (!head.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sort(table, head, column));
    });
  }

  // Elements with their own scroll bar must be reachable by keyboard.
  const wide = ".output, div.highlight pre, .pst-scrollable-table-container, mjx-container[display], .math";
  function allowFocus() {
    for (const box of document.querySelectorAll(wide)) {
      const scrolls = box.scrollWidth > box.clientWidth;
      if (scrolls && !box.hasAttribute("tabindex")) {
        box.tabIndex = 0;
        box.dataset.scrolls = "";
      } else if (!scrolls && "scrolls" in box.dataset) {
        box.removeAttribute("tabindex");
        delete box.dataset.scrolls;
      }
    }
  }
  addEventListener("load", allowFocus);
  addEventListener("resize", allowFocus);

  // Intervals are beside their numbers in tables that have room for that, and below them in others. A table that would
  // have to scroll even so is given the room of the list of sections (book.css).
  const tables = [...document.querySelectorAll(".bd-article :is(.output, .pst-scrollable-table-container) table")];
  const isWide = (table) => table.offsetWidth > table.closest(".output, .pst-scrollable-table-container").clientWidth;
  function placeIntervals() {
    for (const table of tables) table.classList.add("unbroken");
    for (const table of tables.filter(isWide)) table.classList.remove("unbroken");
  }
  // The article's height changes with each figure that is drawn. Tables appear where a fold is opened, and become wider
  // when a style or font arrives after this script has run.
  const describeRoom = () => `${article.clientWidth} ${tables.map((table) => table.offsetWidth)}`;
  let room = "";
  function makeRoom() {
    if (describeRoom() === room || document.querySelector("dialog[open]")) return; // a dialog may have the list of sections
    root.classList.remove("tables-need-room");
    placeIntervals();
    root.classList.toggle("tables-need-room", tables.some(isWide));
    if (root.matches(".tables-need-room")) placeIntervals();
    room = describeRoom();
    allowFocus();
  }

  const article = document.querySelector(".bd-article");
  // also after a sidebar has been hidden or shown; in the next frame, because an observer must not change what it observes
  if (article && tables.length) {
    makeRoom();
    const observer = new ResizeObserver(() => requestAnimationFrame(makeRoom));
    for (const element of [article, ...tables]) observer.observe(element);
  }

  // Print in the light theme; figures.js follows.
  let theme = root.dataset.theme;
  addEventListener("beforeprint", () => ([theme, root.dataset.theme] = [root.dataset.theme, "light"]));
  addEventListener("afterprint", () => (root.dataset.theme = theme));

  // The theme's arrows that expand parts of the sidebar have no accessible name.
  for (const arrow of document.querySelectorAll(".bd-sidebar-primary summary")) {
    const page = arrow.closest("li").querySelector("a");
    arrow.setAttribute("aria-label", `pages under ${page ? page.textContent.trim() : "this one"}`);
  }
})();
