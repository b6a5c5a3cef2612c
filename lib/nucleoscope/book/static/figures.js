// Draws the page's plotly figures when they are about to scroll into view, in the colours of the page's theme.
(() => {
  "use strict";
  const narrow = matchMedia("(max-width: 600px)");
  const touch = matchMedia("(pointer: coarse)");
  const small = narrow.matches || touch.matches; // no room, or no pointer that can hover over a figure
  const CONFIG = { displaylogo: false, responsive: true, displayModeBar: small ? false : "hover" };
  CONFIG.modeBarButtonsToRemove = ["sendChartToCloud", "sendDataToCloud"]; // nothing leaves the page

  const { grid: GRID, clear: CLEAR, onDark: ON_DARK } = nucleoscopePalette; // palette.js: views/palette.py writes it
  const ARROW = 20; // pixels of the arrow in a list
  const BESIDE = -30; // pixels from the panels of a narrow figure to the title at their left
  const COLOURS = ["marker.color", "line.color", "error_x.color", "error_y.color", "fillcolor", "colorscale"];

  const pen = document.createElement("canvas").getContext("2d"); // measures texts

  // A colour, or a colour scale, for the background of this page.
  function shade(colour) {
    if (Array.isArray(colour)) return colour.map(shade);
    if (document.documentElement.dataset.theme !== "dark" || typeof colour !== "string") return colour;
    const found = ON_DARK.find(([light]) => colour.includes(light));
    return found ? colour.replace(...found) : colour;
  }

  const readPath = (trace, key) => key.split(".").reduce((part, name) => part?.[name], trace);

  // For each colour attribute: the traces whose colour depends on the theme, and its current value.
  function listColours(traces) {
    const hasBlue = (value) => ON_DARK.some(([light]) => JSON.stringify(value ?? null).includes(light));
    return COLOURS.map((key) => {
      const chosen = [...traces.keys()].filter((i) => hasBlue(readPath(traces[i], key)));
      return [key, chosen, chosen.map((i) => shade(readPath(traces[i], key)))];
    }).filter(([, chosen]) => chosen.length);
  }

  // The layout for the theme: a template, so that a figure's own settings take precedence.
  function buildTheme(layout) {
    const style = getComputedStyle(document.documentElement);
    const readColour = (name) => style.getPropertyValue(`--pst-color-${name}`).trim();
    const axis = { gridcolor: GRID, zerolinecolor: readColour("text-muted"), linecolor: readColour("border") };
    const template = structuredClone(layout.template || {});
    template.layout = template.layout || {};
    const [text, muted] = [readColour("text-base"), readColour("text-muted")];
    for (const name of ["xaxis", "yaxis"]) template.layout[name] = { ...template.layout[name], ...axis };
    template.layout.hoverlabel = { bgcolor: readColour("surface"), bordercolor: muted, font: { color: text } };
    template.layout.modebar = { bgcolor: CLEAR, color: muted, activecolor: text };
    return {
      template,
      "font.color": text,
      "font.family": getComputedStyle(document.body).fontFamily,
      paper_bgcolor: CLEAR,
      plot_bgcolor: CLEAR,
    };
  }

  // The layout adapted to the width of the page and the type of pointer.
  function fitLayout(layout) {
    const result = { ...layout, autosize: true, font: { ...layout.font } };
    delete result.width;
    if (touch.matches) result.dragmode = false; // a finger scrolls the page; it does not zoom
    if (narrow.matches) {
      result.margin = { ...layout.margin, l: 50, r: 10 };
      if (result.title) result.title = { ...result.title, font: { ...result.title.font, size: 13 } };
      result.font.size = 11;
      // the title at the left of several panels is an annotation, placed for a wider margin
      result.annotations = layout.annotations?.map((note) =>
        note.xref === "paper" && note.xshift < BESIDE ? { ...note, xshift: BESIDE } : note);
    }
    return result;
  }

  // Breaks the titles of a figure's axes, while the page is narrow, into lines that are not longer than their axis.
  // plotly gives an axis's length, and the font of its title, only in attributes that are not documented.
  function breakTitles(place) {
    const changes = {};
    for (const name of Object.keys(place._fullLayout).filter((key) => /^[xy]axis\d*$/.test(key))) {
      const { title, _length: room, _name: axis } = place._fullLayout[name];
      if (!place.layout[axis]?.title?.text) continue;
      pen.font = `${title.font.size}px ${title.font.family}`;
      const whole = title.text.replaceAll("<br>", " ");
      const text = narrow.matches ? breakLines(whole, room) : whole;
      if (text === title.text) continue;
      changes[`${axis}.title.text`] = text;
      changes[`${axis}.automargin`] = true; // room for the second line
    }
    if (Object.keys(changes).length) Plotly.relayout(place, changes);
  }

  function breakLines(text, room) {
    const lines = [""];
    for (const word of text.split(" ")) {
      const longer = lines.at(-1) ? `${lines.at(-1)} ${word}` : word;
      if (lines.at(-1) && pen.measureText(longer).width > room) lines.push(word);
      else lines[lines.length - 1] = longer;
    }
    return lines.join("<br>");
  }

  // A figure's menus as the page's own buttons and lists: plotly's cannot be reached by keyboard.
  function addControls(place, menus) {
    const bar = document.createElement("div");
    bar.className = "figure-controls";
    for (const menu of menus) {
      const choose = (number) => {
        const { method, args } = menu.buttons[number];
        Plotly[method](place, ...structuredClone(args));
      };
      bar.append(menu.type === "buttons" ? makeButtons(menu, choose) : makeList(menu, choose));
    }
    place.before(bar);
  }

  function makeButtons(menu, choose) {
    const group = document.createElement("div");
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", "what the figure shows");
    menu.buttons.forEach(({ label }, number) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: label });
      button.setAttribute("aria-pressed", number === 0);
      button.addEventListener("click", () => {
        for (const other of group.children) other.setAttribute("aria-pressed", other === button);
        choose(number);
      });
      group.append(button);
    });
    return group;
  }

  function makeList(menu, choose) {
    const select = document.createElement("select");
    select.setAttribute("aria-label", "subject of the figure");
    menu.buttons.forEach(({ label }, number) => select.append(new Option(label, number)));
    // A list shows one line and cuts off a long name: what is chosen is then also below it.
    const full = Object.assign(document.createElement("div"), { className: "figure-chosen" });
    full.setAttribute("aria-hidden", "true"); // screen readers read the list
    const say = () => {
      const style = getComputedStyle(select);
      pen.font = `${style.fontSize} ${style.fontFamily}`;
      const label = menu.buttons[Number(select.value)].label;
      const cut = pen.measureText(label).width + 2 * parseFloat(style.paddingLeft) + ARROW > select.clientWidth;
      full.textContent = cut && select.clientWidth ? label : "";
    };
    select.addEventListener("change", () => (choose(Number(select.value)), say()));
    new ResizeObserver(say).observe(select);
    const place = document.createElement("div");
    place.className = "figure-list";
    place.append(select, full);
    return place;
  }

  function draw(figure) {
    const place = figure.querySelector(".plot");
    if (place.dataset.drawn) return;
    place.dataset.drawn = "yes";
    const { data, layout } = JSON.parse(figure.querySelector("script").textContent);
    const start = fitLayout(layout);
    for (const [name, value] of Object.entries(buildTheme(layout))) {
      const [key, part] = name.split(".");
      start[key] = part ? { ...start[key], [part]: value } : value;
    }
    if (start.updatemenus?.length) {
      addControls(place, start.updatemenus);
      start.updatemenus = [];
      start.margin = { ...start.margin, t: 30 + (layout.meta?.head ?? 0) }; // what is above the panels
    }
    place.traces = structuredClone(data); // unchanged copies: plotly stores its changes in data
    for (const [key, chosen, values] of listColours(place.traces)) {
      const names = key.split(".");
      const last = names.pop();
      chosen.forEach((trace, i) => (readPath({ data: data[trace] }, ["data", ...names].join("."))[last] = values[i]));
    }
    Plotly.newPlot(place, data, start, CONFIG).then(() => {
      breakTitles(place);
      place.on("plotly_afterplot", () => breakTitles(place)); // a menu has changed them, or a phone was turned
    });
  }

  function redraw(place) {
    for (const [key, chosen, values] of listColours(place.traces)) Plotly.restyle(place, { [key]: values }, chosen);
    Plotly.relayout(place, buildTheme(place.layout));
  }

  const figures = [...document.querySelectorAll("div.plotly-figure")];
  const listDrawn = () => figures.map((figure) => figure.querySelector(".plot")).filter((place) => place.dataset.drawn);

  const watch = new IntersectionObserver(
    (entries) =>
      entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
        watch.unobserve(entry.target);
        draw(entry.target);
      }),
    { rootMargin: "600px" },
  );
  figures.forEach((figure) => watch.observe(figure));
  addEventListener("beforeprint", () => figures.forEach(draw));
  new MutationObserver(() => listDrawn().forEach(redraw)).observe(document.documentElement, {
    attributeFilter: ["data-theme"],
  });
})();
