// Strips of tokens: their tints, and a card for the token that is pointed at, tapped or reached by key.
// The script may run any number of times on a page; it builds each strip once.
const ROOM = 620; // pixels that text and card need side by side
const GAP = 250; // milliseconds in which the pointer may cross from a token to its card

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// The position of one token among all: entropy to the right, cosine similarity upwards.
function drawScatter(data, at) {
  const find = (name) => data.quantities.find((quantity) => quantity.name === name);
  const [xs, ys] = [find("entropy").values, find("cosine").values];
  const points = xs.map((x, i) => [x, ys[i]]).filter(([x, y]) => x !== null && y !== null);
  const all = [...points, ...data.line];
  if (!all.length) return "";
  const shown = xs.length < data.total ? "this excerpt" : "this text";
  const right = Math.ceil(Math.max(1, ...all.map(([x]) => x)));
  const bottom = Math.floor(10 * Math.min(0, ...all.map(([, y]) => y))) / 10;
  const top = Math.ceil(10 * Math.max(0.5, ...all.map(([, y]) => y))) / 10;
  const [left, width, head, height] = [34, 284, 20, 116]; // the name of the upward axis is above it, where no point is
  const scaleX = (x) => +(left + (width * x) / right).toFixed(1);
  const scaleY = (y) => +(head + height * (1 - (y - bottom) / (top - bottom))).toFixed(1);
  const makePart = (name, attributes, ...content) => make(name, { ns: true, ...attributes }, ...content);
  const side = points.length < 50 ? 5 : 3; // a few dots are large enough to be seen, many small enough to be told apart
  const drawDot = ([x, y]) => `M${scaleX(x) - side / 2} ${scaleY(y) - side / 2}h${side}v${side}h-${side}z`;
  const dots = points.map(drawDot).join("");
  const write = (x, y, anchor, text) => makePart("text", { x, y, "text-anchor": anchor }, text);
  const drawing = make("svg", { viewBox: `0 0 324 ${head + height + 30}`, role: "img" },
    makePart("path", { class: "ns-axis", d: `M${left} ${head}V${head + height}H${left + width}` }),
    makePart("path", { class: "ns-dots", d: dots }),
    write(left, head + height + 14, "middle", "0"), write(left + width, head + height + 14, "end", String(right)),
    write(left - 4, scaleY(top) + 8, "end", formatNumber(top, 1)), write(left - 4, scaleY(bottom), "end", formatNumber(bottom, 1)),
    write(left + width / 2, head + height + 14, "middle", "entropy (nats)"),
    write(left, head - 8, "start", "cosine similarity"),
    write(0, head + height + 28, "start", `points: tokens of ${shown}` + (data.line.length ? "; line: median of all texts" : "")));
  if (data.line.length) {
    drawing.append(makePart("path", { class: "ns-median", d: "M" + data.line.map(([x, y]) => `${scaleX(x)} ${scaleY(y)}`).join("L") }));
  }
  const here = at !== null && xs[at] !== null && ys[at] !== null;
  if (here) drawing.append(makePart("circle", { class: "ns-dot", cx: scaleX(xs[at]), cy: scaleY(ys[at]), r: 5 }));
  const where = here ? `this one is at entropy ${formatNumber(xs[at])}, cosine similarity ${formatNumber(ys[at])}` : "this one is not among them";
  drawing.setAttribute("aria-label", `The tokens of ${shown} with more than one candidate${at === null ? "" : "; " + where}`);
  return drawing;
}

// Outlines the text of a token, or ends that. A space before a word that begins a line is on the line before: the outline
// is then around the word alone, or there would be an empty box.
function outline(span, on) {
  span.classList.toggle("ns-here", on);
  const [first, word] = [span.firstChild, span.querySelector(":scope > .ns-word")];
  if (!on && word) {
    word.replaceWith(...word.childNodes);
    span.normalize();
  }
  const space = on && first?.nodeType === Node.TEXT_NODE && /^[^\S\n]+(?=\S)/.exec(first.data);
  if (!space || span.getClientRects().length < 2) return;
  first.splitText(space[0].length);
  const inner = make("span", { class: "ns-word" });
  inner.append(...[...span.childNodes].slice(1));
  span.append(inner);
}

