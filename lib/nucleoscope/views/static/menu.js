// A menu of the prompts of a run: it can be searched, and sorted by any number of a text.

// With a number of decimals, and no negative zero.
const formatDecimals = (value, digits) => value.toFixed(digits).replace(/^-(?=0*\.?0*$)/, "").replace("-", "−");

// Without accents, and in small letters: who searches for "izmir" means "İzmir" too.
const fold = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();

/** Draws the menu into ``place`` and calls ``pick(number)`` when a prompt is picked; returns a function that marks one.
 * After each search, ``tell`` is called with the number of prompts found: without any, no text is to be shown.
 *
 * content: what texts.build_menu makes: ``columns`` are [label, whether it is a count], ``prompts`` are
 * [number, prompt, text, value of each column or null], ``cut`` says whether only their beginnings are there. */
function drawMenu(place, { columns, prompts, cut }, pick, tell = () => {}) {
  const list = make("ol", { class: "ns-prompts" });
  const found = make("p", { class: "ns-muted ns-found", role: "status" });
  const search = make("input", { type: "search", placeholder: cut ? "beginning of prompt or text" : "words of prompt or text" });
  const select = make("select", {}, make("option", { value: "-1" }, "number"),
    ...columns.map(([label], i) => make("option", { value: String(i) }, label)));
  const arrow = make("span", { "aria-hidden": "true" }, "↑");
  const turn = make("button", { type: "button", "aria-pressed": "false" }, "reverse ", arrow);
  const menu = make("div", { class: "ns-menu", role: "group", "aria-label": "all prompts" },
    make("div", { class: "ns-order" }, make("label", {}, "Search ", search), make("label", {}, "Sort by ", select), turn), list, found);
  const texts = prompts.map(([, prompt, text]) => fold(`${prompt}\n${text}`));
  const items = prompts.map(([number, prompt]) => {
    const value = make("span", { class: "ns-value" });
    const button = make("button", { type: "button" }, make("span", {}, String(number)),
      make("bdi", {}, prompt.replace(/\s+/g, " ").slice(0, 200) || "(an empty prompt)"), value);
    button.addEventListener("click", () => pick(number));
    return { number, button, value, item: make("li", {}, button) };
  });

  // Of one quantity all values have equally many decimals, as many as give the largest three significant digits.
  const decimals = columns.map((_, i) => {
    const largest = Math.max(...prompts.map((prompt) => Math.abs(prompt[3][i] ?? 0)));
    return largest ? Math.min(Math.max(2 - Math.floor(Math.log10(largest)), 0), 9) : 2;
  });

  function write(value, column) {
    if (value === null) return "–";
    return columns[column][1] ? formatCount(value) : formatDecimals(value, decimals[column]);
  }

  function order() {
    const column = +select.value, sign = turn.getAttribute("aria-pressed") === "true" ? -1 : 1;
    const values = prompts.map((prompt) => (column < 0 ? prompt[0] : prompt[3][column]));
    const wanted = fold(search.value).split(/\s+/);
    const places = [...prompts.keys()].filter((i) => wanted.every((word) => texts[i].includes(word)));
    // what has no value comes last in either direction
    places.sort((a, b) => (values[a] === null) - (values[b] === null) || sign * (values[a] - values[b]) || a - b);
    items.forEach(({ value }, i) => (value.textContent = column < 0 ? "" : write(values[i], column)));
    list.replaceChildren(...places.map((i) => items[i].item));
    const all = `${formatCount(prompts.length)} ${prompts.length === 1 ? "prompt" : "prompts"}`;
    const none = places.length ? "" : `: nothing matches "${search.value.trim()}"`;
    found.textContent = places.length === prompts.length ? all : `${formatCount(places.length)} of ${all}${none}`;
    arrow.textContent = sign > 0 ? "↑" : "↓";
    list.scrollTop = 0;
    return places.length;
  }

  list.addEventListener("keydown", (event) => {
    const way = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    if (!way || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    event.target.closest("li")?.[way]?.firstElementChild.focus();
  });
  turn.addEventListener("click", () => {
    turn.setAttribute("aria-pressed", turn.getAttribute("aria-pressed") !== "true");
    order();
  });
  search.addEventListener("input", () => tell(order()));
  select.addEventListener("change", order);
  order();
  place.replaceChildren(menu);
  return (chosen) => {
    for (const { number, button } of items) {
      if (number === chosen) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  };
}
