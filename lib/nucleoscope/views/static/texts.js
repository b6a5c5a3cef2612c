// A menu of prompts and the strip of the text that is picked. A text is in the page, or in a script beside it that
// assigns it: a page that is opened from disk may not read other files, but it may run scripts that lie beside it.

// Where the scripts are: beside a page of the book, or behind JupyterLab's address of the project's files.
function locateTexts(root) {
  if (root.dataset.beside !== undefined) return root.dataset.beside;
  const jupyter = document.getElementById("jupyter-config-data");
  if (!jupyter) return null;
  return `${JSON.parse(jupyter.textContent).baseUrl ?? "/"}files/${root.dataset.files.split("/").map(encodeURIComponent).join("/")}`;
}

// Similarities in hundredths, from the string that texts._pack makes of them.
function unpackHundredths(packed) {
  return typeof packed === "string" ? (packed.match(/../g) ?? []).map((digits) => parseInt(digits, 16) - 128) : packed;
}

// The strip of a text as strip.render_strip writes it, without its script.
function createStrip({ prompt, units, empty, data }) {
  const options = data.quantities.map(({ name, label }, i) =>
    make("option", { value: String(i), ...(name === data.quantity ? { selected: "" } : {}) }, label));
  const text = make("div", { class: "ns-text", dir: "auto", tabindex: "0", role: "application",
    "aria-roledescription": "text with measured tokens",
    "aria-label": "Text. The arrow keys move from token to token; Escape closes the card." });
  for (const [content, tokens] of units) {
    const span = make("span", tokens > 1 ? { "data-n": String(tokens) } : {});
    content.split("\n").forEach((line, i) => span.append(...(i ? [make("i"), "\n"] : []), line));
    if (!/[^\p{Cf}]/u.test(content)) span.classList.add("ns-unseen");
    text.append(span);
  }
  const details = make("details", { class: "ns-prompt", ...(prompt.length < 300 ? { open: "" } : {}) },
    make("summary", {}, "Prompt"), make("div", { dir: "auto" }, prompt));
  const strip = make("div", { class: "nucleoscope nucleoscope-strip", "data-lm-suppress-shortcuts": "true" });
  if (!units.length) {
    text.textContent = empty;
    strip.append(details, make("div", { class: "ns-both" }, text));
    return strip;
  }
  strip.append(
    make("div", { class: "ns-bar" }, make("label", {}, "Tint by ", make("select", {}, ...options)), " ", make("span", { class: "ns-legend" })),
    details, make("div", { class: "ns-both" }, text, make("div", { class: "ns-card", role: "status" })));
  return strip;
}

function buildTexts(root) {
  root.dataset.ready = "yes";
  const content = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const [menu, place] = [".ns-choose", ".ns-picked"].map((name) => root.querySelector(name));
  const texts = ((window.nucleoscopeTexts ??= {})[content.run] ??= {});
  Object.assign(texts, content.texts);
  let [quantity, wanted] = ["entropy", null];

  function show(number) {
    if (wanted !== number) return; // another one was picked in the meantime
    const { data, ...rest } = texts[number];
    for (const name of ["similar", "matrix"]) if (data[name]) data[name] = data[name].map(unpackHundredths);
    if (data.quantities.some(({ name }) => name === quantity)) data.quantity = quantity;
    const strip = createStrip({ ...rest, data });
    place.replaceChildren(strip);
    if (data.tokens.length) buildStrip(strip, { ...data, line: content.line });
    strip.querySelector("select")?.addEventListener("change", (event) => (quantity = data.quantities[+event.target.value].name));
  }

  function pick(number) {
    wanted = number;
    mark(number);
    if (texts[number]) return show(number);
    const folder = locateTexts(root);
    const say = (line) => wanted === number && place.replaceChildren(make("p", { class: "ns-muted", role: "status" }, line));
    if (folder === null) return say("The texts are shown in JupyterLab and in the book.");
    say("Loading …");
    const address = `${folder}${number}.js`;
    const script = make("script", { src: address });
    script.addEventListener("load", () => (script.remove(), texts[number] ? show(number) : say(`${address} does not contain this text.`)));
    script.addEventListener("error", () => (script.remove(), say(`This text could not be loaded from ${address}.`)));
    document.head.append(script);
  }

  const mark = drawMenu(menu, content, pick, (found) => (place.hidden = !found));
  if (content.prompts.length) pick(content.prompts[0][0]);
}

function buildAllTexts() {
  document.querySelectorAll("div.nucleoscope-texts:not([data-ready])").forEach(buildTexts);
}