function buildStrip(root, data) {
  root.dataset.ready = "yes";
  const [text, card, select] = [".ns-text", ".ns-card", "select"].map((name) => root.querySelector(name));
  const spans = [...text.querySelectorAll(":scope > span")];
  const owner = spans.flatMap((span) => Array(+span.dataset.n || 1).fill(span)); // of each token
  const count = owner.length;
  const keeps = data.shown !== null; // a card that is always open, and in its place
  if (!count) return;
  root.classList.toggle("ns-keeps", keeps);
  const entropies = data.quantities.find(({ name }) => name === "entropy").values;
  const widest = entropies.reduce((best, value, i) => ((value ?? -1) > (entropies[best] ?? -1) ? i : best), 0);
  const findTab = () => data.quantities[+select.value].tab; // that shows what the tint is about
  let [at, pinned, timer, open, tab] = [null, false, 0, null, findTab() ?? ""];

  const isWide = () => root.classList.contains("ns-wide");

  function tint() {
    const scale = data.quantities[+select.value];
    const shares = scale.values.map((value) => findShare(scale, value));
    let first = 0;
    for (const span of spans) tintText(span, shares.slice(first, (first += +span.dataset.n || 1)));
    root.querySelector(".ns-legend").replaceChildren(...drawLegend(scale));
  }

  function fill(token) {
    const close = make("button", { type: "button", "aria-label": "close" }, "×");
    close.addEventListener("click", hide);
    const chosen = data.quantities[+select.value].name;
    const choose = (name) => {
      tab = name;
      fill(token);
      if (at === null) return void finishHint();
      card.querySelector(`[data-key="tab ${name}"]`).focus({ preventScroll: true }); // the former one is gone
    };
    const parts = drawCard(data, token, { chosen, close, tab, choose });
    parts[1].append(drawScatter(data, token));
    card.replaceChildren(...parts);
  }

  function show(next, hold = pinned) {
    clearTimeout(timer);
    pinned = hold;
    if (next !== at) {
      if (at !== null) outline(owner[at], false);
      at = next;
      outline(owner[at], true);
      fill(at);
      root.dispatchEvent(new CustomEvent("nucleoscope-token", { bubbles: true, detail: { step: data.first + at } }));
    }
    settle();
    if (open) return;
    open = new AbortController(); // a notebook may remove this output, and then the listeners must stop
    const options = { signal: open.signal, capture: true };
    const isOurs = (place) => [text, card, select].some((part) => part.contains(place));
    addEventListener("pointerdown", (event) => (root.isConnected && isOurs(event.target)) || hide(), options);
    addEventListener("keydown", (event) => event.key === "Escape" && hide(), options);
  }

  // Beside the text, the card is at the height of its token; below the text, it is a popover.
  function settle() {
    if (keeps) return;
    if (!isWide()) {
      if (!card.matches(":popover-open")) card.showPopover?.();
      return;
    }
    if (card.matches(":popover-open")) card.hidePopover();
    const [line, area, now] = [owner[at].getClientRects()[0], text.getBoundingClientRect(), card.getBoundingClientRect()];
    if (!line || (line.top >= now.top && line.bottom <= Math.min(now.bottom, innerHeight) && now.top >= 0)) return;
    const lowest = Math.max(0, area.height - now.height);
    const wanted = Math.min(line.top - 40, innerHeight - 12 - now.height);
    card.style.top = `${clamp(wanted - area.top, 0, lowest)}px`;
  }

  function hide() {
    clearTimeout(timer);
    pinned = false;
    open?.abort();
    open = null;
    if (!root.isConnected) return;
    if (keeps) return void (at !== data.shown && show(data.shown, false));
    if (at !== null) outline(owner[at], false);
    if (!isWide() && card.matches(":popover-open")) card.hidePopover();
    at = null;
    showHint();
    root.dispatchEvent(new CustomEvent("nucleoscope-token", { bubbles: true, detail: { step: null } }));
  }
  const hideSoon = () => {
    clearTimeout(timer);
    if (!pinned) timer = setTimeout(hide, GAP);
  };
  // Beside the text there is always a card: before a token is pointed at, that of the widest choice.
  function showHint() {
    card.replaceChildren();
    if (!isWide()) return;
    fill(widest);
    finishHint();
  }
  function finishHint() {
    card.querySelector(".ns-head button").remove();
    card.prepend(make("p", { class: "ns-muted ns-hint" },
      "Point at a token to see its candidates; click it to keep its card open. By keyboard: Tab, then the arrow keys. Until then, this is the token where the model was least sure:"));
  }

  // Beside the text, the card keeps its height, so that what is below does not jump.
  function reserve() {
    card.style.minHeight = card.style.top = "";
    if (keeps || !isWide()) return;
    showHint();
    card.style.minHeight = `${card.offsetHeight}px`;
  }

  // The token under the pointer; in a character of several tokens, the one whose stripe it is.
  function findToken(event) {
    const span = event.target.closest?.(".ns-text > span");
    if (!span) return null;
    const box = span.getBoundingClientRect();
    const size = +span.dataset.n || 1;
    const place = Math.floor((size * (event.clientX - box.left)) / (box.width || 1));
    return owner.indexOf(span) + clamp(place, 0, size - 1);
  }

  text.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch" || pinned) return;
    const token = findToken(event);
    if (token === null) hideSoon();
    else show(token);
  });
  text.addEventListener("pointerleave", hideSoon);
  card.addEventListener("pointerenter", () => clearTimeout(timer));
  card.addEventListener("pointerleave", hideSoon);
  text.addEventListener("click", (event) => {
    const token = findToken(event);
    if (token === null) return hide();
    show(token, true);
    if (!isWide()) owner[token].scrollIntoView({ block: "nearest" }); // from under the card
  });

  // The token in the line above or below that is nearest to this one.
  function findNeighbour(down) {
    const here = owner[at].getBoundingClientRect();
    const ahead = spans.map((span) => [span, span.getBoundingClientRect()])
      .filter(([, box]) => (down ? box.top >= here.bottom - 2 : box.bottom <= here.top + 2));
    const line = down ? Math.min(...ahead.map(([, box]) => box.top)) : Math.max(...ahead.map(([, box]) => box.top));
    const near = ahead.filter(([, box]) => Math.abs(box.top - line) < 3)
      .sort(([, a], [, b]) => Math.abs(a.left - here.left) - Math.abs(b.left - here.left))[0];
    return near ? owner.indexOf(near[0]) : at;
  }

  text.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const forward = getComputedStyle(text).direction === "rtl" ? -1 : 1;
    const start = at ?? 0;
    const moves = {
      ArrowRight: () => start + (at === null ? 0 : forward), ArrowLeft: () => start - forward,
      ArrowDown: () => (at === null ? 0 : findNeighbour(true)), ArrowUp: () => (at === null ? 0 : findNeighbour(false)),
      Home: () => 0, End: () => count - 1,
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    show(clamp(moves[event.key](), 0, count - 1), true);
    owner[at].scrollIntoView({ block: "nearest" });
  });
  text.addEventListener("focus", () => text.matches(":focus-visible") && at === null && show(0, true));
  text.addEventListener("blur", (event) => event.relatedTarget && !root.contains(event.relatedTarget) && hide());
  select.addEventListener("change", () => {
    tint();
    tab = findTab() ?? tab;
    if (at !== null) fill(at);
    else showHint();
  });

  if (!keeps) card.popover = "manual";
  new ResizeObserver(() => {
    if (isWide() === root.clientWidth >= ROOM) return;
    root.classList.toggle("ns-wide", root.clientWidth >= ROOM);
    reserve();
    if (at === null) return showHint();
    fill(at);
    settle();
  }).observe(root);
  const rows = Math.max(...data.tokens.map(([, words, , , , , , p]) => words.length + (p !== undefined)));
  if (!keeps) card.style.setProperty("--ns-rows", rows + (data.similar || data.context ? 1 : 0));
  // The sentence on the most similar two, and those on groups: another tab moves nothing below it.
  if (!keeps && (data.similar || data.context)) card.style.setProperty("--ns-lines", data.context ? "19em" : "9.5em");
  tint();
  if (keeps) show(data.shown, false);
}

function buildStrips() {
  for (const root of document.querySelectorAll("div.nucleoscope-strip:not([data-ready])")) {
    buildStrip(root, JSON.parse(root.querySelector("script[type='application/json']").textContent));
  }
}
